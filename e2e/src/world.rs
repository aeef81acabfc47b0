//! The environment of the scenarios, with ways to change and inspect it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use muster_testkit::gitserver::{GitRepo, HttpsGit};
use muster_testkit::image::{Entry, Image};
use muster_testkit::kind::{
    KindCluster, KindClusters, KindOptions, MUSTER_IMAGE, build_static, docker, muster_image,
};
use muster_testkit::repository::{Files, listed};
use muster_testkit::tools::Program;
use muster_testkit::wait::eventually;
use serde_json::Value;

use crate::fleet::{App, CLUSTERS, HUB_CLUSTER, PORT};

/// The namespace of the agents.
const NAMESPACE: &str = "muster-system";
/// The namespace of the hub. It differs from the agents', because the agent in the hub's cluster must not read the
/// hub's Secrets.
const HUB_NAMESPACE: &str = "muster-hub";
/// The maximum number of lines of each output that the report of a failed scenario shows.
const DUMPED: usize = 60;
/// The hub's node port, at which the agents of all clusters reach it.
const HUB_PORT: u16 = 30443;
/// The version of the image, which is built from this workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The quota of etcd's database in bytes, small enough that a scenario can fill it.
const ETCD_QUOTA: u64 = 64 << 20;

/// The longest times that scenarios wait for a state. They are generous, because a machine may be slow, and a wait ends
/// when the state is reached.
#[derive(Debug, Clone, Copy)]
pub struct Levels;

impl Levels {
    /// The time from a commit until all of it runs.
    pub const COMMIT: Duration = Duration::from_secs(90);
    /// The time from the end of a fault until the fleet has recovered.
    pub const RECOVERY: Duration = Duration::from_secs(180);
    /// The time until drift is reverted.
    pub const DRIFT: Duration = Duration::from_secs(30);
}

/// The clusters, the Git server and the images, with methods that do what users do.
#[derive(Debug)]
pub struct World {
    clusters: KindClusters,
    repo: GitRepo,
    git: HttpsGit,
    programs: Programs,
    charts: PathBuf,
}

#[derive(Debug)]
struct Programs {
    kubectl: PathBuf,
    helm: PathBuf,
}

/// The target of a command.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// The agent's namespace in this cluster.
    Cluster(&'a str),
    /// The hub's namespace in the hub's cluster.
    Hub,
}

impl<'a> Place<'a> {
    fn cluster(self) -> &'a str {
        match self {
            Self::Cluster(name) => name,
            Self::Hub => HUB_CLUSTER,
        }
    }

    fn namespace(self) -> &'static str {
        match self {
            Self::Cluster(_) => NAMESPACE,
            Self::Hub => HUB_NAMESPACE,
        }
    }
}

impl World {
    /// Starts the clusters and the Git server, and loads the images. The first scenario installs Muster.
    ///
    /// # Errors
    /// Fails if one of them can't be built or does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let workspace = workspace
            .context("this crate is not in its workspace")?
            .to_owned();
        let charts = workspace.join("charts");
        let built = tokio::task::spawn_blocking(move || {
            let programs = Programs {
                kubectl: Program::Kubectl.build()?,
                helm: Program::Helm.build()?,
            };
            anyhow::Ok((programs, build_static(&workspace)?))
        });
        let (programs, binary) = built.await.context("the build was interrupted")??;
        let options = CLUSTERS.map(|(name, region)| KindOptions {
            etcd_quota: (name != HUB_CLUSTER).then_some(ETCD_QUOTA),
            ..KindOptions::new(name, region)
        });
        let clusters = KindClusters::start(options.to_vec()).await?;
        let images = [
            muster_image(&binary, &[VERSION, "next"]),
            broken_agent()?,
            hello("1", &["STANDIN_PORTS=8080"])?,
            hello("2", &["STANDIN_PORTS=8080"])?,
            hello("crash", &["STANDIN_CRASH=the database is from the future"])?,
        ];
        for (number, image) in images.iter().enumerate() {
            let archive = clusters.directory().join(format!("image-{number}.tar"));
            image.write(&archive)?;
            std::thread::scope(|scope| {
                let loads = clusters
                    .all()
                    .iter()
                    .map(|cluster| scope.spawn(|| cluster.load(&archive)));
                let loads: Vec<_> = loads.collect();
                loads.into_iter().try_for_each(|load| match load.join() {
                    Ok(loaded) => loaded,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })?;
        }
        let repo = GitRepo::new()?;
        let git = HttpsGit::start_at(&repo.root(), clusters.gateway()?.parse()?)?;
        Ok(Self {
            clusters,
            repo,
            git,
            programs,
            charts,
        })
    }

    /// All clusters.
    pub fn clusters(&self) -> &[KindCluster] {
        self.clusters.all()
    }

    /// Returns the cluster with this name.
    ///
    /// # Errors
    /// Fails if there is no such cluster.
    pub fn cluster(&self, name: &str) -> anyhow::Result<&KindCluster> {
        self.clusters.get(name)
    }

    /// The directory for temporary files of a scenario.
    pub fn scratch(&self) -> &Path {
        self.clusters.directory()
    }

    /// The address at which the agents of all clusters reach the hub.
    ///
    /// # Errors
    /// Fails if the hub's cluster does not exist.
    pub fn hub_address(&self) -> anyhow::Result<String> {
        Ok(format!(
            "{}:{HUB_PORT}",
            self.cluster(HUB_CLUSTER)?.address()
        ))
    }

    /// Runs kubectl against a cluster, in the agents' namespace unless the arguments name another one.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn kubectl(&self, cluster: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_at(Place::Cluster(cluster), arguments)
    }

