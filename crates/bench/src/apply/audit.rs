//! Counts the requests of each client. Every client has its own service account, and its requests are counted
//! from the API server's audit log. A proxy could count them too, but on two cores it would distort the
//! measurement. The log costs every client the same few microseconds per request.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use http::Method;
use k8s_openapi::api::{
    core::v1::{Namespace, ServiceAccount},
    rbac::v1::ClusterRoleBinding,
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use muster_testkit::{
    faults::{Asked, Verb},
    local::Cluster,
    wait::eventually,
};
use serde::Deserialize;
use serde_json::json;

/// The namespace of the service accounts. The cluster's audit policy logs the requests of their group.
const NAMESPACE: &str = "audited";

/// Creates the namespace of the clients' service accounts, and grants all permissions to these accounts.
pub(super) async fn prepare(client: &Client) -> anyhow::Result<()> {
    namespace(client, NAMESPACE).await?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": NAMESPACE},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
            "name": format!("system:serviceaccounts:{NAMESPACE}"),
        }],
    }))?;
    let bindings = Api::all(client.clone());
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}

/// Creates a namespace if it does not exist.
pub(super) async fn namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    let namespaces = Api::all(client.clone());
    match namespaces.create(&PostParams::default(), &namespace).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => Ok(created.map(drop)?),
    }
}

/// Creates a service account for a client and returns its kubeconfig.
pub(super) async fn account(cluster: &Cluster, name: &str) -> anyhow::Result<Kubeconfig> {
    let client = cluster.client().await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let account = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    let options = PostParams::default();
    accounts.create(&options, &account).await?;
    cluster.account(NAMESPACE, name).await
}

/// The number of requests of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<Verb, usize>);

impl Counts {
    fn of(&self, verbs: &[Verb]) -> usize {
        verbs.iter().filter_map(|verb| self.0.get(verb)).sum()
    }

    /// Returns the number of requests that can change something.
    pub(super) fn writes(&self) -> usize {
        self.of(&[Verb::Create, Verb::Update, Verb::Patch, Verb::Delete])
    }

    /// Returns the number of dry runs.
    pub(super) fn dry_runs(&self) -> usize {
        self.of(&[Verb::DryRun])
    }

    /// Returns the number of all other requests.
    pub(super) fn reads(&self) -> usize {
        self.total() - self.writes() - self.dry_runs()
    }

    /// Returns the number of all requests.
    pub(super) fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// Returns the counts as text, such as `2 list, 3 watch`.
    pub(super) fn text(&self) -> String {
        if self.0.is_empty() {
            return "none".to_owned();
        }
        let parts = self.0.iter().map(|(verb, count)| format!("{count} {verb}"));
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// A reader of the growing audit log.
pub(super) struct Audit {
    log: PathBuf,
    read: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

impl Audit {
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self {
            log: cluster.audit_log(),
            read: 0,
        }
    }

    /// Returns the requests of this client since the last call for any client.
    pub(super) async fn take(&mut self, account: &str) -> anyhow::Result<Counts> {
        self.wait_until_written().await?;
        let mut file = File::open(&self.log).context("no audit log")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut lines = BufReader::new(file);
        let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
        let mut counts = BTreeMap::new();
        let mut line = String::new();
        loop {
            line.clear();
            self.read += lines.read_line(&mut line)? as u64;
            if line.is_empty() {
                return Ok(Counts(counts));
            }
            let event: Event = serde_json::from_str(&line)?;
            // A watch is counted when it starts, because it may never end.
            let is_watch = event.verb == "watch";
            if event.user.username != user || is_watch != (event.stage == "ResponseStarted") {
                continue;
            }
            let method = match event.verb.as_str() {
                "create" | "post" => Method::POST,
                "update" | "put" => Method::PUT,
                "patch" => Method::PATCH,
                "delete" | "deletecollection" => Method::DELETE,
                _ => Method::GET,
            };
            let asked = Asked::of(&method, &event.request_uri.parse()?);
            *counts.entry(asked.verb).or_default() += 1;
        }
    }

    /// Waits until the log has not grown for a while.
    async fn wait_until_written(&self) -> anyhow::Result<()> {
        let (mut size, mut same) = (0, 0);
        eventually(
            "the audit log to stop growing",
            Duration::from_secs(60),
            async || {
                let now = std::fs::metadata(&self.log).map_or(0, |log| log.len());
                same = if now == size { same + 1 } else { 0 };
                size = now;
                anyhow::ensure!(same > 8, "it is still growing");
                Ok(())
            },
        )
        .await
    }
}
