//! How commands print: a table for people, JSON or YAML for scripts, colour only where it is wanted.

use std::io::Write as _;

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

/// Ends the program quietly where standard output could not be written to, since its reader has gone.
pub(crate) fn quit_if_closed(written: std::io::Result<()>) {
    if written.is_err() {
        std::process::exit(0);
    }
}
