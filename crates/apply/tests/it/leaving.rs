//! Objects that left Git but are not deleted, because they own other objects, or because a person or Kubernetes
//! prevents it.

use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, config_map, definition, foo, namespace, stored};

#[tokio::test]
async fn a_custom_resource_that_owns_others_is_asked_about() {
    let fixture = Fixture::new("owns").await;
    let (group, api) = ("owns.example", "owns.example/v1");
    let mut applied = fixture.start().await;
    let base = bundle(
        "base",
        "owns-a",
        &[namespace("owns-a"), definition(group, "Namespaced")],
    );
    let all = [
        foo(group, "owner"),
        foo(group, "alone"),
        config_map("c", "1"),
    ];
    applied
        .settle(stored(1, vec![base.clone(), bundle("a", "owns-a", &all)]))
        .await;
    let owner = fixture.get(api, "Foo", "owns-a", "owner").await;
    let mut dependent = config_map("dependent", "1");
    dependent["metadata"]["namespace"] = "owns-a".into();
    dependent["metadata"]["ownerReferences"] = json!([{
        "apiVersion": api, "kind": "Foo", "name": "owner", "uid": owner["metadata"]["uid"],
    }]);
    fixture.create(&dependent).await;
    let without = bundle("a", "owns-a", &all[2..]);
    applied.settle(stored(2, vec![base, without])).await;
    let observed = applied
        .until(|o| o.pending_approvals.len() == 1 && o.leftovers.len() == 1)
        .await;
    assert_eq!(observed.pending_approvals[0].reason, "protected: Foo");
    assert_eq!(fixture.live(api, "Foo").await, ["owns-a/owner"]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_a_person_keeps_is_not_lost_with_its_namespace() {
    let fixture = Fixture::new("keepns").await;
    let mut applied = fixture.start().await;
    let objects = [namespace("keepns-a"), config_map("kept", "1")];
    applied
        .settle(stored(1, vec![bundle("a", "keepns-a", &objects)]))
        .await;
    let patch = json!({"metadata": {"annotations": {"muster.dev/prune": "disabled"}}});
    let at = ("keepns-a", "kept");
    fixture
        .edit_as("kubectl-annotate", "v1", "ConfigMap", at, &patch)
        .await;
    let observed = applied.settle(stored(2, vec![])).await;
    assert_eq!(observed.leftovers.len(), 2, "{observed:#?}");
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["keepns-a/kept"]);
    let live = fixture.api("v1", "Namespace", None).get("keepns-a").await;
    assert!(live.unwrap().metadata.deletion_timestamp.is_none());
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_that_kubernetes_keeps_only_leaves_the_inventory() {
    let fixture = Fixture::new("permanent").await;
    let mut applied = fixture.start().await;
    let labelled = |api: &str, kind: &str, name: &str| -> Value {
        json!({
            "apiVersion": api, "kind": kind,
            "metadata": {"name": name, "labels": {"test.muster.dev/permanent": "true"}},
        })
    };
    let rbac = "rbac.authorization.k8s.io/v1";
    let all = [
        labelled("v1", "Namespace", "default"),
        labelled(rbac, "ClusterRole", "view"),
    ];
    applied
        .settle(stored(1, vec![bundle("a", "default", &all)]))
        .await;
    let observed = applied.settle(stored(2, vec![])).await;
    assert_eq!(
        (observed.leftovers.len(), observed.pending_approvals.len()),
        (0, 0),
        "{observed:#?}"
    );
    for (api, kind, name) in [
        ("v1", "Namespace", "default"),
        (rbac, "ClusterRole", "view"),
    ] {
        let live = fixture.api(api, kind, None).get(name).await.unwrap();
        assert!(live.metadata.deletion_timestamp.is_none());
    }
    applied.applier.stop().await;
}
