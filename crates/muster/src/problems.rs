//! Problems as people read them.

use anstyle::{AnsiColor, Style};
use muster_model::problem::{Problem, Scope};

use crate::output::print;

/// Prints a problem: where, what, the line, and what to do.
pub(crate) fn show(problem: &Problem) {
    let (colour, word) = match problem.scope {
        Scope::Hint => (AnsiColor::Yellow, "hint"),
        Scope::Fleet | Scope::App(_) => (AnsiColor::Red, "error"),
    };
    let label = colour.on_default().bold();
    let bold = Style::new().bold();
    let text = problem.to_string();
    let (first, rest) = text
        .split_once('\n')
        .map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    print(&format!("{label}{word}{label:#}: {bold}{first}{bold:#}\n"));
    if let Some(rest) = rest {
        print(&format!("{rest}\n"));
    }
    print("\n");
}
