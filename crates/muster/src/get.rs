//! `muster get`: lists of regions, clusters, apps and objects.

use clap::{Args, ValueEnum};
use futures::TryStreamExt as _;
use muster_proto::v1;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    admin::said,
    client::Client,
    output::{Output, print},
    status::{
        ask,
        document::{App, Cluster, Document, Filter, Region, State, Writer},
        no_such, report,
        terminal::{Cell, Grid, Terminal, Tone, one_line},
        value,
    },
};

/// The kinds of things that can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Noun {
    /// Regions, with the number of their clusters.
    #[value(alias = "region")]
    Regions,
    /// Clusters, with their state.
    #[value(alias = "cluster")]
    Clusters,
    /// Apps, with the number of clusters in which they are synced.
    #[value(alias = "app")]
    Apps,
    /// Objects in the clusters, as reported by the agents.
    #[value(alias = "object")]
    Objects,
}

/// The arguments of `muster get`, which exits with 1 if the name does not exist or an agent can't be asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct GetArgs {
    /// What to list.
    #[arg(value_name = "WHAT")]
    noun: Noun,
    /// Only this name; for objects also NAMESPACE/NAME.
    name: Option<String>,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `muster get`. Returns false if an agent can't be asked.
pub(crate) async fn run(
    mut client: Client,
    args: &GetArgs,
    output: Output,
) -> anyhow::Result<bool> {
    let document = ask(&mut client, &args.filter).await?;
    let name = args.name.as_deref();
    let terminal = Terminal::of_stdout(document.now);
    let (list, grid, complete) = match args.noun {
        Noun::Regions => {
            let regions = narrow("region", document.regions, |r| &r.name, name)?;
            (
                json!({"regions": value(&regions)?}),
                region_grid(&regions, terminal),
                true,
            )
        }
        Noun::Clusters => {
            let clusters = narrow("cluster", document.clusters, |c| &c.name, name)?;
            let grid = report::cluster_grid(clusters.iter(), terminal);
            (json!({"clusters": value(&clusters)?}), grid, true)
        }
        Noun::Apps => {
            let apps = narrow("app", document.apps, |a| &a.name, name)?;
            (
                json!({"apps": value(&apps)?}),
                app_grid(&apps, terminal),
                true,
            )
        }
        Noun::Objects => {
            let objects = objects(&mut client, &document, &args.filter).await?;
            let objects = objects.narrow(name)?;
            let complete = objects.unanswered.is_empty();
            if output == Output::Table {
                for Unanswered { cluster, problem } in &objects.unanswered {
                    anstream::eprintln!(
                        "\x1b[1;33mwarning\x1b[0m: can't list the objects of {cluster}: {problem}"
                    );
                }
            }
            (value(&objects)?, object_grid(&objects.objects), complete)
        }
    };
    show(&list, grid, terminal, output, complete);
    Ok(complete)
}

fn show(list: &Value, grid: Grid, terminal: Terminal, output: Output, complete: bool) {
    match output {
        Output::Table if grid.is_empty() => {
            if complete {
                anstream::eprintln!("nothing found");
            }
        }
        Output::Table => print(&grid.draw(terminal)),
        Output::Json | Output::Yaml => output.document(list),
    }
}

/// Returns the item with this name, or all items if no name is given.
fn narrow<T>(
    noun: &str,
    all: Vec<T>,
    name_of: impl Fn(&T) -> &String,
    name: Option<&str>,
) -> anyhow::Result<Vec<T>> {
    let Some(name) = name else {
        return Ok(all);
    };
    let (mut found, others): (Vec<T>, Vec<T>) =
        all.into_iter().partition(|item| name_of(item) == name);
    if found.is_empty() {
        let known = others.iter().map(|item| name_of(item).as_str());
        anyhow::bail!(no_such(noun, name, known));
    }
    found.truncate(1);
    Ok(found)
}

/// Returns a cell with the number of synced clusters and the number of all clusters, in the matching tone.
fn synced(terminal: Terminal, synced: usize, all: usize) -> Cell {
    let text = format!("{synced}/{all}");
    match all {
        0 => Cell::new(Tone::Faint, text),
        all if all == synced => Cell::state(terminal, State::Synced, &text),
        _ => Cell::state(terminal, State::Progressing, &text),
    }
}

fn region_grid(regions: &[Region], terminal: Terminal) -> Grid {
    let mut grid = Grid::new(["NAME", "CONTINENT", "COUNTRY", "CITY", "CLUSTERS SYNCED"])
        .spare(&["CONTINENT", "COUNTRY"]);
    for region in regions {
        grid.row([
            region.name.as_str().into(),
            Cell::or_dash(Some(&region.continent)),
            Cell::or_dash(Some(&region.country)),
            Cell::or_dash(Some(&region.city)),
            synced(terminal, region.synced, region.clusters),
        ]);
    }
    grid
}

fn app_grid(apps: &[App], terminal: Terminal) -> Grid {
    let mut grid = Grid::new([
        "NAME",
        "TIER",
        "MODE",
        "OWNER",
        "WRITER",
        "CLUSTERS SYNCED",
        "BLOCKED",
    ])
    .spare(&["OWNER", "MODE", "TIER"]);
    for app in apps {
        let writer = app.writer.as_ref();
        let held = if app.held {
            Cell::new(Tone::Bad, "yes")
        } else {
            Cell::or_dash(None)
        };
        grid.row([
            app.name.as_str().into(),
            Cell::or_dash(Some(&app.tier)),
            Cell::or_dash(Some(&app.mode)),
            Cell::or_dash(Some(&one_line(&app.owner))),
            Cell::or_dash(writer.map(writer_text).as_deref()),
            synced(terminal, app.synced, app.clusters),
            held,
        ]);
    }
    grid
}

