//! Chores of this repository, run as `cargo xtask CHORE`. Nothing heavy is linked here, so that the
//! first chore on a fresh machine begins at once.

mod arrows;
mod dependencies;
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
    /// Measure, beside the peers, and write the figures to bench/results and the README
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
    /// Run the end-to-end scenarios several times in a row and show what came of each run
    Soak {
        /// How many times
        #[arg(default_value_t = 10)]
        runs: u32,
    },
    /// Fail where a crate uses what it must not: see the map in ARCHITECTURE.md
    CheckArrows,
    /// Fail where a dependency's licence, source or name is not allowed by deny.toml
    CheckDeps,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let good = match Cli::parse().chore {
        Chore::Test { filter } => test::run(filter.as_deref())?,
        Chore::Demo { args } => demo(&args)?,
        Chore::Bench { args } => bench(&args)?,
        Chore::Images => example("images")?,
        Chore::NodeImage => example("node-image")?,
        Chore::Soak { runs } => soak(runs)?,
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
