//! Problems as people read them.

use anstyle::{AnsiColor, Style};
use muster_model::problem::{Problem, Scope};

use crate::output::print;

/// Something that was asked for in a way that can't be answered: what was wrong and where. The program
/// then ends with 2, as for arguments that it doesn't know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUse(pub(crate) String);

/// Prints a problem: where, what, the line, and what to do.
pub(crate) fn show(problem: &Problem) {
    print(&format!("{}\n", text(problem)));
}

/// The same on standard error, where standard output is for something else.
pub(crate) fn warn(problem: &Problem) {
    anstream::eprintln!("{}", text(problem));
}

/// A problem as text with styles: where, what, the line, and what to do.
pub(crate) fn text(problem: &Problem) -> String {
    let (colour, word) = match problem.scope {
        Scope::Hint => (AnsiColor::Yellow, "hint"),
        Scope::Fleet | Scope::App(_) => (AnsiColor::Red, "error"),
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

/// A character as it may reach a terminal: what others wrote moves no cursor.
pub(crate) fn harmless(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') {
        '\u{fffd}'
    } else {
        c
    }
}
