//! Accounts of a cluster for agents, in place of an administrator's.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api, Client,
    api::PostParams,
    config::{AuthInfo, Kubeconfig},
};
use muster_testkit::local::Cluster;
use serde_json::{Value, json};

/// A kubeconfig for a ServiceAccount, made from an administrator's.
pub(crate) async fn kubeconfig(
    admin: &str,
    client: &Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let token = accounts
        .create_token_request(name, &params, &request)
        .await?;
    let token = token.status.and_then(|status| status.token);
    let token = token.context("no token")?;
    let mut kubeconfig = Kubeconfig::from_yaml(admin)?;
    for named in &mut kubeconfig.auth_infos {
        named.auth_info = Some(AuthInfo {
            token: Some(token.clone().into()),
            ..AuthInfo::default()
        });
    }
    Ok(serde_yaml::to_string(&kubeconfig)?)
}

/// An account that may do everything, and whose requests the API server writes down.
pub(crate) struct Account {
    kubeconfig: PathBuf,
    log: PathBuf,
}

/// Makes it.
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
    let text = kubeconfig(&cluster.kubeconfig()?, &client, NAMESPACE, "agent").await?;
    let kubeconfig = directory.join("audited.kubeconfig");
    std::fs::write(&kubeconfig, text)?;
    Ok(Account {
        kubeconfig,
        log: cluster.audit_log(),
    })
}

impl Account {
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The account's requests that change something, as verb and address, in order; what is only tried out
    /// is not among them.
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
