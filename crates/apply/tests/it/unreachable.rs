//! An API server that is unreachable for a while.

use muster_testkit::local::{Cluster, ClusterOptions, Component};
use serde_json::json;

use crate::fixture::{Fixture, bundle, config_map, namespace, stored};

#[tokio::test]
async fn what_is_wanted_meanwhile_is_applied_afterwards() {
    let cluster = Cluster::start(ClusterOptions::new("apply-away"))
        .await
        .unwrap();
    let fixture = Fixture::of_kubeconfig("gone", &cluster.kubeconfig().unwrap()).await;
    let mut applied = fixture.start().await;
    let desired = |number, value| {
        let objects = [namespace("gone-a"), config_map("a", value)];
        stored(number, vec![bundle("a", "gone-a", &objects)])
    };
    applied.settle(desired(1, "1")).await;

    cluster.stop(Component::ApiServer).await.unwrap();
    applied.applier.set_desired(desired(2, "2").into());
    let observed = applied.until(|observed| observed.problem.is_some()).await;
    let problem = observed.problem.clone().unwrap();
    assert!(problem.contains("did not answer"), "{problem}");
    assert!(!observed.settled);

    cluster.start_component(Component::ApiServer).await.unwrap();
    let observed = applied.settle(desired(2, "2")).await;
    assert_eq!(observed.problem, None);
    let live = fixture.config_maps("gone-a").get("a").await.unwrap();
    assert_eq!(live.data["data"], json!({"v": "2"}));
    applied.applier.stop().await;
}
