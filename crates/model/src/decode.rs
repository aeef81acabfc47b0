//! Decodes the YAML of a document into its typed kind, and reports all problems together. The JSON Schema
//! of the kind finds the problems, and the node tree gives their positions.

use std::sync::LazyLock;

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    kinds::{API_VERSION, Document, Kind},
    problem::{Problem, Scope, suggest},
    yaml::{Node, Pos, Yaml},
};

/// The context of problems in one file: their scope, the file and its text.
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

/// Returns the typed document, or all problems in it.
pub(crate) fn document<N, S>(
    node: &Node,
    kind: Kind,
    context: Context<'_>,
) -> Result<Document<N, S>, Vec<Problem>>
where
    N: DeserializeOwned,
    S: DeserializeOwned,
{
    header(node, kind, context).map_err(|problem| vec![problem])?;
    let mut value = node.clone().into_json();
    if let (Value::Object(map), Kind::Cluster | Kind::Fleet) = (&mut value, kind) {
        map.entry("spec")
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    if let Some(schema) = kind_schema(kind) {
        let mut problems: Vec<Problem> = schema
            .validator
            .iter_errors(&value)
            .flat_map(|error| explain(&error, &schema.schema, node, context))
            .collect();
        if !problems.is_empty() {
            problems.sort_by(|a, b| (a.at, &a.message).cmp(&(b.at, &b.message)));
            problems.dedup();
            return Err(problems);
        }
    }
    serde_json::from_value(value).map_err(|error| vec![context.problem(node.at, error.to_string())])
}

/// Checks `apiVersion` and `kind` first. If they are wrong, the kind's schema does not apply to the rest.
fn header(node: &Node, kind: Kind, context: Context<'_>) -> Result<(), Problem> {
    if !matches!(node.value, Yaml::Map(_)) {
        let message = format!("a document of kind {kind} must be a map");
        return Err(context.problem(node.at, message));
    }
    for (field, wanted) in [("apiVersion", API_VERSION), ("kind", kind.as_str())] {
        match node.get(field) {
            None => {
                let problem = context.problem(node.at, format!("missing field `{field}`"));
                return Err(problem.help(format!("add `{field}: {wanted}`")));
            }
            Some(found) if found.as_str() != Some(wanted) => {
                let message = format!("`{field}` must be `{wanted}` in this file");
                let help = "Kubernetes objects belong in an app's templates/ or manifests/";
                return Err(context.problem(found.at, message).help(help));
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
    // An element of a list has no name, so messages about it name the list.
    let named = |part: &&String| part.bytes().any(|byte| !byte.is_ascii_digit());
    let field = owned.iter().rev().find(named);
    let field = field.map_or("the document", String::as_str);
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
            let problem = context.problem(node.at, format!("`{found}` is not a valid `{field}`"));
            let rule = rule.and_then(|rule| rule.get("patternErrorMessage")?.as_str());
            vec![match rule {
                Some(rule) => problem.help(rule),
                None => problem,
            }]
        }
        ValidationErrorKind::PropertyNames { error } => {
            let name = error.instance().as_str().unwrap_or_default();
            let at = node.key_at(name).unwrap_or(node.at);
            let problem = context.problem(at, format!("`{name}` is not a valid name"));
            let help = rule.and_then(|rule| rule.get("patternErrorMessage")?.as_str());
            vec![match help {
                Some(help) => problem.help(help),
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
        ValidationErrorKind::Type { .. } => {
            let allowed = rule.and_then(|rule| rule.get("type"));
            let allowed: Vec<&str> = match allowed {
                Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
                Some(Value::String(one)) => vec![one],
                _ => Vec::new(),
            };
            let wanted: Vec<&str> = allowed
                .iter()
                .filter(|name| **name != "null")
                .map(|name| in_words(name))
                .collect();
            let (found, shown) = match &node.value {
                Yaml::Map(_) => ("a map", None),
                Yaml::Seq(_) => ("a list", None),
                Yaml::Scalar(Value::Null) => ("nothing", None),
                Yaml::Scalar(value @ Value::Number(_)) => ("a number", Some(value)),
                Yaml::Rewritten(number) => ("a number", Some(&number.value)),
                Yaml::Scalar(value @ Value::Bool(_)) => ("true or false", Some(value)),
                Yaml::Scalar(value) => ("text", Some(value)),
            };
            let message = format!("`{field}` must be {}, not {found}", wanted.join(" or "));
            let problem = context.problem(node.at, message);
            vec![match shown {
                Some(shown) if allowed.contains(&"array") => {
                    let text = shown
                        .as_str()
                        .map_or_else(|| shown.to_string(), str::to_owned);
                    problem.help(format!("write a list with one element as `[{text}]`"))
                }
                Some(Value::Number(_) | Value::Bool(_)) if allowed.contains(&"string") => {
                    problem.help("put it in quotes")
                }
                _ => problem,
            }]
        }
        ValidationErrorKind::MinItems { .. } | ValidationErrorKind::MinLength { .. } => {
            vec![context.problem(node.at, format!("`{field}` must not be empty"))]
        }
        _ => vec![context.problem(node.at, format!("`{field}`: {error}"))],
    }
}

/// Reports every number in values that templates would print differently from how it is written.
pub(crate) fn check_numbers(values: &Node, context: Context<'_>, problems: &mut Vec<Problem>) {
    match &values.value {
        Yaml::Scalar(_) => {}
        Yaml::Rewritten(number) => {
            let message = format!(
                "`{}` is a number that templates would print as `{}`",
                number.text, number.printed
            );
            let help = match number.plain() {
                Some(plain) => format!("put it in quotes if it is text, otherwise write {plain}"),
                None => "put it in quotes".to_owned(),
            };
            problems.push(context.problem(values.at, message).help(help));
        }
        Yaml::Seq(items) => {
            for item in items {
                check_numbers(item, context, problems);
            }
        }
        Yaml::Map(entries) => {
            for (.., node) in entries {
                check_numbers(node, context, problems);
            }
        }
    }
}

/// Returns the name of a JSON Schema type in plain words.
fn in_words(name: &str) -> &str {
    match name {
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a map",
        other => other,
    }
}
