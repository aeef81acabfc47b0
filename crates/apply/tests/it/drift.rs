//! Changes that others make to applied objects.

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use muster_apply::{ObjectState, Observed};
use muster_model::policy::{Drift, IgnoreRule};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, config_map, making, namespace, object, stored};

#[tokio::test]
async fn a_deleted_object_comes_back() {
    let fixture = Fixture::new("drift").await;
    let mut applied = fixture.start().await;
    let objects = [
        namespace("drift-a"),
        config_map("a", "1"),
        config_map("b", "1"),
    ];
    let desired = stored(1, vec![bundle("a", "drift-a", &objects)]);
    applied.settle(desired).await;
    let maps = fixture.config_maps("drift-a");
    let old = maps.get("a").await.unwrap().metadata.uid;
    let b = maps.get("b").await.unwrap().metadata;
    // The watches must have seen all objects before anything happens to them.
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let observed = applied
        .until(|o| {
            o.bundles[0]
                .objects
                .iter()
                .any(|o| o.id.name == "a" && o.uid.is_some() && o.uid != old)
        })
        .await;
    let new = maps.get("a").await.unwrap().metadata.uid;
    assert_eq!(observed.bundles[0].objects[1].uid, new);

    // A removed label is restored on the same object.
    let patch = json!({"metadata": {"labels": {muster_apply::APP_LABEL: null}}});
    maps.patch("b", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    eventually("the label is restored", LONG, async || {
        let live = maps.get("b").await?.metadata;
        anyhow::ensure!(live.uid == b.uid);
        anyhow::ensure!(
            live.labels
                .is_some_and(|l| l.contains_key(muster_apply::APP_LABEL))
        );
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_vanished_while_the_agent_was_away_comes_back() {
    let fixture = Fixture::new("away").await;
    let objects = [
        namespace("away-a"),
        config_map("a", "1"),
        config_map("b", "1"),
    ];
    let desired = stored(1, vec![bundle("a", "away-a", &objects)]);
    let mut applied = fixture.start().await;
    applied.settle(desired.clone()).await;
    applied.applier.stop().await;

    let maps = fixture.config_maps("away-a");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let mut applied = fixture.start().await;
    applied.settle(desired).await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["away-a/a", "away-a/b"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_that_somebody_put_in_place_of_ours_is_not_pruned() {
    let fixture = Fixture::new("theirs").await;
    let objects = [namespace("theirs-a"), config_map("a", "1")];
    let mut applied = fixture.start().await;
    applied
        .settle(stored(1, vec![bundle("a", "theirs-a", &objects)]))
        .await;
    applied.applier.stop().await;

    let maps = fixture.config_maps("theirs-a");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let theirs = serde_json::from_value(config_map("a", "theirs")).unwrap();
    maps.create(&PostParams::default(), &theirs).await.unwrap();
    let mut applied = fixture.start().await;
    applied
        .settle(stored(2, vec![bundle("a", "theirs-a", &objects[..1])]))
        .await;
    assert_eq!(
        maps.get("a").await.unwrap().data["data"],
        json!({"v": "theirs"})
    );
    applied.applier.stop().await;
}

fn deployment(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]}]},
            },
        },
    })
}

fn drifts(observed: &Observed) -> Vec<&str> {
    let drifts = observed.bundles.iter().flat_map(|bundle| &bundle.drifts);
    drifts.map(|drift| drift.difference.as_str()).collect()
}

