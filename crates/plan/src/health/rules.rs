//! Rules of a fleet repository over what is built in: expressions in CEL that say how well an object of
//! one kind is.

use std::collections::HashMap;

use cel::{Context, Program};
use muster_model::{
    expression::{ENV, OBJECT, compile},
    policy::HealthRule,
};
use serde_json::Value;

use super::{Assessment, Health, assess, group_and_kind};

/// Rules that are ready for use. The default has none.
#[derive(Debug, Default)]
pub struct Rules {
    /// By group and then kind.
    kinds: HashMap<String, HashMap<String, Vec<Case>>>,
}

#[derive(Debug)]
struct Case {
    when: Program,
    /// As it was written.
    text: String,
    health: Health,
    message: Option<Program>,
}

/// An expression of a rule that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the health rule of {kind} can't be used: {} of case {}: {reason}", .field, .case + 1)]
pub struct RuleError {
    /// The rule's place among all.
    pub rule: usize,
    /// The kind that it is about.
    pub kind: String,
    /// The case's place in the rule.
    pub case: usize,
    /// The field of the case: `when` or `message`.
    pub field: &'static str,
    /// What is wrong and where in the expression.
    pub reason: String,
}

impl Rules {
    /// Makes rules ready for use. Several of one kind are read one after the other.
    ///
    /// # Errors
    /// The first expression that is no CEL, or that uses what there isn't.
    pub fn compile(rules: &[HealthRule]) -> Result<Self, RuleError> {
        let mut kinds: HashMap<String, HashMap<String, Vec<Case>>> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            let group = kinds.entry(rule.group.clone()).or_default();
            let cases = group.entry(rule.kind.clone()).or_default();
            for (case, written) in rule.cases.iter().enumerate() {
                let wrong = |field| {
                    let kind = rule.kind.clone();
                    move |reason| RuleError {
                        rule: place,
                        kind,
                        case,
                        field,
                        reason,
                    }
                };
                let message = written.message.as_deref().map(compile).transpose();
                cases.push(Case {
                    when: compile(&written.when).map_err(wrong("when"))?,
                    text: written.when.clone(),
                    health: written.health,
                    message: message.map_err(wrong("message"))?,
                });
            }
        }
        Ok(Self { kinds })
    }

    /// Reads an object's health: by the first case of its kind that is true, and by what is built in where
    /// none is. What is being deleted is read by what is built in alone.
    ///
    /// `metadata.managedFields` can't be seen by a rule.
    #[must_use]
    pub fn assess(&self, object: &Value) -> Assessment {
        let (group, kind) = group_and_kind(object);
        let cases = self.kinds.get(group).and_then(|kinds| kinds.get(kind));
        let is_going = object["metadata"]["deletionTimestamp"].is_string();
        let Some(cases) = cases.filter(|_| !is_going) else {
            return assess(object);
        };
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value(OBJECT, to_cel(object));
        let holds =
            |case: &&Case| matches!(case.when.execute(&context), Ok(cel::Value::Bool(true)));
        let Some(case) = cases.iter().find(holds) else {
            return assess(object);
        };
        let said = case
            .message
            .as_ref()
            .map(|message| message.execute(&context));
        let message = match said {
            Some(Ok(cel::Value::String(text))) => text.to_string(),
            _ if case.health == Health::Healthy => String::new(),
            _ => format!("by a rule of the fleet: {}", case.text),
        };
        Assessment::new(case.health, message)
    }
}

fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => cel::Value::Int(number),
            (None, Some(number)) => cel::Value::Float(number),
            (None, None) => cel::Value::Null,
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_cel).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(key, _)| *key != "managedFields");
            fields
                .map(|(key, value)| (key.clone(), to_cel(value)))
                .collect::<HashMap<_, _>>()
                .into()
        }
    }
}
