//! `muster demo`: the sample fleet on this machine, on real Kubernetes API servers.

use std::{
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
    kind::{KindClusters, KindOptions},
    local::ClusterOptions,
    scratch::Scratch,
};

use crate::{client, output::print, problems, status::terminal::count as counted};

mod stand_in_images;

/// The sample fleet, so that the binary alone is enough.
static SAMPLE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../fleet");
/// From the agents' start until all is in sync.
const SYNC_WITHIN: Duration = Duration::from_secs(300);

/// The demo's flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// A fleet repository's folder to show, instead of the sample.
    #[arg(long, value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// Where to keep everything, so that it is there the next time; a temporary folder that is removed
    /// at the end where this is left out.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What the clusters are.
    #[arg(long, value_enum, default_value_t)]
    clusters: Clusters,
    /// Simulated nodes of each local cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
}

/// What the demo's clusters are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Clusters {
    /// Real control planes whose nodes and pods are played.
    #[default]
    Local,
    /// kind clusters: real nodes and pods, in Docker.
    Kind,
}

/// What is going on, for a person who waits: a spinner on a terminal, a line a step elsewhere.
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

/// Runs the demo until it is told to stop.
pub(crate) async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let sample = Scratch::temporary("sample")?;
    let source = match &args.fleet {
        Some(dir) => dir.clone(),
        None => {
            let unpacked = sample.path().join("fleet");
            std::fs::create_dir(&unpacked)
                .and_then(|()| SAMPLE.extract(&unpacked))
                .context("the sample fleet can't be unpacked")?;
            unpacked
        }
    };
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
        format!("stopped; everything is kept in {}", dir.display())
    } else {
        "stopped, and nothing is left behind".into()
    });
    Ok(())
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
    loaded.model.context("this fleet repository can't be shown")
}

async fn bring_up(
    args: &DemoArgs,
    source: &Path,
    clusters: Vec<(String, String)>,
) -> anyhow::Result<(Fleet, Option<KindClusters>)> {
    let clusters_up = counted(clusters.len(), "cluster");
    let agents = counted(clusters.len(), "agent");
    let kind = match args.clusters {
        Clusters::Local => {
            build_local(args.nodes).await?;
            None
        }
        Clusters::Kind => Some(start_kind(source, &clusters).await?),
    };
    let progress = kind
        .is_none()
        .then(|| Progress::begin(&format!("starting {clusters_up} of Kubernetes")));
    let options = FleetOptions {
        muster: std::env::current_exe().context("this program's own file is not known")?,
        audit: false,
        clusters,
        nodes: args.nodes,
        running: kind.iter().flat_map(KindClusters::kubeconfigs).collect(),
        directory: args.dir.clone(),
        usual_ports: true,
    };
    let mut fleet = Fleet::start(options).await?;
    if let Some(progress) = progress {
        progress.done(&format!("started {clusters_up} of Kubernetes"));
    }
    if fleet
        .repo()
        .git(&["rev-parse", "--verify", "--quiet", "HEAD"])
        .is_err()
    {
        copy(source, &fleet.repo().work())?;
        fleet.repo().git(&["config", "user.name", "Demo"])?;
        fleet
            .repo()
            .git(&["config", "user.email", "demo@example.com"])?;
        fleet.repo().publish("The sample fleet", &[])?;
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

/// Builds what local clusters run, with a word on how far it is.
async fn build_local(nodes: usize) -> anyhow::Result<()> {
    let parts = ClusterOptions {
        nodes,
        controllers: true,
        ..ClusterOptions::new("any")
    };
    tokio::task::spawn_blocking(move || {
        parts
            .components()
            .into_iter()
            .try_for_each(|component| component.program().build().map(drop))
    })
    .await?
}

/// kind clusters that have what the fleet's pods run.
async fn start_kind(source: &Path, clusters: &[(String, String)]) -> anyhow::Result<KindClusters> {
    let options = clusters
        .iter()
        .map(|(name, region)| KindOptions::new(name, region));
    let count = counted(clusters.len(), "kind cluster");
    let progress = Progress::begin(&format!("starting {count}"));
    let kind = KindClusters::start(options.collect()).await?;
    progress.done(&format!("started {count}"));
    let progress = Progress::begin("looking for the images of the fleet");
    let objects = crate::offline::objects(source)?;
    let (kind, said) = tokio::task::spawn_blocking(move || {
        let said = stand_in_images::provide(&kind, &objects)?;
        anyhow::Ok((kind, said))
    })
    .await??;
    progress.done(&said);
    Ok(kind)
}

/// The files of a folder, without a repository of its own.
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

/// Watches the hub's status until every cluster is as wanted and healthy.
async fn until_synced(fleet: &mut Fleet) -> anyhow::Result<()> {
    let progress = Progress::begin("waiting until all is in sync");
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
                "not all is in sync after {} s; see `muster --login {} status` and the logs in {}",
                SYNC_WITHIN.as_secs(),
                fleet.login().display(),
                fleet.directory().display()
            );
        };
        let status = next
            .map_err(crate::admin::said)?
            .context("the hub has ended")?;
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

fn welcome(fleet: &Fleet, args: &DemoArgs) {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("muster"));
    let folder = exe
        .parent()
        .map(|dir| dir.display().to_string())
        .unwrap_or_default();
    let work = fleet.repo().work();
    let mut text = format!(
        "\n\x1b[1mThe fleet is up.\x1b[0m In another terminal:\n\n  \
         export MUSTER_LOGIN={} PATH={folder}:$PATH\n  \
         muster status\n\n\
         \x1b[1mChange something\x1b[0m and see it arrive:\n\n  \
         cd {}\n  \
         sed -i 's/replicas: .*/replicas: 4/' apps/storefront/values.yaml && git commit -qam 'More storefront' && git push -q\n  \
         muster status --wait\n\n\
         \x1b[1mLook into a cluster:\x1b[0m\n\n",
        fleet.login().display(),
        work.display(),
    );
    for (name, kubeconfig) in fleet.kubeconfigs() {
        text += &format!(
            "  kubectl --kubeconfig {} get pods -A   \x1b[2m# {name}\x1b[0m\n",
            kubeconfig.display()
        );
    }
    let end = match &args.dir {
        Some(_) => "stops it; the next run goes on from here",
        None => "stops it and removes everything",
    };
    text += &format!(
        "\nLogs are in {}. Ctrl-C {end}.\n",
        fleet.directory().display()
    );
    print(&text);
}
