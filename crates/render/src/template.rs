//! The templates of one app, which are compiled once. Undefined values are errors. Templates have no clock, no
//! randomness and no files, and their resources are limited.

use std::{error::Error as _, io};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, escape_formatter,
    syntax::SyntaxConfig,
    value::{Value, ValueKind},
};
use muster_model::{
    load::TextFile,
    problem::{Problem, Scope, nearest, suggest},
    yaml::{Pos, to_yaml},
};

use crate::{
    context::{Context, Reads},
    literals::{Literal, rewritten},
};

/// The number of steps that one template may take for one cluster. A large real template takes some ten thousand.
/// Text counts too: 64 bytes are one step, so that text can't exhaust the memory.
const FUEL: u64 = 2_000_000;
/// The maximum depth to which templates and macros may call each other.
const MAX_DEPTH: usize = 200;
/// The maximum number of includes and calls that an error message lists on the way to the error.
const MAX_WAY: usize = 4;
/// The number of bytes that one template may write for one cluster.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

/// The compiled templates of one app, with the fleet's macros.
#[derive(Debug)]
pub(crate) struct Templates {
    environment: Environment<'static>,
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_debug(true);
    env.set_recursion_limit(MAX_DEPTH);
    env.set_syntax(syntax()?);
    env.set_formatter(print);
    Ok(env)
}

/// Prints values that are neither text nor numbers as JSON, which YAML reads as the same value. minijinja would print
/// `True` and `None` as Python does, and YAML reads `None` as text.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match json(value)? {
        Some(json) => Ok(out.write_str(&json)?),
        None => escape_formatter(out, state, value),
    }
}

/// Returns the JSON of a value that is neither text nor a number. Its size is limited, because a small template can
/// build a value that repeats another one many times.
fn json(value: &Value) -> Result<Option<String>, Error> {
    struct Bounded(Vec<u8>);
    impl io::Write for Bounded {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() + bytes.len() > MAX_OUTPUT {
                return Err(io::Error::other(format!(
                    "a value of over {} MiB is printed",
                    MAX_OUTPUT / 1_048_576
                )));
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    if !matches!(
        value.kind(),
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map
    ) {
        return Ok(None);
    }
    let mut json = Bounded(Vec::new());
    serde_json::to_writer(&mut json, value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Some(String::from_utf8_lossy(&json.0).into_owned()))
}

fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()
}

impl Templates {
    /// Compiles an app's templates. Each file that can't be compiled adds a problem.
    pub(crate) fn compile<'a>(
        scope: &Scope,
        files: impl Iterator<Item = &'a TextFile>,
    ) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut environment = match environment() {
            Ok(environment) => environment,
            Err(error) => {
                problems.push(Problem::new(scope.clone(), "", error.to_string()));
                Environment::new()
            }
        };
        environment.add_filter("toyaml", |value: Value| {
            serde_json::to_value(&value)
                .map(|json| to_yaml(&json))
                .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
        });
        environment.add_filter(
            "string",
            |state: &State<'_, '_>, value: Value| match json(&value)? {
                Some(json) => Ok(json.into()),
                None => minijinja::filters::string(state, &value),
            },
        );
        environment.add_filter("b64encode", |text: String| BASE64_STANDARD.encode(text));
        environment.add_function("fail", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Failed))
        });
        // `debug` would print values without recording that they were read.
        environment.remove_global("debug");
        for file in files {
            let added = environment.add_template_owned(file.path.clone(), file.text.to_string());
            if let Err(error) = added {
                problems.push(problem(scope, &file.path, &error, None));
            } else if let Ok(syntax) = syntax() {
                let literals = rewritten(&file.text, &syntax);
                problems.extend(literals.iter().map(|literal| numeral(scope, file, literal)));
            }
        }
        (Self { environment }, problems)
    }

    /// Renders a template for a context. Returns the output and the values that the template read.
    pub(crate) fn render(
        &self,
        scope: &Scope,
        path: &str,
        context: &Context,
    ) -> (Result<String, Problem>, Reads) {
        let (root, reads) = context.recorded();
        let rendered = self
            .environment
            .get_template(path)
            .and_then(|template| template.render(root));
        let result = match rendered {
            Ok(text) if text.len() > MAX_OUTPUT => {
                let message = format!("the template writes over {} MiB", MAX_OUTPUT / 1_048_576);
                Err(Problem::new(scope.clone(), path, message))
            }
            Ok(text) => Ok(text),
            Err(error) => Err(problem(scope, path, &error, Some((context, &reads)))),
        };
        (result, reads)
    }

    /// Returns true if any of the templates contains the text.
    pub(crate) fn contain(&self, text: &str) -> bool {
        let mut templates = self.environment.templates();
        templates.any(|(_, template)| template.source().contains(text))
    }

    /// Finds the template position that produced a position in the output. Returns the template's path, its text and
    /// the position in it.
    pub(crate) fn origin(
        &self,
        path: &str,
        context: &Context,
        written: Pos,
    ) -> Option<(String, String, Pos)> {
        let (root, _) = context.recorded();
        let (output, spans) = self
            .environment
            .get_template(path)
            .ok()?
            .render_with_spans(root)
            .ok()?;
        let line_start: usize = output
            .split_inclusive('\n')
            .take(written.line as usize - 1)
            .map(str::len)
            .sum();
        let line = output[line_start..].lines().next().unwrap_or_default();
        let into_line: usize = line
            .chars()
            .take(written.col as usize - 1)
            .map(char::len_utf8)
            .sum();
        let offset = line_start + into_line;
        let span = spans
            .iter()
            .find(|span| span.output_range().contains(&offset))
            .or(spans.last())?;
        let name = span.name().to_owned();
        let template = self.environment.get_template(&name).ok()?;
        let source = template.source().to_owned();
        // Inside literal text, the offset from its start is the same in the template and the output. For an
        // expression, its start is used.
        let literal = output.get(span.output_range()) == source.get(span.source_range());
        let into_span = if literal {
            offset.saturating_sub(span.output_range().start)
        } else {
            0
        };
        let at = place(&source, span.source_range().start + into_span);
        Some((name, source, at))
    }
}

