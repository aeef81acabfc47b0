//! Waits until a cluster is ready, and creates its nodes.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Node, Service, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::{Cluster, Component};
use crate::wait::eventually;

/// The longest time that each step of a start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ZONES: [char; 3] = ['a', 'b', 'c'];

impl Cluster {
    /// Waits until the cluster is ready again, for example after [`Cluster::resume`].
    ///
    /// # Errors
    /// Fails if the cluster is not ready in time, or a component ends. The error contains the end of the log.
    pub async fn ready(&self) -> anyhow::Result<()> {
        self.api_server_ready().await?;
        let client = self.client().await?;
        if self.programs.contains_key(&Component::ControllerManager) {
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
            let answerable = Component::ControllerManager;
            self.reach("the default service account", answerable, async || {
                accounts.get("default").await?;
                Ok(())
            })
            .await?;
        }
        if self.options.nodes > 0 {
            let nodes: Api<Node> = Api::all(client);
            self.reach("the nodes", Component::Kwok, async || {
                let found = nodes.list(&ListParams::default()).await?;
                let ready = found.iter().filter(|node| is_schedulable(node)).count();
                let wanted = self.options.nodes;
                anyhow::ensure!(ready >= wanted, "{ready} of {wanted} nodes are ready");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    pub(super) async fn api_server_ready(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        self.reach("the API server", Component::ApiServer, async || {
            readyz(&client).await?;
            namespaces.get("default").await?;
            services.get("kubernetes").await?;
            Ok(())
        })
        .await
    }

    /// Waits until `check` succeeds, and fails early if a component ends. An error contains the log of `answerable`.
    async fn reach(
        &self,
        what: &str,
        answerable: Component,
        mut check: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let outcome = eventually(what, PATIENCE, async || {
            let reached = check().await;
            if let Err(ended) = self.all_run() {
                return Ok(Err(ended));
            }
            reached.map(Ok)
        });
        outcome
            .await
            .with_context(|| match self.process(answerable) {
                Ok(process) => {
                    format!(
                        "the end of {}:\n{}",
                        process.log().display(),
                        process.tail()
                    )
                }
                Err(missing) => missing.to_string(),
            })?
    }

    fn all_run(&self) -> anyhow::Result<()> {
        self.processes()
            .values()
            .try_for_each(|process| process.check())
    }

    /// Creates the nodes, which kwok then simulates, and the default storage class.
    pub(super) async fn create_nodes(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        let params = PatchParams::apply("muster-testkit").force();
        let version = client.apiserver_version().await?.git_version;
        let nodes: Api<Node> = Api::all(client.clone());
        let region = &self.options.region;
        for number in 0..self.options.nodes {
            let name = format!("{}-node-{number}", self.name());
            let zone = format!("{region}-{}", ZONES[number % ZONES.len()]);
            let node = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {
                        "kubernetes.io/arch": "amd64",
                        "kubernetes.io/hostname": name,
                        "kubernetes.io/os": "linux",
                        "node.kubernetes.io/instance-type": "kwok",
                        "topology.kubernetes.io/region": region,
                        "topology.kubernetes.io/zone": zone,
                    },
                    "annotations": { "testkit.muster.dev/version": version },
                },
            });
            nodes.patch(&name, &params, &Patch::Apply(&node)).await?;
        }
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": "testkit.muster.dev/volumes",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        });
        let classes: Api<StorageClass> = Api::all(client);
        classes
            .patch("standard", &params, &Patch::Apply(&class))
            .await?;
        Ok(())
    }
}

async fn readyz(client: &Client) -> anyhow::Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    let answer = client.request_text(request).await?;
    anyhow::ensure!(answer == "ok", "/readyz says {answer:?}");
    Ok(())
}

/// Returns true if pods can be scheduled to the node: it is ready, and the taint of new nodes is gone.
fn is_schedulable(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| {
        all.iter()
            .any(|each| each.type_ == "Ready" && each.status == "True")
    });
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    ready && taints.is_none_or(Vec::is_empty)
}
