use muster_model::bundle::Gvk;
use serde_json::json;

use super::*;

#[test]
fn only_immutable_fields_are_a_reason() {
    let cause = |field, message| Cause { message, field };
    let selector = cause("spec.selector", "Invalid value: {...}: field is immutable");
    let replicas = cause(
        "spec.replicas",
        "Invalid value: -1: must be greater than or equal to 0",
    );
    let stateful = cause(
        "spec",
        "Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
    );
    assert_eq!(
        unchangeable(&[selector, stateful]).as_deref(),
        Some(
            "spec, spec.selector can't be changed: field is immutable; updates to statefulset spec for \
                 fields other than 'replicas' are forbidden"
        )
    );
    let long = "x".repeat(1000);
    let claim = cause(
        "spec",
        "Forbidden: spec is immutable after creation\n  {a}\n+ {b}",
    );
    assert_eq!(
        unchangeable(&[claim]).as_deref(),
        Some("spec can't be changed: spec is immutable after creation")
    );
    let long = unchangeable(&[cause(&long, "field is immutable")]).unwrap();
    assert!(long.len() < 310);
    assert_eq!(unchangeable(&[selector, replicas]), None);
    assert_eq!(unchangeable(&[]), None);
}

fn id(api_version: &str, kind: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version(api_version, kind),
        namespace: None,
        name: "a".into(),
    }
}

fn asks(judged: Result<(), Refusal>) -> String {
    let Err(Refusal::Asks(why)) = judged else {
        panic!("{judged:?}");
    };
    why
}

#[test]
fn only_what_holds_nothing_and_was_applied_before_is_recreated_unasked() {
    let plain = json!({});
    for (api_version, kind) in [
        ("apps/v1", "Deployment"),
        ("batch/v1", "Job"),
        ("v1", "Service"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ] {
        let id = id(api_version, kind);
        assert_eq!(may_recreate(&id, &plain, None, true), Ok(()), "{kind}");
        let foreign = asks(may_recreate(&id, &plain, None, false));
        assert!(foreign.contains("somebody else created it"), "{foreign}");
    }
    for (api_version, kind) in [
        ("v1", "PersistentVolumeClaim"),
        ("v1", "Namespace"),
        ("v1", "Secret"),
        ("v1", "Pod"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("storage.k8s.io/v1", "StorageClass"),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("example.org/v1", "Deployment"),
        ("example.org/v1", "Database"),
    ] {
        let id = id(api_version, kind);
        let why = asks(may_recreate(&id, &plain, None, true));
        assert!(
            why.contains("muster.dev/recreate: enabled"),
            "{kind}: {why}"
        );
        assert_eq!(may_recreate(&id, &plain, Some("enabled"), false), Ok(()));
    }
    let job = id("batch/v1", "Job");
    let forbidden = may_recreate(&job, &plain, Some("disabled"), true);
    assert!(matches!(forbidden, Err(Refusal::Forbidden(_))));
    let frozen = json!({"immutable": true});
    assert_eq!(
        may_recreate(&id("v1", "Secret"), &frozen, None, true),
        Ok(())
    );
}

#[test]
fn the_message_says_what_would_be_lost() {
    let live = json!({
        "metadata": {"creationTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["example.org/backup"]},
        "spec": {"volumeName": "pv-7"},
        "status": {"capacity": {"storage": "10Gi"}},
    });
    let facts = "(it was created at 2026-01-02T03:04:05Z; its finalizers example.org/backup clean up \
             what belongs to it)";
    assert_eq!(
        loss(&id("v1", "PersistentVolumeClaim"), &live),
        Some(format!("the data in its volume pv-7 (10Gi) {facts}"))
    );
    let service = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    assert_eq!(
        loss(&id("v1", "Service"), &service),
        Some("its external address 192.0.2.1".into())
    );
    assert_eq!(
        loss(
            &id("v1", "Service"),
            &json!({"status": {"loadBalancer": {}}})
        ),
        None
    );
}

#[test]
fn a_person_may_allow_it_on_the_live_object() {
    let database = id("example.org/v1", "Database");
    let live = |manager: &str| {
        json!({"metadata": {
            "annotations": {RECREATE: "enabled"},
            "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": {
                "f:metadata": {"f:annotations": {"f:muster.dev/recreate": {}}},
            }}],
        }})
    };
    assert_eq!(
        may_recreate(&database, &live("kubectl"), None, true),
        Ok(())
    );
    assert!(may_recreate(&database, &live("kubectl"), Some("disabled"), true).is_err());
    // Muster applied the annotation from an earlier commit, and Git no longer has it.
    asks(may_recreate(&database, &live("muster"), None, true));
}
