//! Objects that are leaving an app stay until the objects that replace them are healthy.

use std::time::Duration;

use http::StatusCode;
use muster_apply::{LeftoverState, ObjectState, Observed};
use muster_testkit::faults::{Asked, Fault, Verb};
use serde_json::{Value, json};

use crate::{
    faults::behind_a_proxy,
    fixture::{Applied, Fixture, bundle, config_map, making, namespace, object, stored},
};

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    })
}

/// Returns a Deployment whose pods can never be scheduled.
fn stuck(name: &str) -> Value {
    let mut stuck = deployment(name);
    stuck["spec"]["template"]["spec"]["nodeSelector"] = json!({"there": "is-none"});
    stuck
}

fn patient(fixture: &mut Fixture) {
    fixture.config.replaced_within = Duration::from_secs(3_600);
}

/// Returns the message of the only leftover, which must be waiting for its replacement.
fn waiting(observed: &Observed, text: &str) -> String {
    assert_eq!(observed.leftovers.len(), 1, "{observed:#?}");
    let leftover = &observed.leftovers[0];
    assert_eq!(leftover.id.to_string(), text);
    assert_eq!(leftover.state, LeftoverState::Waiting);
    leftover.message.clone()
}

async fn all_gone(applied: &mut Applied) {
    applied.until(|o| o.settled && o.leftovers.is_empty()).await;
}

