//! `muster`: the hub, the agent and the commands of people, in one binary.

mod offline;
mod output;
mod problems;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use muster_model::{ids::Role, kinds::Kind};
use output::Output;

/// Keeps a fleet of Kubernetes clusters in the state that one Git repository says.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a fleet repository, offline.
    Validate {
        /// The repository's folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Print what a cluster would get.
    Render {
        /// The repository's folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The cluster.
        #[arg(long)]
        cluster: String,
        /// Only this app.
        #[arg(long)]
        app: Option<String>,
        /// In this role instead of the one that it has now.
        #[arg(long)]
        role: Option<Role>,
    },
    /// Print the JSON Schema of a kind, for editors.
    Schema {
        /// Fleet, Tier, Region, Cluster or App.
        kind: Kind,
    },
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("\x1b[1;31merror\x1b[0m: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<bool> {
    let output = cli.output;
    match cli.command {
        Command::Validate { dir } => offline::validate(&dir, output),
        Command::Render {
            dir,
            cluster,
            app,
            role,
        } => {
            let app = app.as_deref();
            offline::render(
                &offline::RenderRequest {
                    dir: &dir,
                    cluster: &cluster,
                    app,
                    role,
                },
                output,
            )
        }
        Command::Schema { kind } => {
            let schema = kind.schema();
            match output {
                Output::Yaml => output.document(&schema),
                Output::Table | Output::Json => Output::Json.document(&schema),
            }
            Ok(true)
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "muster", &mut std::io::stdout());
            Ok(true)
        }
    }
}
