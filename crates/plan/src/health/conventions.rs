//! Kinds without a rule of their own, assessed by what controllers have in common: conditions, phase and state
//! fields anywhere in the status, replica counts, and fields that pause the controller.
//!
//! The evidence in an object is first collected (`conventions/conditions.rs`, `conventions/fields.rs`) and then
//! weighed (`conventions/evidence.rs`): failure takes precedence over progress, and progress over success. Evidence
//! about the whole object takes precedence over evidence about its parts.

mod conditions;
mod evidence;
mod fields;

use serde_json::{Map, Value};

use self::evidence::Evidence;
use super::{
    Assessment, SILENT, group_and_kind, is_builtin, text,
    words::{Tone, ends_with, is_one_of, starts_with, tone},
};

/// How many levels of nested fields are searched.
const DEPTH: usize = 3;

pub(super) fn assess(object: &Value) -> Assessment {
    if let Some(message) = paused(object) {
        return Assessment::suspended(message);
    }
    let status = match &object["status"] {
        Value::Object(status) => status,
        Value::Null => return silent(object),
        _ => return Assessment::HEALTHY,
    };
    let mut evidence = Evidence {
        runs_to_an_end: runs_to_an_end(text(object, "kind")),
        none_wanted: object["spec"]["replicas"] == 0,
        ..Evidence::default()
    };
    evidence.conditions(status, object["metadata"]["generation"].as_i64());
    evidence.fields(status);
    evidence.replicas(&object["spec"], status);
    evidence.weigh(status)
}

/// Returns a message if the object's controller is switched off on purpose for this object.
fn paused(object: &Value) -> Option<String> {
    let annotations = object["metadata"]["annotations"].as_object();
    let annotation = annotations.into_iter().flatten().find(|(key, value)| {
        let name = key.rsplit('/').next().unwrap_or_default();
        let value = value.as_str().unwrap_or_default();
        let switched_on = is_one_of(value, &["true", "on"]) && tone(name) == Some(Tone::Stopped);
        let off = is_one_of(value, &["disabled", "paused", "suspended"]);
        switched_on || (off && starts_with(name, "reconcil"))
    });
    if let Some((key, value)) = annotation {
        return Some(format!(
            "its annotation {key} is {}",
            value.as_str().unwrap_or_default()
        ));
    }
    switch(object["spec"].as_object()?, DEPTH).map(|key| format!("{key} is true in its spec"))
}

/// Returns the name of a field that pauses the controller, such as `suspend: true` or `paused: true`.
fn switch(spec: &Map<String, Value>, depth: usize) -> Option<&str> {
    spec.iter().find_map(|(key, value)| match value {
        Value::Bool(true) if tone(key) == Some(Tone::Stopped) && !ends_with(key, "disabled") => {
            Some(key.as_str())
        }
        Value::Object(inner) if depth > 1 && key != "template" => switch(inner, depth - 1),
        _ => None,
    })
}

/// Assesses an object without a status.
fn silent(object: &Value) -> Assessment {
    let spec = &object["spec"];
    let is_data = || {
        let keys = object
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str());
        let frame = ["apiVersion", "kind", "metadata", "spec", "status"];
        spec.is_null() && keys.into_iter().any(|key| !frame.contains(&key))
    };
    let (group, kind) = group_and_kind(object);
    if is_builtin(group) || is_data() || is_read_by_others(kind) || spec.get("schedule").is_some() {
        return Assessment::HEALTHY;
    }
    Assessment::progressing(SILENT)
}

/// Returns true if no controller is expected to report on the kind, because its objects are only read by others or
/// run on a schedule. Such kinds are recognized by their names.
fn is_read_by_others(kind: &str) -> bool {
    const ENDS: [&str; 28] = [
        "Advertisement",
        "Authentication",
        "AuthorizationPolicy",
        "Class",
        "Config",
        "Configuration",
        "Defaults",
        "Definition",
        "Entry",
        "Exception",
        "Filter",
        "IngressRoute",
        "IngressRouteTCP",
        "IngressRouteUDP",
        "Middleware",
        "MiddlewareTCP",
        "Monitor",
        "NetworkPolicy",
        "Parameters",
        "Peer",
        "Pool",
        "Profile",
        "Project",
        "Rule",
        "Schedule",
        "TLSOption",
        "Telemetry",
        "Template",
    ];
    starts_with(kind, "Cron") || ENDS.iter().any(|end| ends_with(kind, end))
}

/// Returns true if objects of the kind run to completion, so that `Running` means that they are progressing.
fn runs_to_an_end(kind: &str) -> bool {
    const ENDS: [&str; 15] = [
        "Analysis",
        "Backup",
        "Build",
        "Experiment",
        "Job",
        "Migration",
        "Operation",
        "Promotion",
        "Request",
        "Restore",
        "Run",
        "Scan",
        "Task",
        "Test",
        "Workflow",
    ];
    ENDS.iter().any(|end| ends_with(kind, end))
}
