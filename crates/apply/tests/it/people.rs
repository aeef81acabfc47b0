//! Changes that people make to objects with their tools, and which of these changes stay.

use std::time::Duration;

use anyhow::ensure;
use muster_apply::{ObjectState, Observed};
use muster_model::policy::{Drift, IgnoreRule, Policy};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{
    Applied, Fixture, LONG, bundle, config_map, kubectl, kubectl_does, making, namespace, object,
    stored,
};

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]}]},
            },
        },
    })
}

fn drifts(observed: &Observed) -> Vec<String> {
    let drifts = observed.bundles.iter().flat_map(|bundle| &bundle.drifts);
    drifts.map(|drift| drift.difference.clone()).collect()
}

/// Waits until the object fulfils a condition and returns it.
async fn becomes(
    fixture: &Fixture,
    (api_version, kind, name): (&str, &str, &str),
    is: impl Fn(&Value) -> bool,
) -> Value {
    let ns = format!("{}-a", fixture.name);
    let live = std::sync::Mutex::new(Value::Null);
    let done = eventually("the object is as expected", LONG, async || {
        let now = fixture.get(api_version, kind, &ns, name).await;
        let good = is(&now);
        let text = now.to_string();
        *live.lock().unwrap() = now;
        ensure!(good, "it is {text}");
        Ok(())
    });
    done.await.unwrap();
    live.into_inner().unwrap()
}

async fn told(applied: &mut Applied, text: &str) {
    applied
        .until(|o| drifts(o).iter().any(|drift| drift.contains(text)))
        .await;
}

const DEPLOYMENT: (&str, &str, &str) = ("apps/v1", "Deployment", "web");

#[tokio::test]
async fn a_field_that_leaves_git_is_removed_whoever_else_owns_it() {
    let fixture = Fixture::new("coowned").await;
    let ns = "coowned-a";
    let names = ["csa", "ssa", "edit", "lost"];
    let desired = |number, data: &Value| {
        let maps = names.iter().map(|name| map(name, data));
        let objects: Vec<_> = [namespace(ns)].into_iter().chain(maps).collect();
        stored(number, vec![bundle("a", ns, &objects)])
    };
    let both = json!({"a": "1", "b": "2"});
    let mut applied = fixture.start().await;
    applied.settle(desired(1, &both)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 5).await;
    // The agent is stopped while the tools run, so it reverts nothing in the meantime.
    applied.applier.stop().await;

    kubectl(ns, &["apply", "-f", "-"], &map("csa", &both), "false").await;
    let server_side = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    kubectl(ns, &server_side, &map("ssa", &both), "false").await;
    let changes = ["edit", "configmap/edit"];
    kubectl(ns, &changes, &Value::Null, "sed -i 's/b: \"2\"/b: \"3\"/'").await;
    let lost = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let patch = [
        "patch",
        "configmap/lost",
        "--type=json",
        "-p",
        &lost.to_string(),
    ];
    kubectl_does(ns, &patch).await;

    let mut applied = fixture.start().await;
    applied.settle(desired(1, &both)).await;
    for name in names {
        // `lost` has no field managers until the agent has processed it.
        let data = |live: &Value| {
            let managers = live["metadata"]["managedFields"].to_string();
            live["data"] == both && managers.contains("\"muster\"")
        };
        becomes(&fixture, ("v1", "ConfigMap", name), data).await;
    }
    applied.settle(desired(2, &json!({"a": "1"}))).await;
    for name in names {
        let data = |live: &Value| {
            let annotations = &live["metadata"]["annotations"];
            let last = &annotations["kubectl.kubernetes.io/last-applied-configuration"];
            live["data"] == json!({"a": "1"}) && last.is_null()
        };
        becomes(&fixture, ("v1", "ConfigMap", name), data).await;
    }
    applied.applier.stop().await;
}

