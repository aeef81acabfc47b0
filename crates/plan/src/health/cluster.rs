//! The built-in kinds that run no containers, such as services, volumes, disruption budgets and definitions.

use serde_json::Value;

use super::{Assessment, Rule, condition, conditions, conditions_of, count, list, text};

/// Returns the kind's own rule; `None` if the kind has none.
pub(super) fn rule(group: &str, kind: &str) -> Option<Rule> {
    let rule: Rule = match (group, kind) {
        ("", "Service") => service,
        ("", "PersistentVolumeClaim") => claim,
        ("", "PersistentVolume") => volume,
        ("", "Namespace") => namespace,
        ("networking.k8s.io" | "extensions", "Ingress") => ingress,
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler,
        ("policy", "PodDisruptionBudget") => budget,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition,
        ("apiregistration.k8s.io", "APIService") => api_service,
        _ => return None,
    };
    Some(rule)
}

/// Returns an error that the load balancer's controller reports for one of its ports.
fn port_error(object: &Value) -> Option<Assessment> {
    let points = list(&object["status"]["loadBalancer"]["ingress"]).iter();
    let mut ports = points.flat_map(|point| list(&point["ports"]));
    ports.find_map(|port| {
        let error = port["error"].as_str()?;
        Some(Assessment::degraded(format!(
            "its load balancer's port {}: {error}",
            port["port"]
        )))
    })
}

fn service(object: &Value) -> Assessment {
    if text(&object["spec"], "type") != "LoadBalancer" {
        return Assessment::HEALTHY;
    }
    if let Some(error) = port_error(object) {
        return error;
    }
    if list(&object["status"]["loadBalancer"]["ingress"]).is_empty() {
        return Assessment::progressing("no load balancer has been provisioned yet");
    }
    Assessment::HEALTHY
}

/// An Ingress is healthy without an address, because many ingress controllers never write one. An Ingress does not
/// show whether a controller exists at all.
fn ingress(object: &Value) -> Assessment {
    port_error(object).unwrap_or(Assessment::HEALTHY)
}

fn claim(object: &Value) -> Assessment {
    match text(&object["status"], "phase") {
        "Bound" => {
            let failed = ["ControllerResizeError", "NodeResizeError"];
            match conditions(object).find(|c| failed.contains(&c.kind) && c.status == "True") {
                Some(failed) => Assessment::degraded(failed.said()),
                None => Assessment::HEALTHY,
            }
        }
        "Lost" => Assessment::degraded("its volume is lost"),
        _ => Assessment::progressing("no volume is bound to it yet"),
    }
}

fn volume(object: &Value) -> Assessment {
    let status = &object["status"];
    match text(status, "phase") {
        "Failed" => Assessment::degraded(match text(status, "message") {
            "" => "the volume could not be reclaimed",
            message => message,
        }),
        "Pending" => Assessment::progressing("not provisioned yet"),
        _ => Assessment::HEALTHY,
    }
}

/// A terminating namespace reports in its conditions what blocks its deletion.
fn namespace(object: &Value) -> Assessment {
    if text(&object["status"], "phase") != "Terminating" {
        return Assessment::HEALTHY;
    }
    let in_effect = || conditions(object).filter(|condition| condition.status == "True");
    if let Some(failed) = in_effect().find(|condition| condition.kind.ends_with("Failure")) {
        return Assessment::degraded(format!("being deleted: {}", failed.said()));
    }
    Assessment::progressing(match in_effect().next() {
        Some(rest) => format!("being deleted: {}", rest.said()),
        None => "being deleted".to_owned(),
    })
}

fn autoscaler(object: &Value) -> Assessment {
    // Version 1 of the API has no field for conditions and stores them in an annotation.
    let of_v1 = object["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/conditions"]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let all = of_v1.as_ref().unwrap_or(&object["status"]["conditions"]);
    let is_false = |kind: &str| {
        let mut all = conditions_of(all);
        all.find(|condition| condition.is(kind, "False"))
    };
    if let Some(unable) = is_false("AbleToScale") {
        return Assessment::degraded(unable.said());
    }
    match is_false("ScalingActive") {
        Some(off) if off.reason == "ScalingDisabled" => return Assessment::suspended(off.said()),
        Some(inactive) => return Assessment::degraded(inactive.said()),
        None => {}
    }
    let seen =
        conditions_of(all).next().is_some() || object["status"]["currentReplicas"].is_number();
    if seen {
        Assessment::HEALTHY
    } else {
        Assessment::progressing("its controller has not processed it yet")
    }
}

/// A disruption budget that allows no disruption at the moment still works as intended.
fn budget(object: &Value) -> Assessment {
    let status = &object["status"];
    let failed = conditions(object).find(|c| c.status == "False" && c.reason == "SyncFailed");
    if let Some(failed) = failed {
        return Assessment::degraded(failed.said());
    }
    if !status["expectedPods"].is_number() {
        return Assessment::progressing("its controller has not processed it yet");
    }
    let (have, want) = (
        count(status, "currentHealthy"),
        count(status, "desiredHealthy"),
    );
    // Without pods there is nothing to protect.
    if have < want && count(status, "expectedPods") > 0 {
        return Assessment::progressing(format!("{have} of {want} required pods are healthy"));
    }
    Assessment::HEALTHY
}

fn definition(object: &Value) -> Assessment {
    let false_is = |kind: &str| condition(object, kind).filter(|c| c.status == "False");
    if let Some(names) = false_is("NamesAccepted") {
        return Assessment::degraded(names.said());
    }
    match condition(object, "Established") {
        Some(established) if established.status == "True" => {
            match condition(object, "NonStructuralSchema").filter(|c| c.status == "True") {
                Some(schema) => Assessment::degraded(schema.said()),
                None => Assessment::HEALTHY,
            }
        }
        Some(established) => Assessment::progressing(established.said()),
        None => Assessment::progressing("not established yet"),
    }
}

fn api_service(object: &Value) -> Assessment {
    match condition(object, "Available") {
        Some(available) if available.status == "True" => Assessment::HEALTHY,
        // The service behind it may still be starting.
        Some(available) => Assessment::progressing(available.said()),
        None => Assessment::progressing("its availability has not been checked yet"),
    }
}
