//! Fields that Kubernetes' own controllers set on objects that people write. If Git has them, the controllers
//! would overwrite them after every apply, so they are not sent.

use muster_model::bundle::ObjectRef;
use serde_json::{Map, Value};

/// Annotations in which controllers store counters and notes. Manifests that were exported with
/// `kubectl get -o yaml` contain them.
const ANNOTATIONS: [&str; 8] = [
    // The deployment controller's revision number, which is also on the ReplicaSets that it creates.
    "deployment.kubernetes.io/revision",
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    // The API server's counter of changes to a DaemonSet's template.
    "deprecated.daemonset.template.generation",
    // The HorizontalPodAutoscaler's state, which newer API versions have in `status`.
    "autoscaling.alpha.kubernetes.io/conditions",
    "autoscaling.alpha.kubernetes.io/current-metrics",
    // The UID of a token's ServiceAccount. The token controller deletes a Secret with another UID.
    "kubernetes.io/service-account.uid",
];

const TOKEN: &str = "kubernetes.io/service-account-token";
/// The keys that the token controller writes into a token Secret.
const TOKEN_DATA: [&str; 3] = ["token", "ca.crt", "namespace"];

/// Returns true if an object of this kind, with this content as JSON, may have fields that Kubernetes' controllers
/// set. This is a cheap check that may return true for an object without such fields, but never false for one that
/// has them.
#[must_use]
pub fn may_concern(id: &ObjectRef, json: &str) -> bool {
    match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
        ("rbac.authorization.k8s.io", "ClusterRole") => json.contains("\"aggregationRule\""),
        ("apps", _) | ("autoscaling", "HorizontalPodAutoscaler") | ("", "Secret") => {
            ANNOTATIONS.iter().any(|name| json.contains(name)) || json.contains(TOKEN)
        }
        _ => false,
    }
}

/// Removes from an object the fields that Kubernetes' controllers set.
pub fn remove(id: &ObjectRef, object: &mut Map<String, Value>) {
    let is = |group: &str, kind: &str| id.gvk.group == group && id.gvk.kind == kind;
    // A controller writes the rules of all matching roles into an aggregated role.
    let aggregated = object
        .get("aggregationRule")
        .is_some_and(|rule| !rule.is_null());
    if is("rbac.authorization.k8s.io", "ClusterRole") && aggregated {
        object.remove("rules");
    }
    if let Some(Value::Object(metadata)) = object.get_mut("metadata")
        && let Some(Value::Object(annotations)) = metadata.get_mut("annotations")
    {
        annotations.retain(|name, _| !ANNOTATIONS.contains(&name.as_str()));
    }
    if is("", "Secret") && object.get("type").is_some_and(|kind| kind == TOKEN) {
        for field in ["data", "stringData"] {
            if let Some(Value::Object(data)) = object.get_mut(field) {
                data.retain(|name, _| !TOKEN_DATA.contains(&name.as_str()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
