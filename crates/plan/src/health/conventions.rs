//! Kinds without a rule of their own, read by what controllers have in common: kstatus' conditions
//! (`Stalled`, `Reconciling`), `Ready`-like conditions, and words in `status.phase` or `status.state`.

use serde_json::Value;

use super::{Assessment, Condition, conditions, text};

/// Conditions that are good when true, the most telling first.
const GOOD: [&str; 7] = [
    "Ready",
    "Available",
    "Healthy",
    "Programmed",
    "Accepted",
    "Established",
    "Synced",
];

/// Conditions that are bad when true.
const BAD: [&str; 4] = ["Stalled", "Failed", "Degraded", "Error"];

/// Beginnings and parts of reasons that do not pass by themselves.
const FAILED: [&str; 6] = [
    "fail",
    "error",
    "invalid",
    "denied",
    "unauthorized",
    "notfound",
];

pub(super) fn assess(object: &Value) -> Assessment {
    if object["spec"]["suspend"] == true || object["spec"]["paused"] == true {
        return Assessment::suspended("suspended in its spec");
    }
    let find = |wanted: &dyn Fn(&Condition<'_>) -> bool| conditions(object).find(|c| wanted(c));
    if let Some(bad) = find(&|c| BAD.contains(&c.kind) && c.status == "True") {
        return Assessment::degraded(bad.said());
    }
    if let Some(reconciling) = find(&|c| c.is("Reconciling", "True")) {
        return Assessment::progressing(reconciling.said());
    }
    for good in GOOD {
        match find(&|c| c.kind == good) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) if condition.status == "False" && failed(condition.reason) => {
                return Assessment::degraded(condition.said());
            }
            Some(condition) => return Assessment::progressing(condition.said()),
            None => {}
        }
    }
    word(object)
}

fn failed(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    FAILED.iter().any(|word| reason.contains(word))
}

/// The word in `status.phase` or `status.state`, where there is one that is known.
fn word(object: &Value) -> Assessment {
    let status = &object["status"];
    let word = match text(status, "phase") {
        "" => text(status, "state"),
        phase => phase,
    };
    let said = || match (text(status, "message"), text(status, "reason")) {
        ("", "") => format!("its status says {word}"),
        ("", text) | (text, _) => text.to_owned(),
    };
    match word.to_ascii_lowercase().as_str() {
        "failed" | "failure" | "error" | "degraded" | "lost" | "invalid" => {
            Assessment::degraded(said())
        }
        "pending" | "creating" | "progressing" | "provisioning" | "initializing" | "updating"
        | "terminating" | "deleting" | "waiting" | "starting" => Assessment::progressing(said()),
        "suspended" | "paused" => Assessment::suspended(said()),
        _ => Assessment::HEALTHY,
    }
}
