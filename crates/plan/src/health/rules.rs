//! Rules of a fleet repository over what is built in: expressions in CEL that say how well an object of
//! one kind is.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, IdedExpr, Program,
    common::ast::{EntryExpr, Expr, MapExpr, StructExpr},
};
use muster_model::policy::HealthRule;
use serde_json::Value;

use super::{Assessment, Health, assess, group_and_kind};

/// The only variable of an expression.
const OBJECT: &str = "object";
/// What an expression may have of characters: ten times what one needs.
const MAX_LENGTH: usize = 2048;
/// How deep its brackets may nest. CEL's parser needs a lot of stack for each.
const MAX_BRACKETS: usize = 32;
/// How deep an expression itself may nest, which is what evaluating it takes of stack.
const MAX_DEPTH: usize = 32;
/// How deep its loops may nest, which is what evaluating it takes of time.
const MAX_LOOPS: usize = 2;
/// The stack for reading expressions, in bytes: room for [`MAX_BRACKETS`] several times over.
const STACK: usize = 64 << 20;

/// The functions of CEL's standard library, without those for times: an expression has no clock.
const FUNCTIONS: [&str; 17] = [
    "bool",
    "bytes",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "hasValue",
    "int",
    "matches",
    "or",
    "orValue",
    "size",
    "startsWith",
    "string",
    "type",
    "uint",
    "value",
];

/// What may be compared with `type(…)`.
const TYPES: [&str; 10] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

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
        with_room(|| Self::compile_here(rules))
    }

    fn compile_here(rules: &[HealthRule]) -> Result<Self, RuleError> {
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

    /// Whether an expression can be used in a rule.
    ///
    /// # Errors
    /// What is wrong and where in the expression, for people.
    pub fn check(expression: &str) -> Result<(), String> {
        with_room(|| compile(expression).map(drop))
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

/// Runs what reads expressions, on a stack that is large enough for it.
fn with_room<T: Send>(read: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, read);
        let result = thread.expect("a thread can be started").join();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn compile(expression: &str) -> Result<Program, String> {
    if expression.chars().count() > MAX_LENGTH {
        return Err(format!("longer than {MAX_LENGTH} characters"));
    }
    let mut open: usize = 0;
    for c in expression.chars() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_BRACKETS {
            return Err(format!("more than {MAX_BRACKETS} brackets in each other"));
        }
    }
    let program = ENV.compile(expression).map_err(|errors| {
        let errors = errors.errors.iter().map(|error| {
            // The parser goes on with all that could stand there.
            let end = error.msg.find(" expecting").unwrap_or(error.msg.len());
            let message = &error.msg[..end];
            match error.pos {
                (..=0, _) => message.to_owned(),
                (1, column) => format!("column {column}: {message}"),
                (line, column) => format!("line {line}, column {column}: {message}"),
            }
        });
        errors.collect::<Vec<_>>().join("; ")
    })?;
    let mut scope = Scope {
        names: vec![OBJECT],
        depth: 0,
        loops: 0,
    };
    scope.check(program.expression())?;
    Ok(program)
}

/// What can be named at a place in an expression, and how deep that is.
struct Scope<'a> {
    names: Vec<&'a str>,
    depth: usize,
    loops: usize,
}

impl<'a> Scope<'a> {
    fn check_all(&mut self, parts: impl IntoIterator<Item = &'a IdedExpr>) -> Result<(), String> {
        parts.into_iter().try_for_each(|part| self.check(part))
    }

    /// Whether an expression uses only what there is, and isn't too deep. The error is for people.
    fn check(&mut self, expression: &'a IdedExpr) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} operations in each other"));
        }
        self.depth += 1;
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => {
                let name = name.as_str();
                // Names with `@` are the compiler's own.
                let is_known =
                    self.names.contains(&name) || TYPES.contains(&name) || name.starts_with('@');
                if !is_known {
                    return Err(format!(
                        "`{name}` is unknown here; there is only `{OBJECT}`"
                    ));
                }
            }
            Expr::Select(select) => self.check(&select.operand)?,
            Expr::List(list) => self.check_all(&list.elements)?,
            Expr::Map(MapExpr { entries }) | Expr::Struct(StructExpr { entries, .. }) => {
                for entry in entries {
                    match &entry.expr {
                        EntryExpr::StructField(field) => self.check(&field.value)?,
                        EntryExpr::MapEntry(entry) => self.check_all([&entry.key, &entry.value])?,
                    }
                }
            }
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                // Operators are called like functions, by names that nobody can write.
                if name.starts_with(char::is_alphabetic) && !FUNCTIONS.contains(&name) {
                    let known = FUNCTIONS.join(", ");
                    return Err(format!("there is no function `{name}`; there are {known}"));
                }
                self.check_all(call.target.as_deref().into_iter().chain(&call.args))?;
            }
            Expr::Comprehension(of) => {
                self.check_all([&of.iter_range, &of.accu_init])?;
                if self.loops == MAX_LOOPS {
                    return Err(format!("more than {MAX_LOOPS} loops in each other"));
                }
                self.loops += 1;
                let outside = self.names.len();
                self.names
                    .extend([of.iter_var.as_str(), of.accu_var.as_str()]);
                self.names.extend(of.iter_var2.as_deref());
                self.check_all([&of.loop_cond, &of.loop_step, &of.result])?;
                self.names.truncate(outside);
                self.loops -= 1;
            }
        }
        self.depth -= 1;
        Ok(())
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