#[tokio::test]
async fn fields_whose_owners_were_cleared_stay_and_the_status_says_so() {
    let fixture = Fixture::new("cleared").await;
    let ns = "cleared-a";
    let mut applied = fixture.start().await;
    applied.settle(with(|_| {}, ns, 1)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let at = (ns, "settings");
    let theirs = json!({"data": {"theirs": "1"}});
    fixture
        .edit_as("operator", "v1", "ConfigMap", at, &theirs)
        .await;
    let cleared = json!({"metadata": {"managedFields": [{}]}});
    fixture
        .edit_as("script", "v1", "ConfigMap", at, &cleared)
        .await;
    told(&mut applied, "somebody has cleared .metadata.managedFields").await;
    let map = ("v1", "ConfigMap", "settings");
    let both = json!({"v": "1", "theirs": "1"});
    becomes(&fixture, map, |live| live["data"] == both).await;
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_people_add_is_reported_and_removed() {
    let fixture = Fixture::new("added").await;
    let ns = "added-a";
    let mut applied = fixture.start().await;
    let objects = [
        namespace(ns),
        deployment(),
        map("settings", &json!({"a": "1"})),
    ];
    applied
        .settle(stored(1, vec![bundle("a", ns, &objects)]))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    let template = |live: &Value| live["spec"]["template"].clone();
    let before = template(&fixture.get("apps/v1", "Deployment", ns, "web").await);

    kubectl_does(ns, &["set", "env", "deployment/web", "B=2"]).await;
    told(
        &mut applied,
        ".env[name=\"B\"] is {\"name\":\"B\",\"value\":\"2\"}, should be (none)",
    )
    .await;
    becomes(&fixture, DEPLOYMENT, |live| template(live) == before).await;

    let sidecar =
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"spy","image":"spy:1"}]}}}}"#;
    kubectl_does(ns, &["patch", "deployment/web", "-p", sidecar]).await;
    told(&mut applied, ".containers[name=\"spy\"] is {").await;
    becomes(&fixture, DEPLOYMENT, |live| template(live) == before).await;

    kubectl_does(ns, &["rollout", "pause", "deployment/web"]).await;
    told(&mut applied, ".spec.paused is true, should be (none)").await;
    becomes(&fixture, DEPLOYMENT, |live| {
        live["spec"]["paused"].is_null()
    })
    .await;

    let map = ("v1", "ConfigMap", "settings");
    let editor = "sed -i 's/^  a: \"1\"/  a: \"1\"\\n  more: \"2\"/'";
    kubectl(ns, &["edit", "configmap/settings"], &Value::Null, editor).await;
    told(&mut applied, ".data.more is \"2\", should be (none)").await;
    becomes(&fixture, map, |live| live["data"] == json!({"a": "1"})).await;

    kubectl_does(ns, &["label", "configmap/settings", "team=ours"]).await;
    told(
        &mut applied,
        ".metadata.labels.team is \"ours\", should be (none)",
    )
    .await;
    becomes(&fixture, map, |live| {
        live["metadata"]["labels"]["team"].is_null()
    })
    .await;

    // Somebody runs a tool that applied objects before Muster did.
    let helm = json!({"metadata": {"annotations": {"meta.helm.sh/release-name": "web"}}});
    fixture
        .edit_as("helm", "v1", "ConfigMap", (ns, "settings"), &helm)
        .await;
    told(
        &mut applied,
        ".metadata.annotations is {\"meta.helm.sh/release-name\":\"web\"}",
    )
    .await;
    becomes(&fixture, map, |live| {
        live["metadata"]["annotations"].is_null()
    })
    .await;
    // Nothing is left to be reverted.
    applied.until(|o| o.bundles[0].counts.applied == 3).await;
    let writes = fixture.requests.writes();
    applied
        .settle(stored(2, vec![bundle("a", ns, &objects)]))
        .await;
    assert_eq!(fixture.requests.writes(), writes);
    applied.applier.stop().await;
}

#[tokio::test]
async fn actions_of_people_and_fields_of_controllers_stay() {
    let fixture = Fixture::new("acts").await;
    let ns = "acts-a";
    let mut applied = fixture.start().await;
    let objects = [namespace(ns), deployment()];
    applied
        .settle(stored(1, vec![bundle("a", ns, &objects)]))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;

    kubectl_does(ns, &["rollout", "restart", "deployment/web"]).await;
    kubectl_does(ns, &["scale", "deployment/web", "--replicas=3"]).await;
    kubectl_does(
        ns,
        &["annotate", "deployment/web", "muster.dev/prune=disabled"],
    )
    .await;
    let injected = json!({"metadata": {"annotations": {"injector.example/status": "done"}}});
    fixture
        .edit_as("injector", "apps/v1", "Deployment", (ns, "web"), &injected)
        .await;
    // This change is the last one. Once its drift is reported, the earlier changes have been processed, too.
    kubectl_does(ns, &["annotate", "deployment/web", "note=x"]).await;
    told(
        &mut applied,
        ".metadata.annotations.note is \"x\", should be (none)",
    )
    .await;
    let live = becomes(&fixture, DEPLOYMENT, |live| {
        live["metadata"]["annotations"]["note"].is_null()
    })
    .await;
    assert_eq!(drifts(&applied.applier.observed().borrow()).len(), 1);
    assert_eq!(live["spec"]["replicas"], 3);
    let annotations = &live["metadata"]["annotations"];
    assert_eq!(annotations["muster.dev/prune"], "disabled");
    assert_eq!(annotations["injector.example/status"], "done");
    let template = &live["spec"]["template"]["metadata"]["annotations"];
    assert!(template["kubectl.kubernetes.io/restartedAt"].is_string());
    applied.applier.stop().await;
}

fn with(policy: impl Fn(&mut Policy), ns: &str, number: u64) -> muster_apply::StoredGeneration {
    let objects = [namespace(ns), config_map("settings", "1")];
    let making = making("a", ns).policy(policy);
    stored(number, vec![making.of(&objects)])
}

