//! Keeps `docs/reference.md` equal to the command line: every command with its flags, defaults and help.
//!
//! `MUSTER_UPDATE_DOCS=1 cargo test -p muster reference` rewrites the file.

use clap::{Arg, Command, CommandFactory as _};
use muster_testkit::documents::block_is;

use crate::Cli;

/// Flags that every command has. They are listed once.
const GLOBAL: [&str; 4] = ["help", "version", "output", "login"];

#[test]
fn the_reference_has_every_command_and_flag() -> anyhow::Result<()> {
    let mut cli = Cli::command();
    cli.build();
    let mut text = String::new();
    text.push_str(&table(cli.get_arguments().filter(|arg| is_global(arg))));
    for command in cli.get_subcommands() {
        describe(&mut text, "muster", command);
    }
    block_is("reference.md", "commands", &text)
}

#[test]
fn a_default_that_is_empty_or_hidden_is_not_listed() {
    let table = table(
        [
            Arg::new("empty").long("empty").default_value(""),
            Arg::new("hidden")
                .long("hidden")
                .default_value("x")
                .hide_default_value(true),
            Arg::new("shown").long("shown").default_value("x"),
        ]
        .iter(),
    );
    let defaults = table.lines().filter_map(|line| line.split('|').nth(2));
    let defaults: Vec<&str> = defaults.map(str::trim).collect();
    assert_eq!(defaults, ["Default", "---", "", "", "`x`"]);
}

fn is_global(arg: &Arg) -> bool {
    GLOBAL.contains(&arg.get_id().as_str())
}

/// Writes a section for a command, and for all its subcommands.
fn describe(text: &mut String, parent: &str, command: &Command) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    text.push_str(&format!("\n### {name}\n\n{}\n", paragraphs(&about)));
    let own = || {
        command
            .get_arguments()
            .filter(|arg| !is_global(arg) && !arg.is_hide_set())
    };
    if own().next().is_some() {
        text.push('\n');
        text.push_str(&table(own()));
    }
    for command in command.get_subcommands() {
        describe(text, &name, command);
    }
}

/// Keeps indented lines as a code block, as the help shows them.
fn paragraphs(about: &str) -> String {
    let lines = about
        .trim()
        .lines()
        .map(|line| match line.strip_prefix("  ") {
            Some(code) => format!("    {code}"),
            None => line.to_owned(),
        });
    lines.collect::<Vec<_>>().join("\n")
}

fn table<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = String::from("| Argument | Default | Meaning |\n|---|---|---|\n");
    for arg in args {
        let takes_value = arg.get_action().takes_values();
        let defaults: Vec<String> = arg
            .get_default_values()
            .iter()
            .filter(|value| takes_value && !arg.is_hide_default_value_set() && !value.is_empty())
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        let defaults = defaults.join(", ");
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let env = arg
            .get_env()
            .map(|name| format!(" Environment: `{}`.", name.to_string_lossy()));
        let values = arg.get_possible_values();
        let mut values = values
            .iter()
            .filter(|value| !value.is_hide_set() && takes_value);
        let values: Vec<String> = values
            .by_ref()
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let values = match values.as_slice() {
            [] => String::new(),
            values => format!(" One of {}.", values.join(", ")),
        };
        text.push_str(&format!(
            "| {} | {defaults} | {}{values}{} |\n",
            spelled(arg),
            sentence(&help),
            env.unwrap_or_default()
        ));
    }
    text
}

/// Returns an argument as people type it, with the name of its value.
fn spelled(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names
        .iter()
        .map(|name| name.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    let typed = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => return format!("`{value}`"),
    };
    match arg.get_action().takes_values() {
        true => format!("`{typed} {value}`"),
        false => format!("`{typed}`"),
    }
}

/// Returns a help text as one line of a Markdown table, with a full stop at its end.
fn sentence(help: &str) -> String {
    let line = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.replace('|', "\\|");
    match line.is_empty() || line.ends_with('.') {
        true => line,
        false => line + ".",
    }
}
