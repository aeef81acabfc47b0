//! Who an object's fields belong to: what is a conflict, what is only drift, and what is left over from
//! a tool that looked after the object before.

use std::{collections::BTreeMap, fmt};

use muster_model::policy::{Conflicts, Drift};
use serde_json::{Value, json};

use crate::fields::{Manager, managers, without};

/// Field managers of tools that applied whole objects before Muster took over: kubectl (client-side and
/// server-side, and what an API server calls the time before), Helm, Flux, Argo CD.
const PREDECESSORS: [&str; 14] = [
    "kubectl-client-side-apply",
    "kubectl",
    "kubectl-create",
    "before-first-apply",
    "helm",
    "Helm",
    "helm-controller",
    "kustomize-controller",
    "gotk",
    "flux",
    "flux-client-side-apply",
    "argocd-controller",
    "argocd-application-controller",
    "argocd-server",
];

/// What kubectl's client-side apply leaves behind for itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A field that somebody else has with another value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The other manager.
    pub manager: String,
    /// The subresource through which it wrote; empty for the object itself.
    pub subresource: String,
    /// The field, as the API server names it.
    pub field: String,
}

impl Conflict {
    /// Reads one cause of an answer of 409; `None` where it is about something else. The manager stands
    /// only in its message: `conflict with "NAME" with subresource "SUB" using VERSION at TIME`.
    #[must_use]
    pub fn of_cause(reason: &str, message: &str, field: &str) -> Option<Self> {
        if reason != "FieldManagerConflict" {
            return None;
        }
        let mut quoted = message.split('"').skip(1).step_by(2);
        let manager = quoted.next().unwrap_or("unknown").to_owned();
        let subresource = if message.contains("\" with subresource \"") {
            quoted.next().unwrap_or_default().to_owned()
        } else {
            String::new()
        };
        let field = field.to_owned();
        Some(Self {
            manager,
            subresource,
            field,
        })
    }
}

/// Whether a field manager is that of a tool that applies whole objects.
#[must_use]
pub fn is_predecessor(name: &str) -> bool {
    PREDECESSORS.contains(&name)
}

/// What is done about conflicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The fields are taken over.
    Take,
    /// The object is left as it is because of these.
    Leave(Vec<Conflict>),
}

/// Decides about conflicts. `applied` says that Muster has applied the object before: what somebody
/// took from it since then is drift, and drift is corrected; what somebody had before is a conflict.
#[must_use]
pub fn judge(
    live: &Value,
    conflicts: Vec<Conflict>,
    policy: Conflicts,
    drift: Drift,
    applied: bool,
) -> Verdict {
    if policy == Conflicts::Take {
        return Verdict::Take;
    }
    let own = managers(live).find(Manager::is_own).map(|own| own.time);
    let later = |conflict: &Conflict| {
        managers(live).any(|manager| {
            manager.name == conflict.manager
                && manager.subresource == conflict.subresource
                && own.is_none_or(|own| manager.time >= own)
        })
    };
    let stands = |conflict: &Conflict| {
        let drifted = applied && drift == Drift::Correct && later(conflict);
        !is_predecessor(&conflict.manager) && !drifted
    };
    let left: Vec<Conflict> = conflicts.into_iter().filter(stands).collect();
    if left.is_empty() {
        Verdict::Take
    } else {
        Verdict::Leave(left)
    }
}

/// Says by field and manager what is in conflict and what a person can do.
#[must_use]
pub fn explain(conflicts: &[Conflict]) -> String {
    struct Fields<'a>(&'a [&'a str]);
    impl fmt::Display for Fields<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            const SHOWN: usize = 6;
            let shown = &self.0[..self.0.len().min(SHOWN)];
            f.write_str(&shown.join(", "))?;
            match self.0.len() - shown.len() {
                0 => Ok(()),
                more => write!(f, " and {more} more"),
            }
        }
    }
    let mut by_manager: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        let manager = (conflict.manager.as_str(), conflict.subresource.as_str());
        by_manager.entry(manager).or_default().push(&conflict.field);
    }
    let parts: Vec<String> = by_manager
        .iter()
        .map(|((manager, subresource), fields)| {
            let through = match *subresource {
                "" => String::new(),
                subresource => format!(" (through {subresource})"),
            };
            format!("`{manager}`{through} has {}", Fields(fields))
        })
        .collect();
    format!(
        "another field manager has what the app wants otherwise: {}; leave the fields out, add an ignore \
         rule, or take them over with `conflicts: take` in the app or the annotation \
         muster.dev/conflicts: take",
        parts.join("; ")
    )
}

/// What is left of a predecessor on an object that Muster has just applied, as a JSON patch (RFC 6902)
/// that ends it; `None` where there is nothing. A field that Muster has too is then Muster's alone, so
/// that removing it from Git removes it from the object; one that Git never had stays where it is.
#[must_use]
pub fn migrate(live: &Value) -> Option<Value> {
    let own = managers(live).find(Manager::is_own)?;
    let mut steps = Vec::new();
    // From the end, so that removing an entry moves none that is still to be named.
    let mut others: Vec<Manager<'_>> = managers(live)
        .filter(|m| !m.is_own() && m.subresource.is_empty() && is_predecessor(m.name))
        .collect();
    others.reverse();
    let last_applied = &live["metadata"]["annotations"][LAST_APPLIED];
    for other in others {
        let path = format!("/metadata/managedFields/{}", other.index);
        let mut rest = without(other.fields, own.fields);
        if last_applied.is_string()
            && let Some(rest) = &mut rest
            && let Some(Value::Object(annotations)) = rest.pointer_mut("/f:metadata/f:annotations")
        {
            annotations.remove(&format!("f:{LAST_APPLIED}"));
        }
        match rest.and_then(pruned) {
            None => steps.push(json!({"op": "remove", "path": path})),
            Some(rest) if rest == *other.fields => {}
            Some(rest) => steps
                .push(json!({"op": "replace", "path": format!("{path}/fieldsV1"), "value": rest})),
        }
    }
    if last_applied.is_string() {
        let escaped = LAST_APPLIED.replace('/', "~1");
        steps.push(json!({"op": "remove", "path": format!("/metadata/annotations/{escaped}")}));
    }
    if steps.is_empty() {
        return None;
    }
    let version = &live["metadata"]["resourceVersion"];
    steps.insert(
        0,
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}),
    );
    Some(steps.into())
}

