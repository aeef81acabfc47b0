//! Objects that two apps claim, and namespaces that do not exist and are in no app.

use kube::discovery::{Discovery, Scope};
use muster_apply::ObjectState;
use muster_model::scopes::is_namespaced;
use muster_plan::health::Health;
use serde_json::{Value, json};

use crate::fixture::{
    Fixture, bundle, config_map, definition, foo, making, namespace, object, stored,
};

/// The table of scopes has every built-in kind of a real API server, with the scope that the API server reports.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_scopes_is_the_api_servers() {
    let fixture = Fixture::new("scopes").await;
    let discovery = Discovery::new(fixture.client.clone()).run().await.unwrap();
    let mut seen = 0;
    for group in discovery.groups() {
        // These kinds are defined by other tests.
        if group.name().contains('.') && !group.name().ends_with(".k8s.io") {
            continue;
        }
        for version in group.versions() {
            for (resource, capabilities) in group.versioned_resources(version) {
                let namespaced = capabilities.scope == Scope::Namespaced;
                let (group, kind) = (&resource.group, &resource.kind);
                assert_eq!(
                    is_namespaced(group, kind),
                    Some(namespaced),
                    "{kind}.{group}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "only {seen} kinds");
}

fn cluster_role(name: &str, from: &str) -> Value {
    let metadata = json!({"name": name, "labels": {"from": from}});
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": []})
}

/// The app that had an object first keeps it, regardless of the names of the apps. The object fails in the other app,
/// with a message that names the owner.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_apps_with_one_object_the_first_to_have_it_keeps_it() {
    let fixture = Fixture::new("shared").await;
    let group = "shared.apply.test";
    let foo = |from: &str, written: &str| {
        let mut foo = foo(group, "shared");
        foo["metadata"]["labels"] = json!({"from": from});
        foo["metadata"]["namespace"] = json!(written);
        foo
    };
    let defs = || bundle("defs", "shared", &[definition(group, "Cluster")]);
    let own = |name: &str| config_map(name, "1");
    let mut applied = fixture.start().await;
    let owner = |value: &str| {
        let objects = [
            namespace("shared-owner"),
            config_map("mine", value),
            cluster_role("shared", "owner"),
            foo("owner", "shared-owner"),
        ];
        bundle("owner", "shared-owner", &objects)
    };
    let observed = applied.settle(stored(1, vec![defs(), owner("1")])).await;
    assert_eq!(
        object(&observed, &format!("Foo.{group} shared")).state,
        ObjectState::Applied
    );
    assert_eq!(observed.cluster_scoped, [format!("Foo.{group}")]);

    // The name of the other app sorts first.
    let other = || {
        let objects = [
            namespace("shared-other"),
            own("theirs"),
            cluster_role("shared", "other"),
            foo("other", "shared-other"),
        ];
        bundle("a-rival", "shared-other", &objects)
    };
    let from = async |kind: &str, api_version: &str| {
        let live = fixture
            .api(api_version, kind, None)
            .get("shared")
            .await
            .unwrap();
        live.metadata.labels.unwrap()["from"].clone()
    };
    let check = async |observed: &muster_apply::Observed, value: &str| {
        let rival = &observed.bundles[0];
        assert_eq!(rival.app.as_str(), "a-rival");
        let refused: Vec<(String, &ObjectState)> = rival
            .objects
            .iter()
            .filter(|object| object.state != ObjectState::Applied)
            .map(|object| (object.id.to_string(), &object.state))
            .collect();
        let why = |id: &str| {
            ObjectState::Failed(format!(
                "app owner has {id}, and an object belongs to one app: remove it from a-rival, or \
                 from owner so that it becomes a-rival's"
            ))
        };
        let role = "ClusterRole.rbac.authorization.k8s.io shared".to_owned();
        let foo = format!("Foo.{group} shared");
        assert_eq!(
            refused,
            [(role.clone(), &why(&role)), (foo.clone(), &why(&foo))]
        );
        assert_eq!((rival.counts.failed, rival.health), (2, Health::Missing));
        let owner = observed
            .bundles
            .iter()
            .find(|bundle| bundle.app.as_str() == "owner");
        assert_eq!(owner.unwrap().counts.applied, 4);
        assert_eq!(
            from("ClusterRole", "rbac.authorization.k8s.io/v1").await,
            "owner"
        );
        assert_eq!(from("Foo", &format!("{group}/v1")).await, "owner");
        let live = fixture.get("v1", "ConfigMap", "shared-owner", "mine").await;
        assert_eq!(live["data"]["v"], value);
    };
    let observed = applied
        .settle(stored(2, vec![other(), defs(), owner("1")]))
        .await;
    check(&observed, "1").await;
    // The owner can still change its objects, and a new process decides the same.
    let observed = applied
        .settle(stored(3, vec![other(), defs(), owner("2")]))
        .await;
    check(&observed, "2").await;
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied
        .settle(stored(3, vec![other(), defs(), owner("2")]))
        .await;
    check(&observed, "2").await;

    // The owner keeps its objects when it is renamed.
    let renamed = making("z-owner", "shared-owner").formerly("owner").of(&[
        namespace("shared-owner"),
        config_map("mine", "2"),
        cluster_role("shared", "owner"),
        foo("owner", "shared-owner"),
    ]);
    let observed = applied
        .settle(stored(4, vec![other(), defs(), renamed]))
        .await;
    assert_eq!(observed.bundles[0].counts.failed, 2);
    assert_eq!(observed.bundles[2].counts.applied, 4);
    // Once the owner gives the objects up, the other app gets them.
    let less = bundle("z-owner", "shared-owner", &[namespace("shared-owner")]);
    let observed = applied.settle(stored(5, vec![other(), defs(), less])).await;
    assert_eq!(observed.bundles[0].counts.applied, 4);
    assert_eq!(
        from("ClusterRole", "rbac.authorization.k8s.io/v1").await,
        "other"
    );
    assert_eq!(from("Foo", &format!("{group}/v1")).await, "other");
}

/// An app fails if its namespace does not exist and is in no app. It recovers once somebody creates the namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_nobody_brings_is_a_failure() {
    let fixture = Fixture::new("nowhere").await;
    let mut applied = fixture.start().await;
    let desired = || bundle("lost", "nowhere-lost", &[config_map("a", "1")]);
    let observed = applied.settle(stored(1, vec![desired()])).await;
    let message = "the namespace nowhere-lost does not exist, and no app brings it to this cluster: add \
                   the Namespace to an app, or create it";
    let a = object(&observed, "ConfigMap nowhere-lost/a");
    assert_eq!(a.state, ObjectState::Failed(message.to_owned()));
    assert_eq!(observed.bundles[0].counts.failed, 1);
    // Somebody creates the namespace, and the object is retried without a new generation.
    fixture.create(&namespace("nowhere-lost")).await;
    applied
        .until(|observed| observed.bundles[0].counts.applied == 1)
        .await;

    // An object waits for a namespace that is in another app.
    let refused = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "nowhere-refused", "labels": {"a": "not a label value"}},
    });
    let other = bundle("other", "nowhere-refused", &[refused]);
    let waits = bundle("waits", "nowhere-refused", &[config_map("a", "1")]);
    let observed = applied
        .settle(stored(2, vec![desired(), other, waits]))
        .await;
    let a = object(&observed, "ConfigMap nowhere-refused/a");
    assert_eq!(
        a.state,
        ObjectState::Waiting("Namespace nowhere-refused is not applied".to_owned())
    );
}
