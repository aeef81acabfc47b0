//! Reads objects without the large parts that say nothing about their health, such as schemas and
//! binary data. `managedFields` are reduced to names and digests. All of that happens while the
//! answer is read, so a page of CustomResourceDefinitions of half a megabyte each is never in
//! memory as a tree.

use std::{borrow::Cow, cell::RefCell, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, Resource};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::managed_fields::Managers;

/// The fields that are left out, at any depth.
const LEFT_OUT: [&str; 2] = ["openAPIV3Schema", "binaryData"];
const MANAGERS: &str = "managedFields";

/// An object from the API server without its large parts. With `METADATA`, only the metadata is
/// requested.
#[derive(Debug, Clone)]
pub(crate) struct Trimmed<const METADATA: bool> {
    meta: ObjectMeta,
    pub(crate) value: Value,
    pub(crate) managers: Managers,
}

impl<'de, const METADATA: bool> Deserialize<'de> for Trimmed<METADATA> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let managers = RefCell::default();
        let value = Tree(&managers).deserialize(deserializer)?;
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            creation_timestamp: serde_json::from_value(
                value["metadata"]["creationTimestamp"].clone(),
            )
            .unwrap_or_default(),
            ..ObjectMeta::default()
        };
        let managers = managers.into_inner();
        Ok(Self {
            meta,
            value,
            managers,
        })
    }
}

impl<const METADATA: bool> Resource for Trimmed<METADATA> {
    type DynamicType = ApiResource;
    type Scope = <DynamicObject as Resource>::Scope;

    fn metadata_api() -> bool {
        METADATA
    }

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }
    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }
    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }
    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }
    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::api_version(resource)
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Reads a JSON tree and puts its field managers aside.
#[derive(Clone, Copy)]
struct Tree<'a>(&'a RefCell<Managers>);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            if key == MANAGERS {
                *self.0.borrow_mut() = entries.next_value()?;
            } else if LEFT_OUT.contains(&key.as_ref()) {
                entries.next_value::<IgnoredAny>()?;
            } else {
                map.insert(key.into_owned(), entries.next_value_seed(self)?);
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests;
