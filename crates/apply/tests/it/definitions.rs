//! Custom resources and the definitions of their kinds.

use std::time::Duration;

use kube::api::PostParams;
use muster_apply::{ObjectState, Observed};
use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, config_map, definition, foo, namespace, object, stored};

#[tokio::test]
async fn namespace_definition_and_resource_come_in_one_set() {
    let fixture = Fixture::new("set").await;
    let mut applied = fixture.start().await;
    let (group, wide) = ("set.example", "setwide.example");
    // Without this annotation, the deletion of a cluster-scoped resource would need an approval.
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
        .settle(stored(1, vec![bundle("a", "set-a", &objects)]))
        .await;
    assert_eq!(observed.bundles[0].counts.applied, 5, "{observed:#?}");
    assert_eq!(fixture.live("set.example/v1", "Foo").await, ["set-a/f"]);
    assert_eq!(
        fixture.live("setwide.example/v1", "Foo").await,
        ["set-wide"]
    );

    // A definition and its resources are also deleted in one generation.
    applied
        .settle(stored(2, vec![bundle("a", "set-a", &[namespace("set-a")])]))
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
    let desired = stored(1, vec![bundle("a", "missing-a", &objects)]);
    let observed = applied.settle(desired).await;
    let ObjectState::Waiting(message) = object(&observed, "Foo.missing.example missing-a/f").state
    else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains("does not know the kind Foo of missing.example/v1"),
        "{message}"
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["missing-a/c"]);

    // Once somebody else installs the definition, the resource is applied.
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
    // The definition serves only v2 and the object is v1, so the run waits for the kind until its limit of 15 s.
    let group = "wait.example";
    let mut other = definition(group, "Namespaced");
    other["spec"]["versions"][0]["name"] = json!("v2");
    let objects = [namespace("wait-a"), other, foo(group, "f")];
    let started = tokio::time::Instant::now();
    applied
        .applier
        .set_desired(stored(1, vec![bundle("a", "wait-a", &objects)]).into());
    let waiting = |state: &ObjectState| matches!(state, ObjectState::Waiting(_));
    applied
        .until(|o| {
            o.bundles
                .iter()
                .flat_map(|b| &b.objects)
                .any(|o| waiting(&o.state))
        })
        .await;
    applied
        .settle(stored(2, vec![bundle("a", "wait-a", &objects[..1])]))
        .await;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the newer generation did not interrupt the wait of 15 s"
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
        .settle(stored(1, vec![bundle("a", "schema-a", &first)]))
        .await;
    let mut changed = first.clone();
    let schema = &mut changed[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"]["colour"] = json!({"type": "string"});
    changed[2]["spec"]["colour"] = json!("red");
    let observed = applied
        .settle(stored(2, vec![bundle("a", "schema-a", &changed)]))
        .await;
    assert_eq!(observed.bundles[0].counts.applied, 3, "{observed:#?}");
    applied.applier.stop().await;
}

/// Returns a definition with these versions; the first is the storage version.
fn with_versions(group: &str, versions: &[&str]) -> Value {
    let mut definition = definition(group, "Namespaced");
    let version = definition["spec"]["versions"][0].clone();
    let versions = versions.iter().enumerate().map(|(place, name)| {
        let mut version = version.clone();
        version["name"] = json!(name);
        version["storage"] = json!(place == 0);
        version
    });
    definition["spec"]["versions"] = versions.collect::<Vec<_>>().into();
    definition
}

fn foo_of(group: &str, version: &str, name: &str) -> Value {
    let mut object = foo(group, name);
    object["apiVersion"] = json!(format!("{group}/{version}"));
    object
}

#[tokio::test]
async fn resources_go_on_when_their_definition_drops_the_version_they_were_applied_in() {
    let fixture = Fixture::new("dropped").await;
    let (group, ns) = ("dropped.example", "dropped-a");
    let mut applied = fixture.start().await;
    let desired = |number, versions: &[&str], version: &str, size: u32| {
        let mut changed = foo_of(group, version, "changed");
        changed["spec"]["size"] = json!(size);
        let owner = [
            namespace(ns),
            with_versions(group, versions),
            changed,
            foo_of(group, version, "same"),
        ];
        let user = [foo_of(group, version, "other")];
        stored(
            number,
            vec![bundle("a", ns, &owner), bundle("b", ns, &user)],
        )
    };
    let all = |o: &Observed| o.bundles.iter().all(|b| b.counts.applied == b.counts.total);
    applied.settle(desired(1, &["v2", "v1"], "v1", 1)).await;
    applied.until(all).await;
    // Another field manager owns a field in that version, too.
    let at = (ns, "changed");
    let label = json!({"metadata": {"labels": {"theirs": "1"}}});
    fixture
        .edit_as("operator", &format!("{group}/v1"), "Foo", at, &label)
        .await;

    // One generation drops the version and changes the objects.
    applied.settle(desired(2, &["v2"], "v2", 2)).await;
    applied.until(all).await;
    let live = fixture
        .get(&format!("{group}/v2"), "Foo", ns, "changed")
        .await;
    assert_eq!(live["spec"]["size"], 2);
    assert_eq!(live["metadata"]["labels"]["theirs"], "1");
    applied.settle(desired(3, &["v2"], "v2", 3)).await;
    applied.until(all).await;
    applied.applier.stop().await;
}

/// The API server refuses a definition that drops a stored version. The resources are still applied in the version
/// that is served.
#[tokio::test]
async fn resources_go_on_while_a_change_of_their_definition_is_refused() {
    let fixture = Fixture::new("stored").await;
    let (group, ns) = ("stored.example", "stored-a");
    let mut applied = fixture.start().await;
    let desired = |number, versions: &[&str], size: u32| {
        let mut changed = foo_of(group, "v2", "changed");
        changed["spec"]["size"] = json!(size);
        let owner = [
            namespace(ns),
            with_versions(group, versions),
            changed.clone(),
        ];
        changed["metadata"]["name"] = json!("other");
        stored(
            number,
            vec![bundle("a", ns, &owner), bundle("b", ns, &[changed])],
        )
    };
    applied.settle(desired(1, &["v1", "v2"], 1)).await;
    let observed = applied.settle(desired(2, &["v2"], 2)).await;
    let text = format!("CustomResourceDefinition.apiextensions.k8s.io foos.{group}");
    assert!(
        matches!(object(&observed, &text).state, ObjectState::Failed(why) if why.contains("storedVersions")),
        "{observed:#?}"
    );
    for name in ["changed", "other"] {
        let live = fixture.get(&format!("{group}/v2"), "Foo", ns, name).await;
        assert_eq!(live["spec"]["size"], 2);
    }
    applied.applier.stop().await;
}
