//! From a document's YAML to its typed kind, with every problem at once: the kind's JSON Schema finds
//! them, the node tree knows where they stand.

use std::sync::LazyLock;

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    kinds::{API_VERSION, Document, Kind},
    problem::{Problem, Scope, suggest},
    yaml::{Node, Pos, Yaml},
};

/// Where problems of one file go: their scope, the file and its text.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
}

impl Context<'_> {
    pub(crate) fn problem(&self, at: Pos, message: impl Into<String>) -> Problem {
        Problem::new(self.scope.clone(), self.file, message).at(self.text, at)
    }
}

struct KindSchema {
    schema: Value,
    validator: Validator,
}

fn kind_schema(kind: Kind) -> Option<&'static KindSchema> {
    static SCHEMAS: LazyLock<Vec<(Kind, KindSchema)>> = LazyLock::new(|| {
        let compile = |kind: Kind| {
            let schema = kind.schema();
            let validator = jsonschema::validator_for(&schema).ok()?;
            Some((kind, KindSchema { schema, validator }))
        };
        Kind::ALL.into_iter().filter_map(compile).collect()
    });
    SCHEMAS
        .iter()
        .find(|(k, _)| *k == kind)
        .map(|(_, schema)| schema)
}

/// The document in its type, or all that is wrong with it.
pub(crate) fn document<N, S>(
    node: Node,
    kind: Kind,
    context: Context<'_>,
) -> Result<Document<N, S>, Vec<Problem>>
where
    N: DeserializeOwned,
    S: DeserializeOwned,
{
    header(&node, kind, context).map_err(|problem| vec![problem])?;
    let mut value = node.clone().into_json();
    if let (Value::Object(map), Kind::Cluster | Kind::Fleet) = (&mut value, kind) {
        map.entry("spec")
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    if let Some(schema) = kind_schema(kind) {
        let mut problems: Vec<Problem> = schema
            .validator
            .iter_errors(&value)
            .flat_map(|error| explain(&error, &schema.schema, &node, context))
            .collect();
        if !problems.is_empty() {
            problems.sort_by(|a, b| (a.at, &a.message).cmp(&(b.at, &b.message)));
            problems.dedup();
            return Err(problems);
        }
    }
    serde_json::from_value(value).map_err(|error| vec![context.problem(node.at, error.to_string())])
}

/// `apiVersion` and `kind` come first: where they are wrong the rest is another kind's business.
fn header(node: &Node, kind: Kind, context: Context<'_>) -> Result<(), Problem> {
    if !matches!(node.value, Yaml::Map(_)) {
        return Err(context.problem(node.at, format!("a {kind} document must be a map")));
    }
    for (field, wanted) in [("apiVersion", API_VERSION), ("kind", kind.as_str())] {
        match node.get(field) {
            None => {
                let problem = context.problem(node.at, format!("missing field `{field}`"));
                return Err(problem.help(format!("add `{field}: {wanted}`")));
            }
            Some(found) if found.as_str() != Some(wanted) => {
                let message = format!("`{field}` must be `{wanted}` in this file");
                return Err(context.problem(found.at, message));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn explain(
    error: &ValidationError<'_>,
    schema: &Value,
    root: &Node,
    context: Context<'_>,
) -> Vec<Problem> {
    let path = error.instance_path().to_string();
    let parts = || {
        path.split('/')
            .skip(1)
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
    };
    let owned: Vec<String> = parts().collect();
    let node = root.descend(owned.iter().map(String::as_str));
    let field = owned.last().map_or("the document", String::as_str);
    let rules = error.schema_path().to_string();
    let parent = rules.rsplit_once('/').map_or("", |(parent, _)| parent);
    let rule = schema.pointer(parent);
    let words = |values: &Value| -> Vec<String> {
        let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        values
            .as_array()
            .map(|list| list.iter().map(word).collect())
            .unwrap_or_default()
    };
    let one_of = |allowed: Vec<String>| {
        let found = node.as_str().unwrap_or_default();
        let message = format!("`{field}` must be one of {}", allowed.join(", "));
        let problem = context.problem(node.at, message);
        match crate::problem::nearest(found, allowed.iter().map(String::as_str)) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem,
        }
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known: Vec<&str> = rule
                .and_then(|rule| rule.get("properties")?.as_object())
                .map(|properties| properties.keys().map(String::as_str).collect())
                .unwrap_or_default();
            let unknown = |name: &String| {
                let at = node.key_at(name).unwrap_or(node.at);
                let problem = context.problem(at, format!("unknown field `{name}`"));
                match suggest(name, known.iter().copied()) {
                    Some(help) => problem.help(help),
                    None => problem,
                }
            };
            unexpected.iter().map(unknown).collect()
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let place = if owned.is_empty() {
                String::new()
            } else {
                format!(" in `{field}`")
            };
            vec![context.problem(node.at, format!("missing field `{name}`{place}"))]
        }
        ValidationErrorKind::Pattern { .. } => {
            let found = node.as_str().unwrap_or_default();
            let problem = context.problem(node.at, format!("`{found}` is no valid `{field}`"));
            let rule = rule.and_then(|rule| rule.get("patternErrorMessage")?.as_str());
            vec![match rule {
                Some(rule) => problem.help(rule),
                None => problem,
            }]
        }
        ValidationErrorKind::Enum { options } => vec![one_of(words(options))],
        ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::AnyOf { .. } => {
            let constants = rule
                .and_then(|rule| rule.get("oneOf")?.as_array())
                .map(|list| {
                    list.iter()
                        .filter_map(|item| item.get("const").cloned())
                        .collect()
                })
                .map(Value::Array);
            match constants {
                Some(constants) => vec![one_of(words(&constants))],
                None => vec![context.problem(node.at, format!("`{field}`: {error}"))],
            }
        }
        _ => vec![context.problem(node.at, format!("`{field}`: {error}"))],
    }
}
