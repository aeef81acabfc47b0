//! The order of deletions.

use kube::api::{Patch, PatchParams};
use muster_apply::{LeftoverState, Observed};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{
    Fixture, LONG, bundle, config_map, definition, foo, making, namespace, stored,
};

fn states(observed: &Observed) -> Vec<(String, LeftoverState)> {
    let leftovers = observed.leftovers.iter();
    leftovers.map(|l| (l.id.to_string(), l.state)).collect()
}

#[tokio::test]
async fn an_operator_stays_until_its_resources_are_gone() {
    let fixture = Fixture::new("operator").await;
    let mut applied = fixture.start().await;
    let group = "operator.example";
    let base = bundle(
        "base",
        "operator-a",
        &[namespace("operator-a"), definition(group, "Namespaced")],
    );
    let operator = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "operator"},
        "spec": {
            "selector": {"matchLabels": {"app": "operator"}},
            "template": {
                "metadata": {"labels": {"app": "operator"}},
                "spec": {"containers": [{"name": "c", "image": "operator:1"}]},
            },
        },
    });
    let mut resource = foo(group, "used");
    // Without this annotation, the deletion of an object with a finalizer would need an approval.
    resource["metadata"]["annotations"] = json!({"muster.dev/prune": "enabled"});
    resource["metadata"]["finalizers"] = json!(["operator.example/cleanup"]);
    let apps = vec![
        base.clone(),
        making("op", "operator-a").of(&[operator, config_map("op", "1")]),
        making("use", "operator-a")
            .after(&["op"])
            .of(&[resource, config_map("use", "1")]),
    ];
    applied.settle(stored(1, apps)).await;
    applied.until(|o| o.bundles[2].counts.applied == 2).await;
    let gone = |number| stored(number, vec![base.clone()]);
    let observed = applied.settle(gone(2)).await;
    let waiting = LeftoverState::Waiting;
    let expected = [
        ("ConfigMap operator-a/op", waiting),
        ("ConfigMap operator-a/use", waiting),
        ("Deployment.apps operator-a/operator", waiting),
        (
            "Foo.operator.example operator-a/used",
            LeftoverState::Deleting,
        ),
    ];
    let expected: Vec<_> = expected.map(|(id, state)| (id.to_owned(), state)).to_vec();
    let sorted = |observed: &Observed| {
        let mut states = states(observed);
        states.sort_by(|a, b| a.0.cmp(&b.0));
        states
    };
    assert_eq!(sorted(&observed), expected);
    let message = |observed: &Observed, kind: &str| {
        let mut leftovers = observed.leftovers.iter();
        let leftover = leftovers.find(|l| l.id.gvk.kind == kind);
        leftover.unwrap().message.clone()
    };
    assert_eq!(
        message(&observed, "Foo"),
        "it is being deleted, waiting for operator.example/cleanup"
    );
    assert!(message(&observed, "Deployment").contains("once Foo.operator.example"));

    // A new process does not delete the operator, either.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied.settle(gone(3)).await;
    assert_eq!(sorted(&observed), expected);

    let patch = json!({"metadata": {"finalizers": null}});
    let foos = fixture.api("operator.example/v1", "Foo", Some("operator-a"));
    foos.patch("used", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    applied.until(|o| o.leftovers.is_empty()).await;
    assert_eq!(fixture.live("apps/v1", "Deployment").await, [""; 0]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_aggregated_role_that_leaves_with_its_parts_does_not_come_back() {
    let fixture = Fixture::new("parts").await;
    let mut applied = fixture.start().await;
    let role = |name: &str, labels: Value, rest: (&str, Value)| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels},
            rest.0: rest.1,
        })
    };
    let labels = json!({"parts.example.com/sum": "true"});
    let selector = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
    let mut objects = vec![
        config_map("stays", "1"),
        role("parts-all", json!({}), ("aggregationRule", selector)),
    ];
    for part in 0..6 {
        let rules =
            json!([{"apiGroups": [""], "resources": [format!("r{part}")], "verbs": ["get"]}]);
        objects.push(role(
            &format!("parts-{part}"),
            labels.clone(),
            ("rules", rules),
        ));
    }
    let base = bundle("base", "parts-a", &[namespace("parts-a")]);
    let roles = fixture.api("rbac.authorization.k8s.io/v1", "ClusterRole", None);
    for round in 0..3 {
        let app = bundle("a", "parts-a", &objects);
        applied
            .settle(stored(2 * round + 1, vec![base.clone(), app]))
            .await;
        eventually("the role is aggregated", LONG, async || {
            let live = roles.get("parts-all").await?;
            let rules = live.data["rules"].as_array().map_or(0, Vec::len);
            anyhow::ensure!(rules == 6, "{rules}");
            Ok(())
        })
        .await
        .unwrap();
        let app = bundle("a", "parts-a", &objects[..1]);
        applied
            .settle(stored(2 * round + 2, vec![base.clone(), app]))
            .await;
        applied.until(|o| o.settled && o.leftovers.is_empty()).await;
        let list = roles.list(&Default::default()).await.unwrap();
        let left: Vec<_> = list
            .into_iter()
            .filter_map(|role| role.metadata.name)
            .filter(|name| name.starts_with("parts-"))
            .collect();
        assert_eq!(left, [""; 0], "in round {round}");
    }
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_approved_namespace_waits_for_what_another_app_holds_in_it() {
    let fixture = Fixture::new("elsewhere").await;
    let mut applied = fixture.start().await;
    let space = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere-a"},
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    let apps = vec![
        bundle("defs", "elsewhere-a", &[space]),
        bundle("users", "elsewhere-a", &[claim]),
    ];
    applied.settle(stored(1, apps)).await;
    let observed = applied.settle(stored(2, vec![])).await;
    let set = |observed: &Observed, app: &str| {
        let pending_approval = observed
            .pending_approvals
            .iter()
            .find(|pending_approval| pending_approval.app.as_str() == app);
        pending_approval.map(|pending_approval| pending_approval.set)
    };
    let (defs, users) = (set(&observed, "defs"), set(&observed, "users"));
    let mut approved = stored(3, vec![]);
    approved.prune.approved.extend(defs);
    let observed = applied.settle(approved.clone()).await;
    let leftover = observed
        .leftovers
        .iter()
        .find(|l| l.id.gvk.kind == "Namespace");
    assert_eq!(
        leftover.unwrap().message,
        "deleting it would also delete PersistentVolumeClaim elsewhere-a/data of app users, whose deletion \
         is pending approval or not due yet"
    );
    approved.prune.approved.extend(users);
    approved.generation.0 = 4;
    applied.settle(approved).await;
    applied
        .until(|o| o.leftovers.is_empty() && o.pending_approvals.is_empty())
        .await;
    applied.applier.stop().await;
}