#[tokio::test]
async fn a_changed_field_is_reverted_and_reported() {
    let fixture = Fixture::new("field").await;
    let mut applied = fixture.start().await;
    let objects = [namespace("field-a"), deployment(1), config_map("a", "1")];
    applied
        .settle(stored(1, vec![bundle("a", "field-a", &objects)]))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    let patch = json!({"metadata": {"annotations": {"theirs": "stays"}}});
    let at = ("field-a", "web");
    fixture
        .edit_as("controller", "apps/v1", "Deployment", at, &patch)
        .await;
    let patch = json!({
        "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "web", "image": "hacked"}]}}},
    });
    let deployments = fixture.api("apps/v1", "Deployment", Some("field-a"));
    let params = PatchParams {
        field_manager: Some("kubectl-edit".into()),
        ..PatchParams::default()
    };
    deployments
        .patch("web", &params, &Patch::Strategic(&patch))
        .await
        .unwrap();
    let observed = applied.until(|o| !drifts(o).is_empty()).await;
    assert_eq!(
        drifts(&observed),
        [".spec.replicas is 3, should be 1; \
          .spec.template.spec.containers[name=\"web\"].image is \"hacked\", should be \"web:1\""]
    );
    eventually("the fields are reverted", LONG, async || {
        let live = fixture.get("apps/v1", "Deployment", "field-a", "web").await;
        anyhow::ensure!(live["spec"]["replicas"] == 1);
        anyhow::ensure!(live["metadata"]["annotations"]["theirs"] == "stays");
        Ok(())
    })
    .await
    .unwrap();
    // An Event on the object reports the drift, too.
    let events = fixture.api("events.k8s.io/v1", "Event", Some("field-a"));
    eventually("an Event reports the drift", LONG, async || {
        let all = events.list(&ListParams::default()).await?;
        let drift = all.iter().find(|event| event.data["reason"] == "Drift");
        anyhow::ensure!(
            drift.is_some_and(|e| e.data["note"].to_string().contains("spec.replicas"))
        );
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn drift_is_only_shown_where_the_app_says_so() {
    let fixture = Fixture::new("report").await;
    let mut applied = fixture.start().await;
    let desired = |number, value: &str| {
        let objects = [
            namespace("report-a"),
            config_map("a", value),
            config_map("b", "1"),
        ];
        let making = making("a", "report-a").policy(|policy| policy.drift = Drift::Report);
        stored(number, vec![making.of(&objects)])
    };
    applied.settle(desired(1, "1")).await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    let patch = json!({"data": {"v": "theirs"}});
    fixture
        .edit_as("kubectl-edit", "v1", "ConfigMap", ("report-a", "a"), &patch)
        .await;
    let of = "ConfigMap report-a/a";
    let shown = ObjectState::Drifted(".data.v is \"theirs\", should be \"1\"".into());
    applied.until(|o| object(o, of).state == shown).await;
    fixture
        .config_maps("report-a")
        .delete("b", &DeleteParams::default())
        .await
        .unwrap();
    let deleted = ObjectState::Drifted("it was deleted".into());
    applied
        .until(|o| object(o, "ConfigMap report-a/b").state == deleted)
        .await;
    let live = fixture.get("v1", "ConfigMap", "report-a", "a").await;
    assert_eq!(live["data"]["v"], "theirs");
    // The drift ends when somebody reverts the change.
    let patch = json!({"data": {"v": "1"}});
    fixture
        .edit_as("kubectl-edit", "v1", "ConfigMap", ("report-a", "a"), &patch)
        .await;
    applied
        .until(|o| object(o, of).state == ObjectState::Applied)
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn the_drift_of_a_secret_shows_no_value() {
    let fixture = Fixture::new("secret").await;
    let mut applied = fixture.start().await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"password": "hunter2"},
    });
    applied
        .settle(stored(
            1,
            vec![bundle("a", "secret-a", &[namespace("secret-a"), secret])],
        ))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let patch = json!({"stringData": {"password": "swordfish"}});
    fixture
        .edit_as("kubectl-edit", "v1", "Secret", ("secret-a", "s"), &patch)
        .await;
    let observed = applied.until(|o| !drifts(o).is_empty()).await;
    let text = format!("{observed:?}");
    assert!(text.contains("(hidden)"), "{text}");
    for leaked in ["hunter2", "swordfish", "aHVudGVyMg", "c3dvcmRmaXNo"] {
        assert!(!text.contains(leaked), "{text}");
    }
    applied.applier.stop().await;
}

#[tokio::test]
async fn replicas_belong_to_the_autoscaler() {
    let fixture = Fixture::new("scaled").await;
    let mut applied = fixture.start().await;
    let scaler = json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 2, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
        },
    });
    let desired = |number, replicas| {
        let objects = [namespace("scaled-a"), deployment(replicas), scaler.clone()];
        stored(number, vec![bundle("a", "scaled-a", &objects)])
    };
    applied.settle(desired(1, 1)).await;
    // The autoscaler owns the replicas, so Muster reverts no change through the scale subresource, whoever makes it.
    let deployments = fixture.api("apps/v1", "Deployment", Some("scaled-a"));
    let scale = json!({"spec": {"replicas": 4}});
    let params = PatchParams {
        field_manager: Some("kube-controller-manager".into()),
        ..PatchParams::default()
    };
    deployments
        .patch_scale("web", &params, &Patch::Merge(&scale))
        .await
        .unwrap();
    // A later drift of another field is reverted, which shows that the engine has processed both changes.
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "hacked"}]}}}});
    deployments
        .patch("web", &PatchParams::default(), &Patch::Strategic(&patch))
        .await
        .unwrap();
    let image = |live: &Value| live["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    eventually("the image is reverted", LONG, async || {
        let live = fixture
            .get("apps/v1", "Deployment", "scaled-a", "web")
            .await;
        anyhow::ensure!(image(&live) == "web:1");
        Ok(())
    })
    .await
    .unwrap();
    let live = fixture
        .get("apps/v1", "Deployment", "scaled-a", "web")
        .await;
    assert!(live["spec"]["replicas"].as_i64().unwrap() >= 2, "{live:#}");
    // A new generation does not change the number of replicas, either.
    applied.settle(desired(2, 9)).await;
    let live = fixture
        .get("apps/v1", "Deployment", "scaled-a", "web")
        .await;
    assert!(live["spec"]["replicas"].as_i64().unwrap() <= 5, "{live:#}");
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_injected_ca_bundle_is_not_fought() {
    let fixture = Fixture::new("cabundle").await;
    let mut applied = fixture.start().await;
    let webhook = |path: &str| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "cabundle.example"},
            "webhooks": [{
                "name": "a.cabundle.example",
                "clientConfig": {
                    "service": {"namespace": "cabundle-a", "name": "none", "path": path},
                    "caBundle": "",
                },
                "rules": [{"apiGroups": ["cabundle.example"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        })
    };
    let desired = |number, path| {
        stored(
            number,
            vec![bundle(
                "a",
                "cabundle-a",
                &[namespace("cabundle-a"), webhook(path)],
            )],
        )
    };
    applied.settle(desired(1, "/one")).await;
    let api = fixture.api(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        None,
    );
    // This certificate is not a secret.
    let ca = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJmVENDQVNPZ0F3SUJBZ0lVZFhYCi0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K";
    let mut inject = webhook("/one");
    inject["webhooks"][0]["clientConfig"]["caBundle"] = json!(ca);
    let params = PatchParams {
        field_manager: Some("cainjector".into()),
        ..PatchParams::default()
    };
    let injected = api
        .patch("cabundle.example", &params, &Patch::Merge(&inject))
        .await;
    if let Err(error) = injected {
        panic!("{error}");
    }
    applied.settle(desired(2, "/two")).await;
    let live = api.get("cabundle.example").await.unwrap();
    let client = &live.data["webhooks"][0]["clientConfig"];
    assert_eq!(
        (&client["service"]["path"], &client["caBundle"]),
        (&json!("/two"), &json!(ca))
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_ignored_field_is_left_to_whoever_has_it() {
    let fixture = Fixture::new("ignored").await;
    let mut applied = fixture.start().await;
    let desired = |number, value: &str, other: &str| {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"theirs": value, "ours": other},
        });
        let rule = IgnoreRule {
            kind: Some("ConfigMap".into()),
            fields: vec!["/data/theirs".into()],
            ..IgnoreRule::default()
        };
        let making = making("a", "ignored-a").policy(|policy| policy.ignore = vec![rule]);
        stored(number, vec![making.of(&[namespace("ignored-a"), map])])
    };
    applied.settle(desired(1, "git", "1")).await;
    let data = async || fixture.get("v1", "ConfigMap", "ignored-a", "a").await["data"].clone();
    assert_eq!(data().await, json!({"theirs": "git", "ours": "1"}));
    // No other manager owns the field: it keeps its live value.
    applied.settle(desired(2, "newer", "2")).await;
    assert_eq!(data().await, json!({"theirs": "git", "ours": "2"}));
    // Another manager owns the field: Muster leaves it to that manager.
    let patch = json!({"data": {"theirs": "live", "ours": "drift"}});
    fixture
        .edit_as("operator", "v1", "ConfigMap", ("ignored-a", "a"), &patch)
        .await;
    eventually(
        "only the field that is not ignored is reverted",
        LONG,
        async || {
            anyhow::ensure!(data().await == json!({"theirs": "live", "ours": "2"}));
            Ok(())
        },
    )
    .await
    .unwrap();
    applied.settle(desired(3, "newest", "3")).await;
    assert_eq!(data().await, json!({"theirs": "live", "ours": "3"}));
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_somebody_marked_is_left_alone() {
    let fixture = Fixture::new("alone").await;
    let mut applied = fixture.start().await;
    let objects = |value| {
        [
            namespace("alone-a"),
            config_map("a", value),
            config_map("b", value),
        ]
    };
    applied
        .settle(stored(1, vec![bundle("a", "alone-a", &objects("1"))]))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    let patch = json!({
        "metadata": {"annotations": {"muster.dev/reconcile": "disabled"}},
        "data": {"v": "theirs"},
    });
    fixture
        .edit_as("kubectl-edit", "v1", "ConfigMap", ("alone-a", "a"), &patch)
        .await;
    applied
        .until(|o| {
            matches!(
                object(o, "ConfigMap alone-a/a").state,
                ObjectState::LeftAlone(_)
            )
        })
        .await;
    applied
        .settle(stored(2, vec![bundle("a", "alone-a", &objects("2"))]))
        .await;
    let value =
        async |name| fixture.get("v1", "ConfigMap", "alone-a", name).await["data"]["v"].clone();
    assert_eq!(
        (value("a").await, value("b").await),
        (json!("theirs"), json!("2"))
    );

    // A new process, which has not watched the object yet, leaves it alone, too.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    applied
        .settle(stored(3, vec![bundle("a", "alone-a", &objects("3"))]))
        .await;
    assert_eq!(
        (value("a").await, value("b").await),
        (json!("theirs"), json!("3"))
    );

    let patch = json!({"metadata": {"annotations": {"muster.dev/reconcile": null}}});
    fixture
        .edit_as("kubectl-edit", "v1", "ConfigMap", ("alone-a", "a"), &patch)
        .await;
    eventually("the object is reconciled again", LONG, async || {
        anyhow::ensure!(value("a").await == "3");
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_is_created_only_where_it_is_missing_is_never_changed() {
    let fixture = Fixture::new("once").await;
    let ns = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "once-a"}});
    let api = fixture.api("v1", "Namespace", None);
    api.create(&PostParams::default(), &serde_json::from_value(ns).unwrap())
        .await
        .unwrap();
    let maps = fixture.config_maps("once-a");
    let theirs = serde_json::from_value(config_map("theirs", "theirs")).unwrap();
    maps.create(&PostParams::default(), &theirs).await.unwrap();
    let once = |name, value| {
        let mut map = config_map(name, value);
        map["metadata"]["annotations"] = json!({"muster.dev/if-not-present": "enabled"});
        map
    };
    let desired = |number, value| {
        let objects = [
            once("theirs", value),
            once("made", value),
            config_map("plain", value),
        ];
        stored(number, vec![bundle("a", "once-a", &objects)])
    };
    let mut applied = fixture.start().await;
    applied.settle(desired(1, "1")).await;
    let value =
        async |name| fixture.get("v1", "ConfigMap", "once-a", name).await["data"]["v"].clone();
    applied.settle(desired(2, "2")).await;
    assert_eq!(value("theirs").await, "theirs");
    assert_eq!(
        (value("made").await, value("plain").await),
        (json!("1"), json!("2"))
    );
    // Muster deletes the object that it created; the one that existed before stays.
    applied
        .settle(stored(
            3,
            vec![bundle("a", "once-a", &[config_map("plain", "2")])],
        ))
        .await;
    let list = maps.list(&ListParams::default()).await.unwrap();
    let names: Vec<_> = list
        .iter()
        .filter_map(|map| map.metadata.name.as_deref())
        .collect();
    assert!(
        names.contains(&"theirs") && !names.contains(&"made"),
        "{names:?}"
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_job_that_was_cleaned_up_after_its_end_does_not_run_again() {
    let fixture = Fixture::new("ttl").await;
    let mut applied = fixture.start().await;
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"ttlSecondsAfterFinished": 0, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "work", "image": "work:1"}],
        }}},
    });
    let desired = |number| {
        stored(
            number,
            vec![bundle("a", "ttl-a", &[namespace("ttl-a"), job.clone()])],
        )
    };
    applied.settle(desired(1)).await;
    let jobs = fixture.api("batch/v1", "Job", Some("ttl-a"));
    eventually("the Job has run and is deleted", LONG, async || {
        anyhow::ensure!(jobs.get_opt("once").await?.is_none());
        Ok(())
    })
    .await
    .unwrap();
    applied.settle(desired(2)).await;
    assert!(jobs.get_opt("once").await.unwrap().is_none());
    applied.applier.stop().await;
}
