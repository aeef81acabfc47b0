//! The Gateway API: gateways with their listeners, and routes and policies, which have conditions for each parent
//! (GEP-1364).

use serde_json::Value;

use super::{Assessment, Condition, NOT_SEEN, Rule, conditions_of, list, text};

/// Returns the kind's own rule; `None` if the kind has none.
pub(super) fn rule(group: &str, kind: &str) -> Option<Rule> {
    if !matches!(
        group,
        "gateway.networking.k8s.io" | "gateway.networking.x-k8s.io"
    ) {
        return None;
    }
    let rule: Rule = match kind {
        "GatewayClass" => class,
        "Gateway" => gateway,
        // A ReferenceGrant only permits references and has no status.
        "ReferenceGrant" => |_| Assessment::HEALTHY,
        _ if kind.ends_with("Route") => route,
        _ if kind.ends_with("Policy") => policy,
        _ => return None,
    };
    Some(rule)
}

/// The combined result of several lists of conditions.
#[derive(Default)]
struct Opinion {
    degraded: Option<String>,
    progressing: Option<String>,
    /// True if a condition is about the newest generation.
    current: bool,
    /// True if a condition is about an older generation.
    outdated: bool,
}

impl Opinion {
    fn hear(&mut self, object: &Value, conditions: &Value, about: &str) {
        let generation = object["metadata"]["generation"].as_i64();
        for condition in conditions_of(conditions) {
            if condition
                .observed
                .zip(generation)
                .is_some_and(|(seen, newest)| seen < newest)
            {
                self.outdated = true;
                continue;
            }
            self.current = true;
            let said = || match about {
                "" => condition.said(),
                about => format!("{about}: {}", condition.said()),
            };
            match verdict(&condition) {
                Verdict::Good => {}
                Verdict::Waits => _ = self.progressing.get_or_insert_with(said),
                Verdict::Bad => _ = self.degraded.get_or_insert_with(said),
            }
        }
    }

    fn assess(self, waits_for: &str) -> Assessment {
        match (self.degraded, self.progressing) {
            (Some(bad), _) => Assessment::degraded(bad),
            (None, Some(waits)) => Assessment::progressing(waits),
            (None, None) if self.current => Assessment::HEALTHY,
            (None, None) if self.outdated => Assessment::progressing(NOT_SEEN),
            (None, None) => Assessment::progressing(waits_for),
        }
    }
}

enum Verdict {
    Good,
    Waits,
    Bad,
}

fn verdict(condition: &Condition<'_>) -> Verdict {
    // `Pending` is the initial reason of every condition.
    let waits = condition.status == "Unknown" || condition.reason == "Pending";
    match (condition.kind, condition.status) {
        ("Conflicted" | "PartiallyInvalid" | "OverlappingTLSConfig", "True") => Verdict::Bad,
        ("Accepted" | "ResolvedRefs" | "Programmed", "True") => Verdict::Good,
        ("Accepted" | "ResolvedRefs" | "Programmed", _) if waits => Verdict::Waits,
        ("Accepted" | "ResolvedRefs", _) => Verdict::Bad,
        ("Programmed", _) if condition.reason == "Invalid" => Verdict::Bad,
        ("Programmed", _) => Verdict::Waits,
        _ => Verdict::Good,
    }
}

fn class(object: &Value) -> Assessment {
    let mut opinion = Opinion::default();
    opinion.hear(object, &object["status"]["conditions"], "");
    opinion.assess("no controller has reported on it yet")
}

fn gateway(object: &Value) -> Assessment {
    let status = &object["status"];
    let mut opinion = Opinion::default();
    opinion.hear(object, &status["conditions"], "");
    for listener in list(&status["listeners"]) {
        let about = format!("listener {}", text(listener, "name"));
        opinion.hear(object, &listener["conditions"], &about);
    }
    opinion.assess("no controller has reported on it yet")
}

fn route(object: &Value) -> Assessment {
    parents(object, "parents", "parentRef")
}

fn policy(object: &Value) -> Assessment {
    parents(object, "ancestors", "ancestorRef")
}

fn parents(object: &Value, parents: &str, reference: &str) -> Assessment {
    let parents = list(&object["status"][parents]);
    let mut opinion = Opinion::default();
    for parent in parents {
        let about = match parents.len() {
            1 => String::new(),
            _ => text(&parent[reference], "name").to_owned(),
        };
        opinion.hear(object, &parent["conditions"], &about);
    }
    opinion.assess("no gateway has reported on it yet")
}
