//! Evaluates an app's rule for handing over its writer: whether the app has stopped writing in a cluster, and what is
//! carried over from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cel::Context;
use muster_model::{
    expression::{ENV, Expression, MAX_STEPS, compile},
    ids::ContentHash,
    writer_rule::{MAX_CARRIED, OBJECTS, WriterRule},
};
use serde_json::Value;

use crate::expression::{Longest, to_cel};

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    when: Expression,
    carry: BTreeMap<String, Expression>,
    names: Vec<String>,
    /// The names of the objects that are Jobs.
    jobs: BTreeSet<String>,
    /// The hash of the rule's text.
    pub hash: ContentHash,
}

/// The result of evaluating a rule over the objects of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// True if the app has stopped writing.
    pub stopped: bool,
    /// The values to carry over; empty unless the app has stopped.
    pub carried: BTreeMap<String, String>,
    /// The UIDs of the objects that exist.
    pub uids: BTreeMap<String, String>,
    /// True if every object exists, is not being deleted, and has a status of its newest generation. A Job may be
    /// missing, because it may exist only while the app is fenced. If false, a verdict of "not stopped" may be wrong.
    pub is_evaluated: bool,
    /// The reason why the app does not count as stopped; empty if it does.
    pub why: String,
}

impl Rule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// Returns a message for people if an expression is not valid.
    pub fn compile(rule: &WriterRule) -> Result<Self, String> {
        let carry = rule.carry.iter().map(|(name, text)| {
            let compiled = compile(text, OBJECTS);
            compiled.map(|expression| (name.clone(), expression))
        });
        Ok(Self {
            when: compile(&rule.stopped.when, OBJECTS)?,
            carry: carry.collect::<Result<_, _>>()?,
            names: rule.stopped.objects.keys().cloned().collect(),
            jobs: {
                let objects = rule.stopped.objects.iter();
                let jobs = objects.filter(|(_, pointer)| {
                    pointer.kind == "Job" && pointer.api_version.starts_with("batch/")
                });
                jobs.map(|(name, _)| name.clone()).collect()
            },
            hash: hash_of(rule),
        })
    }

    /// Evaluates the rule. `objects` has the objects that exist, by the names that the rule uses for them.
    ///
    /// The app counts as stopped only if every object exists, none of them is being deleted, the controller of each has
    /// observed its newest generation, `when` is true, and every value to carry over is there.
    #[must_use]
    pub fn judge(&self, objects: &BTreeMap<String, Value>) -> Verdict {
        let uid = |object: &Value| object["metadata"]["uid"].as_str().map(str::to_owned);
        let uids = objects
            .iter()
            .filter_map(|(name, object)| Some((name.clone(), uid(object)?)));
        let mut verdict = Verdict {
            uids: uids.collect(),
            ..Verdict::default()
        };
        let jobs = &self.jobs;
        let absent = |name: &&String| !objects.contains_key(*name) && !jobs.contains(*name);
        let is_settled = objects
            .iter()
            .all(|(name, object)| settled(name, object).is_ok());
        verdict.is_evaluated = self.names.iter().find(absent).is_none() && is_settled;
        match self.stopped(objects) {
            Ok(Ok(carried)) => {
                verdict.stopped = true;
                verdict.carried = carried;
            }
            // `when` is true, so this is no look at a writer.
            Ok(Err(why)) => {
                verdict.is_evaluated = false;
                verdict.why = why;
            }
            Err(why) => verdict.why = why,
        }
        verdict
    }

    /// Returns what is carried over, if `when` is true.
    fn stopped(
        &self,
        objects: &BTreeMap<String, Value>,
    ) -> Result<Result<BTreeMap<String, String>, String>, String> {
        for name in &self.names {
            let object = objects
                .get(name)
                .ok_or_else(|| format!("`objects.{name}` does not exist"))?;
            settled(name, object)?;
        }
        let mut longest = Longest::default();
        objects.values().for_each(|object| longest.look(object));
        let steps = |expression: &Expression| expression.steps(longest.list, longest.text);
        let all = self.carry.values().chain([&self.when]);
        let steps = all.fold(0, |sum: u64, expression| {
            sum.saturating_add(steps(expression))
        });
        if steps > MAX_STEPS {
            return Ok(Err(
                "evaluating the rule would take too many steps".to_owned()
            ));
        }
        let map: HashMap<String, cel::Value> = objects
            .iter()
            .map(|(name, object)| (name.clone(), to_cel(object)))
            .collect();
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value(OBJECTS, cel::Value::from(map));
        match self.when.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(cel::Value::Bool(false)) => return Err("`when` is false".to_owned()),
            Ok(_) => return Err("the result of `when` is not true or false".to_owned()),
            Err(error) => return Err(format!("`when` can't be evaluated: {error}")),
        }
        Ok(self.carried(&context))
    }

    fn carried(&self, context: &Context<'_, '_>) -> Result<BTreeMap<String, String>, String> {
        let carried = self.carry.iter().map(|(name, expression)| {
            let value = match expression.program.execute(context) {
                Ok(cel::Value::String(text)) => text.to_string(),
                Ok(cel::Value::Int(number)) => number.to_string(),
                Ok(cel::Value::UInt(number)) => number.to_string(),
                Ok(cel::Value::Bool(value)) => value.to_string(),
                Ok(_) => return Err(format!("`carry.{name}` is not a text, number or boolean")),
                Err(error) => return Err(format!("`carry.{name}` can't be evaluated: {error}")),
            };
            match is_carried(&value) {
                true => Ok((name.clone(), value)),
                false => Err(format!(
                    "`carry.{name}` must have 1 to {MAX_CARRIED} letters, digits and `+/=_.:-`, but none of `_.:-` at an end"
                )),
            }
        });
        let carried: BTreeMap<String, String> = carried.collect::<Result<_, String>>()?;
        match carried.values().map(String::len).sum::<usize>() {
            ..=MAX_CARRIED => Ok(carried),
            _ => Err(format!(
                "all of `carry` together has more than {MAX_CARRIED} bytes"
            )),
        }
    }
}

/// Checks that an object's status is about its newest generation.
fn settled(name: &str, object: &Value) -> Result<(), String> {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Err(format!("`objects.{name}` is being deleted"));
    }
    let observed = object["status"]["observedGeneration"].as_i64();
    let newest = object["metadata"]["generation"].as_i64();
    match observed.zip(newest) {
        Some((observed, newest)) if observed < newest => Err(format!(
            "the controller of `objects.{name}` has not seen its newest generation yet"
        )),
        _ => Ok(()),
    }
}

/// Returns the hash of a rule.
#[must_use]
pub fn hash_of(rule: &WriterRule) -> ContentHash {
    ContentHash::of(&serde_json::to_vec(rule).unwrap_or_default())
}

/// Returns true if a value may be carried over. It comes from one cluster and becomes part of another cluster's
/// objects, so it must have no character that could add a line to a YAML document or end a quoted string.
#[must_use]
pub fn is_carried(value: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=_.:-".contains(&byte);
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| !b"_.:-".contains(&byte));
    let mut bytes = value.bytes();
    value.len() <= MAX_CARRIED
        && bytes.clone().all(harmless)
        && is_end(bytes.clone().next())
        && is_end(bytes.next_back())
}

#[cfg(test)]
mod tests;
