//! The body of an apply request: the object as its app has it, in its namespace, with the app's label.

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

pub(super) fn of(wanted: &Wanted<'_>, kind: &Kind) -> Result<Vec<u8>, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_str(&wanted.object.json)?;
    let metadata = child(&mut object, "metadata");
    for field in SERVER_SET {
        metadata.remove(field);
    }
    match wanted.id.namespace.as_deref().filter(|_| kind.namespaced) {
        Some(namespace) => metadata.insert("namespace".to_owned(), namespace.into()),
        None => metadata.remove("namespace"),
    };
    child(metadata, "labels").insert(APP_LABEL.to_owned(), wanted.app.as_str().into());
    serde_json::to_vec(&object)
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
