//! Objects whose deletion is delayed or does not happen.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::fixture::{Fixture, bundle, config_map, namespace, stored};

#[tokio::test]
async fn an_object_with_a_finalizer_is_shown_until_it_is_gone() {
    let fixture = Fixture::new("final").await;
    let mut applied = fixture.start().await;
    let mut held = config_map("held", "1");
    held["metadata"]["finalizers"] = json!(["test.muster.dev/hold"]);
    let objects = [namespace("final-a"), held];
    applied
        .settle(stored(1, vec![bundle("a", "final-a", &objects)]))
        .await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", "final-a", &objects[..1])]))
        .await;
    let messages: Vec<_> = observed
        .leftovers
        .iter()
        .map(|l| l.message.as_str())
        .collect();
    assert_eq!(
        messages,
        ["it is being deleted, waiting for test.muster.dev/hold"]
    );

    // A new process reports it, too.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied
        .settle(stored(3, vec![bundle("a", "final-a", &objects[..1])]))
        .await;
    assert_eq!(observed.leftovers.len(), 1);

    let patch = json!({"metadata": {"finalizers": null}});
    let maps = fixture.config_maps("final-a");
    maps.patch("held", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    applied
        .until(|observed| observed.leftovers.is_empty())
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_namespace_with_wanted_objects_stays() {
    let fixture = Fixture::new("holds").await;
    let mut applied = fixture.start().await;
    let objects = [namespace("holds-a"), config_map("a", "1")];
    applied
        .settle(stored(1, vec![bundle("a", "holds-a", &objects)]))
        .await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", "holds-a", &objects[1..])]))
        .await;
    assert_eq!(observed.leftovers.len(), 1);
    assert!(
        observed.leftovers[0]
            .message
            .contains("still holds ConfigMap holds-a/a")
    );
    assert_eq!(fixture.live("v1", "Namespace").await, ["holds-a"]);
    applied.applier.stop().await;
}