fn numeral(scope: &Scope, file: &TextFile, literal: &Literal<'_>) -> Problem {
    let text = literal.text;
    let (message, help) = match &literal.printed {
        Some(printed) => (
            format!("`{text}` is a number that is printed as `{printed}`"),
            "put it in quotes if it is text, or write it exactly as it should be printed",
        ),
        None => (
            format!("`{text}` is a number that is out of range"),
            "put it in quotes",
        ),
    };
    Problem::new(scope.clone(), &file.path, message)
        .at(&file.text, place(&file.text, literal.offset))
        .help(help)
}

/// Marks the errors that a template raises with `fail`.
#[derive(Debug, thiserror::Error)]
#[error("the template refuses")]
struct Failed;

/// Returns the position of a byte offset.
fn place(text: &str, offset: usize) -> Pos {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    let number = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
    Pos {
        line: number(before.matches('\n').count()),
        col: number(before[line_start..].chars().count()),
    }
}

/// Converts a template's error into a problem at its innermost place, with the chain of templates that led there.
fn problem(
    scope: &Scope,
    path: &str,
    error: &Error,
    context: Option<(&Context, &Reads)>,
) -> Problem {
    let mut innermost = error;
    let mut way = Vec::new();
    let mut next = error.source();
    while let Some(inner) = next {
        if let Some(inner) = inner.downcast_ref::<Error>() {
            if let (Some(name), Some(line)) = (innermost.name(), innermost.line()) {
                way.push(format!("{name}:{line}"));
            }
            innermost = inner;
        }
        next = inner.source();
    }
    let file = innermost.name().unwrap_or(path);
    if file != path && way.is_empty() {
        way.push(path.to_owned());
    }
    let source = innermost.template_source().unwrap_or_default();
    let range = innermost.range().map(|range| {
        // For `a.b.c` the range starts at the part that failed. The message shows the whole path.
        let before = source.get(..range.start).unwrap_or_default();
        let word = before.trim_end_matches(in_path).len();
        let inside = source.get(range.clone()).unwrap_or_default();
        if inside.starts_with('.') {
            word..range.end
        } else {
            range
        }
    });
    let expression = range
        .clone()
        .and_then(|range| source.get(range))
        .unwrap_or_default();
    let (message, mut help) = describe(innermost, expression, context);
    if !way.is_empty() {
        if way.len() > MAX_WAY {
            let left_out = way.len() - MAX_WAY;
            way.splice(2..2 + left_out, [format!("{left_out} more")]);
        }
        let led = format!("it was reached from {}", way.join(", then "));
        help = Some(help.map_or(led.clone(), |help| format!("{help}; {led}")));
    }
    let mut problem = Problem::new(scope.clone(), file, message);
    if let Some(line) = innermost.line() {
        let at = match range {
            Some(range) if !source.is_empty() => place(source, range.start),
            _ => Pos {
                line: u32::try_from(line).unwrap_or(u32::MAX),
                col: 1,
            },
        };
        problem = problem.at(source, at);
    }
    match help {
        Some(help) => problem.help(help),
        None => problem,
    }
}

