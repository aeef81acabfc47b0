//! Custom resources and the definitions of their kinds.

use std::time::Duration;

use kube::api::PostParams;
use muster_apply::Standing;
use serde_json::json;

use crate::fixture::{Fixture, bundle, config_map, definition, foo, kept, namespace, object};

#[tokio::test]
async fn namespace_definition_and_resource_come_in_one_set() {
    let fixture = Fixture::new("set").await;
    let mut applied = fixture.start().await;
    let (group, wide) = ("set.example", "setwide.example");
    // One that concerns the whole cluster would wait for an approval.
    let mut cluster_wide = foo(wide, "set-wide");
    cluster_wide["metadata"]["annotations"] = json!({"muster.dev/prune": "enabled"});
    let objects = [
        foo(group, "f"),
        cluster_wide,
        definition(group, "Namespaced"),
        definition(wide, "Cluster"),
        namespace("set-a"),
    ];
    let observed = applied
        .settle(kept(1, vec![bundle("a", "set-a", &objects)]))
        .await;
    assert_eq!(observed.bundles[0].counts.applied, 5, "{observed:#?}");
    assert_eq!(fixture.live("set.example/v1", "Foo").await, ["set-a/f"]);
    assert_eq!(
        fixture.live("setwide.example/v1", "Foo").await,
        ["set-wide"]
    );

    // A definition and its resources go together, too.
    applied
        .settle(kept(2, vec![bundle("a", "set-a", &[namespace("set-a")])]))
        .await;
    applied
        .until(|observed| observed.leftovers.is_empty())
        .await;
    let definitions = fixture.api("apiextensions.k8s.io/v1", "CustomResourceDefinition", None);
    assert!(
        definitions
            .get_opt("foos.set.example")
            .await
            .unwrap()
            .is_none()
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_missing_definition_does_not_stop_the_rest() {
    let fixture = Fixture::new("missing").await;
    let mut applied = fixture.start().await;
    let group = "missing.example";
    let objects = [
        namespace("missing-a"),
        foo(group, "f"),
        config_map("c", "1"),
    ];
    let wanted = kept(1, vec![bundle("a", "missing-a", &objects)]);
    let observed = applied.settle(wanted).await;
    let Standing::Waiting(message) = object(&observed, "Foo.missing.example missing-a/f").standing
    else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains("does not know the kind Foo of missing.example/v1"),
        "{message}"
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["missing-a/c"]);

    // Somebody else installs it; the resource follows.
    let definitions = fixture.api("apiextensions.k8s.io/v1", "CustomResourceDefinition", None);
    let installed = serde_json::from_value(definition(group, "Namespaced")).unwrap();
    definitions
        .create(&PostParams::default(), &installed)
        .await
        .unwrap();
    applied
        .until(|observed| observed.bundles[0].counts.applied == 3)
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_newer_generation_interrupts_the_wait_for_a_definition() {
    let fixture = Fixture::new("wait").await;
    let mut applied = fixture.start().await;
    // The definition serves v2 only, the object is of v1: it waits for as long as a run may wait.
    let group = "wait.example";
    let mut other = definition(group, "Namespaced");
    other["spec"]["versions"][0]["name"] = json!("v2");
    let objects = [namespace("wait-a"), other, foo(group, "f")];
    let started = tokio::time::Instant::now();
    applied
        .applier
        .want(kept(1, vec![bundle("a", "wait-a", &objects)]).into());
    let waiting = |standing: &Standing| matches!(standing, Standing::Waiting(_));
    applied
        .until(|o| {
            o.bundles
                .iter()
                .flat_map(|b| &b.objects)
                .any(|o| waiting(&o.standing))
        })
        .await;
    applied
        .settle(kept(2, vec![bundle("a", "wait-a", &objects[..1])]))
        .await;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the wait is 15 s"
    );
    applied
        .until(|observed| observed.leftovers.is_empty())
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_changed_schema_and_its_resource_come_in_one_generation() {
    let fixture = Fixture::new("schema").await;
    let mut applied = fixture.start().await;
    let group = "schema.example";
    let first = [
        namespace("schema-a"),
        definition(group, "Namespaced"),
        foo(group, "f"),
    ];
    applied
        .settle(kept(1, vec![bundle("a", "schema-a", &first)]))
        .await;
    let mut changed = first.clone();
    let schema = &mut changed[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"]["colour"] = json!({"type": "string"});
    changed[2]["spec"]["colour"] = json!("red");
    let observed = applied
        .settle(kept(2, vec![bundle("a", "schema-a", &changed)]))
        .await;
    assert_eq!(observed.bundles[0].counts.applied, 3, "{observed:#?}");
    applied.applier.stop().await;
}