#[tokio::test]
async fn a_renamed_workload_that_waits_for_a_job_keeps_its_predecessor() {
    let mut fixture = Fixture::new("behind").await;
    patient(&mut fixture);
    let mut applied = fixture.start().await;
    let job = |suspend: bool| {
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "before", "annotations": {"muster.dev/phase": "before"}},
            "spec": {"suspend": suspend, "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "work", "image": "work:1"}],
            }}},
        })
    };
    let generation = |number, objects: &[Value]| {
        let all = [&[namespace("behind-a")], objects].concat();
        stored(number, vec![bundle("a", "behind-a", &all)])
    };
    applied.settle(generation(1, &[deployment("old")])).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let observed = applied
        .settle(generation(2, &[job(true), deployment("new")]))
        .await;
    let message = waiting(&observed, "Deployment.apps behind-a/old");
    assert!(
        message.contains("Deployment.apps behind-a/new"),
        "{message}"
    );
    assert_eq!(
        fixture.live("apps/v1", "Deployment").await,
        ["behind-a/old"]
    );
    // A new process waits, too.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied
        .settle(generation(3, &[job(true), deployment("new")]))
        .await;
    waiting(&observed, "Deployment.apps behind-a/old");
    // The Job is no longer suspended, so it completes.
    applied
        .applier
        .set_desired(generation(4, &[job(false), deployment("new")]).into());
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    all_gone(&mut applied).await;
    assert_eq!(
        fixture.live("apps/v1", "Deployment").await,
        ["behind-a/new"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_that_is_refused_or_lacks_its_namespace_or_kind_replaces_nothing() {
    let mut fixture = Fixture::new("refused").await;
    patient(&mut fixture);
    let mut applied = fixture.start().await;
    let mut invalid = deployment("new");
    invalid["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    let mut elsewhere = deployment("old");
    elsewhere["metadata"]["namespace"] = "refused-nowhere".into();
    let unknown = json!({
        "apiVersion": "refused.example/v1", "kind": "Nothing", "metadata": {"name": "a"},
    });
    let mut number = 0;
    let mut generation = |object: Value| {
        number += 1;
        let all = [namespace("refused-a"), object];
        stored(number, vec![bundle("a", "refused-a", &all)])
    };
    applied.settle(generation(deployment("old"))).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    for bad in [invalid, elsewhere, unknown] {
        let observed = applied.settle(generation(bad)).await;
        waiting(&observed, "Deployment.apps refused-a/old");
        assert_eq!(
            fixture.live("apps/v1", "Deployment").await,
            ["refused-a/old"]
        );
    }
    applied.settle(generation(deployment("new"))).await;
    all_gone(&mut applied).await;
    assert_eq!(
        fixture.live("apps/v1", "Deployment").await,
        ["refused-a/new"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn settings_that_pods_may_still_read_stay_until_the_new_ones_run() {
    let mut fixture = Fixture::new("hashed").await;
    patient(&mut fixture);
    let mut applied = fixture.start().await;
    let generation = |number, settings: &str, workload: Value| {
        let all = [namespace("hashed-a"), config_map(settings, "1"), workload];
        // Renaming the app in generation 3 changes nothing.
        let app = if number < 3 { "a" } else { "b" };
        let app = making(app, "hashed-a").formerly(if number < 3 { "x" } else { "a" });
        stored(number, vec![app.of(&all)])
    };
    applied
        .settle(generation(1, "settings-1", deployment("web")))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    for number in [2, 3] {
        let observed = applied
            .settle(generation(number, "settings-2", stuck("web")))
            .await;
        let message = waiting(&observed, "ConfigMap hashed-a/settings-1");
        assert!(
            message.contains("Deployment.apps hashed-a/web"),
            "{message}"
        );
        assert!(message.contains("for at most 60 min"), "{message}");
    }
    applied
        .settle(generation(4, "settings-2", deployment("web")))
        .await;
    all_gone(&mut applied).await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["hashed-a/settings-2"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_workload_that_never_becomes_healthy_keeps_its_predecessor_for_a_bounded_time() {
    let mut fixture = Fixture::new("bounded").await;
    fixture.config.replaced_within = Duration::from_secs(2);
    let mut applied = fixture.start().await;
    let generation = |number, workload: Value| {
        let all = [namespace("bounded-a"), workload];
        stored(number, vec![bundle("a", "bounded-a", &all)])
    };
    applied.settle(generation(1, deployment("old"))).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    applied.settle(generation(2, stuck("new"))).await;
    all_gone(&mut applied).await;
    assert_eq!(
        fixture.live("apps/v1", "Deployment").await,
        ["bounded-a/new"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_annotated_with_prune_first_does_not_wait_for_its_replacement() {
    let mut fixture = Fixture::new("first").await;
    patient(&mut fixture);
    let mut applied = fixture.start().await;
    // Only one Service at a time can have the node port.
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "annotations": {"muster.dev/prune": "first"}},
            "spec": {
                "type": "NodePort", "selector": {"app": "web"},
                "ports": [{"port": 80, "nodePort": 30333}],
            },
        })
    };
    let generation = |number, name: &str| {
        let all = [namespace("first-a"), service(name)];
        stored(number, vec![bundle("a", "first-a", &all)])
    };
    applied.settle(generation(1, "old")).await;
    applied.settle(generation(2, "new")).await;
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    all_gone(&mut applied).await;
    assert_eq!(fixture.live("v1", "Service").await, ["first-a/new"]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_webhook_that_refuses_its_own_app_can_leave() {
    let mut fixture = Fixture::new("gatekeeper").await;
    patient(&mut fixture);
    let mut applied = fixture.start().await;
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "gatekeeper-hook"},
        "webhooks": [{
            "name": "maps.gatekeeper.example.com",
            "clientConfig": {"service": {"namespace": "gatekeeper-a", "name": "gone"}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                "operations": ["CREATE", "UPDATE"],
            }],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gatekeeper-a"}},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
        }],
    });
    let generation = |number, value: &str, rest: &[Value]| {
        let map = config_map("victim", value);
        let all = [&[namespace("gatekeeper-a"), map], rest].concat();
        stored(number, vec![bundle("a", "gatekeeper-a", &all)])
    };
    let hooked = std::slice::from_ref(&hook);
    applied.settle(generation(1, "1", hooked)).await;
    applied.until(|o| o.bundles[0].counts.applied == 3).await;
    // The API server starts to call a new webhook only a moment after it has accepted it.
    let mut number = 1;
    let text = "ConfigMap gatekeeper-a/victim";
    loop {
        number += 1;
        let observed = applied
            .settle(generation(number, &number.to_string(), hooked))
            .await;
        if matches!(object(&observed, text).state, ObjectState::Failed(_)) {
            break;
        }
    }
    applied
        .applier
        .set_desired(generation(number + 1, "last", &[]).into());
    applied
        .until(|o| o.bundles[0].counts.total == 2 && o.bundles[0].counts.applied == 2)
        .await;
    all_gone(&mut applied).await;
    let live = fixture
        .config_maps("gatekeeper-a")
        .get("victim")
        .await
        .unwrap();
    assert_eq!(live.data["data"]["v"], "last");
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_decision_to_delete_ends_when_its_commit_is_reverted() {
    let (proxy, fixture) = behind_a_proxy("back").await;
    let refusal = Fault::status(StatusCode::FORBIDDEN, "Forbidden", "not now");
    let refused = proxy.spoil(usize::MAX, refusal, |asked: &Asked| {
        asked.verb == Verb::Delete && asked.name.as_deref() == Some("b")
    });
    let mut applied = fixture.start().await;
    let base = bundle("base", "back-a", &[namespace("back-a")]);
    let generation = |number, objects: &[Value]| {
        let app = bundle("a", "back-a", objects);
        stored(number, vec![base.clone(), app])
    };
    let both = [config_map("a", "1"), config_map("b", "1")];
    applied.settle(generation(1, &both)).await;
    let observed = applied.settle(generation(2, &both[..1])).await;
    assert_eq!(observed.leftovers.len(), 1, "{observed:#?}");
    let leftover = &observed.leftovers[0];
    assert_eq!(leftover.state, LeftoverState::Refused);
    assert_eq!(leftover.message, "it can't be deleted: not now");
    assert!(refused.times() > 0);

    // The commit is reverted; later the app renders to nothing.
    let observed = applied.settle(generation(3, &both)).await;
    assert!(observed.leftovers.is_empty(), "{observed:#?}");
    proxy.heal();
    let observed = applied.settle(generation(4, &[])).await;
    assert_eq!(
        observed.pending_approvals[0].objects.len(),
        2,
        "{observed:#?}"
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 2);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_deletion_that_hangs_delays_no_other_app_and_is_reported() {
    let (proxy, fixture) = behind_a_proxy("sink").await;
    let hang = proxy.spoil(1, Fault::Hang, |asked: &Asked| asked.verb == Verb::Delete);
    let mut applied = fixture.start().await;
    let generation = |number, objects: &[Value], value: &str| {
        let all = [&[namespace("sink-a")], objects].concat();
        let other = [namespace("sink-b"), config_map("good", value)];
        let apps = vec![bundle("a", "sink-a", &all), bundle("b", "sink-b", &other)];
        stored(number, apps)
    };
    let map = config_map("old", "1");
    applied
        .settle(generation(1, std::slice::from_ref(&map), "1"))
        .await;
    applied.applier.set_desired(generation(2, &[], "1").into());
    applied.until(|_| hang.times() == 1).await;
    // The other app is applied while the deletion still hangs.
    applied.applier.set_desired(generation(3, &[], "2").into());
    let observed = applied
        .until(|o| {
            let told = |l: &muster_apply::Leftover| l.message.contains("has not answered");
            o.generation.is_some_and(|(g, _)| g.0 == 3)
                && object(o, "ConfigMap sink-b/good").state == ObjectState::Applied
                && o.leftovers.iter().any(told)
        })
        .await;
    assert_eq!(observed.leftovers[0].id.name, "old");
    all_gone(&mut applied).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["sink-b/good"]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_namespace_that_kubernetes_never_deletes_loses_what_muster_applied() {
    let fixture = Fixture::new("system").await;
    let mut applied = fixture.start().await;
    let system = namespace("kube-public");
    let objects = [namespace("system-a"), system];
    applied
        .settle(stored(1, vec![bundle("a", "system-a", &objects)]))
        .await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", "system-a", &objects[..1])]))
        .await;
    assert!(observed.leftovers.is_empty(), "{observed:#?}");
    let namespaces = fixture.api("v1", "Namespace", None);
    let live = namespaces.get("kube-public").await.unwrap();
    assert!(live.metadata.deletion_timestamp.is_none());
    // Neither Muster's label nor the annotations from Git are left on it.
    let labels = live.metadata.labels.unwrap_or_default();
    assert!(!labels.contains_key(muster_apply::APP_LABEL), "{labels:?}");
    assert_eq!(live.metadata.annotations, None);
    applied.applier.stop().await;
}
