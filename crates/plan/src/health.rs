//! The health of one object, in Argo CD's terms, with a message about what is wrong.
//!
//! The built-in kinds and those of the Gateway API have rules of their own (`health/workload.rs`,
//! `health/cluster.rs`, `health/gateway.rs`). Every other kind is assessed by the conventions that
//! controllers share (`health/conventions.rs`).

mod cluster;
mod conventions;
mod gateway;
mod rules;
mod words;
mod workload;

use std::time::Duration;

pub use muster_model::health::Health;
pub use rules::{RuleError, Rules};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long a new object's controller may take to report for the first time. A kind without a controller never
/// gets a report.
pub const SILENCE: Duration = Duration::from_secs(10);

/// An object's health, with a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Assessment {
    /// The health state.
    pub health: Health,
    /// What is wrong, or what the object waits for; `None` if there is nothing to report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Assessment {
    /// Healthy, without a message.
    pub const HEALTHY: Self = Self {
        health: Health::Healthy,
        message: None,
    };

    /// Returns true if the object is only unhealthy because no controller has reported on it yet. If the kind has
    /// no controller that reports, this never changes; callers treat the object as healthy after [`SILENCE`].
    #[must_use]
    pub fn is_silence(&self) -> bool {
        self.message.as_deref() == Some(SILENT)
    }

    fn new(health: Health, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            health,
            message: (!message.is_empty()).then_some(message),
        }
    }

    fn progressing(message: impl Into<String>) -> Self {
        Self::new(Health::Progressing, message)
    }

    fn degraded(message: impl Into<String>) -> Self {
        Self::new(Health::Degraded, message)
    }

    fn suspended(message: impl Into<String>) -> Self {
        Self::new(Health::Suspended, message)
    }
}

/// Returns the worst of many health states, or [`Health::Healthy`] if there are none.
#[must_use]
pub fn worst_of(all: impl IntoIterator<Item = Health>) -> Health {
    all.into_iter().max().unwrap_or_default()
}

/// Assesses the health of a live object. This is a pure function: it does not read a clock, but relies on the
/// cluster's own controllers to report passed deadlines.
#[must_use]
pub fn assess(object: &Value) -> Assessment {
    let metadata = &object["metadata"];
    let (group, kind) = group_and_kind(object);
    let exact = exact(group, kind);
    if metadata["deletionTimestamp"].is_string() {
        // Custom resources and namespaces report in their conditions what blocks their deletion.
        let rule = match (exact, kind) {
            (None, _) => Some(conventions::assess as Rule),
            (rule, "Namespace") => rule,
            _ => None,
        };
        let failed = rule
            .map(|rule| rule(object))
            .filter(|assessment| assessment.health == Health::Degraded);
        return failed.unwrap_or_else(|| deleting(metadata));
    }
    not_observed(object).unwrap_or_else(|| exact.unwrap_or(conventions::assess)(object))
}

/// Assesses objects of one kind.
type Rule = fn(&Value) -> Assessment;

/// Returns the kind's own rule; `None` if the kind has none.
fn exact(group: &str, kind: &str) -> Option<Rule> {
    workload::rule(group, kind)
        .or_else(|| cluster::rule(group, kind))
        .or_else(|| gateway::rule(group, kind))
}

/// Returns true if a group is one of Kubernetes' own. An object of such a group counts as healthy while it has no
/// status, because most of these kinds never get one.
fn is_builtin(group: &str) -> bool {
    match group.strip_suffix(".k8s.io") {
        Some(own) => matches!(
            own,
            "admissionregistration"
                | "apiextensions"
                | "apiregistration"
                | "authentication"
                | "authorization"
                | "certificates"
                | "coordination"
                | "discovery"
                | "events"
                | "flowcontrol.apiserver"
                | "internal.apiserver"
                | "networking"
                | "node"
                | "rbac.authorization"
                | "resource"
                | "scheduling"
                | "storage"
                | "storagemigration"
        ),
        None => matches!(
            group,
            "" | "apps" | "autoscaling" | "batch" | "extensions" | "policy"
        ),
    }
}

fn deleting(metadata: &Value) -> Assessment {
    let finalizers = names(&metadata["finalizers"]);
    Assessment::progressing(if finalizers.is_empty() {
        "being deleted".to_owned()
    } else {
        format!("being deleted, waiting for {}", finalizers.join(", "))
    })
}

const SILENT: &str = "nothing has reported on it yet";
const NOT_SEEN: &str = "its controller has not seen the newest change yet";

/// Returns an assessment if the controller has not observed the newest generation yet.
fn not_observed(object: &Value) -> Option<Assessment> {
    let generation = object["metadata"]["generation"].as_i64()?;
    let mut fields = object["status"].as_object()?.iter();
    let is_old = |(field, value): (&String, &Value)| {
        (field.starts_with("observed") || field.starts_with("last"))
            && field.ends_with("Generation")
            && integer(value).is_some_and(|observed| observed < generation)
    };
    fields
        .any(is_old)
        .then(|| Assessment::progressing(NOT_SEEN))
}

/// Reads an integer, also from a string.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn group_and_kind(object: &Value) -> (&str, &str) {
    let api_version = text(object, "apiVersion").split_once('/');
    let group = api_version.map_or("", |(group, _)| group);
    (group, text(object, "kind"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn count(value: &Value, field: &str) -> i64 {
    value[field].as_i64().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn names(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

/// One entry of a list of conditions.
#[derive(Debug, Clone, Copy)]
struct Condition<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
    /// The generation that the condition is about.
    observed: Option<i64>,
}

impl<'a> Condition<'a> {
    fn read(kind: &'a str, value: &'a Value) -> Self {
        let status = match &value["status"] {
            Value::Bool(true) => "True",
            Value::Bool(false) => "False",
            status => status.as_str().unwrap_or_default(),
        };
        Self {
            kind,
            status,
            reason: text(value, "reason"),
            message: text(value, "message"),
            observed: integer(&value["observedGeneration"]),
        }
    }

    fn is(&self, kind: &str, status: &str) -> bool {
        self.kind == kind && self.status == status
    }

    fn is_true(&self) -> bool {
        self.status.eq_ignore_ascii_case("true")
    }

    fn is_false(&self) -> bool {
        self.status.eq_ignore_ascii_case("false")
    }

    /// Returns the condition's message, or else its reason, or else its type and status.
    fn said(&self) -> String {
        match (self.message, self.reason) {
            ("", "") => format!("condition {} is {}", self.kind, self.status),
            ("", reason) => reason.to_owned(),
            ("Unknown" | "Error", reason) if !reason.is_empty() => reason.to_owned(),
            (message, _) => message.to_owned(),
        }
    }
}

/// Reads conditions from a list, as most APIs write them, or from a map by type.
fn conditions_of(value: &Value) -> impl Iterator<Item = Condition<'_>> {
    let of_list = list(value)
        .iter()
        .map(|condition| Condition::read(text(condition, "type"), condition));
    let of_map = value.as_object().into_iter().flatten();
    of_list.chain(of_map.map(|(kind, condition)| Condition::read(kind, condition)))
}

fn conditions(object: &Value) -> impl Iterator<Item = Condition<'_>> {
    conditions_of(&object["status"]["conditions"])
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<Condition<'a>> {
    conditions(object).find(|condition| condition.kind == kind)
}

#[cfg(test)]
mod tests;