    /// Runs kubectl against the hub's cluster, in the hub's namespace.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn kubectl_hub(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_at(Place::Hub, arguments)
    }

    fn kubectl_at(&self, place: Place<'_>, arguments: &[&str]) -> anyhow::Result<String> {
        docker::run(&mut self.kubectl_command(place, arguments)?)
    }

    fn kubectl_command(&self, place: Place<'_>, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut kubectl = Command::new(&self.programs.kubectl);
        kubectl
            .env("KUBECONFIG", self.cluster(place.cluster())?.kubeconfig())
            .args(["--request-timeout=60s", "--namespace", place.namespace()])
            .args(arguments);
        Ok(kubectl)
    }

    /// Runs `kubectl get -o json` against a cluster and returns its output.
    ///
    /// # Errors
    /// Fails if kubectl fails, or prints no JSON.
    pub fn get(&self, cluster: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(cluster, &[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Runs helm in the agent's namespace of a cluster. `CHARTS/` at the beginning of an argument is replaced by the
    /// folder of the charts.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn helm(&self, cluster: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.helm_at(Place::Cluster(cluster), arguments)
    }

    /// Runs helm in the hub's namespace.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn helm_hub(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.helm_at(Place::Hub, arguments)
    }

    fn helm_at(&self, place: Place<'_>, arguments: &[&str]) -> anyhow::Result<String> {
        let chart = |argument: &&str| match argument.strip_prefix("CHARTS/") {
            Some(chart) => self.charts.join(chart).display().to_string(),
            None => (*argument).to_owned(),
        };
        let mut helm = Command::new(&self.programs.helm);
        helm.env("KUBECONFIG", self.cluster(place.cluster())?.kubeconfig())
            .args(["--namespace", place.namespace()])
            .args(arguments.iter().map(chart));
        docker::run(&mut helm)
    }

    /// Installs or upgrades the hub as docs/operations.md describes, with these additional values.
    ///
    /// # Errors
    /// Fails if helm fails, or the hub is not ready in time.
    pub fn install_hub(&self, settings: &[&str]) -> anyhow::Result<()> {
        if self
            .kubectl_hub(&["get", "namespace", HUB_NAMESPACE])
            .is_err()
        {
            self.kubectl_hub(&["create", "namespace", HUB_NAMESPACE])?;
        }
        if self
            .kubectl_hub(&["get", "secret", "fleet-repository"])
            .is_err()
        {
            let token = format!("--from-file=token={}", self.git.token_file().display());
            let ca = format!("--from-file=ca.crt={}", self.git.ca_file().display());
            let create = [
                "create",
                "secret",
                "generic",
                "fleet-repository",
                &token,
                &ca,
            ];
            self.kubectl_hub(&create)?;
        }
        let url = format!("repo.url={}", self.git.url("fleet.git"));
        let advertise = format!("advertise={}", self.hub_address()?);
        let port = format!("service.nodePort={HUB_PORT}");
        let values = [
            &url,
            "repo.existingSecret=fleet-repository",
            "repo.auth.tokenKey=token",
            "repo.auth.caKey=ca.crt",
            "repo.interval=1s",
            &advertise,
            "service.type=NodePort",
            &port,
        ];
        let mut arguments = vec![
            "upgrade",
            "--install",
            "muster-hub",
            "CHARTS/muster-hub",
            "--wait",
            "--timeout",
            "3m",
        ];
        arguments.extend(
            values
                .into_iter()
                .chain(settings.iter().copied())
                .flat_map(|value| ["--set", value]),
        );
        self.helm_hub(&arguments).map(drop)
    }

    /// Installs or upgrades a cluster's agent with these additional values. Creates a join token if the cluster has not
    /// joined.
    ///
    /// # Errors
    /// Fails if helm fails, or the agent is not ready in time.
    pub fn install_agent(&self, cluster: &str, settings: &[&str]) -> anyhow::Result<()> {
        let joined = self
            .kubectl(cluster, &["get", "secret", "muster-agent-identity"])
            .is_ok();
        let token = match joined {
            true => None,
            false => Some(format!(
                "joinToken={}",
                self.muster(&["cluster", "join-token", cluster])?
            )),
        };
        let mut arguments = vec![
            "upgrade",
            "--install",
            "muster-agent",
            "CHARTS/muster-agent",
            "--create-namespace",
            "--wait",
            "--timeout",
            "3m",
        ];
        let settings = settings.iter().copied().chain(token.as_deref());
        arguments.extend(settings.flat_map(|value| ["--set", value]));
        self.helm(cluster, &arguments).map(drop)
    }

    /// Runs `muster` in the hub's pod and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn muster(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let exec = ["exec", "muster-hub-0", "--", "muster"];
        self.kubectl_hub(&[&exec, arguments].concat())
    }

    /// Runs `muster` in the hub's pod, with a file as its standard input.
    ///
    /// # Errors
    /// Fails like [`World::muster`].
    pub fn muster_with_input(&self, arguments: &[&str], input: &Path) -> anyhow::Result<()> {
        let exec = ["exec", "-i", "muster-hub-0", "--", "muster"];
        let mut command = self.kubectl_command(Place::Hub, &[&exec, arguments].concat())?;
        let input = std::fs::File::open(input)?;
        let status = command.stdin(Stdio::from(input)).status()?;
        anyhow::ensure!(
            status.success(),
            "`muster {}` failed ({status})",
            arguments.join(" ")
        );
        Ok(())
    }

    /// Runs `muster` in the hub's pod and writes its standard output to a file.
    ///
    /// # Errors
    /// Fails like [`World::muster`].
    pub fn muster_into(&self, arguments: &[&str], output: &Path) -> anyhow::Result<()> {
        let exec = ["exec", "muster-hub-0", "--", "muster"];
        let mut command = self.kubectl_command(Place::Hub, &[&exec, arguments].concat())?;
        let status = command.stdout(std::fs::File::create(output)?).status()?;
        anyhow::ensure!(
            status.success(),
            "`muster {}` failed ({status})",
            arguments.join(" ")
        );
        Ok(())
    }

    /// Returns the output of `muster status -o json`, even if the command exits with 1 because of problems.
    ///
    /// # Errors
    /// Fails if the hub does not answer.
    pub fn status(&self) -> anyhow::Result<Value> {
        let exec = [
            "exec",
            "muster-hub-0",
            "--",
            "muster",
            "status",
            "-o",
            "json",
        ];
        let output = self.kubectl_command(Place::Hub, &exec)?.output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Returns the status of a cluster.
    ///
    /// # Errors
    /// Fails if the hub does not answer, or does not know the cluster.
    pub fn status_of(&self, cluster: &str) -> anyhow::Result<Value> {
        let status = self.status()?;
        let clusters = status["clusters"].as_array().into_iter().flatten();
        let mut found = clusters.filter(|each| each["name"] == cluster);
        found
            .next()
            .cloned()
            .with_context(|| format!("the status has no {cluster}: {status}"))
    }

    /// Replaces all files of the repository with these in one commit, and pushes it.
    ///
    /// # Errors
    /// Fails if git fails.
    pub fn commit(&self, subject: &str, files: &Files) -> anyhow::Result<String> {
        if self.repo.work().join("fleet.yaml").exists() {
            self.repo.git(&["rm", "-r", "--quiet", "."])?;
        }
        self.repo.publish(subject, &listed(files))
    }

    /// Commits the app and waits until it serves in every cluster.
    ///
    /// # Errors
    /// Fails if this does not happen in time.
    pub async fn serve(&self, subject: &str, app: &App) -> anyhow::Result<()> {
        self.commit(subject, &app.fleet())?;
        self.serves(app, Levels::COMMIT).await
    }

    /// Waits until the app serves in every cluster and the status agrees.
    ///
    /// # Errors
    /// Fails if this does not happen in time.
    pub async fn serves(&self, app: &App, within: Duration) -> anyhow::Result<()> {
        for (cluster, _) in CLUSTERS {
            self.serves_in(cluster, app, within).await?;
        }
        self.synced(within).await
    }

    /// Waits until the app serves in a cluster.
    ///
    /// # Errors
    /// Fails if this does not happen in time.
    pub async fn serves_in(
        &self,
        cluster: &str,
        app: &App,
        within: Duration,
    ) -> anyhow::Result<()> {
        let region = CLUSTERS
            .iter()
            .find(|(name, _)| *name == cluster)
            .map(|(_, region)| *region);
        let wanted = format!("{} from {}", app.says, region.unwrap_or_default());
        let what = format!("{cluster} to say {wanted:?}");
        eventually(&what, within, async || {
            let heard = self.hear(cluster).await?;
            anyhow::ensure!(heard == wanted, "{heard:?}");
            Ok(())
        })
        .await
    }

    /// Requests the app's text over HTTP from the node port of a cluster.
    ///
    /// # Errors
    /// Fails if the app does not answer.
    pub async fn hear(&self, cluster: &str) -> anyhow::Result<String> {
        let address = format!("{}:{PORT}", self.cluster(cluster)?.address());
        let page = muster_testkit::fleet::get(&address, "/");
        let page = tokio::time::timeout(Duration::from_secs(5), page).await;
        let page = page.context("no answer")??;
        let (head, body) = page.split_once("\r\n\r\n").context("no HTTP answer")?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{page}");
        Ok(body.trim().to_owned())
    }

    /// Waits until the newest commit runs everywhere and is healthy.
    ///
    /// # Errors
    /// Fails if this does not happen in time. The error contains the status.
    pub async fn synced(&self, within: Duration) -> anyhow::Result<()> {
        let head = self.repo.git(&["rev-parse", "HEAD"])?;
        eventually("the fleet to be in sync", within, async || {
            let status = self.status()?;
            let all = status["synced"] == true && status["repo"]["commit"] == head.as_str();
            anyhow::ensure!(all, "{}", serde_json::to_string_pretty(&status)?);
            Ok(())
        })
        .await
    }

    /// Waits until the hub reports a cluster as connected (`wanted`) or offline.
    ///
    /// # Errors
    /// Fails if this does not happen in time.
    pub async fn connected(
        &self,
        cluster: &str,
        wanted: bool,
        within: Duration,
    ) -> anyhow::Result<()> {
        let what = format!(
            "{cluster} to be {}",
            if wanted { "connected" } else { "offline" }
        );
        eventually(&what, within, async || {
            let status = self.status_of(cluster)?;
            anyhow::ensure!(status["connected"] == wanted, "{status}");
            Ok(())
        })
        .await
    }

    /// Waits until the status of a cluster contains this text.
    ///
    /// # Errors
    /// Fails if this does not happen in time.
    pub async fn says(&self, cluster: &str, words: &str, within: Duration) -> anyhow::Result<()> {
        let what = format!("the status of {cluster} to say {words:?}");
        eventually(&what, within, async || {
            let status = self.status_of(cluster)?.to_string();
            anyhow::ensure!(status.contains(words), "{status}");
            Ok(())
        })
        .await
    }

    /// Returns logs, pods and events for the report of a failed scenario.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut add = |what: &str, printed: anyhow::Result<String>| {
            let printed = printed.unwrap_or_else(|error| format!("{error:#}"));
            let from = printed.lines().count().saturating_sub(DUMPED);
            text.push_str(&format!("-- {what}\n"));
            for line in printed.lines().skip(from) {
                text.push_str(&format!("{line:.300}\n"));
            }
        };
        let hub = ["logs", "statefulset/muster-hub", "--tail=60"].as_slice();
        add("the hub's log", self.kubectl_at(Place::Hub, hub));
        add("muster status", self.muster(&["status"]));
        for (cluster, _) in CLUSTERS {
            for arguments in [
                ["get", "pods", "--all-namespaces"].as_slice(),
                &[
                    "get",
                    "events",
                    "--all-namespaces",
                    "--sort-by=.lastTimestamp",
                ],
                &["logs", "deployment/muster-agent", "--tail=60"],
            ] {
                let what = format!("{cluster}: kubectl {}", arguments.join(" "));
                add(&what, self.kubectl(cluster, arguments));
            }
        }
        text
    }
}

/// Returns an image with the agent's name whose program exits immediately.
fn broken_agent() -> anyhow::Result<Image> {
    let broken = hello("unused", &["STANDIN_CRASH=this agent is broken"])?;
    Ok(Image {
        tags: vec![format!("{MUSTER_IMAGE}:broken")],
        ..broken
    })
}

fn hello(tag: &str, environment: &[&str]) -> anyhow::Result<Image> {
    Ok(Image {
        tags: vec![format!("{}:{tag}", App::IMAGE)],
        files: vec![Entry::program("standin", &Program::Standin.build()?)],
        entrypoint: vec!["/standin".to_owned()],
        environment: environment.iter().map(|&pair| pair.to_owned()).collect(),
        ..Image::default()
    })
}
