//! Immutable fields: how the API server reports them, and which objects may be recreated to change them.

use std::collections::BTreeSet;

use muster_model::bundle::ObjectRef;
use serde_json::Value;

use crate::fields::{Manager, managers};

/// The annotation that allows (`enabled`) or forbids (`disabled`) deleting and recreating an object for a change that
/// can't be made otherwise.
pub const RECREATE: &str = "muster.dev/recreate";

/// One cause of a 422 response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause<'a> {
    /// The message that says what is wrong.
    pub message: &'a str,
    /// The path of the field; empty if the cause is about the whole object.
    pub field: &'a str,
}

/// Phrases with which API servers report an immutable field. There is no machine-readable reason.
const WORDS: [&str; 8] = [
    "immutable",
    "updates to statefulset spec for fields other than",
    "cannot change roleref",
    "may not be changed",
    "may not change",
    "can't be changed",
    "cannot be changed",
    "updates to parameters are forbidden",
];

/// How many bytes of the API server's messages are shown. They may contain whole objects.
const SHOWN: usize = 300;

/// Returns the immutable fields and what the API server says about them, if all causes are immutable fields. Returns
/// `None` if there is another cause, because a recreated object would be rejected as well.
#[must_use]
pub fn unchangeable(causes: &[Cause<'_>]) -> Option<String> {
    let says_so = |cause: &Cause<'_>| {
        let message = cause.message.to_ascii_lowercase();
        WORDS.iter().any(|word| message.contains(word))
    };
    if causes.is_empty() || !causes.iter().all(says_so) {
        return None;
    }
    let fields: BTreeSet<&str> = causes.iter().map(|cause| cause.field).collect();
    let words: BTreeSet<&str> = causes.iter().map(|cause| words_of(cause.message)).collect();
    let joined = |all: BTreeSet<&str>, by| all.into_iter().collect::<Vec<_>>().join(by);
    let mut text = format!(
        "{} can't be changed: {}",
        joined(fields, ", "),
        joined(words, "; ")
    );
    if text.len() > SHOWN {
        text.truncate(text.floor_char_boundary(SHOWN));
        text.push('…');
    }
    Some(text)
}

/// Returns a cause's message without the rejected value and without the lines after the first one, which contain
/// the difference between two objects.
fn words_of(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("Forbidden: ").unwrap_or(line);
    match line.strip_prefix("Invalid value: ") {
        Some(rest) => rest.rsplit_once(": ").map_or(rest, |(_, words)| words),
        None => line,
    }
}

/// Returns true for kinds whose deletion can't be undone by recreating the object. Deleting such an object also deletes
/// what belongs to it (the content of a namespace, the objects of a definition, data), or breaks objects that refer to
/// it.
#[must_use]
pub fn is_precious(id: &ObjectRef) -> bool {
    matches!(
        (id.gvk.group.as_str(), id.gvk.kind.as_str()),
        (
            "",
            "Namespace" | "PersistentVolumeClaim" | "PersistentVolume"
        ) | ("apiextensions.k8s.io", "CustomResourceDefinition")
            // Its pods have identities, and mostly volumes of their own.
            | ("apps", "StatefulSet")
            // Claims that name it could no longer be bound.
            | ("storage.k8s.io", "StorageClass")
    )
}

/// Kinds whose objects contain nothing that is not in Git, so that a recreated object is equivalent to the old one.
///
/// These are not in the list:
///
/// - a `StatefulSet` and everything with volumes, because of the data,
/// - a `DaemonSet`, because nodes could be without network or storage until the new pods run,
/// - a `Pod`, because of its memory and its `emptyDir` volumes,
/// - classes that others refer to by name (`StorageClass`, `PriorityClass`), because objects that are created
///   while the class does not exist are rejected,
/// - every custom resource, because only its controller knows what would be deleted with it.
const HOLDS_NOTHING: [(&str, &str); 5] = [
    // Its pods are recreated from its template, and it does not own volume claims.
    ("apps", "Deployment"),
    // A changed Job is meant to run again.
    ("batch", "Job"),
    // It has a selector and ports. `loss` checks for an external address.
    ("", "Service"),
    // It has a reference to a role and subjects, which are all in Git.
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
];

