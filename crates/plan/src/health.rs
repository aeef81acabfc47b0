//! How well one object is, in Argo CD's words, and what is wrong when it is not.
//!
//! The built-in kinds and those of the Gateway API are read exactly (`health/workload.rs`,
//! `health/cluster.rs`, `health/gateway.rs`), every other kind by the conventions that controllers share
//! (`health/conventions.rs`).

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

/// How long a new object's controller may take until it first reports; a kind may have none.
pub const SILENCE: Duration = Duration::from_secs(10);

/// An object's health with what a person should know about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Assessment {
    /// The word.
    pub health: Health,
    /// What is wrong or being waited for; `None` where there is nothing to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Assessment {
    /// Well, with nothing to say.
    pub const HEALTHY: Self = Self {
        health: Health::Healthy,
        message: None,
    };

    /// Whether all that is wrong is that nobody has reported on the object yet. That passes as soon as its
    /// controller does, or never where its kind has none that reports: after some time, who watches the
    /// object may take it for well.
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

/// The worst of many; [`Health::Healthy`] of none.
#[must_use]
pub fn worst_of(all: impl IntoIterator<Item = Health>) -> Health {
    all.into_iter().max().unwrap_or_default()
}

/// Reads an object's health from the object as the API server has it. Pure: what depends on the time
/// that passes (a deadline) is read from what the cluster's own controllers concluded.
#[must_use]
pub fn assess(object: &Value) -> Assessment {
    let metadata = &object["metadata"];
    let (group, kind) = group_and_kind(object);
    let exact = exact(group, kind);
    if metadata["deletionTimestamp"].is_string() {
        // What hinders a deletion is said by custom resources and namespaces, in their conditions.
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

/// How one kind is read.
type Rule = fn(&Value) -> Assessment;

/// The rule of a kind that has its own.
fn exact(group: &str, kind: &str) -> Option<Rule> {
    workload::rule(group, kind)
        .or_else(|| cluster::rule(group, kind))
        .or_else(|| gateway::rule(group, kind))
}

/// Whether a group is Kubernetes' own, whose kinds without a status have none.
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

/// Whether the controller has not seen the newest spec yet.
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

/// A whole number, also one that was written as a text.
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
    /// The generation that it is about.
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

    /// Its message, or else its reason, or else its name and status.
    fn said(&self) -> String {
        match (self.message, self.reason) {
            ("", "") => format!("condition {} is {}", self.kind, self.status),
            ("", reason) => reason.to_owned(),
            ("Unknown" | "Error", reason) if !reason.is_empty() => reason.to_owned(),
            (message, _) => message.to_owned(),
        }
    }
}

/// Conditions in a list, as nearly everybody has them, or in a map by their type.
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
