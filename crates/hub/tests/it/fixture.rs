//! A hub in this process, and the repository that it watches.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_agent::dial;
use muster_git::RemoteConfig;
use muster_hub::{Addresses, HubConfig, HubError};
use muster_pki::{JoinToken, Login};
use muster_proto::v1::{self, admin_client::AdminClient};
use muster_runtime::shutdown::Shutdown;
use muster_testkit::{gitserver::GitRepo, wait::eventually};
use muster_worker::Program;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tonic::transport::Channel;

/// The time limit of waits, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

const PLACE: &str = "location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.3}";

pub(crate) fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

/// Returns a template of one ConfigMap.
pub(crate) fn config_map(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{data}}}\n")
}

/// Returns the files of a fleet of three clusters in two regions. `web` runs everywhere, `db` has a primary and a
/// standby.
pub(crate) fn fleet() -> BTreeMap<String, String> {
    let file = |path: &str, text: String| (path.to_owned(), text);
    BTreeMap::from([
        file("fleet.yaml", document("Fleet", "harbour", "")),
        file("tiers.yaml", document("Tier", "gold", "rpo: 1m, rto: 15m")),
        file("regions/eu/region.yaml", document("Region", "eu", PLACE)),
        file("regions/us/region.yaml", document("Region", "us", PLACE)),
        file("regions/eu/eu-1.yaml", document("Cluster", "eu-1", "")),
        file("regions/eu/eu-2.yaml", document("Cluster", "eu-2", "")),
        file("regions/us/us-1.yaml", document("Cluster", "us-1", "")),
        file(
            "apps/web/app.yaml",
            document("App", "web", "tier: gold, mode: active-active"),
        ),
        file("apps/web/values.yaml", "size: 1\n".to_owned()),
        file("apps/web/templates/web.yaml", WEB.to_owned()),
        file(
            "apps/db/app.yaml",
            document("App", "db", "tier: gold, mode: active-passive"),
        ),
        file("apps/db/values.yaml", "size: 1\n".to_owned()),
        file(
            "apps/db/templates/db.yaml",
            config_map("db", "size: \"{{ values.size }}\", role: {{ app.role }}"),
        ),
    ])
}

pub(crate) const WEB: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {size: \"{{ values.size }}\"}\n";

/// Creates a repository with [`fleet`] as its first commit.
pub(crate) fn repository() -> GitRepo {
    let repo = GitRepo::new().unwrap();
    publish(&repo, "the fleet", fleet());
    repo
}

/// Commits and pushes files, and returns the commit's ID.
pub(crate) fn publish(
    repo: &GitRepo,
    subject: &str,
    files: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
) -> String {
    let files: Vec<_> = files.into_iter().collect();
    let files: Vec<_> = files
        .iter()
        .map(|(path, text)| (path.as_ref(), text.as_ref()))
        .collect();
    repo.publish(subject, &files).unwrap()
}

/// Returns a hub's settings for a repository, with its state in this directory.
pub(crate) fn config(repo: &Path, state: &Path) -> HubConfig {
    HubConfig::local(
        RemoteConfig::new(repo.to_str().unwrap().parse().unwrap()),
        state.to_owned(),
        Program {
            program: env!("CARGO_BIN_EXE_render-worker").into(),
            args: Vec::new(),
        },
    )
}

/// A running hub.
pub(crate) struct Hub {
    pub(crate) config: HubConfig,
    pub(crate) addresses: Addresses,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), HubError>>,
    /// The state directory, if this hub owns it.
    _state: Option<TempDir>,
}

impl Hub {
    /// Starts a hub with a new state directory.
    pub(crate) async fn new(repo: &GitRepo) -> Self {
        Self::with(repo, |_| {}).await
    }

    pub(crate) async fn with(repo: &GitRepo, change: impl FnOnce(&mut HubConfig)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut config = config(&repo.path(), state.path());
        change(&mut config);
        Self::start(config, Some(state)).await
    }

