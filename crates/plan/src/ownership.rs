//! The ownership of an object's fields: what is a conflict, what is only drift, and what is left over from a
//! tool that managed the object before.

use std::{collections::BTreeMap, fmt};

use muster_model::policy::{Conflicts, Drift};
use serde_json::{Value, json};

use crate::fields::{Manager, guarded, managers};

/// Field managers of tools that applied whole objects before Muster took over: kubectl (client-side and
/// server-side apply), the API server's `before-first-apply`, Helm, Flux and Argo CD.
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

/// A field that another field manager owns with a different value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The name of the other field manager.
    pub manager: String,
    /// The subresource through which that manager wrote; empty for the object itself.
    pub subresource: String,
    /// The field, as the API server names it.
    pub field: String,
}

impl Conflict {
    /// Reads one cause of a 409 response; `None` if it is not a field manager conflict. Only the cause's message
    /// names the manager: `conflict with "NAME" with subresource "SUB" using VERSION at TIME`.
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

/// Returns true if a field manager belongs to a tool that applied whole objects before Muster.
#[must_use]
pub fn is_predecessor(name: &str) -> bool {
    PREDECESSORS.contains(&name)
}

/// How conflicts are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Take the fields over.
    Take,
    /// Do not apply the object, because of these conflicts.
    Leave(Vec<Conflict>),
}

/// Decides how conflicts are resolved. `applied` is true if Muster has applied the object before. In that case, the
/// fields of managers that wrote after Muster did are drift and are taken over, if drift is corrected. Other fields
/// stay in conflict, except those of tools that managed the object before Muster.
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

/// Describes the conflicts by manager and field, and what a person can do about them.
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
            format!("`{manager}`{through} owns {}", Fields(fields))
        })
        .collect();
    format!(
        "another field manager owns fields that the app sets to other values: {}; remove the fields from \
         the app, add an ignore rule, or take them over with `conflicts: take` in the app or the annotation \
         muster.dev/conflicts: take",
        parts.join("; ")
    )
}

/// Replaces `dead`, an API version that is no longer served, with `to` in the entries of `metadata.managedFields`.
/// The API server can't convert entries of such a version and rejects every apply. Returns a JSON patch
/// (RFC 6902) that is valid only for this version of the object, or `None` if there are no such entries.
#[must_use]
pub fn leave_version(live: &Value, dead: &str, to: &str) -> Option<Value> {
    let entries = live["metadata"]["managedFields"].as_array()?;
    let mut steps = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry["apiVersion"] == dead {
            let path = format!("/metadata/managedFields/{index}/apiVersion");
            steps.push(json!({"op": "replace", "path": path, "value": to}));
        }
    }
    guarded(live, steps)
}

#[cfg(test)]
mod tests;
