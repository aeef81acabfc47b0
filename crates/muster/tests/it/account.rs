//! A ServiceAccount for an agent whose writes a test checks.

use std::path::{Path, PathBuf};

use k8s_openapi::api::{
    core::v1::{Namespace, ServiceAccount},
    rbac::v1::ClusterRoleBinding,
};
use kube::{Api, api::PostParams};
use muster_testkit::local::Cluster;
use serde_json::{Value, json};

/// A ServiceAccount that may do everything, and whose requests are in the API server's audit log.
pub(crate) struct Account {
    kubeconfig: PathBuf,
    log: PathBuf,
}

/// Creates the account and its kubeconfig.
pub(crate) async fn audited(cluster: &Cluster, directory: &Path) -> anyhow::Result<Account> {
    const NAMESPACE: &str = "audited";
    let client = cluster.client().await?;
    let params = PostParams::default();
    let metadata = json!({"name": NAMESPACE});
    let namespace: Namespace = serde_json::from_value(json!({"metadata": metadata}))?;
    Api::all(client.clone()).create(&params, &namespace).await?;
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "agent"}}))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    accounts.create(&params, &account).await?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": NAMESPACE, "name": "agent"}],
    }))?;
    Api::all(client.clone()).create(&params, &binding).await?;
    let config = cluster.account(NAMESPACE, "agent").await?;
    let kubeconfig = directory.join("audited.kubeconfig");
    std::fs::write(&kubeconfig, serde_yaml::to_string(&config)?)?;
    Ok(Account {
        kubeconfig,
        log: cluster.audit_log(),
    })
}

impl Account {
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Returns the account's requests that change something, as verb and URI, in order. Dry runs are left out.
    pub(crate) fn writes(&self) -> anyhow::Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.log)?;
        let mut writes = Vec::new();
        for line in text.lines() {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let text = |field: &str| event[field].as_str().unwrap_or_default();
            let (verb, uri) = (text("verb"), text("requestURI"));
            let reads = matches!(verb, "get" | "list" | "watch");
            if !reads && !uri.contains("dryRun=All") {
                writes.push(format!("{verb} {uri}"));
            }
        }
        Ok(writes)
    }
}
