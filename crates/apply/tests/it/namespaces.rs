//! Agents that may not touch all namespaces.

use kube::api::DeleteParams;
use muster_apply::{NamespaceAccess, ObjectState};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, config_map, namespace, object, stored};

/// Creates a namespace and grants a user all permissions in it. The user could not create the namespace.
async fn admit(admin: &Fixture, user: &str, name: &str) {
    let at = json!({"name": user, "namespace": name});
    admin.create(&namespace(name)).await;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": at,
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": at,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    admin.create(&role).await;
    admin.create(&binding).await;
}

fn in_namespace(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = namespace.into();
    object
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], "selector": {"app": name}},
    })
}

const USER: &str = "reach-agent";

#[tokio::test]
async fn an_agent_of_two_namespaces_asks_for_nothing_elsewhere() {
    let admin = Fixture::new("reach").await;
    for name in ["muster-reach", "reach-a", "reach-b"] {
        admit(&admin, USER, name).await;
    }
    admin.create(&namespace("reach-c")).await;
    let mut fixture = Fixture::of_user("reach", USER).await;
    fixture.config.namespaces =
        NamespaceAccess::Only(["reach-a", "reach-b"].map(str::to_owned).into());
    let mut applied = fixture.start().await;
    let all = [
        // A Namespace is cluster-scoped, so the agent may not apply it. The objects in it do not wait for it.
        namespace("reach-a"),
        config_map("one", "1"),
        config_map("two", "1"),
        service("front"),
        in_namespace("reach-b", config_map("one", "1")),
        in_namespace("reach-c", config_map("one", "1")),
    ];
    let desired =
        |generation, objects: &[Value]| stored(generation, vec![bundle("a", "reach-a", objects)]);
    applied.settle(desired(1, &all)).await;
    let observed = applied.until(|o| o.bundles[0].counts.healthy == 4).await;
    let limited = "this agent is limited to the namespaces reach-a, reach-b";
    for name in ["Namespace reach-a", "ConfigMap reach-c/one"] {
        let state = object(&observed, name).state;
        assert_eq!(state, ObjectState::Failed(limited.to_owned()), "{name}");
    }
    assert_eq!(observed.bundles[0].counts.applied, 4, "{observed:#?}");

    // The agent watches each of its namespaces.
    for name in ["reach-a", "reach-b"] {
        let maps = admin.config_maps(name);
        let old = maps.get("one").await.unwrap().metadata.uid;
        maps.delete("one", &DeleteParams::default()).await.unwrap();
        eventually("the ConfigMap is recreated", LONG, async || {
            anyhow::ensure!(maps.get("one").await?.metadata.uid != old);
            Ok(())
        })
        .await
        .unwrap();
    }
    applied.until(|o| o.bundles[0].counts.healthy == 4).await;
    applied.applier.stop().await;

    // A new process finds everything applied, writes nothing, and later prunes.
    let mut applied = fixture.start().await;
    let before = fixture.requests.writes();
    applied.settle(desired(1, &all)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 4).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.settle(desired(2, &all[..2])).await;
    assert_eq!(admin.live("v1", "ConfigMap").await, ["reach-a/one"]);
    assert_eq!(admin.live("v1", "Service").await, [""; 0]);
    applied.applier.stop().await;

    assert_eq!(
        fixture.requests.places(),
        ["muster-reach", "reach-a", "reach-b"]
    );
}

