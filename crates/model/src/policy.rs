//! What a fleet repository says about how an app's objects are applied, kept and judged. It travels in
//! the header of the app's bundle, so that an agent without its hub still knows it.

use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    health::Health,
    ids::{AppName, ContentHash},
};

/// What happens where another field manager has a field that an app wants otherwise.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Conflicts {
    /// The object is left as it is, and the fields are reported with their managers.
    #[default]
    Fail,
    /// The fields are taken over.
    Take,
}

/// What happens where an object is no longer as it was applied.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// It is put back.
    #[default]
    Correct,
    /// It is left, and shown.
    Report,
}

/// Fields that somebody else may set.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IgnoreRule {
    /// API group of the objects, empty for the core group; any where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind of the objects; any where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the object; any where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The fields, as JSON pointers (RFC 6901); `*` stands for every element of a list or map.
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
    /// Whether the rule is about objects of this group, kind and name.
    #[must_use]
    pub fn concerns(&self, group: &str, kind: &str, name: &str) -> bool {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        fits(&self.group, group) && fits(&self.kind, kind) && fits(&self.name, name)
    }
}

/// How much may be deleted in one cluster within an hour without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneBudget {
    /// This many objects of one app, and of all apps together, may always be deleted.
    #[serde(default = "PruneBudget::default_objects")]
    pub objects: u32,
    /// Where it is more than `objects`: this share, in percent, of what the app, or all apps together,
    /// have in the cluster.
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

    /// How many of `all` objects may be deleted.
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

/// What a generation says about deleting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneOrders {
    /// What needs no approval.
    pub budget: PruneBudget,
    /// Sets of objects that a person has approved to be deleted, each by the hash that the agent gave it.
    pub approved: BTreeSet<ContentHash>,
    /// Apps that stand in the repository and of which the hub knows nothing good: nothing of them is deleted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown: BTreeSet<AppName>,
}

/// What the names begin with under which all of an app is approved to be deleted.
const LEAVING: [u8; 8] = *b"leaving:";

impl PruneOrders {
    /// The name under which it is approved that an app leaves a cluster with all that it has: its placement
    /// says so, or a commit's message. It is made of the app's name, so that no agent has to know the set
    /// before.
    #[must_use]
    pub fn leaving(app: &AppName) -> ContentHash {
        let mut name = ContentHash::of(app.as_str().as_bytes());
        name.0[..LEAVING.len()].copy_from_slice(&LEAVING);
        name
    }

    /// Whether this is such a name, of whatever app.
    #[must_use]
    pub fn is_leaving(name: &ContentHash) -> bool {
        name.0.starts_with(&LEAVING)
    }

    /// Whether an app may leave with all that it has.
    #[must_use]
    pub fn lets_go(&self, app: &AppName) -> bool {
        self.approved.contains(&Self::leaving(app))
    }
}

/// How the health of one kind is read, over what is built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthRule {
    /// API group; empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[schemars(length(min = 1))]
    pub kind: String,
    /// The first case that is true says it; where none is, what is built in does.
    #[schemars(length(min = 1))]
    pub cases: Vec<HealthCase>,
}

/// One case of a [`HealthRule`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCase {
    /// A CEL expression over `object` that is true or false. One that can't be evaluated, as where a
    /// field is missing, is false.
    pub when: String,
    /// What is then said of the object.
    pub health: Health,
    /// What is said to a person: a CEL expression over `object` that is a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An app's part of it all, as its bundle's header carries it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// What happens in a conflict with another field manager.
    #[serde(skip_serializing_if = "is_default")]
    pub conflicts: Conflicts,
    /// What happens on drift.
    #[serde(skip_serializing_if = "is_default")]
    pub drift: Drift,
    /// Fields that others may set: the fleet's rules and then the app's, where they concern its objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<IgnoreRule>,
    /// How the kinds among its objects are judged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<HealthRule>,
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
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_the_larger_of_a_number_and_a_share() {
        let budget = PruneBudget {
            objects: 10,
            percent: 25,
        };
        assert_eq!(
            [0, 8, 40, 1000].map(|all| budget.of(all)),
            [10, 10, 10, 250]
        );
    }

    #[test]
    fn an_app_that_may_leave_is_known_by_its_name_alone() {
        let [one, two] = ["one", "two"].map(|app| app.parse().unwrap());
        let mut orders = PruneOrders::default();
        orders.approved.insert(PruneOrders::leaving(&one));
        assert!(orders.lets_go(&one) && !orders.lets_go(&two));
        let names = [PruneOrders::leaving(&one), ContentHash::of(b"a set")];
        assert_eq!(
            names.map(|name| PruneOrders::is_leaving(&name)),
            [true, false]
        );
    }

    #[test]
    fn what_is_default_is_not_written() {
        assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
    }
}