fn in_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
}

fn describe(
    error: &Error,
    expression: &str,
    context: Option<(&Context, &Reads)>,
) -> (String, Option<String>) {
    let detail = error.detail().map(str::to_owned);
    let kind = error.kind();
    match (kind, detail) {
        (ErrorKind::UndefinedError, _) => {
            let what = if expression.is_empty() { "a value".into() } else { format!("`{expression}`") };
            let help = context.and_then(|(context, reads)| missing_key(expression, context, reads));
            (format!("{what} is not defined"), help)
        }
        (ErrorKind::OutOfFuel, _) => (
            format!("the template was stopped after {FUEL} steps (64 bytes of text count as one)"),
            Some("is there a loop that does not end, or a text that grows in one?".to_owned()),
        ),
        (ErrorKind::TemplateNotFound, detail) => (
            detail.unwrap_or_else(|| kind.to_string()),
            Some("templates can include files of lib/ and of their own app, by the path from the repository root".to_owned()),
        ),
        (ErrorKind::UnknownFunction, Some(detail)) => (
            format!("{kind}: {detail}"),
            Some("templates have no clock, no randomness and no files: only values, filters and macros".to_owned()),
        ),
        (ErrorKind::InvalidOperation, Some(detail)) if detail == "recursion limit exceeded" => (
            format!("templates or macros call each other over {MAX_DEPTH} levels deep"),
            Some("does one include or call itself?".to_owned()),
        ),
        (_, Some(detail)) if error.source().is_some_and(<dyn std::error::Error>::is::<Failed>) => {
            (detail, None)
        }
        (_, Some(detail)) => (format!("{kind}: {detail}"), None),
        (_, None) => (kind.to_string(), None),
    }
}

/// Returns a help text for an undefined path such as `values.replcas`: which part of it is missing, and which name was
/// probably meant. The suggestion depends on the existing names, so these are recorded as read.
fn missing_key(expression: &str, context: &Context, reads: &Reads) -> Option<String> {
    let path: Vec<&str> = expression
        .split(|c: char| !in_path(c))
        .next()?
        .split('.')
        .collect();
    for depth in 0..path.len() {
        let keys = context.keys_at(&path[..depth], reads);
        if keys.iter().any(|key| key.as_ref() == path[depth]) {
            continue;
        }
        let keys = keys.iter().map(AsRef::as_ref);
        if depth == 0 {
            // The name may also be meant as a variable of the template.
            return nearest(path[0], keys).map(|near| format!("did you mean `{near}`?"));
        }
        let missing = path[..=depth].join(".");
        return match suggest(path[depth], keys) {
            Some(help) => Some(format!("there is no `{missing}`; {help}")),
            None if path[0] == "values" => Some(format!(
                "set `{missing}` in a values file, or check first that it `is defined`"
            )),
            None => None,
        };
    }
    None
}
