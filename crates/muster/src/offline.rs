//! The commands that read a fleet repository without a hub: `validate` and `render`.

mod namespaces;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, bail};
use muster_apply::applied_objects;
use muster_model::{
    bundle::{Bundle, BundleHeader},
    ids::{AppName, ClusterName, Role},
    problem::{Problem, Scope, suggest},
    yaml::to_yaml,
};
use muster_render::{RenderedBundle, conflicts, scopes};
use muster_worker::{AsRole, Limits, Outcome, Worker, Writers};
use serde_json::{Value, json};

use crate::status::terminal::count;
use crate::{
    output::{Output, print},
    problems,
};

/// A fleet repository, rendered and checked.
struct Checked {
    outcome: Outcome,
    problems: Vec<Problem>,
}

impl Checked {
    /// Returns the bundles of all apps in all clusters.
    fn bundles(&self) -> impl Iterator<Item = &Arc<RenderedBundle>> {
        self.outcome.bundles.values().flat_map(BTreeMap::values)
    }
}

/// Reads and renders a repository as a hub does: in a separate process.
fn check(dir: &Path, role: Option<AsRole>) -> anyhow::Result<Checked> {
    let tree = muster_git::read_dir(dir)
        .with_context(|| format!("can't read the fleet repository in {}", dir.display()))?;
    let limits = Limits::within(muster_runtime::process::container_memory());
    let mut worker = Worker::new(crate::servers::worker()?, limits, None);
    worker.show_as(role);
    let worked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(worker.work(
            "",
            &Arc::new(tree),
            &Writers::default(),
            std::future::pending(),
        ))?;
    let outcome = worked.context("rendering was interrupted")?;
    let mut problems = outcome.problems.clone();
    problems.extend(clashes(&outcome));
    if problems.iter().all(|problem| problem.scope == Scope::Hint) {
        problems.extend(namespaces::hints(&outcome)?);
    }
    problems.sort_by(|a, b| (&a.file, a.at, &a.message).cmp(&(&b.file, b.at, &b.message)));
    problems.dedup();
    Ok(Checked { outcome, problems })
}

/// Returns two problems, one of each app, for each object that two apps would both bring into a cluster.
fn clashes(outcome: &Outcome) -> Vec<Problem> {
    let mut by_cluster: BTreeMap<&ClusterName, Vec<_>> = BTreeMap::new();
    for (cluster, bundle) in outcome.bundles.values().flatten() {
        by_cluster.entry(cluster).or_default().push(bundle);
    }
    let all = outcome.bundles.values().flat_map(BTreeMap::values);
    let scopes = scopes(all);
    let met = by_cluster.into_iter().map(|(cluster, bundles)| {
        let met = conflicts(bundles.into_iter(), &scopes);
        (cluster.clone(), met)
    });
    muster_plan::compose::problems_of(&met.collect())
}

/// Runs `muster validate`. Returns true if the repository has no errors.
pub(crate) fn validate(dir: &Path, output: Output) -> anyhow::Result<bool> {
    let checked = check(dir, None)?;
    let good = !checked
        .problems
        .iter()
        .any(|problem| problem.scope != Scope::Hint);
    match output {
        Output::Table => {
            for problem in &checked.problems {
                problems::show(problem);
            }
            if let Some(facts) = checked.outcome.facts.as_ref().filter(|_| good) {
                let mut placed = 0;
                let mut objects = 0;
                for bundle in checked.bundles() {
                    placed += 1;
                    objects += bundle.objects;
                }
                print(&format!(
                    "ok: fleet {}, {}, {}, {} in {}, {}\n",
                    facts.fleet,
                    count(facts.regions.len(), "region"),
                    count(facts.clusters.len(), "cluster"),
                    count(facts.apps.len(), "app"),
                    count(placed, "place"),
                    count(objects, "object"),
                ));
            } else {
                let errors = checked
                    .problems
                    .iter()
                    .filter(|p| p.scope != Scope::Hint)
                    .count();
                print(&format!(
                    "{errors} problem{} in {}\n",
                    if errors == 1 { "" } else { "s" },
                    dir.display()
                ));
            }
        }
        Output::Json | Output::Yaml => {
            output.document(&json!({"valid": good, "problems": checked.problems}));
        }
    }
    Ok(good)
}