/// Returns what would be lost if the live object were recreated; `None` if nothing would be lost.
#[must_use]
pub fn loss(id: &ObjectRef, live: &Value) -> Option<String> {
    let kind = (id.gvk.group.as_str(), id.gvk.kind.as_str());
    let text = |pointer: &str| live.pointer(pointer).and_then(Value::as_str);
    let what = match kind {
        ("", "Service") => {
            let given = live
                .pointer("/status/loadBalancer/ingress")
                .and_then(Value::as_array);
            let addresses: Vec<&str> = given
                .into_iter()
                .flatten()
                .filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str()))
                .collect();
            if addresses.is_empty() {
                return None;
            }
            format!("its external address {}", addresses.join(", "))
        }
        // Immutable ones are made to be replaced. Others may contain keys that someone else wrote.
        ("", "ConfigMap" | "Secret") if live["immutable"] == true => return None,
        kind if HOLDS_NOTHING.contains(&kind) => return None,
        ("", "ConfigMap" | "Secret") => "the keys that others have written into it".to_owned(),
        ("", "PersistentVolumeClaim") => {
            match (text("/spec/volumeName"), text("/status/capacity/storage")) {
                (Some(volume), Some(size)) => format!("the data in its volume {volume} ({size})"),
                _ => "the data in its volume".to_owned(),
            }
        }
        ("", "PersistentVolume") => "the data in it".to_owned(),
        ("", "Namespace") => "everything in it".to_owned(),
        ("", "Pod") => "what its containers have in memory and in emptyDir".to_owned(),
        ("apps", "StatefulSet") => {
            let deleted = text("/spec/persistentVolumeClaimRetentionPolicy/whenDeleted");
            match deleted {
                Some("Delete") => "its pods and the data in their volumes".to_owned(),
                _ => "its pods until new ones run; the claims of their volumes stay".to_owned(),
            }
        }
        ("apps", "DaemonSet") => "its pods on every node until new ones run".to_owned(),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            "every object of its kind in the cluster".to_owned()
        }
        _ => "what the cluster or its controller stores for it".to_owned(),
    };
    let since = text("/metadata/creationTimestamp").map(|time| format!("it was created at {time}"));
    let finalizers: Vec<&str> = live["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let cleaned = (!finalizers.is_empty()).then(|| {
        format!(
            "its finalizers {} clean up what belongs to it",
            finalizers.join(", ")
        )
    });
    let facts: Vec<String> = since.into_iter().chain(cleaned).collect();
    Some(if facts.is_empty() {
        what
    } else {
        format!("{what} ({})", facts.join("; "))
    })
}

/// Why an object is not recreated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// An annotation forbids it. The text is the message for the user.
    Forbidden(String),
    /// A person has to allow it. The text says what would be lost and what to do.
    Asks(String),
}

/// Checks whether an object may be deleted and recreated. `git` is the value of the annotation in Git. `applied` is
/// true if Muster has applied this object before.
///
/// # Errors
/// Returns why the object may not be recreated.
pub fn may_recreate(
    id: &ObjectRef,
    live: &Value,
    git: Option<&str>,
    applied: bool,
) -> Result<(), Refusal> {
    match git.or_else(|| said_by_a_person(live)) {
        Some("enabled") => return Ok(()),
        Some(_) => {
            let why = format!("the annotation {RECREATE} forbids recreating it");
            return Err(Refusal::Forbidden(why));
        }
        None => {}
    }
    let loss = loss(id, live);
    let why = match (loss, applied) {
        (None, true) => return Ok(()),
        (Some(loss), true) => format!("recreating it would lose {loss}"),
        (Some(loss), false) => {
            format!("somebody else created it, and recreating it would lose {loss}")
        }
        (None, false) => {
            "somebody else created it, and recreating it would lose what they made".to_owned()
        }
    };
    Err(Refusal::Asks(format!(
        "{why}; undo the change, approve it (`muster app approve`), or set the annotation {RECREATE}: \
         enabled in Git or on the live {}",
        id.gvk.kind
    )))
}

/// Returns the annotation's value on the live object, if a person wrote it. If Muster applied the value, it only
/// repeats what Git said before.
fn said_by_a_person(live: &Value) -> Option<&str> {
    let applied = managers(live).filter(Manager::is_own).any(|own| {
        let annotations = &own.fields["f:metadata"]["f:annotations"];
        annotations.get(format!("f:{RECREATE}")).is_some()
    });
    let said = live["metadata"]["annotations"][RECREATE].as_str();
    said.filter(|_| !applied)
}

#[cfg(test)]
mod tests;
