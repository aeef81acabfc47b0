//! A hub in this process, and the repository that it follows.

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

/// What a level may take on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

const PLACE: &str = "location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.3}";

pub(crate) fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

/// A template of one ConfigMap.
pub(crate) fn config_map(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{data}}}\n")
}

/// Three clusters in two regions; `web` runs everywhere, `db` has a primary and a standby.
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

/// A repository with [`fleet`] as its first commit.
pub(crate) fn repository() -> GitRepo {
    let repo = GitRepo::new().unwrap();
    publish(&repo, "the fleet", fleet());
    repo
}

/// Commits and pushes files, and gives the commit's id.
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

/// A hub's settings for a repository, with its state in this directory.
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
    /// Where this hub keeps its state, if nobody else cares.
    _state: Option<TempDir>,
}

impl Hub {
    /// With a state of its own.
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
        // A hub that ended lets go of its store a moment later.
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

    /// Ends it in good order; what it leaves behind is for another.
    pub(crate) async fn stop(mut self) -> (HubConfig, Option<TempDir>) {
        self.shutdown.begin();
        (&mut self.running).await.unwrap().unwrap();
        (self.config.clone(), self._state.take())
    }

    /// The same hub again, at the same address.
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
        };
        let removed = self.admin().await.remove_cluster(request).await.unwrap();
        removed.into_inner().revoked
    }

    pub(crate) async fn status(&self) -> v1::Status {
        let mut admin = self.admin().await;
        let status = admin.get_status(v1::StatusRequest::default()).await;
        status.unwrap().into_inner()
    }

    /// Waits for a status, and gives what the look found.
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

    /// Waits until a commit is what the hub works with.
    pub(crate) async fn until_in_force(&self, commit: &str) {
        let look = |status: &v1::Status| {
            let now = status.repo.clone().unwrap_or_default().commit;
            ensure!(now == commit, "{now} is in force");
            Ok(())
        };
        self.until(&format!("{commit} in force"), look).await;
    }

    /// Waits until a commit is in force and every joined cluster runs what it wants.
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

    /// The generation that each cluster should run.
    pub(crate) async fn wanted(&self) -> BTreeMap<String, u64> {
        let status = self.status().await;
        status
            .clusters
            .into_iter()
            .map(|c| (c.name, c.wanted))
            .collect()
    }

    /// A counter, over all its labels that contain this text.
    pub(crate) async fn count(&self, metric: &str, label: &str) -> u64 {
        let (status, text) = self.http("GET", "/metrics", &[]).await;
        assert_eq!(status, 200, "{text}");
        text.lines()
            .filter(|line| line.starts_with(metric) && line.contains(label))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    /// How often somebody was turned away for a reason.
    pub(crate) async fn refused(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        self.count("muster_hub_refused_total", &label).await
    }

    /// How often somebody was turned away for a reason, once that is more than it was: under TLS 1.3 a
    /// client may know that it was refused a moment before the hub has counted it.
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

    /// A request to the plain HTTP side: the answer's code and text.
    pub(crate) async fn http(&self, method: &str, path: &str, headers: &[&str]) -> (u16, String) {
        self.http_with(method, path, headers, "").await
    }

    /// The same with a content.
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

    /// The same at one of its addresses.
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

/// The store of a hub that has stopped.
pub(crate) async fn store_of(config: &HubConfig) -> muster_store::SqliteStore {
    let opening = eventually("the store is free", SOON, async || {
        Ok(muster_store::SqliteStore::open(config.store_path())?)
    });
    opening.await.unwrap()
}

/// Ends a hub and puts a backup in the place of its state. The settings are those of one at the same address.
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

/// The fleet's CA, out of the store of a hub that is not running.
pub(crate) async fn ca_of(config: &HubConfig) -> muster_pki::Ca {
    use muster_store::Store as _;
    let store = store_of(config).await;
    let kept = store.get("ca/current").await.unwrap().unwrap();
    muster_pki::Ca::from_pem(std::str::from_utf8(&kept.value).unwrap()).unwrap()
}

/// A copy of a directory's files.
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
