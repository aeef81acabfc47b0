//! The body of an apply request: the object as its app has it, in its namespace, with the app's label.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::ByteString;
use muster_plan::controlled;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::wanted::Wanted;
use crate::{APP_LABEL, kinds::Kind};

/// What the API server sets and refuses, ignores, or takes as a precondition, when it is sent.
const SERVER_SET: [&str; 8] = [
    "managedFields",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
];

/// Annotation of a Job that runs before or after its app: the bundle for which it runs.
pub(super) const BUNDLE: &str = "muster.dev/bundle";

/// As it is sent. Only the metadata become a tree; the rest is copied as it stands.
pub(super) fn text(wanted: &Wanted, kind: &Kind) -> Result<Bytes, serde_json::Error> {
    if is_secret(wanted) || controlled::may_concern(&wanted.id, &wanted.object().json) {
        return Ok(of(wanted, kind)?.to_string().into());
    }
    let mut object: BTreeMap<String, &RawValue> = serde_json::from_str(&wanted.object().json)?;
    let mut head = Map::new();
    if let Some(metadata) = object.get("metadata") {
        head.insert("metadata".to_owned(), serde_json::from_str(metadata.get())?);
    }
    let metadata = child(&mut head, "metadata");
    stamp(metadata, wanted, kind);
    let metadata = to_raw_value(metadata)?;
    object.insert("metadata".to_owned(), &metadata);
    Ok(serde_json::to_vec(&object)?.into())
}

/// As a tree, for what changes it further.
pub(super) fn of(wanted: &Wanted, kind: &Kind) -> Result<Value, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_str(&wanted.object().json)?;
    controlled::remove(&wanted.id, &mut object);
    if is_secret(wanted) {
        encode_secret(&mut object);
    }
    stamp(child(&mut object, "metadata"), wanted, kind);
    Ok(Value::Object(object))
}

fn is_secret(wanted: &Wanted) -> bool {
    wanted.id.gvk.group.is_empty() && wanted.id.gvk.kind == "Secret"
}

/// Makes an object's metadata those of one that is applied.
fn stamp(metadata: &mut Map<String, Value>, wanted: &Wanted, kind: &Kind) {
    for field in SERVER_SET {
        metadata.remove(field);
    }
    match wanted.id.namespace.as_deref().filter(|_| kind.namespaced) {
        Some(namespace) => metadata.insert("namespace".to_owned(), namespace.into()),
        None => metadata.remove("namespace"),
    };
    child(metadata, "labels").insert(APP_LABEL.to_owned(), wanted.app().as_str().into());
    if let Some(bundle) = wanted.hook_bundle() {
        child(metadata, "annotations").insert(BUNDLE.to_owned(), bundle.into());
    }
}

/// Writes a Secret's `stringData` as the `data` that it becomes. The API server counts the manager that
/// applies as the owner of `stringData` only, so that a key that is removed or changed stays so.
fn encode_secret(object: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = object.remove("stringData") else {
        return;
    };
    let data = child(object, "data");
    for (key, text) in texts {
        let value = match text {
            Value::Null => Value::from(""),
            Value::String(text) => {
                let bytes = ByteString(text.into_bytes());
                serde_json::to_value(bytes).unwrap_or_default()
            }
            // What is no text, the API server refuses with its own words.
            other => other,
        };
        data.insert(key, value);
    }
}

/// A field's object, created where there is none or something that is no object.
fn child<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(field).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}
