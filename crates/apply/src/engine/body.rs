//! The body of an apply request: the object as its app defines it, with its namespace and the app's
//! label.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::ByteString;
use muster_model::{
    bundle::{Bundle, Gvk, Object, ObjectRef},
    ids::{AppName, ContentHash},
};
use muster_plan::controlled;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::desired::{DesiredObject, Marks};
use crate::{APP_LABEL, kinds::Kind};

/// The metadata fields that only the API server sets. In a request it refuses them, ignores them or
/// takes them as a precondition.
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

/// The annotation of a Job that runs before or after its app. It holds the hash of the bundle for
/// which the Job runs.
pub(super) const BUNDLE: &str = "muster.dev/bundle";

/// The values that are written into an object's metadata.
struct Stamp<'a> {
    /// The object's reference with its real namespace.
    id: &'a ObjectRef,
    app: &'a AppName,
    namespaced: bool,
    /// The hash of the bundle, if the object is a Job that runs once for each bundle.
    hook_bundle: Option<&'a str>,
}

impl<'a> Stamp<'a> {
    fn of(desired: &'a DesiredObject, kind: &Kind) -> Self {
        Self {
            id: &desired.id,
            app: desired.app(),
            namespaced: kind.namespaced,
            hook_bundle: desired.hook_bundle(),
        }
    }
}

/// Returns the body of an object's request. For most kinds, only the metadata is parsed, and the rest
/// is copied unchanged.
pub(super) fn text(desired: &DesiredObject, kind: &Kind) -> Result<Bytes, serde_json::Error> {
    if is_secret(&desired.id) || controlled::may_concern(&desired.id, &desired.object().json) {
        return Ok(of(desired, kind)?.to_string().into());
    }
    let mut object: BTreeMap<String, &RawValue> = serde_json::from_str(&desired.object().json)?;
    let mut head = Map::new();
    if let Some(metadata) = object.get("metadata") {
        head.insert("metadata".to_owned(), serde_json::from_str(metadata.get())?);
    }
    let metadata = child(&mut head, "metadata");
    stamp(metadata, &Stamp::of(desired, kind));
    let metadata = to_raw_value(metadata)?;
    object.insert("metadata".to_owned(), &metadata);
    Ok(serde_json::to_vec(&object)?.into())
}

/// Returns the body of an object's request as a tree, for callers that change it further.
pub(super) fn of(desired: &DesiredObject, kind: &Kind) -> Result<Value, serde_json::Error> {
    stamped(desired.object(), &Stamp::of(desired, kind))
}

/// Returns the objects of a bundle as an agent applies them, in the bundle's order: with their
/// namespaces and their app's label, and without the fields that only an API server or a controller
/// sets. `namespaced` returns true if objects of a kind live in namespaces.
///
/// # Errors
/// If an object is not a JSON object.
pub fn applied_objects(
    bundle: &Bundle,
    hash: ContentHash,
    namespaced: impl Fn(&Gvk) -> bool,
) -> Result<Vec<Value>, serde_json::Error> {
    let hash = hash.to_string();
    let objects = bundle.objects.iter().map(|object| {
        let namespaced = namespaced(&object.id.gvk);
        let namespace = object.id.namespace.as_ref();
        let id = ObjectRef {
            namespace: namespaced.then(|| namespace.unwrap_or(&bundle.header.namespace).clone()),
            ..object.id.clone()
        };
        let hook = Marks::of(object).hook;
        let stamp = Stamp {
            id: &id,
            app: &bundle.header.app,
            namespaced,
            hook_bundle: hook.map(|_| hash.as_str()),
        };
        stamped(object, &stamp)
    });
    objects.collect()
}

fn stamped(object: &Object, how: &Stamp<'_>) -> Result<Value, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_str(&object.json)?;
    controlled::remove(how.id, &mut object);
    if is_secret(how.id) {
        encode_secret(&mut object);
    }
    stamp(child(&mut object, "metadata"), how);
    Ok(Value::Object(object))
}

fn is_secret(id: &ObjectRef) -> bool {
    id.gvk.group.is_empty() && id.gvk.kind == "Secret"
}

/// Writes the namespace, the app's label and the bundle into an object's metadata, and removes the
/// fields that only the API server sets.
fn stamp(metadata: &mut Map<String, Value>, how: &Stamp<'_>) {
    for field in SERVER_SET {
        metadata.remove(field);
    }
    match how.id.namespace.as_deref().filter(|_| how.namespaced) {
        Some(namespace) => metadata.insert("namespace".to_owned(), namespace.into()),
        None => metadata.remove("namespace"),
    };
    child(metadata, "labels").insert(APP_LABEL.to_owned(), how.app.as_str().into());
    if let Some(bundle) = how.hook_bundle {
        child(metadata, "annotations").insert(BUNDLE.to_owned(), bundle.into());
    }
}

/// Converts a Secret's `stringData` to `data`. The API server records the applying manager as the
/// owner of `stringData` only, so a key that somebody removes or changes in `data` would not be
/// reverted.
fn encode_secret(object: &mut Map<String, Value>) {
    let texts = match object.remove("stringData") {
        Some(Value::Object(texts)) => texts,
        None | Some(Value::Null) => return,
        // The API server refuses anything else.
        Some(other) => {
            object.insert("stringData".to_owned(), other);
            return;
        }
    };
    let data = child(object, "data");
    for (key, text) in texts {
        let value = match text {
            Value::Null => Value::from(""),
            Value::String(text) => {
                let bytes = ByteString(text.into_bytes());
                serde_json::to_value(bytes).unwrap_or_default()
            }
            // The API server refuses a value that is not text, and its message explains that.
            other => other,
        };
        data.insert(key, value);
    }
}

/// Returns the object in a field. It is created if the field is missing or holds something else.
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
