//! How commands print: a table for people, JSON or YAML for scripts, colour only where it is wanted.

use std::{
    io::{IsTerminal as _, Write as _},
    process::{Command, Stdio},
};

use muster_model::yaml::to_yaml;
use serde_json::Value;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

impl Output {
    /// Prints a document in JSON or, for people too, in YAML.
    pub(crate) fn document(self, value: &Value) {
        match self {
            Self::Json => print(&format!("{value:#}\n")),
            Self::Table | Self::Yaml => print(&format!("{}\n", to_yaml(value))),
        }
    }
}

/// Prints to standard output, without colour where that is no terminal. A reader that has gone away,
/// such as `head`, ends the program quietly.
pub(crate) fn print(text: &str) {
    let mut out = anstream::stdout();
    quit_if_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Prints a text that a person should read to its end: on a terminal that is too low for it, page by page
/// with `$PAGER`, or `less` where that is not set.
pub(crate) fn print_paged(text: &str) {
    let height = terminal_size::terminal_size().map(|(_, height)| usize::from(height.0));
    let fits = height.is_none_or(|height| text.lines().count() < height);
    if fits || !std::io::stdout().is_terminal() || !page(text) {
        print(text);
    }
}

/// Shows a text in a pager. False where there is none.
fn page(text: &str) -> bool {
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less -FRX".to_owned());
    let mut words = pager.split_whitespace();
    let Some(program) = words.next() else {
        return false;
    };
    let pager = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut pager) = pager else {
        return false;
    };
    if let Some(mut input) = pager.stdin.take() {
        // Whoever leaves the pager before the end has read enough.
        let _ = input.write_all(text.as_bytes());
    }
    pager.wait().is_ok_and(|status| status.success())
}

/// Ends the program quietly where standard output could not be written to, since its reader has gone.
pub(crate) fn quit_if_closed(written: std::io::Result<()>) {
    if written.is_err() {
        std::process::exit(0);
    }
}
