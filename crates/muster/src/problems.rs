//! Problems as text for people.

use anstyle::{AnsiColor, Style};
use muster_model::problem::{Problem, Scope};

use crate::output::print;

/// The error for invalid input. It says what is wrong and where. The program then exits with 2, as it does
/// for unknown arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUse(pub(crate) String);

/// Prints a problem to standard output: its place, the message, the source line, and advice.
pub(crate) fn show(problem: &Problem) {
    print(&format!("{}\n", text(problem)));
}

/// Prints a problem to standard error, for commands whose standard output is a document.
pub(crate) fn warn(problem: &Problem) {
    anstream::eprintln!("{}", text(problem));
}

/// Returns a problem as styled text: its place, the message, the source line, and advice.
pub(crate) fn text(problem: &Problem) -> String {
    let (colour, word) = match problem.scope {
        Scope::Hint => (AnsiColor::Yellow, "hint"),
        Scope::Fleet | Scope::App(_) | Scope::Hub => (AnsiColor::Red, "error"),
    };
    let label = colour.on_default().bold();
    let bold = Style::new().bold();
    let text: String = problem.to_string().chars().map(harmless).collect();
    let (first, rest) = text
        .split_once('\n')
        .map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let rest = rest.map_or_else(String::new, |rest| format!("{rest}\n"));
    format!("{label}{word}{label:#}: {bold}{first}{bold:#}\n{rest}")
}

/// Replaces control characters, so that untrusted input can't move the terminal's cursor.
pub(crate) fn harmless(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') {
        '\u{fffd}'
    } else {
        c
    }
}
