use serde_json::{Value, json};

use super::*;

mod cluster;
mod conventions;
mod rules;

fn object(api_version: &str, kind: &str, spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": "x", "generation": 2},
        "spec": spec,
        "status": status,
    })
}

fn check(api_version: &str, kind: &str, spec: Value, status: Value, health: Health, said: &str) {
    let object = object(api_version, kind, spec, status);
    let message = (!said.is_empty()).then(|| said.to_owned());
    assert_eq!(
        assess(&object),
        Assessment { health, message },
        "{object:#}"
    );
}

#[test]
fn deployments() {
    let check =
        |spec, status, health, said| check("apps/v1", "Deployment", spec, status, health, said);
    let full = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
    check(json!({"replicas": 3}), full.clone(), Health::Healthy, "");
    check(
        json!({"replicas": 0}),
        json!({"observedGeneration": 2}),
        Health::Healthy,
        "",
    );
    check(
        json!({"replicas": 3, "paused": true}),
        full,
        Health::Suspended,
        "the Deployment is paused",
    );
    check(
        json!({"replicas": 3}),
        json!({}),
        Health::Progressing,
        "its controller has not processed it yet",
    );
    check(
        json!({"replicas": 3}),
        json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
        Health::Progressing,
        "its controller has not seen the newest change yet",
    );
    check(
        json!({"replicas": 3}),
        json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3}),
        Health::Progressing,
        "1 of 3 replicas updated",
    );
    check(
        json!({"replicas": 3}),
        json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 3}),
        Health::Progressing,
        "1 old replicas are pending termination",
    );
    check(
        json!({"replicas": 3}),
        json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 2}),
        Health::Progressing,
        "2 of 3 replicas available",
    );
    check(
        json!({"replicas": 3}),
        json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too slow"},
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota exceeded"},
        ]}),
        Health::Degraded,
        "quota exceeded",
    );
}

#[test]
fn stateful_and_daemon_sets() {
    let rolling = json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    let status = |updated: i64, ready: i64| {
        json!({"observedGeneration": 2, "replicas": 3, "readyReplicas": ready,
               "updatedReplicas": updated, "updateRevision": "b", "currentRevision": "a"})
    };
    let check_set =
        |spec, status, health, said| check("apps/v1", "StatefulSet", spec, status, health, said);
    check_set(rolling.clone(), status(1, 3), Health::Healthy, "");
    check_set(
        rolling.clone(),
        status(0, 3),
        Health::Progressing,
        "0 of 1 replicas updated",
    );
    check_set(
        rolling,
        status(1, 2),
        Health::Progressing,
        "2 of 3 replicas ready",
    );
    check_set(
        json!({"replicas": 3}),
        status(1, 3),
        Health::Progressing,
        "1 of 3 replicas updated",
    );
    check_set(
        json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}),
        status(1, 3),
        Health::Healthy,
        "",
    );
    let daemon = |updated: i64, available: i64| {
        json!({"observedGeneration": 2, "desiredNumberScheduled": 4,
               "updatedNumberScheduled": updated, "numberAvailable": available})
    };
    let check_daemon =
        |status, health, said| check("apps/v1", "DaemonSet", json!({}), status, health, said);
    check_daemon(daemon(4, 4), Health::Healthy, "");
    check_daemon(daemon(3, 4), Health::Progressing, "updated on 3 of 4 nodes");
    check_daemon(
        daemon(4, 1),
        Health::Progressing,
        "available on 1 of 4 nodes",
    );
}

#[test]
fn jobs() {
    let check = |spec, status, health, said| check("batch/v1", "Job", spec, status, health, said);
    check(
        json!({}),
        json!({"conditions": [{"type": "Complete", "status": "True"}]}),
        Health::Healthy,
        "",
    );
    check(
        json!({"completions": 3}),
        json!({"succeeded": 1, "failed": 2}),
        Health::Progressing,
        "1 of 3 completions, 2 failed",
    );
    check(
        json!({"suspend": true}),
        json!({}),
        Health::Suspended,
        "the Job is suspended",
    );
    check(
        json!({}),
        json!({"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}),
        Health::Degraded,
        "BackoffLimitExceeded",
    );
}

#[test]
fn pods() {
    let check = |status, health, said| check("v1", "Pod", json!({}), status, health, said);
    check(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        Health::Healthy,
        "",
    );
    check(
        json!({"phase": "Pending", "containerStatuses": [{"name": "web", "state":
            {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}),
        Health::Degraded,
        "container web: ImagePullBackOff: no such image",
    );
    check(
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available"}]}),
        Health::Progressing,
        "0/3 nodes are available",
    );
    check(
        json!({"phase": "Failed", "containerStatuses": [{"name": "web", "state": {"terminated": {"exitCode": 3}}}]}),
        Health::Degraded,
        "container web ended with exit code 3",
    );
    check(json!({"phase": "Succeeded"}), Health::Healthy, "");
    check(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
            {"name": "web", "ready": false, "restartCount": 4, "lastState": {"terminated": {"exitCode": 1}}}]}),
        Health::Degraded,
        "container web ended with exit code 1 and was restarted 4 times",
    );
    check(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
            {"name": "web", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1}}}]}),
        Health::Degraded,
        "container web ended with exit code 1",
    );
    let once = json!({"restartPolicy": "Never"});
    let running = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    self::check(
        "v1",
        "Pod",
        once,
        running,
        Health::Progressing,
        "running to completion",
    );
}

#[test]
fn what_is_being_deleted_says_what_it_waits_for() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata":
        {"name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b", "c/d"]}});
    let said = "being deleted, waiting for a/b, c/d".to_owned();
    assert_eq!(
        assess(&object),
        Assessment {
            health: Health::Progressing,
            message: Some(said)
        }
    );
}

#[test]
fn the_worst_wins() {
    assert_eq!(worst_of([]), Health::Healthy);
    assert_eq!(
        worst_of([Health::Suspended, Health::Degraded, Health::Missing]),
        Health::Degraded
    );
}
