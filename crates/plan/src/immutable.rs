//! Fields that can't be changed: how the API server says so, and what may then be recreated.

use muster_model::bundle::ObjectRef;

/// Annotation that allows (`enabled`) or forbids (`disabled`) to delete and create an object anew where
/// a change can't be made otherwise.
pub const RECREATE: &str = "muster.dev/recreate";

/// One cause of an answer of 422.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause<'a> {
    /// What is wrong.
    pub message: &'a str,
    /// The field; empty where it concerns the whole object.
    pub field: &'a str,
}

/// Words by which API servers say that a field keeps its value. There is no machine-readable reason.
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

/// The fields that can't be changed, where that is all that is wrong; `None` where a new object would
/// be refused just so.
#[must_use]
pub fn immutable_fields(causes: &[Cause<'_>]) -> Option<Vec<String>> {
    let says_so = |cause: &Cause<'_>| {
        let message = cause.message.to_ascii_lowercase();
        WORDS.iter().any(|word| message.contains(word))
    };
    if causes.is_empty() || !causes.iter().all(says_so) {
        return None;
    }
    let mut fields: Vec<String> = causes.iter().map(|cause| cause.field.to_owned()).collect();
    fields.sort();
    fields.dedup();
    Some(fields)
}

/// Kinds that hold what can't be made again: everything in a namespace, every object of a definition,
/// data.
#[must_use]
pub fn is_precious(id: &ObjectRef) -> bool {
    matches!(
        (id.gvk.group.as_str(), id.gvk.kind.as_str()),
        (
            "",
            "Namespace" | "PersistentVolumeClaim" | "PersistentVolume"
        ) | ("apiextensions.k8s.io", "CustomResourceDefinition")
    )
}

/// Whether an object may be deleted and created anew; the error says why not and what to do.
///
/// # Errors
/// The reason, where it may not.
pub fn may_recreate(id: &ObjectRef, annotation: Option<&str>) -> Result<(), String> {
    match annotation {
        Some("enabled") => Ok(()),
        Some(_) => Err(format!("the annotation {RECREATE} forbids to recreate it")),
        None if is_precious(id) => Err(format!(
            "recreating a {} would lose what it holds; undo the change, or allow that with the annotation \
             {RECREATE}: enabled",
            id.gvk.kind
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use muster_model::bundle::Gvk;

    use super::*;

    #[test]
    fn only_immutable_fields_are_a_reason() {
        let cause = |field, message| Cause { message, field };
        let selector = cause("spec.selector", "Invalid value: {...}: field is immutable");
        let replicas = cause(
            "spec.replicas",
            "Invalid value: -1: must be greater than or equal to 0",
        );
        let stateful = cause(
            "spec",
            "Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
        );
        assert_eq!(
            immutable_fields(&[selector, stateful]),
            Some(vec!["spec".into(), "spec.selector".into()])
        );
        assert_eq!(immutable_fields(&[selector, replicas]), None);
        assert_eq!(immutable_fields(&[]), None);
    }

    #[test]
    fn what_holds_data_is_recreated_only_where_that_is_allowed() {
        let id = |kind: &str| ObjectRef {
            gvk: Gvk::from_api_version("v1", kind),
            namespace: None,
            name: "a".into(),
        };
        assert!(may_recreate(&id("Service"), None).is_ok());
        assert!(may_recreate(&id("Service"), Some("disabled")).is_err());
        assert!(
            may_recreate(&id("PersistentVolumeClaim"), None)
                .unwrap_err()
                .contains(RECREATE)
        );
        assert!(may_recreate(&id("PersistentVolumeClaim"), Some("enabled")).is_ok());
    }
}
