//! `muster demo`: the sample fleet on this machine, on real Kubernetes API servers.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use include_dir::{Dir, include_dir};
use indicatif::{ProgressBar, ProgressStyle};
use muster_model::{
    load::{Loader, Model},
    problem::Scope,
};
use muster_proto::v1;
use muster_runtime::shutdown::Shutdown;
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    gitserver::GitRepo,
    kind::{KindClusters, KindOptions},
    scratch::Scratch,
};

use crate::{
    client,
    output::print,
    problems::{self, WrongUse},
    status::terminal::count as counted,
};

mod programs;
mod stand_in_images;

/// The sample fleet, included in the binary so that the demo needs no other files.
static SAMPLE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../fleet");
/// The longest time from the agents' start until everything is in sync.
const SYNC_WITHIN: Duration = Duration::from_secs(300);

/// The flags of `muster demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// The directory of a fleet repository to use instead of the sample; can't be combined with a --dir that an
    /// earlier run has filled.
    #[arg(long, value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// A directory to keep everything in for the next run, which continues with the repository in it; if not set,
    /// everything is removed at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The kind of clusters to run.
    #[arg(long, value_enum, default_value_t)]
    clusters: Clusters,
    /// The number of simulated nodes in each local cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
}

/// The kinds of clusters that the demo can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Clusters {
    /// Real control planes with simulated nodes and pods.
    #[default]
    Local,
    /// kind clusters, with real nodes and pods in Docker.
    Kind,
}

/// Shows the current step: a spinner on a terminal, otherwise one line per step.
struct Progress {
    bar: ProgressBar,
    began: Instant,
}

impl Progress {
    fn begin(what: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            eprintln!("… {what}");
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {wide_msg} {elapsed:.dim}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(what.to_owned());
        Self {
            bar,
            began: Instant::now(),
        }
    }

    fn says(&self, what: String) {
        self.bar.set_message(what);
    }

    fn done(self, what: &str) {
        self.bar.finish_and_clear();
        let took = self.began.elapsed().as_secs_f64();
        anstream::eprintln!("\x1b[32m✓\x1b[0m {what} \x1b[2m({took:.1} s)\x1b[0m");
    }
}

/// Runs the demo until a signal stops it.
pub(crate) async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let scratch = Scratch::temporary("sample")?;
    let source = source(args, &scratch.path().join("fleet"))?;
    let model = load(&source)?;
    let clusters: Vec<(String, String)> = model
        .clusters
        .iter()
        .map(|(name, cluster)| (name.to_string(), cluster.region.to_string()))
        .collect();
    let work = bring_up(args, &source, clusters);
    let (mut fleet, kind) = tokio::select! {
        fleet = work => fleet?,
        () = shutdown.begun() => return Ok(()),
    };
    tokio::select! {
        synced = until_synced(&mut fleet) => synced?,
        () = shutdown.begun() => return Ok(()),
    }
    welcome(&fleet, args);
    shutdown.begun().await;
    let progress = Progress::begin("stopping");
    let kept = args.dir.is_some();
    let dir = fleet.directory().to_owned();
    drop((fleet, kind));
    progress.done(&if kept {
        format!("stopped; all files stay in {}", dir.display())
    } else {
        "stopped, and everything is removed".into()
    });
    Ok(())
}

/// Returns a directory with the files of the fleet: those of the repository in `--dir` if an earlier run has left one
/// there, else those of `--fleet`, else the sample. The first and the last are written to the new directory `to`.
fn source(args: &DemoArgs, to: &Path) -> anyhow::Result<PathBuf> {
    let kept = args.dir.as_deref().and_then(GitRepo::kept);
    match (kept, &args.fleet) {
        (Some(kept), None) => {
            let copied = kept.clone_to(to);
            copied.with_context(|| format!("can't copy {}", kept.path().display()))?;
            Ok(to.to_owned())
        }
        (Some(kept), Some(fleet)) => Err(WrongUse(format!(
            "{} is the repository of an earlier run, so --fleet can't be used; leave it out to continue with that \
             repository, or use another --dir for {}",
            kept.path().display(),
            fleet.display()
        ))
        .into()),
        (None, Some(fleet)) => Ok(fleet.clone()),
        (None, None) => {
            std::fs::create_dir(to)
                .and_then(|()| SAMPLE.extract(to))
                .context("can't unpack the sample fleet")?;
            Ok(to.to_owned())
        }
    }
}

