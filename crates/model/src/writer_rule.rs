//! The rule for handing over an app's writer: what proves that the old side has stopped, and what the new side needs to
//! know from it.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The variable of a [`WriterRule`]'s expressions: a map of the named objects.
pub const OBJECTS: &str = "objects";
/// The maximum number of objects that a rule names.
const MOST_OBJECTS: usize = 8;
/// The maximum number of values that a rule carries over.
const MOST_CARRIED: usize = 8;
/// The maximum size of all carried values together, in bytes.
pub const MAX_CARRIED: usize = 4096;

/// How an app's writer is handed over to another region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WriterRule {
    /// What proves that the app no longer writes in a cluster where it is fenced.
    pub stopped: StoppedRule,
    /// Values that the next primary's templates see as `handover.NAME`, until the move is finished: CEL expressions
    /// over `objects` whose result is a text, a number or a boolean. They are evaluated together with `when`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "carried")]
    pub carry: BTreeMap<String, String>,
}

/// What proves that an app no longer writes in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoppedRule {
    /// The objects of the cluster that `when` is about, by the names that it uses for them.
    #[schemars(schema_with = "objects")]
    pub objects: BTreeMap<String, ObjectPointer>,
    /// A CEL expression over `objects`, such as `objects.db.status.replicas == 0`. It must be false while the app is
    /// the primary, and true once the app has stopped writing. It counts as false while an object is missing.
    #[schemars(length(min = 1))]
    pub when: String,
}

/// Names one object of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectPointer {
    /// The API group and version, such as `apps/v1`.
    #[schemars(regex(pattern = "^([a-z0-9][-a-z0-9.]{0,252}/)?v[a-z0-9]{1,62}$"), extend("patternErrorMessage" = "write GROUP/VERSION, such as apps/v1, or v1 for the core group"))]
    pub api_version: String,
    /// The kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The namespace; the app's if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"), extend("patternErrorMessage" = "a namespace has 1 to 63 lower-case letters, digits and '-'"))]
    pub namespace: Option<String>,
    /// The name.
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9.:]{0,251}[a-z0-9])?$"), extend("patternErrorMessage" = "write the name of the object"))]
    pub name: String,
}

const NAME: &str = "^[a-z][A-Za-z0-9_]{0,62}$";
const NAME_HELP: &str =
    "a name here begins with a lower-case letter and has letters, digits and '_' only";

fn carried(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MOST_CARRIED,
        "propertyNames": {"pattern": NAME, "patternErrorMessage": NAME_HELP},
        "additionalProperties": {"type": "string", "minLength": 1},
    })
}

fn objects(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": MOST_OBJECTS,
        "propertyNames": {"pattern": NAME, "patternErrorMessage": NAME_HELP},
        "additionalProperties": generator.subschema_for::<ObjectPointer>(),
    })
}