/// Returns every object that the repository's clusters would get now.
pub(crate) fn objects(dir: &Path) -> anyhow::Result<Vec<Value>> {
    let checked = check(dir, None)?;
    let mut objects = Vec::new();
    for bundle in checked.bundles() {
        let bundle =
            Bundle::decode(&bundle.bytes).context("a rendered bundle can't be read back")?;
        for object in &bundle.objects {
            objects.push(serde_json::from_str(&object.json)?);
        }
    }
    Ok(objects)
}

/// The arguments of `muster render`.
pub(crate) struct RenderRequest<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) app: Option<&'a str>,
    pub(crate) role: Option<Role>,
}

/// An app's objects with the header of their bundle.
type AppObjects = (BundleHeader, Vec<Value>);

/// Returns the end of an error message that suggests other names, if there are any.
fn advice(help: Option<String>) -> String {
    help.map_or_else(String::new, |help| format!("; {help}"))
}

/// Returns the objects of the requested apps as a cluster's agent would apply them, and true if no error concerns them.
fn applied(request: &RenderRequest<'_>) -> anyhow::Result<(Vec<AppObjects>, bool)> {
    let RenderRequest {
        dir,
        cluster,
        app,
        role,
    } = *request;
    let shown = role.zip(cluster.parse::<ClusterName>().ok());
    let checked = check(
        dir,
        shown.map(|(role, cluster)| AsRole {
            cluster,
            app: app.map(str::to_owned),
            role,
        }),
    )?;
    let concerns = |problem: &&Problem| match (&problem.scope, app) {
        (Scope::Fleet, _) => true,
        (Scope::App(name), Some(app)) => name.as_str() == app,
        (Scope::App(name), None) => checked
            .outcome
            .roles
            .get(name)
            .is_none_or(|places| places.keys().any(|place| place.as_str() == cluster)),
        (Scope::Hint | Scope::Hub, _) => false,
    };
    let mut good = true;
    for problem in checked.problems.iter().filter(concerns) {
        problems::warn(problem);
        good = false;
    }
    let Some(facts) = &checked.outcome.facts else {
        return Ok((Vec::new(), false));
    };
    if !facts.clusters.contains_key(cluster) {
        let help = suggest(cluster, facts.clusters.keys().map(ClusterName::as_str));
        bail!("there is no cluster `{cluster}`{}", advice(help));
    }
    if let Some(app) = app
        && !facts.apps.contains_key(app)
        && good
    {
        let help = suggest(app, facts.apps.keys().map(AppName::as_str));
        bail!("there is no app `{app}`{}", advice(help));
    }
    let scopes = scopes(checked.bundles());
    let mut found = Vec::new();
    for (name, places) in &checked.outcome.bundles {
        let Some(rendered) = places
            .get(cluster)
            .filter(|_| app.is_none_or(|app| app == name.as_str()))
        else {
            continue;
        };
        let bundle =
            Bundle::decode(&rendered.bytes).context("a rendered bundle can't be read back")?;
        let objects = applied_objects(&bundle, rendered.hash, |gvk| {
            scopes.is_namespaced(&gvk.group, &gvk.kind)
        })?;
        found.push((bundle.header, objects));
    }
    Ok((found, good))
}

/// Runs `muster render`: prints the objects of a cluster as its agent would apply them. Problems go to standard
/// error, so standard output is always valid YAML or JSON.
pub(crate) fn render(request: &RenderRequest<'_>, output: Output) -> anyhow::Result<bool> {
    let rendered = applied(request);
    let (apps, result) = match rendered {
        Ok((apps, good)) => (apps, Ok(good)),
        Err(error) => (Vec::new(), Err(error)),
    };
    if output == Output::Table {
        for (header, objects) in &apps {
            print(&format!("# app {}, role {}\n", header.app, header.role));
            for object in objects {
                print(&format!("---\n{}\n", to_yaml(object)));
            }
        }
    } else {
        let items: Vec<Value> = apps.into_iter().flat_map(|(_, objects)| objects).collect();
        output.document(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    }
    result
}
