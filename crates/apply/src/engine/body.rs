//! The body of an apply request: the object as its app has it, in its namespace, with the app's label.

use k8s_openapi::ByteString;
use serde_json::{Map, Value};

use super::wanted::Wanted;
use crate::{APP_LABEL, kinds::Kind};

/// What the API server sets and refuses, or takes as a precondition, when it is sent.
const SERVER_SET: [&str; 5] = [
    "managedFields",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
];

/// Annotation of a Job that runs before or after its app: the bundle for which it runs.
pub(super) const BUNDLE: &str = "muster.dev/bundle";

pub(super) fn of(wanted: &Wanted<'_>, kind: &Kind) -> Result<Value, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_str(&wanted.object.json)?;
    if wanted.id.gvk.group.is_empty() && wanted.id.gvk.kind == "Secret" {
        encode_secret(&mut object);
    }
    let metadata = child(&mut object, "metadata");
    for field in SERVER_SET {
        metadata.remove(field);
    }
    match wanted.id.namespace.as_deref().filter(|_| kind.namespaced) {
        Some(namespace) => metadata.insert("namespace".to_owned(), namespace.into()),
        None => metadata.remove("namespace"),
    };
    child(metadata, "labels").insert(APP_LABEL.to_owned(), wanted.app.as_str().into());
    if let Some(bundle) = wanted.hook_bundle() {
        let metadata = child(&mut object, "metadata");
        child(metadata, "annotations").insert(BUNDLE.to_owned(), bundle.into());
    }
    Ok(Value::Object(object))
}

/// Writes a Secret's `stringData` as the `data` that it becomes. The API server counts the manager that
/// applies as the owner of `stringData` only, so that a key that is removed or changed stays so.
fn encode_secret(object: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = object.remove("stringData") else {
        return;
    };
    let data = child(object, "data");
    for (key, text) in texts {
        let text = text
            .as_str()
            .map(|text| ByteString(text.as_bytes().to_vec()));
        // What is no text, the API server refuses with its own words.
        data.insert(key, serde_json::to_value(text).unwrap_or_default());
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
