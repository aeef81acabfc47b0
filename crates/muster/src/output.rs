//! The output of commands: tables for people, JSON or YAML for scripts, and colour only on terminals.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::{Command, Stdio},
};

use muster_model::yaml::to_yaml;
use serde_json::Value;

/// The output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// Text for people.
    #[default]
    Table,
    /// JSON for scripts.
    Json,
    /// YAML for scripts.
    Yaml,
}

impl Output {
    /// Prints a document as JSON, or as YAML for both `Yaml` and `Table`.
    pub(crate) fn document(self, value: &Value) {
        match self {
            Self::Json => print(&format!("{value:#}\n")),
            Self::Table | Self::Yaml => print(&format!("{}\n", to_yaml(value))),
        }
    }
}

/// Prints to standard output, without colour if it is not a terminal. If that fails, the program ends: quietly if
/// the reader is gone, as with `head`, otherwise with an error.
pub(crate) fn print(text: &str) {
    let mut out = anstream::stdout();
    quit_unless_written(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Prints a text that a person should read to its end. If the terminal has too few lines for it, the text is
/// shown in `$PAGER`, or in `less` if that is not set.
pub(crate) fn print_paged(text: &str) {
    let height = terminal_size::terminal_size().map(|(_, height)| usize::from(height.0));
    let fits = height.is_none_or(|height| text.lines().count() < height);
    if fits || !io::stdout().is_terminal() || !page(text) {
        print(text);
    }
}

/// Shows a text in a pager. Returns false if the pager can't be run.
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
        // Writing fails if the user quits the pager before the end, which is fine.
        let _ = input.write_all(text.as_bytes());
    }
    pager.wait().is_ok_and(|status| status.success())
}

/// Ends the program if writing to standard output failed: quietly if the reader is gone, otherwise with an error,
/// because the output is incomplete.
pub(crate) fn quit_unless_written(written: io::Result<()>) {
    let Err(error) = written else {
        return;
    };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    anstream::eprintln!("\x1b[1;31merror\x1b[0m: can't write to standard output: {error}");
    std::process::exit(1);
}