fn load(source: &Path) -> anyhow::Result<Model> {
    let tree = muster_git::read_dir(source)
        .with_context(|| format!("can't read the fleet repository in {}", source.display()))?;
    let loaded = Loader::default().load(&tree);
    for problem in loaded
        .problems
        .iter()
        .filter(|problem| problem.scope == Scope::Fleet)
    {
        problems::show(problem);
    }
    loaded
        .model
        .context("this fleet repository can't be loaded")
}

async fn bring_up(
    args: &DemoArgs,
    source: &Path,
    clusters: Vec<(String, String)>,
) -> anyhow::Result<(Fleet, Option<KindClusters>)> {
    let clusters_up = counted(clusters.len(), "Kubernetes cluster");
    let agents = counted(clusters.len(), "agent");
    let (programs, kind) = match args.clusters {
        Clusters::Local => (programs::provide(args.nodes).await?, None),
        Clusters::Kind => (BTreeMap::new(), Some(start_kind(source, &clusters).await?)),
    };
    let progress = kind
        .is_none()
        .then(|| Progress::begin(&format!("starting {clusters_up}")));
    let options = FleetOptions {
        muster: std::env::current_exe().context("can't find this program's own file")?,
        audit: false,
        programs,
        clusters,
        nodes: args.nodes,
        running: kind.iter().flat_map(KindClusters::kubeconfigs).collect(),
        directory: args.dir.clone(),
        usual_ports: true,
    };
    let mut fleet = Fleet::start(options).await?;
    if let Some(progress) = progress {
        progress.done(&format!("started {clusters_up}"));
    }
    if !fleet.repo().has_commit() {
        copy(source, &fleet.repo().work())?;
        fleet.repo().git(&["config", "user.name", "Demo"])?;
        fleet
            .repo()
            .git(&["config", "user.email", "demo@example.com"])?;
        fleet.repo().publish(&subject(args), &[])?;
        fleet
            .repo()
            .git(&["branch", "--set-upstream-to=origin/main"])?;
    }
    let progress = Progress::begin("starting the hub and its agents");
    fleet.start_hub().await?;
    fleet.start_agents()?;
    progress.done(&format!("started the hub and {agents}"));
    Ok((fleet, kind))
}

/// Returns the subject of the repository's first commit.
fn subject(args: &DemoArgs) -> String {
    match &args.fleet {
        Some(dir) => {
            let path = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
            format!("A copy of {}", path.display())
        }
        None => "The sample fleet".to_owned(),
    }
}

/// Starts kind clusters, and makes sure that the images of the fleet's pods are available in them.
async fn start_kind(source: &Path, clusters: &[(String, String)]) -> anyhow::Result<KindClusters> {
    let options = clusters
        .iter()
        .map(|(name, region)| KindOptions::new(name, region));
    let count = counted(clusters.len(), "kind cluster");
    let progress = Progress::begin(&format!("starting {count}"));
    let kind = KindClusters::start(options.collect()).await?;
    progress.done(&format!("started {count}"));
    let progress = Progress::begin("finding the images of the fleet's pods");
    let objects = crate::offline::objects(source)?;
    let (kind, said) = tokio::task::spawn_blocking(move || {
        let said = stand_in_images::provide(&kind, &objects)?;
        anyhow::Ok((kind, said))
    })
    .await??;
    progress.done(&said);
    Ok(kind)
}