    pub(crate) async fn start(config: HubConfig, state: Option<TempDir>) -> Self {
        // A hub that has stopped unlocks its store a moment later.
        let starting = eventually("the hub starts", SOON, async || {
            let shutdown = Shutdown::new();
            let (started, addresses) = oneshot::channel();
            let running = tokio::spawn({
                let (config, shutdown) = (config.clone(), shutdown.clone());
                async move {
                    let tell = move |addresses: &Addresses| {
                        let _ = started.send(addresses.clone());
                    };
                    muster_hub::run(config, shutdown, tell).await
                }
            });
            match addresses.await {
                Ok(addresses) => Ok((addresses, shutdown, running)),
                Err(_) => Err(running.await?.err().context("it ended at once")?.into()),
            }
        });
        let (addresses, shutdown, running) = starting.await.unwrap();
        Self {
            config,
            addresses,
            shutdown,
            running,
            _state: state,
        }
    }

    /// Stops the hub gracefully, and returns its settings and state for another.
    pub(crate) async fn stop(mut self) -> (HubConfig, Option<TempDir>) {
        self.shutdown.begin();
        (&mut self.running).await.unwrap().unwrap();
        (self.config.clone(), self._state.take())
    }

    /// Restarts the hub at the same address.
    pub(crate) async fn restart(self) -> Self {
        let grpc = self.addresses.grpc;
        let (mut config, state) = self.stop().await;
        config.listen = grpc;
        Self::start(config, state).await
    }

    pub(crate) fn address(&self) -> String {
        self.addresses.grpc.to_string()
    }

    pub(crate) fn login(&self) -> Login {
        Login::read(&self.config.login_path()).unwrap()
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        let (trust, credentials) = self.login().open().unwrap();
        let channel = dial(&self.address(), &trust, Some(&credentials)).await;
        AdminClient::new(channel.unwrap())
    }

    pub(crate) async fn token(&self, cluster: &str) -> JoinToken {
        self.token_for(cluster, 0).await
    }

    pub(crate) async fn token_for(&self, cluster: &str, valid_seconds: u64) -> JoinToken {
        let request = v1::JoinTokenRequest {
            cluster: cluster.to_owned(),
            valid_seconds,
        };
        let token = self.admin().await.create_join_token(request).await.unwrap();
        token.into_inner().token.parse().unwrap()
    }

    pub(crate) async fn remove(&self, cluster: &str) -> u32 {
        let request = v1::RemoveClusterRequest {
            cluster: cluster.to_owned(),
            ..v1::RemoveClusterRequest::default()
        };
        let removed = self.admin().await.remove_cluster(request).await.unwrap();
        removed.into_inner().revoked
    }

    /// Asks for a cluster's objects, and returns the task that waits for the answer.
    pub(crate) async fn ask_for_objects(&self, cluster: &str) -> JoinHandle<v1::ClusterObjects> {
        let mut admin = self.admin().await;
        let request = v1::ObjectsRequest {
            clusters: vec![cluster.to_owned()],
            app: String::new(),
        };
        tokio::spawn(async move {
            let mut answers = admin.get_objects(request).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap()
        })
    }

    pub(crate) async fn status(&self) -> v1::Status {
        let mut admin = self.admin().await;
        let status = admin.get_status(v1::StatusRequest::default()).await;
        status.unwrap().into_inner()
    }

