//! Tests of kind clusters, which have real nodes and pods.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, PostParams};
use muster_testkit::image::{Entry, Image};
use muster_testkit::kind::{KindCluster, KindClusters, KindOptions, docker};
use muster_testkit::tools::Program;
use muster_testkit::wait::eventually;
use serde_json::json;

const IMAGE: &str = "example.test/says:1";
const PORT: u16 = 8080;

/// Creates a pod that serves its cluster's name, and a Service for it. Returns the Service's address.
async fn say_name(cluster: &KindCluster) -> anyhow::Result<String> {
    let client = cluster.client().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({
        "metadata": {"name": "says", "labels": {"app": "says"}},
        "spec": {"containers": [{
            "name": "says", "image": IMAGE,
            "env": [{"name": "STANDIN_SAYS", "value": cluster.name()}],
        }]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let services: Api<Service> = Api::default_namespaced(client);
    let service = json!({
        "metadata": {"name": "says"},
        "spec": {"selector": {"app": "says"}, "ports": [{"port": PORT}]},
    });
    let made = services
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    made.spec
        .and_then(|spec| spec.cluster_ip)
        .context("the Service has no address")
}

/// Sends a request from the cluster's node to an address, and returns the response.
fn heard(from: &KindCluster, address: &str) -> anyhow::Result<String> {
    // The node sends the request. The source address is the node's end of a pod's veth pair, so it is in the pods'
    // network.
    let url = format!("http://{address}:{PORT}/");
    let get = format!(
        "exec 3<>/dev/tcp/{address}/{PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    );
    from.exec(["timeout", "5", "bash", "-c", &get]).context(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_services_of_kind_clusters_reach_each_other() -> anyhow::Result<()> {
    let names = [("kind-a", "north"), ("kind-b", "south")];
    let options = names.map(|(name, region)| KindOptions::new(name, region));
    let clusters = KindClusters::start(options.to_vec()).await?;
    let archive = clusters.directory().join("says.tar");
    Image {
        tags: vec![IMAGE.to_owned()],
        files: vec![Entry::program("standin", &Program::Standin.build()?)],
        entrypoint: vec!["/standin".to_owned()],
        environment: vec![format!("STANDIN_PORTS={PORT}")],
        ..Image::default()
    }
    .write(&archive)?;
    let mut services = Vec::new();
    for cluster in clusters.all() {
        cluster.load(&archive)?;
        services.push(say_name(cluster).await?);
    }
    for from in clusters.all() {
        for (to, service) in clusters.all().iter().zip(&services) {
            eventually(
                "an answer of the other cluster's Service",
                Duration::from_secs(60),
                async || {
                    let heard = heard(from, service)?;
                    anyhow::ensure!(heard.trim_end().ends_with(to.name()), "heard {heard:?}");
                    Ok(())
                },
            )
            .await?;
        }
    }
    let containers = clusters
        .all()
        .iter()
        .map(KindCluster::node)
        .collect::<Vec<_>>();
    drop(clusters);
    for container in containers {
        let left = docker::run(Command::new("docker").args(["inspect", &container]));
        assert!(left.is_err(), "{container} still exists");
    }
    Ok(())
}