/// Copies the files of a directory, except its `.git`.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in
        std::fs::read_dir(from).with_context(|| format!("can't read {}", from.display()))?
    {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != ".git" {
                std::fs::create_dir_all(&target)?;
                copy(&entry.path(), &target)?;
            }
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Watches the hub's status until every cluster is in sync and healthy.
async fn until_synced(fleet: &mut Fleet) -> anyhow::Result<()> {
    let progress = Progress::begin("waiting until everything is in sync");
    let began = Instant::now();
    let mut client = client::connect(Some(&fleet.login())).await?;
    let mut updates = client
        .watch_status(v1::StatusRequest::default())
        .await
        .map_err(crate::admin::said)?
        .into_inner();
    loop {
        let left = SYNC_WITHIN.saturating_sub(began.elapsed());
        let Ok(next) = tokio::time::timeout(left, updates.message()).await else {
            bail!(
                "not in sync after {} s; see `muster --login {} status` and the logs in {}",
                SYNC_WITHIN.as_secs(),
                fleet.login().display(),
                fleet.directory().display()
            );
        };
        let status = next
            .map_err(crate::admin::said)?
            .context("the hub has closed the connection")?;
        let synced = |cluster: &&v1::ClusterStatus| cluster.state() == v1::ClusterState::Synced;
        let done = status.clusters.iter().filter(synced).count();
        let apps = status.clusters.iter().flat_map(|cluster| &cluster.apps);
        let (objects, applied) = apps.fold((0, 0), |(all, done), app| {
            (all + app.objects, done + app.applied)
        });
        progress.says(format!(
            "{done} of {} clusters in sync, {applied} of {objects} objects applied",
            status.clusters.len()
        ));
        if !status.clusters.is_empty() && done == status.clusters.len() {
            let objects = counted(objects as usize, "object");
            let clusters = counted(done, "cluster");
            progress.done(&format!("in sync: {objects} in {clusters}"));
            return Ok(());
        }
    }
}

/// Returns the commands that change the fleet in this work tree. If the work tree has the sample's file that the
/// commands edit, people can copy the commands as they are; otherwise they must edit a file first.
fn change(work: &Path) -> String {
    const FILE: &str = "apps/storefront/values.yaml";
    let values = std::fs::read_to_string(work.join(FILE)).unwrap_or_default();
    let (edit, subject) = match values.contains("replicas: ") {
        true => (
            format!("sed -i 's/replicas: .*/replicas: 4/' {FILE} && "),
            "More storefront",
        ),
        false => ("# Edit a file, then:\n  ".to_owned(), "A change"),
    };
    format!(
        "  cd {}\n  {edit}git commit -qam '{subject}' && git push -q\n  muster status --wait\n",
        work.display()
    )
}

fn welcome(fleet: &Fleet, args: &DemoArgs) {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("muster"));
    let folder = exe
        .parent()
        .map(|dir| dir.display().to_string())
        .unwrap_or_default();
    let mut text = format!(
        "\n\x1b[1mThe fleet is up.\x1b[0m In another terminal:\n\n  \
         export MUSTER_LOGIN={} PATH={folder}:$PATH\n  \
         muster status\n\n\
         \x1b[1mChange something\x1b[0m and see it arrive:\n\n{}\n\
         \x1b[1mInspect a cluster:\x1b[0m\n\n",
        fleet.login().display(),
        change(&fleet.repo().work()),
    );
    for (name, kubeconfig) in fleet.kubeconfigs() {
        text += &format!(
            "  kubectl --kubeconfig {} get pods -A   \x1b[2m# {name}\x1b[0m\n",
            kubeconfig.display()
        );
    }
    let end = match &args.dir {
        Some(_) => "stops it; the next run continues from here",
        None => "stops it and removes everything",
    };
    text += &format!(
        "\nLogs are in {}. Ctrl-C {end}.\n",
        fleet.directory().display()
    );
    print(&text);
}

#[cfg(test)]
mod tests;