fn ignore_more(policy: &mut Policy) {
    policy.ignore = vec![IgnoreRule {
        fields: vec!["/data/more".into()],
        ..IgnoreRule::default()
    }];
}

#[tokio::test]
async fn what_people_add_stays_where_the_app_ignores_it_for_as_long_as_it_does() {
    let fixture = Fixture::new("peopleignored").await;
    let ns = "peopleignored-a";
    let mut applied = fixture.start().await;
    applied.settle(with(ignore_more, ns, 1)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let patch = r#"{"data":{"more":"2","other":"3"}}"#;
    kubectl_does(ns, &["patch", "configmap/settings", "-p", patch]).await;
    told(&mut applied, ".data.other is \"3\", should be (none)").await;
    let map = ("v1", "ConfigMap", "settings");
    becomes(&fixture, map, |live| {
        live["data"] == json!({"v": "1", "more": "2"})
    })
    .await;
    // A generation that changes something else does not revert the ignored field.
    let more = |policy: &mut Policy| {
        ignore_more(policy);
        policy.conflicts = muster_model::policy::Conflicts::Take;
    };
    applied.settle(with(more, ns, 2)).await;
    assert_eq!(
        fixture.get("v1", "ConfigMap", ns, "settings").await["data"],
        json!({"v": "1", "more": "2"})
    );
    applied.settle(with(|_| {}, ns, 3)).await;
    becomes(&fixture, map, |live| live["data"] == json!({"v": "1"})).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_people_add_is_only_shown_where_the_app_says_so_and_for_as_long_as_it_is_there() {
    let fixture = Fixture::new("shown").await;
    let ns = "shown-a";
    let report = |policy: &mut Policy| policy.drift = Drift::Report;
    let mut applied = fixture.start().await;
    applied.settle(with(report, ns, 1)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let text = "ConfigMap shown-a/settings";
    let patch = r#"{"data":{"more":"2"}}"#;
    kubectl_does(ns, &["patch", "configmap/settings", "-p", patch]).await;
    let shown = ObjectState::Drifted(".data.more is \"2\", should be (none)".into());
    let is_shown = |o: &Observed| object(o, text).state == shown;
    applied.until(is_shown).await;
    // Neither new generations nor changes of other objects hide the drift, and the object is not written to.
    let mut all = applied.applier.observed();
    let hidden = tokio::spawn(async move {
        let hidden = |o: &Observed| object(o, text).state == ObjectState::Applied;
        all.wait_for(|o| hidden(o)).await.is_ok()
    });
    let writes = fixture.requests.writes();
    for number in 2..5 {
        applied.settle(with(report, ns, number)).await;
    }
    kubectl_does(
        ns,
        &[
            "annotate",
            "namespace/shown-a",
            "muster.dev/reconcile=enabled",
        ],
    )
    .await;
    applied.settle(with(report, ns, 5)).await;
    assert!(is_shown(&applied.applier.observed().borrow()));
    // One write is the Event; the recorder of Events may write once more.
    assert!(fixture.requests.writes() <= writes + 2);
    assert!(!hidden.is_finished());
    hidden.abort();

    // The person undoes the change.
    let patch = r#"{"data":{"more":null}}"#;
    kubectl_does(ns, &["patch", "configmap/settings", "-p", patch]).await;
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    // The person repeats the change. It stays until the policy of the app reverts drift.
    let patch = r#"{"data":{"more":"2"}}"#;
    kubectl_does(ns, &["patch", "configmap/settings", "-p", patch]).await;
    applied.until(is_shown).await;
    applied.settle(with(|_| {}, ns, 6)).await;
    let map = ("v1", "ConfigMap", "settings");
    becomes(&fixture, map, |live| live["data"] == json!({"v": "1"})).await;
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_field_that_somebody_adds_again_and_again_is_reported_with_its_author() {
    let fixture = Fixture::new("peopleagain").await;
    let ns = "peopleagain-a";
    let mut applied = fixture.start().await;
    applied.settle(with(|_| {}, ns, 1)).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let adding = async {
        loop {
            let patch = json!({"data": {"more": "2"}});
            let at = (ns, "settings");
            fixture
                .edit_as("kubectl-patch", "v1", "ConfigMap", at, &patch)
                .await;
            // A script might repeat the change this often.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let fought = applied.until(|o| {
        matches!(object(o, "ConfigMap peopleagain-a/settings").state,
            ObjectState::Failed(message) if message.contains("kubectl-patch has undone this 4 times")
                && message.contains(".data.more is"))
    });
    tokio::select! {
        () = adding => {}
        _ = fought => {}
    }
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    let live = fixture.get("v1", "ConfigMap", ns, "settings").await;
    assert_eq!(live["data"], json!({"v": "1"}));
    applied.applier.stop().await;
}
