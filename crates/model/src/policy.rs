//! Rules of a fleet repository for applying and deleting objects and for assessing their health. The rules for one app
//! are in the header of its bundle, so that an agent has them even without its hub.

use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    health::Health,
    ids::{AppName, ContentHash},
    writer_rule::WriterRule,
};

/// What to do if another field manager owns a field that an app sets differently.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Conflicts {
    /// The object is left unchanged, and the fields are reported with their managers.
    #[default]
    Fail,
    /// The fields are taken over.
    Take,
}

/// What to do if an object is no longer as it was applied.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// The change is reverted.
    #[default]
    Correct,
    /// The change is left, and shown in the status.
    Report,
}

/// Fields that other field managers may set.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IgnoreRule {
    /// API group of the objects, empty for the core group; any group if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind of the objects; any kind if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the object; any name if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The fields, as JSON pointers (RFC 6901); `*` matches every element of a list or map.
    #[schemars(schema_with = "pointers")]
    pub fields: Vec<String>,
}

fn pointers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "string",
            "pattern": "^(/([^~/]|~[01])+)+$",
            "patternErrorMessage": "write a JSON pointer, such as /spec/replicas; in a name, ~1 stands for / and ~0 for ~",
        },
    })
}

impl IgnoreRule {
    /// Returns true if the rule applies to objects of this group, kind and name.
    #[must_use]
    pub fn concerns(&self, group: &str, kind: &str, name: &str) -> bool {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        fits(&self.group, group) && fits(&self.kind, kind) && fits(&self.name, name)
    }
}

/// How many objects may be deleted in one cluster within an hour without approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneBudget {
    /// The number of objects that may be deleted without approval. It limits the deletions of each app, and those of
    /// all apps together.
    #[serde(default = "PruneBudget::default_objects")]
    pub objects: u32,
    /// The percentage of the existing objects of the app, or of all apps together, that may be deleted. It
    /// applies instead of `objects` if it allows more deletions.
    #[serde(default = "PruneBudget::default_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: u8,
}

impl PruneBudget {
    fn default_objects() -> u32 {
        Self::default().objects
    }

    fn default_percent() -> u8 {
        Self::default().percent
    }

    /// Returns how many of `all` objects may be deleted without approval.
    #[must_use]
    pub fn of(self, all: usize) -> usize {
        let share = all.saturating_mul(usize::from(self.percent)) / 100;
        share.max(usize::try_from(self.objects).unwrap_or(usize::MAX))
    }
}

impl Default for PruneBudget {
    fn default() -> Self {
        Self {
            objects: 10,
            percent: 25,
        }
    }
}

/// The part of a generation that controls deletions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneOrders {
    /// How much may be deleted without approval.
    pub budget: PruneBudget,
    /// The hashes of approved deletions. A hash identifies either a set of objects that the agent reported and a person
    /// approved, or an app whose objects may all be deleted (see [`Self::leaving`]).
    pub approved: BTreeSet<ContentHash>,
    /// Apps that exist in the repository, but for which the hub has no good bundle. None of their objects is
    /// deleted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown: BTreeSet<AppName>,
}

/// The prefix of the hashes that approve the deletion of all objects of an app.
const LEAVING: [u8; 8] = *b"leaving:";

impl PruneOrders {
    /// Returns the hash that approves the deletion of all objects of an app in a cluster. The hub uses it if the
    /// app's placement or a commit message says that the app leaves. It is made from the app's name, so that no
    /// agent has to report the set of objects first.
    #[must_use]
    pub fn leaving(app: &AppName) -> ContentHash {
        let mut name = ContentHash::of(app.as_str().as_bytes());
        name.0[..LEAVING.len()].copy_from_slice(&LEAVING);
        name
    }

    /// Returns true if [`Self::leaving`] made this hash, for any app.
    #[must_use]
    pub fn is_leaving(name: &ContentHash) -> bool {
        name.0.starts_with(&LEAVING)
    }

    /// Returns true if all objects of an app may be deleted.
    #[must_use]
    pub fn lets_go(&self, app: &AppName) -> bool {
        self.approved.contains(&Self::leaving(app))
    }
}

/// A rule for the health of one kind. It takes precedence over the built-in rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthRule {
    /// The API group; empty for the core group.
    #[serde(default)]
    pub group: String,
    /// The kind.
    #[schemars(length(min = 1))]
    pub kind: String,
    /// The cases, in order. The first case that is true decides; if none is, the built-in rules do.
    #[schemars(length(min = 1))]
    pub cases: Vec<HealthCase>,
}

/// One case of a [`HealthRule`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCase {
    /// A CEL expression over `object` that is true or false. It counts as false if it can't be evaluated,
    /// for example because a field is missing.
    pub when: String,
    /// The health of the object if `when` is true.
    pub health: Health,
    /// A message for people: a CEL expression over `object` whose result is a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The rules for one app, as the header of its bundle holds them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// What to do in a conflict with another field manager.
    #[serde(skip_serializing_if = "is_default")]
    pub conflicts: Conflicts,
    /// What to do on drift.
    #[serde(skip_serializing_if = "is_default")]
    pub drift: Drift,
    /// Fields that others may set: the fleet's rules, then the app's. Only rules for its objects are included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<IgnoreRule>,
    /// The health rules for the kinds of its objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<HealthRule>,
    /// How the app's writer is handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterRule>,
}

impl Policy {
    pub(crate) fn is_default(&self) -> bool {
        is_default(self)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
