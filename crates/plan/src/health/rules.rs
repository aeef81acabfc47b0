//! Health rules of a fleet repository, which override the built-in rules: CEL expressions that assess the health
//! of objects of one kind.

use std::collections::HashMap;

use cel::Context;
use muster_model::{
    expression::{ENV, Expression, MAX_STEPS, OBJECT, compile},
    policy::HealthRule,
};
use serde_json::Value;

use super::{Assessment, Health, assess, group_and_kind};
use crate::expression::{Longest, to_cel};

/// Compiled health rules. The default has none.
#[derive(Debug, Default)]
pub struct Rules {
    /// The cases, by group and then kind.
    kinds: HashMap<String, HashMap<String, Vec<Case>>>,
}

#[derive(Debug)]
struct Case {
    when: Expression,
    /// The source text of `when`.
    text: String,
    health: Health,
    message: Option<Expression>,
}

/// An invalid expression in a health rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the health rule of {kind} can't be used: `{}` of case {}: {reason}", .field, .case + 1)]
pub struct RuleError {
    /// The index of the rule.
    pub rule: usize,
    /// The kind that the rule is about.
    pub kind: String,
    /// The index of the case in the rule.
    pub case: usize,
    /// The field of the case: `when` or `message`.
    pub field: &'static str,
    /// What is wrong in the expression, and where.
    pub reason: String,
}

impl Rules {
    /// Compiles rules. Several rules of one kind are evaluated in order.
    ///
    /// # Errors
    /// Returns the first expression that is not valid CEL, or that uses unknown variables or functions.
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
                let message = written
                    .message
                    .as_deref()
                    .map(|text| compile(text, OBJECT))
                    .transpose();
                cases.push(Case {
                    when: compile(&written.when, OBJECT).map_err(wrong("when"))?,
                    text: written.when.clone(),
                    health: written.health,
                    message: message.map_err(wrong("message"))?,
                });
            }
        }
        Ok(Self { kinds })
    }

    /// Assesses an object's health by the first case of its kind that is true, or by the built-in rules if none
    /// is true. An object that is being deleted is assessed by the built-in rules only.
    ///
    /// Rules can't see `metadata.managedFields`.
    #[must_use]
    pub fn assess(&self, object: &Value) -> Assessment {
        let (group, kind) = group_and_kind(object);
        let cases = self.kinds.get(group).and_then(|kinds| kinds.get(kind));
        let is_going = object["metadata"]["deletionTimestamp"].is_string();
        let Some(cases) = cases.filter(|_| !is_going) else {
            return assess(object);
        };
        let mut longest = Longest::default();
        longest.look(object);
        let expressions = cases
            .iter()
            .flat_map(|case| [Some(&case.when), case.message.as_ref()]);
        let dear = expressions
            .flatten()
            .any(|expression| expression.steps(longest.list, longest.text) > MAX_STEPS);
        if dear {
            let message = format!(
                "the fleet's rule for this kind is not evaluated: its loops would take too many steps, because the object has lists of up to {} elements and texts of up to {} bytes",
                longest.list, longest.text
            );
            return Assessment::new(Health::Unknown, message);
        }
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value(OBJECT, to_cel(object));
        let holds = |case: &&Case| {
            let said = case.when.program.execute(&context);
            matches!(said, Ok(cel::Value::Bool(true)))
        };
        let Some(case) = cases.iter().find(holds) else {
            return assess(object);
        };
        let said = case
            .message
            .as_ref()
            .map(|message| message.program.execute(&context));
        let message = match said {
            Some(Ok(cel::Value::String(text))) => text.to_string(),
            _ if case.health == Health::Healthy => String::new(),
            _ => format!("the health rule matches: {}", case.text),
        };
        Assessment::new(case.health, message)
    }
}

#[cfg(test)]
mod tests;