    /// Waits until `look` accepts the status, and returns its result.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        look: impl Fn(&v1::Status) -> anyhow::Result<T>,
    ) -> T {
        let mut admin = self.admin().await;
        let waiting = eventually(what, SOON, async || {
            let status = admin.get_status(v1::StatusRequest::default()).await?;
            let status = status.into_inner();
            look(&status).with_context(|| format!("{status:#?}"))
        });
        waiting.await.unwrap()
    }

    /// Waits until a commit is in force.
    pub(crate) async fn until_in_force(&self, commit: &str) {
        let look = |status: &v1::Status| {
            let now = status.repo.clone().unwrap_or_default().commit;
            ensure!(now == commit, "{now} is in force");
            Ok(())
        };
        self.until(&format!("{commit} in force"), look).await;
    }

    /// Waits until a commit is in force and every joined cluster is synced.
    pub(crate) async fn until_synced(&self, commit: &str) {
        let look = |status: &v1::Status| {
            let now = status.repo.clone().unwrap_or_default().commit;
            ensure!(now == commit, "{now} is in force");
            for cluster in &status.clusters {
                let state = cluster.state();
                let done = [v1::ClusterState::Synced, v1::ClusterState::Unjoined];
                ensure!(done.contains(&state), "{} is {state:?}", cluster.name);
            }
            Ok(())
        };
        self.until(&format!("all clusters at {commit}"), look).await;
    }

    /// Returns the generation that each cluster should run.
    pub(crate) async fn wanted(&self) -> BTreeMap<String, u64> {
        let status = self.status().await;
        status
            .clusters
            .into_iter()
            .map(|c| (c.name, c.wanted))
            .collect()
    }

    /// Returns the sum of a metric over all series whose labels contain this text.
    pub(crate) async fn count(&self, metric: &str, label: &str) -> u64 {
        let (status, text) = self.http("GET", "/metrics", &[]).await;
        assert_eq!(status, 200, "{text}");
        text.lines()
            .filter(|line| line.starts_with(metric) && line.contains(label))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    /// Returns the number of refusals for a reason.
    pub(crate) async fn refused(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        self.count("muster_hub_refused_total", &label).await
    }

    /// Waits until the number of refusals for a reason is higher than before, and returns it. Under TLS 1.3 a client
    /// may know that it was refused a moment before the hub has counted it.
    pub(crate) async fn refused_again(&self, reason: &str, before: u64) -> u64 {
        let what = format!("more than {before} refusals for {reason}");
        eventually(&what, Duration::from_secs(10), async || {
            let now = self.refused(reason).await;
            anyhow::ensure!(now > before, "{now}");
            Ok(now)
        })
        .await
        .unwrap()
    }

    /// Sends a request to the plain HTTP server, and returns the answer's code and text.
    pub(crate) async fn http(&self, method: &str, path: &str, headers: &[&str]) -> (u16, String) {
        self.http_with(method, path, headers, "").await
    }

    /// Does the same as [`Self::http`], with a body.
    pub(crate) async fn http_with(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let hook = self.addresses.hook.filter(|_| path == "/hook");
        let address = hook.unwrap_or(self.addresses.http);
        self.http_at(address, method, path, headers, body).await
    }

    /// Does the same as [`Self::http_with`], at one of the hub's addresses.
    pub(crate) async fn http_at(
        &self,
        address: SocketAddr,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let headers: String = headers
            .iter()
            .map(|header| format!("{header}\r\n"))
            .collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shutdown.begin();
        self.running.abort();
    }
}

/// Opens the store of a hub that has stopped.
pub(crate) async fn store_of(config: &HubConfig) -> muster_store::SqliteStore {
    let opening = eventually("the store is free", SOON, async || {
        Ok(muster_store::SqliteStore::open(config.store_path())?)
    });
    opening.await.unwrap()
}

/// Stops a hub and restores its store from a backup. The returned settings have the same address.
pub(crate) async fn restored(hub: Hub, backup: &Path) -> (HubConfig, Option<TempDir>) {
    let grpc = hub.addresses.grpc;
    let (mut config, state) = hub.stop().await;
    config.listen = grpc;
    let restoring = eventually("the store is free", SOON, async || {
        Ok(muster_store::restore(backup, &config.store_path())?)
    });
    restoring.await.unwrap();
    (config, state)
}

/// Reads the fleet's CA from the store of a hub that is not running.
pub(crate) async fn ca_of(config: &HubConfig) -> muster_pki::Ca {
    use muster_store::Store as _;
    let store = store_of(config).await;
    let kept = store.get("ca/current").await.unwrap().unwrap();
    muster_pki::Ca::from_pem(std::str::from_utf8(&kept.value).unwrap()).unwrap()
}

/// Copies a directory recursively.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
