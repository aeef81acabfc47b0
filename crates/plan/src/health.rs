//! How well one object is, in Argo CD's words, and what is wrong when it is not.
//!
//! The built-in kinds are read exactly (`health/workload.rs`), every other kind by the conventions that
//! controllers share (`health/conventions.rs`).

mod conventions;
mod workload;

pub use muster_model::health::Health;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    if metadata["deletionTimestamp"].is_string() {
        return deleting(metadata);
    }
    let api_version = text(object, "apiVersion");
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    if let Some(assessment) = workload::assess(group, text(object, "kind"), object) {
        return assessment;
    }
    if let Some(stale) = not_observed(object) {
        return stale;
    }
    conventions::assess(object)
}

fn deleting(metadata: &Value) -> Assessment {
    let finalizers = names(&metadata["finalizers"]);
    Assessment::progressing(if finalizers.is_empty() {
        "being deleted".to_owned()
    } else {
        format!("being deleted, waiting for {}", finalizers.join(", "))
    })
}

/// Whether the controller has not seen the newest spec yet.
fn not_observed(object: &Value) -> Option<Assessment> {
    let observed = object["status"]["observedGeneration"].as_i64()?;
    let generation = object["metadata"]["generation"].as_i64()?;
    (observed < generation)
        .then(|| Assessment::progressing("its controller has not seen the newest change yet"))
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

/// One entry of `status.conditions`.
#[derive(Debug, Clone, Copy)]
struct Condition<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
}

impl Condition<'_> {
    fn is(&self, kind: &str, status: &str) -> bool {
        self.kind == kind && self.status == status
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

fn conditions(object: &Value) -> impl Iterator<Item = Condition<'_>> {
    list(&object["status"]["conditions"])
        .iter()
        .map(|condition| Condition {
            kind: text(condition, "type"),
            status: text(condition, "status"),
            reason: text(condition, "reason"),
            message: text(condition, "message"),
        })
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<Condition<'a>> {
    conditions(object).find(|condition| condition.kind == kind)
}

#[cfg(test)]
mod tests;
