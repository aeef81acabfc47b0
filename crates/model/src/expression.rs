//! CEL expressions of a fleet repository. `muster validate` and the code that evaluates them accept the
//! same expressions.

use std::{
    sync::{Arc, LazyLock},
    thread,
};

use cel::{
    Env, IdedExpr, ParseErrors, Program,
    common::ast::{EntryExpr, Expr, MapExpr, StructExpr},
};

/// The only variable of an expression about one object.
pub const OBJECT: &str = "object";
/// The maximum length of an expression in characters, about ten times what a real one needs.
const MAX_LENGTH: usize = 2048;
/// The maximum nesting depth of brackets. Without compiler optimisations the parser uses over 100 KiB of
/// stack for each level.
const MAX_BRACKETS: usize = 32;
/// The maximum nesting depth of operations, which limits the stack that evaluation needs.
const MAX_DEPTH: usize = 32;
/// The maximum nesting depth of loops, which limits the time that evaluation needs.
const MAX_LOOPS: usize = 2;
/// The stack size for parsing expressions, in bytes: several times what [`MAX_BRACKETS`] levels need.
const STACK: usize = 64 * 1024 * 1024;

/// The functions of CEL's standard library, except those for times, because an expression has no clock.
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
/// The names of types, for comparison with `type(…)`.
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

/// The environment in which expressions are compiled and evaluated.
pub static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Checks that a text is a CEL expression over this variable that can be evaluated on an ordinary stack.
///
/// # Errors
/// Returns a message for people that says what is wrong with the expression.
pub fn check(text: &str, variable: &str) -> Result<(), String> {
    compile(text, variable).map(drop)
}

/// A compiled expression, with limits for the cost of evaluating it.
#[derive(Debug)]
pub struct Expression {
    /// The compiled program.
    pub program: Program,
    /// The nesting depth of its loops.
    loops: u32,
    /// The maximum length of a list that it creates, as a multiple of the longest list in the object.
    growth: u64,
}

/// The maximum number of steps that evaluating an expression may take. A step takes up to a microsecond.
pub const MAX_STEPS: u64 = 1_000_000;

impl Expression {
    /// Returns the maximum number of steps that evaluating the expression over an object takes. `longest_list`
    /// is the number of elements of the object's longest list or map, and `longest_text` the number of bytes of
    /// its longest text.
    #[must_use]
    pub fn steps(&self, longest_list: usize, longest_text: usize) -> u64 {
        let list = (longest_list as u64).max(1).saturating_mul(self.growth);
        let text = 1 + longest_text as u64 / 1024;
        list.saturating_pow(self.loops).saturating_mul(text)
    }
}

/// Compiles an expression over this variable.
///
/// # Errors
/// Returns a message for people that says what is wrong with the expression.
pub fn compile(text: &str, variable: &str) -> Result<Expression, String> {
    if text.trim().is_empty() {
        return Err("the expression is empty".to_owned());
    }
    if text.chars().count() > MAX_LENGTH {
        return Err(format!(
            "an expression may have at most {MAX_LENGTH} characters"
        ));
    }
    let mut open: usize = 0;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_BRACKETS {
            return Err(format!(
                "brackets in an expression may be nested at most {MAX_BRACKETS} deep"
            ));
        }
    }
    thread::scope(|scope| {
        let reading = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                let program = ENV.compile(text).map_err(|errors| explain(text, &errors))?;
                let mut scope = Scope {
                    variable,
                    names: vec![variable],
                    depth: 0,
                    loops: 0,
                    deepest: 0,
                };
                scope.check(program.expression())?;
                let loops = u32::try_from(scope.deepest).unwrap_or(u32::MAX);
                // Each `+` can append one list to another.
                let growth = 1 + text.matches('+').count() as u64;
                Ok(Expression {
                    program,
                    loops,
                    growth,
                })
            });
        match reading.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) | Err(_) => Err("this expression can't be read".to_owned()),
        }
    })
}

fn explain(text: &str, errors: &ParseErrors) -> String {
    let Some(first) = errors.errors.first() else {
        return "this is not a valid CEL expression".to_owned();
    };
    let why = first.msg.trim_start_matches("Syntax error: ");
    // The rest of the parser's message lists every token that would be valid.
    let why = why.split(" expecting {").next().unwrap_or(why);
    let place = match first.pos {
        (..=0, _) => String::new(),
        (line, column) if text.trim_end().contains('\n') => {
            format!(" at line {line}, column {column} of the expression")
        }
        (_, column) => format!(" at column {column} of the expression"),
    };
    format!("this is not a valid CEL expression: {why}{place}")
}

/// The names that are visible at one place in an expression, and the nesting depth there.
struct Scope<'a> {
    variable: &'a str,
    names: Vec<&'a str>,
    depth: usize,
    loops: usize,
    /// The deepest nesting of loops so far.
    deepest: usize,
}

impl<'a> Scope<'a> {
    fn check_all(&mut self, parts: impl IntoIterator<Item = &'a IdedExpr>) -> Result<(), String> {
        parts.into_iter().try_for_each(|part| self.check(part))
    }

    /// Checks that an expression uses only known names and is not nested too deep. The error is a message for
    /// people.
    fn check(&mut self, expression: &'a IdedExpr) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(format!(
                "operations in an expression may be nested at most {MAX_DEPTH} deep; split it into several cases"
            ));
        }
        self.depth += 1;
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => {
                let name = name.as_str();
                // The compiler creates names that start with `@`.
                let known =
                    self.names.contains(&name) || TYPES.contains(&name) || name.starts_with('@');
                if !known {
                    return Err(format!(
                        "there is no variable `{name}`; the only variable is `{}`",
                        self.variable
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
                // Operators are calls of functions whose names can't be written in an expression.
                if name.starts_with(char::is_alphabetic) && !FUNCTIONS.contains(&name) {
                    let known = FUNCTIONS.join(", ");
                    return Err(format!("there is no function `{name}`; use one of {known}"));
                }
                self.check_all(call.target.as_deref().into_iter().chain(&call.args))?;
            }
            Expr::Comprehension(over) => {
                self.check_all([&over.iter_range, &over.accu_init])?;
                if self.loops == MAX_LOOPS {
                    return Err(format!(
                        "loops in an expression may be nested at most {MAX_LOOPS} deep"
                    ));
                }
                self.loops += 1;
                self.deepest = self.deepest.max(self.loops);
                let outside = self.names.len();
                self.names
                    .extend([over.iter_var.as_str(), over.accu_var.as_str()]);
                self.names.extend(over.iter_var2.as_deref());
                self.check_all([&over.loop_cond, &over.loop_step, &over.result])?;
                self.names.truncate(outside);
                self.loops -= 1;
            }
        }
        self.depth -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