#[tokio::test]
async fn no_app_writes_the_agents_own_records() {
    let fixture = Fixture::new("records").await;
    let own = fixture.config.namespace.clone();
    let here = |object: Value| in_namespace(&own, object);
    let secret =
        |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    let mut decoy = config_map("decoy", "1");
    decoy["metadata"]["labels"] = json!({"muster.dev/inventory": ""});
    let objects: Vec<Value> = vec![
        namespace("records-a"),
        config_map("fine", "1"),
        here(config_map("fine", "1")),
        here(decoy),
        here(config_map("muster-inventory-0", "1")),
        here(secret("muster-agent-identity")),
        here(secret("muster-generation")),
        here(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "muster-agent"}, "spec": {"holderIdentity": "me"},
        })),
    ];
    let desired = |number| stored(number, vec![bundle("a", "records-a", &objects)]);
    let mut applied = fixture.start().await;
    let observed = applied.settle(desired(1)).await;
    for id in [
        "ConfigMap OWN/muster-inventory-0",
        "Secret OWN/muster-agent-identity",
        "Secret OWN/muster-generation",
        "Lease.coordination.k8s.io OWN/muster-agent",
    ] {
        let state = object(&observed, &id.replace("OWN", &own)).state;
        let ObjectState::Failed(why) = state else {
            panic!("{id}: {state:?}");
        };
        assert!(why.contains("one of the agent's own records"), "{why}");
    }
    assert_eq!(observed.bundles[0].counts.applied, 4, "{observed:#?}");
    for (api_version, kind, name) in [
        ("v1", "Secret", "muster-agent-identity"),
        ("v1", "Secret", "muster-generation"),
        ("coordination.k8s.io/v1", "Lease", "muster-agent"),
    ] {
        let api = fixture.api(api_version, kind, Some(&own));
        assert!(api.get_opt(name).await.unwrap().is_none(), "{name}");
    }
    applied.applier.stop().await;

    // The next process reads its inventory correctly, although another ConfigMap carries the label of the inventory.
    let mut applied = fixture.start().await;
    let before = fixture.requests.writes();
    applied.settle(desired(1)).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_an_agent_may_no_longer_touch_is_named_and_left() {
    let admin = Fixture::new("narrowed").await;
    let all = [
        namespace("narrowed-a"),
        namespace("narrowed-b"),
        config_map("one", "1"),
        in_namespace("narrowed-b", config_map("one", "1")),
        in_namespace("narrowed-b", config_map("two", "1")),
    ];
    let desired = |generation, objects: &[Value]| {
        stored(generation, vec![bundle("a", "narrowed-a", objects)])
    };
    let mut applied = admin.start().await;
    applied.settle(desired(1, &all)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 5).await;
    applied.applier.stop().await;

    let mut fixture = Fixture::new("narrowed").await;
    fixture.config.namespaces = NamespaceAccess::Only(["narrowed-a".to_owned()].into());
    let mut applied = fixture.start().await;
    let observed = applied.settle(desired(2, &all[..4])).await;
    let limited = "this agent is limited to the namespace narrowed-a";
    let state = object(&observed, "ConfigMap narrowed-b/one").state;
    assert_eq!(state, ObjectState::Failed(limited.to_owned()));
    let observed = applied.until(|o| !o.leftovers.is_empty()).await;
    let left: Vec<_> = observed
        .leftovers
        .iter()
        .map(|l| (l.id.to_string(), &*l.message))
        .collect();
    assert_eq!(left, [("ConfigMap narrowed-b/two".to_owned(), limited)]);
    assert_eq!(
        admin.live("v1", "ConfigMap").await,
        ["narrowed-a/one", "narrowed-b/one", "narrowed-b/two"]
    );
    applied.applier.stop().await;
    assert_eq!(fixture.requests.places(), ["muster-narrowed", "narrowed-a"]);
}

#[tokio::test]
async fn what_is_denied_to_an_agent_is_left_as_it_is() {
    let admin = Fixture::new("denied").await;
    let all = [
        namespace("denied-a"),
        namespace("denied-b"),
        in_namespace("denied-a", config_map("one", "1")),
        in_namespace("denied-b", config_map("one", "1")),
        in_namespace("denied-b", config_map("two", "1")),
    ];
    let desired =
        |generation, objects: &[Value]| stored(generation, vec![bundle("a", "denied-a", objects)]);
    let mut applied = admin.start().await;
    applied.settle(desired(1, &all)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 5).await;
    applied.applier.stop().await;

    // Objects that were applied before stay: they are neither changed, nor reverted, nor deleted.
    let mut fixture = Fixture::new("denied").await;
    fixture.config.namespaces = NamespaceAccess::AllBut(["denied-b".to_owned()].into());
    let mut applied = fixture.start().await;
    let next = [
        all[0].clone(),
        in_namespace("denied-a", config_map("one", "2")),
        in_namespace("denied-b", config_map("one", "2")),
    ];
    let observed = applied.settle(desired(2, &next)).await;
    let denied =
        "this agent is not allowed to touch the namespace denied-b (see --deny-namespaces)";
    let state = object(&observed, "ConfigMap denied-b/one").state;
    assert_eq!(state, ObjectState::Failed(denied.to_owned()));
    assert_eq!(
        object(&observed, "ConfigMap denied-a/one").state,
        ObjectState::Applied
    );
    let observed = applied.until(|o| o.leftovers.len() == 2).await;
    let mut left: Vec<_> = observed
        .leftovers
        .iter()
        .map(|l| (l.id.to_string(), &*l.message))
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            ("ConfigMap denied-b/two".to_owned(), denied),
            ("Namespace denied-b".to_owned(), denied)
        ]
    );
    let maps = admin.config_maps("denied-b");
    let one = maps.get("one").await.unwrap();
    assert_eq!(
        one.data,
        admin.config_maps("denied-b").get("two").await.unwrap().data
    );
    assert!(
        admin
            .live("v1", "Namespace")
            .await
            .contains(&"denied-b".to_owned())
    );
    applied.applier.stop().await;
}