/// A tree without branches that only say that a map is there.
fn pruned(tree: Value) -> Option<Value> {
    let Value::Object(map) = tree else {
        return Some(tree);
    };
    if map.is_empty() {
        return Some(Value::Object(map));
    }
    let map: serde_json::Map<String, Value> = map
        .into_iter()
        .filter(|(key, _)| key != ".")
        .filter_map(|(key, tree)| pruned(tree).map(|tree| (key, tree)))
        .collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(entries: &[Value]) -> Value {
        json!({"metadata": {
            "resourceVersion": "5",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "managedFields": entries,
        }})
    }

    fn entry(manager: &str, operation: &str, time: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "time": time, "fieldsV1": fields})
    }

    fn conflict(manager: &str, field: &str) -> Conflict {
        Conflict {
            manager: manager.into(),
            subresource: String::new(),
            field: field.into(),
        }
    }

    #[test]
    fn conflicts_are_read_from_causes() {
        let of =
            |message: &str| Conflict::of_cause("FieldManagerConflict", message, ".spec.replicas");
        assert_eq!(
            of(
                "conflict with \"hpa\" with subresource \"scale\" using apps/v1 at 2026-01-01T00:00:00Z"
            ),
            Some(Conflict {
                subresource: "scale".into(),
                ..conflict("hpa", ".spec.replicas")
            })
        );
        assert_eq!(
            of("conflict with \"me\" using v1"),
            Some(conflict("me", ".spec.replicas"))
        );
        assert_eq!(Conflict::of_cause("FieldValueInvalid", "x", ".a"), None);
    }

    #[test]
    fn what_was_taken_since_is_drift_and_what_was_there_before_is_a_conflict() {
        let live = live(&[
            entry("muster", "Apply", "2026-01-02T00:00:00Z", json!({})),
            entry("kubectl-edit", "Update", "2026-01-03T00:00:00Z", json!({})),
            entry("operator", "Update", "2026-01-01T00:00:00Z", json!({})),
            entry("helm", "Update", "2026-01-01T00:00:00Z", json!({})),
        ]);
        let all = || {
            vec![
                conflict("kubectl-edit", ".a"),
                conflict("operator", ".b"),
                conflict("helm", ".c"),
            ]
        };
        let (operator, edit) = (conflict("operator", ".b"), conflict("kubectl-edit", ".a"));
        assert_eq!(
            judge(&live, all(), Conflicts::Fail, Drift::Correct, true),
            Verdict::Leave(vec![operator.clone()])
        );
        assert_eq!(
            judge(&live, all(), Conflicts::Fail, Drift::Report, true),
            Verdict::Leave(vec![edit.clone(), operator.clone()])
        );
        assert_eq!(
            judge(&live, all(), Conflicts::Fail, Drift::Correct, false),
            Verdict::Leave(vec![edit, operator])
        );
        assert_eq!(
            judge(&live, all(), Conflicts::Take, Drift::Report, false),
            Verdict::Take
        );
        let helm = vec![conflict("helm", ".c")];
        assert_eq!(
            judge(&live, helm, Conflicts::Fail, Drift::Correct, false),
            Verdict::Take
        );
    }

    #[test]
    fn a_predecessor_keeps_only_what_git_never_had() {
        let own = json!({"f:data": {"f:a": {}}, "f:metadata": {"f:labels": {"f:x": {}}}});
        let csa = json!({
            "f:data": {".": {}, "f:a": {}},
            "f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}}},
        });
        let helm = json!({"f:data": {".": {}, "f:a": {}, "f:old": {}}});
        let other = json!({"f:data": {"f:a": {}}});
        let live = live(&[
            entry("kubectl-client-side-apply", "Update", "", csa),
            entry("operator", "Update", "", other),
            entry("muster", "Apply", "", own),
            entry("helm", "Update", "", helm),
        ]);
        assert_eq!(
            migrate(&live),
            Some(json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "5"},
                {"op": "replace", "path": "/metadata/managedFields/3/fieldsV1", "value": {"f:data": {"f:old": {}}}},
                {"op": "remove", "path": "/metadata/managedFields/0"},
                {"op": "remove", "path": "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"},
            ]))
        );
        let clean = json!({"metadata": {"managedFields": [entry("muster", "Apply", "", json!({"f:a": {}}))]}});
        assert_eq!(migrate(&clean), None);
    }

    #[test]
    fn a_conflict_names_fields_by_manager() {
        let text = explain(&[
            conflict("a", ".x"),
            conflict("b", ".y"),
            conflict("a", ".z"),
        ]);
        assert!(text.contains("`a` has .x, .z; `b` has .y;"), "{text}");
    }
}
