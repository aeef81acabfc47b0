//! A digest of the fields that Muster owns on a live object. When somebody sets one of them to
//! another value, `metadata.managedFields` shows another owner. An unchanged digest therefore
//! proves, without reading the object, that no field has drifted.

use std::fmt;

use muster_plan::{fields::MANAGER, people::is_persons};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The sum of the hashes of all fields with their paths. It does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FieldsDigest(u128);

impl FieldsDigest {
    fn node(key: &str, below: u128) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&below.to_le_bytes());
        hasher.update(key.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_le_bytes(bytes)
    }
}

impl Serialize for FieldsDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:x}", self.0))
    }
}

impl<'de> Deserialize<'de> for FieldsDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Self(number))
    }
}

/// The parts of `metadata.managedFields` that are read. The rest is skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Managers {
    /// The digest of the fields that Muster owns; `None` if it owns none.
    pub(crate) own: Option<FieldsDigest>,
    /// The names of the other managers of the object itself (not of its subresources). Muster is
    /// among them if it has created the object without applying it, or changed it with a patch.
    pub(crate) others: Vec<String>,
    /// The digest of the fields that people's tools own, together with the managers' names; `None`
    /// if they own none.
    pub(crate) people: Option<FieldsDigest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    fields_v1: Tree,
}

impl<'de> Deserialize<'de> for Managers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Managers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of field managers")
            }
            fn visit_unit<E>(self) -> Result<Managers, E> {
                Ok(Managers::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Managers, A::Error> {
                let mut managers = Managers::default();
                while let Some(entry) = list.next_element::<Entry>()? {
                    if !entry.subresource.is_empty() {
                        continue;
                    }
                    if entry.manager == MANAGER && entry.operation == "Apply" {
                        managers.own = Some(FieldsDigest(entry.fields_v1.0));
                        continue;
                    }
                    if is_persons(&entry.manager) {
                        let theirs = FieldsDigest::node(&entry.manager, entry.fields_v1.0);
                        let sum = managers.people.unwrap_or_default().0;
                        managers.people = Some(FieldsDigest(sum.wrapping_add(theirs)));
                    }
                    managers.others.push(entry.manager);
                }
                Ok(managers)
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// A tree of fields that is hashed while it is read.
#[derive(Default)]
struct Tree(u128);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Node;
        impl<'de> Visitor<'de> for Node {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tree of fields")
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree(0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Tree(0))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut sum = 0_u128;
                while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
                    let below = map.next_value::<Tree>()?.0;
                    sum = sum.wrapping_add(FieldsDigest::node(&key, below));
                }
                Ok(Tree(sum))
            }
        }
        deserializer.deserialize_any(Node)
    }
}

#[cfg(test)]
mod tests;
