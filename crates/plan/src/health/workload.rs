//! The built-in kinds that run containers.

use serde_json::Value;

use super::{Assessment, Rule, condition, conditions, count, list, text};

/// Returns the kind's own rule; `None` if the kind has none.
pub(super) fn rule(group: &str, kind: &str) -> Option<Rule> {
    let rule: Rule = match (group, kind) {
        ("apps", "Deployment") => deployment,
        ("apps", "StatefulSet") => stateful_set,
        ("apps", "DaemonSet") => daemon_set,
        ("apps", "ReplicaSet") | ("", "ReplicationController") => replica_set,
        ("batch", "Job") => job,
        ("batch", "CronJob") => cron_job,
        ("", "Pod") => pod,
        _ => return None,
    };
    Some(rule)
}

/// Returns the desired number of replicas. Kubernetes' default is one.
fn desired(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn not_begun(object: &Value) -> Option<Assessment> {
    // A controller always writes the generation that it has observed.
    object["status"]["observedGeneration"]
        .is_null()
        .then(|| Assessment::progressing("its controller has not processed it yet"))
}

fn deployment(object: &Value) -> Assessment {
    if object["spec"]["paused"] == true {
        return Assessment::suspended("the Deployment is paused");
    }
    if let Some(progressing) = condition(object, "Progressing")
        && progressing.reason == "ProgressDeadlineExceeded"
    {
        let failure = condition(object, "ReplicaFailure").filter(|c| c.status == "True");
        return Assessment::degraded(failure.unwrap_or(progressing).said());
    }
    if let Some(assessment) = not_begun(object) {
        return assessment;
    }
    let status = &object["status"];
    let (desired, updated) = (desired(object), count(status, "updatedReplicas"));
    let (all, available) = (
        count(status, "replicas"),
        count(status, "availableReplicas"),
    );
    if updated < desired {
        let failure = condition(object, "ReplicaFailure").filter(|c| c.status == "True");
        let why = failure
            .map(|c| format!(": {}", c.said()))
            .unwrap_or_default();
        return Assessment::progressing(format!("{updated} of {desired} replicas updated{why}"));
    }
    if all > updated {
        let old = all - updated;
        return Assessment::progressing(format!("{old} old replicas are pending termination"));
    }
    if available < updated {
        return Assessment::progressing(format!("{available} of {updated} replicas available"));
    }
    Assessment::HEALTHY
}

fn stateful_set(object: &Value) -> Assessment {
    if let Some(assessment) = not_begun(object) {
        return assessment;
    }
    let (spec, status) = (&object["spec"], &object["status"]);
    let (desired, ready) = (desired(object), count(status, "readyReplicas"));
    if ready < desired {
        return Assessment::progressing(format!("{ready} of {desired} replicas ready"));
    }
    if text(&spec["updateStrategy"], "type") == "OnDelete" {
        return Assessment::HEALTHY;
    }
    let partition = count(&spec["updateStrategy"]["rollingUpdate"], "partition");
    let (target, updated) = (
        (desired - partition).max(0),
        count(status, "updatedReplicas"),
    );
    let rolled_out = status["updateRevision"] == status["currentRevision"];
    if !rolled_out && updated < target {
        return Assessment::progressing(format!("{updated} of {target} replicas updated"));
    }
    Assessment::HEALTHY
}

fn daemon_set(object: &Value) -> Assessment {
    if let Some(assessment) = not_begun(object) {
        return assessment;
    }
    let status = &object["status"];
    let desired = count(status, "desiredNumberScheduled");
    let updated = count(status, "updatedNumberScheduled");
    let on_delete = text(&object["spec"]["updateStrategy"], "type") == "OnDelete";
    if !on_delete && updated < desired {
        return Assessment::progressing(format!("updated on {updated} of {desired} nodes"));
    }
    let available = count(status, "numberAvailable");
    if available < desired {
        return Assessment::progressing(format!("available on {available} of {desired} nodes"));
    }
    Assessment::HEALTHY
}

fn replica_set(object: &Value) -> Assessment {
    if let Some(failure) = condition(object, "ReplicaFailure").filter(|c| c.status == "True") {
        return Assessment::degraded(failure.said());
    }
    let (desired, available) = (
        desired(object),
        count(&object["status"], "availableReplicas"),
    );
    if available < desired {
        return Assessment::progressing(format!("{available} of {desired} replicas available"));
    }
    Assessment::HEALTHY
}

fn job(object: &Value) -> Assessment {
    let is = |kind: &str| conditions(object).find(|condition| condition.is(kind, "True"));
    if let Some(failed) = is("Failed").or_else(|| is("FailureTarget")) {
        return Assessment::degraded(failed.said());
    }
    if is("Complete").is_some() {
        return Assessment::HEALTHY;
    }
    if object["spec"]["suspend"] == true || is("Suspended").is_some() {
        return Assessment::suspended("the Job is suspended");
    }
    let desired = object["spec"]["completions"].as_i64().unwrap_or(1);
    let (done, failed) = (
        count(&object["status"], "succeeded"),
        count(&object["status"], "failed"),
    );
    let failures = if failed > 0 {
        format!(", {failed} failed")
    } else {
        String::new()
    };
    Assessment::progressing(format!("{done} of {desired} completions{failures}"))
}

fn cron_job(object: &Value) -> Assessment {
    if object["spec"]["suspend"] == true {
        return Assessment::suspended("the CronJob is suspended");
    }
    Assessment::HEALTHY
}

/// Returns true if a waiting container with this reason does not recover without a change.
fn is_failure(reason: &str) -> bool {
    reason.starts_with("Err")
        || reason.ends_with("Error")
        || reason.ends_with("BackOff")
        || reason == "InvalidImageName"
}

fn pod(object: &Value) -> Assessment {
    let status = &object["status"];
    let said = || match (text(status, "message"), text(status, "reason")) {
        ("", "") => None,
        ("", text) | (text, _) => Some(text.to_owned()),
    };
    let containers = || {
        ["initContainerStatuses", "containerStatuses"]
            .into_iter()
            .flat_map(|f| list(&status[f]))
    };
    let stuck = containers().find_map(|container| {
        let waiting = &container["state"]["waiting"];
        let (name, reason) = (text(container, "name"), text(waiting, "reason"));
        is_failure(reason).then(|| match text(waiting, "message") {
            "" => format!("container {name}: {reason}"),
            message => format!("container {name}: {reason}: {message}"),
        })
    });
    match text(status, "phase") {
        "Succeeded" => Assessment::HEALTHY,
        "Failed" => {
            let exit = || {
                containers().find_map(|container| {
                    let code = container["state"]["terminated"]["exitCode"].as_i64()?;
                    let name = text(container, "name");
                    (code != 0).then(|| format!("container {name} ended with exit code {code}"))
                })
            };
            Assessment::degraded(
                said()
                    .or_else(exit)
                    .unwrap_or_else(|| "the Pod failed".into()),
            )
        }
        _ if stuck.is_some() => Assessment::degraded(stuck.unwrap_or_default()),
        // A Pod that is not always restarted runs to completion.
        "Running"
            if matches!(
                text(&object["spec"], "restartPolicy"),
                "Never" | "OnFailure"
            ) =>
        {
            Assessment::progressing("running to completion")
        }
        "Running" => match condition(object, "Ready") {
            Some(ready) if ready.status == "True" => Assessment::HEALTHY,
            ready => match restarted(containers()) {
                Some(restarted) => Assessment::degraded(restarted),
                None => Assessment::progressing(
                    ready.map_or_else(|| "not ready yet".into(), |ready| ready.said()),
                ),
            },
        },
        "Pending" => {
            let scheduled = condition(object, "PodScheduled").filter(|c| c.status == "False");
            Assessment::progressing(
                scheduled
                    .map(|c| c.said())
                    .or_else(said)
                    .unwrap_or_else(|| "pending".into()),
            )
        }
        "Unknown" => Assessment::new(
            super::Health::Unknown,
            said().unwrap_or_else(|| "its node does not answer".into()),
        ),
        _ => Assessment::progressing("not scheduled yet"),
    }
}

/// Describes a container that is not ready because it exited with an error and was or will be restarted.
fn restarted<'a>(mut containers: impl Iterator<Item = &'a Value>) -> Option<String> {
    containers.find_map(|container| {
        let last =
            ["state", "lastState"].map(|state| container[state]["terminated"]["exitCode"].as_i64());
        let code = last.into_iter().flatten().next()?;
        let ended = code != 0 && container["ready"] == false;
        ended.then(|| {
            let (name, times) = (text(container, "name"), count(container, "restartCount"));
            match times {
                0 => format!("container {name} ended with exit code {code}"),
                _ => format!(
                    "container {name} ended with exit code {code} and was restarted {times} times"
                ),
            }
        })
    })
}
