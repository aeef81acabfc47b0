//! Chores of this repository, run as `cargo xtask CHORE`. Nothing heavy is linked here, so that the
//! first chore on a fresh machine begins at once.

mod arrows;
mod dependencies;
mod fuzz;
mod metadata;
mod prerequisites;
mod test;

use std::{os::unix::process::CommandExt, process::Command, time::Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::metadata::Metadata;

/// Chores of the Muster repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Run every check and every test: formatting, lints, arrows, dependencies, all crates
    Test {
        /// A crate (`model` or `muster-model`), or a part of test names; checks are left out then
        filter: Option<String>,
    },
    /// Bring up the sample fleet on this machine: four clusters, a Git repository, hub and agents
    #[command(disable_help_flag = true)]
    Demo {
        /// Handed on to `muster demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure, beside the peers, and write the figures to bench/results and docs/benchmarks.md
    #[command(disable_help_flag = true)]
    Bench {
        /// Handed on to `muster-bench`; `--help` lists the benchmarks
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build Muster's container image into target/images
    Images,
    /// Build the image of kind's nodes where it can't be pulled, or pull it
    NodeImage,
    /// Search for inputs that break what reads the words of others
    Fuzz {
        /// For each target, in seconds
        #[arg(long, default_value_t = fuzz::MINUTE)]
        seconds: u32,
        /// The only target, such as `yaml`; a directory of crates/fuzz/corpora
        target: Option<String>,
    },
    /// Run the end-to-end scenarios several times in a row and show what came of each run; or `fuzz`, for an hour
    /// each, and keep what reached something new
    Soak {
        /// How many times; or `fuzz`
        #[arg(default_value = "10")]
        what: Soaked,
    },
    /// Fail where a crate uses what it must not: see the map in ARCHITECTURE.md
    CheckArrows,
    /// Fail where a dependency's licence, source or name is not allowed by deny.toml
    CheckDeps,
}

/// What is run for long.
#[derive(Debug, Clone, Copy)]
enum Soaked {
    Runs(u32),
    Fuzz,
}

impl std::str::FromStr for Soaked {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fuzz" => Ok(Self::Fuzz),
            runs => runs
                .parse()
                .map(Self::Runs)
                .map_err(|_| "neither a number of runs nor `fuzz`".to_owned()),
        }
    }
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let good = match Cli::parse().chore {
        Chore::Test { filter } => test::run(filter.as_deref())?,
        Chore::Demo { args } => demo(&args)?,
        Chore::Bench { args } => bench(&args)?,
        Chore::Images => example("images")?,
        Chore::NodeImage => example("node-image")?,
        Chore::Fuzz { seconds, target } => fuzz::run(&fuzz::Fuzz {
            seconds,
            target,
            keep: false,
        })?,
        Chore::Soak { what } => match what {
            Soaked::Runs(runs) => soak(runs)?,
            Soaked::Fuzz => fuzz::run(&fuzz::Fuzz {
                seconds: 3600,
                target: None,
                keep: true,
            })?,
        },
        Chore::CheckArrows => report("arrows", &arrows::check(&Metadata::read()?)),
        Chore::CheckDeps => report("dependencies", &dependencies::check_workspace()?),
    };
    Ok(if good {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    })
}

/// Prints what is wrong; true when nothing is.
fn report(what: &str, problems: &[String]) -> bool {
    for problem in problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() {
        println!("{what}: ok");
    }
    problems.is_empty()
}

/// The cargo that runs us, in the workspace's root.
fn cargo(metadata: &Metadata) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&metadata.workspace_root);
    command
}

fn demo(args: &[String]) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    eprintln!("building muster (the first time takes some minutes)");
    let build = cargo(&metadata)
        .args(["build", "--release", "--package", "muster"])
        .status();
    if !build.context("can't start cargo")?.success() {
        return Ok(false);
    }
    let program = metadata.target_directory.join("release/muster");
    let mut command = Command::new(&program);
    command.current_dir(&metadata.workspace_root);
    let error = command.args(["demo", "--fleet", "fleet"]).args(args).exec();
    Err(error).with_context(|| format!("can't start {}", program.display()))
}

/// Runs an example of the testkit, which has what is too heavy for here.
fn example(name: &str) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    let status = cargo(&metadata)
        .args([
            "run",
            "--quiet",
            "--package",
            "muster-testkit",
            "--example",
            name,
        ])
        .status();
    Ok(status.context("can't start cargo")?.success())
}

/// True when no run failed.
fn soak(runs: u32) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    let mut results = Vec::new();
    for run in 1..=runs {
        println!("\n== run {run} of {runs}");
        let started = Instant::now();
        let status = cargo(&metadata)
            .args(["test", "--package", "muster-e2e", "--test", "e2e"])
            .status();
        let good = status.context("can't start cargo")?.success();
        results.push((good, started.elapsed()));
    }
    println!("\n== runs");
    for (run, (good, time)) in results.iter().enumerate() {
        let word = if *good { "passed" } else { "FAILED" };
        println!("{:>3}  {word}  {:>6.1} s", run + 1, time.as_secs_f64());
    }
    Ok(results.iter().all(|(good, _)| *good))
}

fn bench(args: &[String]) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    eprintln!("building muster and the benchmarks (the first time takes some minutes)");
    let built = cargo(&metadata)
        .args(["build", "--release"])
        .args(["--package", "muster", "--package", "muster-bench"])
        .status();
    if !built.context("can't start cargo")?.success() {
        return Ok(false);
    }
    let status = cargo(&metadata)
        .args(["run", "--release", "--package", "muster-bench", "--"])
        .args(args)
        .status();
    Ok(status.context("can't start cargo")?.success())
}