/// Describes where an app's writer is, or from where to where it moves.
fn writer_text(writer: &Writer) -> String {
    let holder = &writer.cluster;
    match &writer.moved {
        None => holder.clone(),
        Some(step) if step.step == "fencing" => format!("{holder} → {} (fencing)", step.cluster),
        Some(step) => format!("{} → {holder} ({})", step.cluster, step.step),
    }
}

/// The objects that agents reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Objects {
    objects: Vec<Object>,
    /// The clusters whose objects are missing, because their agents can't be asked.
    unanswered: Vec<Unanswered>,
}

/// An object in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    cluster: String,
    app: String,
    api_version: String,
    kind: String,
    /// The object's namespace; empty if it has none.
    namespace: String,
    name: String,
    uid: String,
    /// The object's state: `Pending`, `Applied`, `Waiting`, `Failed`, `Approval`, `LeftAlone`, `Drifted` or `Leaving`.
    state: String,
    /// The object's health, in Argo CD's words.
    health: String,
    message: String,
}

impl Object {
    fn full_name(&self) -> String {
        match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }
}

/// A cluster whose agent can't be asked, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unanswered {
    cluster: String,
    problem: String,
}

impl Objects {
    fn of(answers: Vec<v1::ClusterObjects>, apps: &[String]) -> Self {
        let mut all = Self::default();
        for answer in answers {
            let cluster = answer.cluster;
            let asked = |app: &str| apps.is_empty() || apps.iter().any(|asked| asked == app);
            let own = answer
                .objects
                .into_iter()
                .filter(|object| asked(&object.app));
            all.objects.extend(own.map(|object| Object {
                cluster: cluster.clone(),
                app: object.app,
                api_version: object.api_version,
                kind: object.kind,
                namespace: object.namespace,
                name: object.name,
                uid: object.uid,
                state: object.state,
                health: object.health,
                message: object.message,
            }));
            if !answer.problem.is_empty() {
                let problem = answer.problem;
                all.unanswered.push(Unanswered { cluster, problem });
            }
        }
        all
    }

    /// Returns the objects with this name. If there are none, that is an error, unless an agent did not answer.
    fn narrow(mut self, name: Option<&str>) -> anyhow::Result<Self> {
        let Some(name) = name else {
            return Ok(self);
        };
        let all = std::mem::take(&mut self.objects);
        let (found, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|object| object.name == name || object.full_name() == name);
        if found.is_empty() && self.unanswered.is_empty() {
            let mut known: Vec<&str> = others.iter().map(|object| object.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            anyhow::bail!(no_such("object", name, known));
        }
        self.objects = found;
        Ok(self)
    }
}

async fn objects(
    client: &mut Client,
    document: &Document,
    filter: &Filter,
) -> anyhow::Result<Objects> {
    let app = match filter.apps.as_slice() {
        [one] => one.clone(),
        _ => String::new(),
    };
    let clusters: Vec<String> = document
        .clusters
        .iter()
        .map(|c: &Cluster| c.name.clone())
        .collect();
    if clusters.is_empty() {
        // The hub would treat an empty list as all clusters.
        return Ok(Objects::default());
    }
    let request = v1::ObjectsRequest { clusters, app };
    let answers = client
        .get_objects(request)
        .await
        .map_err(said)?
        .into_inner();
    let answers: Vec<v1::ClusterObjects> = answers.try_collect().await.map_err(said)?;
    Ok(Objects::of(answers, &filter.apps))
}

fn object_grid(objects: &[Object]) -> Grid {
    let mut grid = Grid::new([
        "CLUSTER",
        "APP",
        "KIND",
        "NAMESPACE/NAME",
        "STATE",
        "HEALTH",
        "MESSAGE",
    ]);
    for object in objects {
        let state = match object.state.as_str() {
            "Applied" => Tone::Good,
            "Failed" => Tone::Bad,
            "Drifted" => Tone::Warning,
            _ => Tone::Busy,
        };
        let health = match object.health.as_str() {
            "Healthy" => Tone::Good,
            "Degraded" => Tone::Bad,
            "Progressing" | "Missing" => Tone::Busy,
            _ => Tone::Faint,
        };
        let toned = |tone, text: &str| match text {
            "" => Cell::or_dash(None),
            text => Cell::new(tone, text),
        };
        grid.row([
            object.cluster.as_str().into(),
            object.app.as_str().into(),
            object.kind.as_str().into(),
            object.full_name().into(),
            toned(state, &object.state),
            toned(health, &object.health),
            one_line(&object.message).into(),
        ]);
    }
    let Some(first) = objects.first() else {
        return grid;
    };
    // A column with the same value in all rows may be left out.
    let mut spare = Vec::new();
    if objects.iter().all(|object| object.cluster == first.cluster) {
        spare.push("CLUSTER");
    }
    if objects.iter().all(|object| object.app == first.app) {
        spare.push("APP");
    }
    grid.spare(&spare)
}

#[cfg(test)]
mod tests;
