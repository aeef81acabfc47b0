//! Field ownership: conflicts with other field managers, and objects that are adopted from other tools or apps.

use kube::api::{Patch, PatchParams};
use muster_apply::ObjectState;
use muster_model::{
    ids::Role,
    policy::{Conflicts, Drift, IgnoreRule},
};
use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, config_map, making, namespace, object, stored};

fn with_namespace(fixture: &Fixture, mut objects: Vec<Value>) -> Vec<Value> {
    objects.insert(0, namespace(&format!("{}-a", fixture.name)));
    objects
}

async fn create_namespace(fixture: &Fixture) -> String {
    let name = format!("{}-a", fixture.name);
    let api = fixture.api("v1", "Namespace", None);
    let params = PatchParams::apply("test").force();
    let patch = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.patch(&name, &params, &Patch::Apply(&patch))
        .await
        .unwrap();
    name
}

fn data(entries: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": entries})
}

fn managers(live: &Value) -> Vec<&str> {
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_conflict_is_reported_by_field_and_manager_and_nothing_else_stops() {
    let fixture = Fixture::new("contest").await;
    let ns = create_namespace(&fixture).await;
    fixture
        .apply_as(
            "operator",
            &ns,
            &data(&json!({"a": "theirs", "b": "theirs"})),
        )
        .await;
    let mut applied = fixture.start().await;
    let shared = data(&json!({"a": "ours", "b": "theirs", "c": "ours"}));
    let objects = with_namespace(&fixture, vec![shared.clone(), config_map("other", "1")]);
    let observed = applied
        .settle(stored(1, vec![bundle("a", &ns, &objects)]))
        .await;
    let ObjectState::Failed(message) = object(&observed, &format!("ConfigMap {ns}/shared")).state
    else {
        panic!("the object should be in conflict: {observed:#?}");
    };
    assert!(message.contains("`operator` owns .data.a;"), "{message}");
    assert!(message.contains("conflicts: take"), "{message}");
    assert_eq!(
        object(&observed, &format!("ConfigMap {ns}/other")).state,
        ObjectState::Applied
    );
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(live["data"], json!({"a": "theirs", "b": "theirs"}));

    // With `conflicts: take`, the app takes over the fields.
    let take = making("a", &ns)
        .policy(|policy| policy.conflicts = Conflicts::Take)
        .of(&objects);
    applied.settle(stored(2, vec![take])).await;
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(
        live["data"],
        json!({"a": "ours", "b": "theirs", "c": "ours"})
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_annotation_takes_over_one_object() {
    let fixture = Fixture::new("taking").await;
    let ns = create_namespace(&fixture).await;
    fixture
        .apply_as("operator", &ns, &data(&json!({"a": "theirs"})))
        .await;
    let mut shared = data(&json!({"a": "ours"}));
    shared["metadata"]["annotations"] = json!({"muster.dev/conflicts": "take"});
    let mut applied = fixture.start().await;
    let objects = with_namespace(&fixture, vec![shared]);
    applied
        .settle(stored(1, vec![bundle("a", &ns, &objects)]))
        .await;
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(live["data"], json!({"a": "ours"}));
    applied.applier.stop().await;
}

/// Checks that an object of another tool is adopted, with one field that is also in Git and one that is not.
async fn adopts_from(name: &str, manager: &str, applies: bool) {
    let fixture = Fixture::new(name).await;
    let ns = create_namespace(&fixture).await;
    let theirs = data(&json!({"both": "old", "extra": "kept"}));
    let uid = if applies {
        fixture.apply_as(manager, &ns, &theirs).await["metadata"]["uid"].clone()
    } else {
        let mut theirs = theirs;
        theirs["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
        let params = kube::api::PostParams {
            field_manager: Some(manager.to_owned()),
            ..kube::api::PostParams::default()
        };
        let theirs = serde_json::from_value(theirs).unwrap();
        let live = fixture
            .config_maps(&ns)
            .create(&params, &theirs)
            .await
            .unwrap();
        json!(live.metadata.uid)
    };

    let mut applied = fixture.start().await;
    let objects = with_namespace(&fixture, vec![data(&json!({"both": "new"}))]);
    applied
        .settle(stored(1, vec![bundle("a", &ns, &objects)]))
        .await;
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(live["metadata"]["uid"], uid);
    // Fields that were never in Git are not lost.
    assert_eq!(live["data"], json!({"both": "new", "extra": "kept"}));
    let last = &live["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert_eq!(*last, Value::Null);

    // A field that is then removed from Git is removed from the object, although the tool once owned it.
    let objects = with_namespace(&fixture, vec![data(&json!({"other": "1"}))]);
    applied
        .settle(stored(2, vec![bundle("a", &ns, &objects)]))
        .await;
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(live["metadata"]["uid"], uid);
    assert_eq!(live["data"], json!({"other": "1", "extra": "kept"}));
    assert!(managers(&live).contains(&"muster"));
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_kubectl_applied_is_adopted_without_a_fight_or_a_loss() {
    adopts_from("kubectl", "kubectl-client-side-apply", false).await;
}

#[tokio::test]
async fn what_helm_installed_is_adopted_without_a_fight_or_a_loss() {
    adopts_from("helm", "helm", false).await;
}

#[tokio::test]
async fn what_flux_applied_is_adopted_without_a_fight_or_a_loss() {
    adopts_from("flux", "kustomize-controller", true).await;
}

#[tokio::test]
async fn what_argo_cd_applied_is_adopted_without_a_fight_or_a_loss() {
    adopts_from("argocd", "argocd-controller", true).await;
}

#[tokio::test]
async fn an_object_of_a_renamed_app_keeps_its_uid() {
    let fixture = Fixture::new("renamed").await;
    let ns = format!("{}-a", fixture.name);
    let mut applied = fixture.start().await;
    let objects = with_namespace(&fixture, vec![config_map("a", "1"), config_map("b", "1")]);
    applied
        .settle(stored(1, vec![bundle("old", &ns, &objects)]))
        .await;
    let uid = |live: Value| live["metadata"]["uid"].clone();
    let before = uid(fixture.get("v1", "ConfigMap", &ns, "a").await);
    let renamed = making("new", &ns).formerly("old").of(&objects[..2]);
    let observed = applied.settle(stored(2, vec![renamed])).await;
    assert_eq!(uid(fixture.get("v1", "ConfigMap", &ns, "a").await), before);
    assert_eq!(fixture.live("v1", "ConfigMap").await, [format!("{ns}/a")]);
    assert_eq!(
        (observed.pending_approvals.len(), observed.leftovers.len()),
        (0, 0)
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_fenced_role_is_applied_whatever_stands_in_its_way() {
    let fixture = Fixture::new("fenced").await;
    let ns = create_namespace(&fixture).await;
    let mut theirs = data(&json!({"a": "theirs"}));
    theirs["metadata"]["annotations"] = json!({"muster.dev/reconcile": "disabled"});
    fixture.apply_as("operator", &ns, &theirs).await;
    let fenced = making("a", &ns)
        .role(Role::Fenced)
        .policy(|policy| {
            policy.drift = Drift::Report;
            policy.ignore = vec![IgnoreRule {
                fields: vec!["/data/a".into()],
                ..IgnoreRule::default()
            }];
        })
        .of(&[data(&json!({"a": "fenced"}))]);
    let mut applied = fixture.start().await;
    applied.settle(stored(1, vec![fenced])).await;
    let live = fixture.get("v1", "ConfigMap", &ns, "shared").await;
    assert_eq!(live["data"]["a"], "fenced");
    applied.applier.stop().await;
}
