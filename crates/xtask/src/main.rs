//! The chores of this repository, run as `cargo xtask CHORE`. This crate has few dependencies, so that the
//! first chore on a fresh machine starts quickly.

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
    /// Run every check and every test: formatting, lints, crate dependencies, licences, all crates
    Test {
        /// A crate (`model` or `muster-model`) or a part of test names; skips the checks
        filter: Option<String>,
    },
    /// Start the sample fleet on this machine: four clusters, a Git repository, hub and agents
    #[command(disable_help_flag = true)]
    Demo {
        /// Arguments for `muster demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure Muster and its peers, and write the figures to bench/results and docs/benchmarks.md
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments for `muster-bench`; `--help` lists the benchmarks
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build Muster's container image into target/images
    Images,
    /// Pull the node image for kind clusters, or build it if it can't be pulled
    NodeImage,
    /// Search for untrusted inputs that make a parser panic or hang
    Fuzz {
        /// Time for each target, in seconds
        #[arg(long, default_value_t = fuzz::MINUTE)]
        seconds: u32,
        /// The target to run, such as `yaml` (a folder of crates/fuzz/corpora); default: all
        target: Option<String>,
    },
    /// Run the end-to-end scenarios several times and show each result, or fuzz each target for an hour
    Soak {
        /// The number of runs; `fuzz`, which also adds the inputs that reach new code to the corpora; or `model`, which
        /// explores the moves of writers further than the tests do
        #[arg(default_value = "10")]
        what: Soaked,
    },
    /// Fail if a crate uses a crate that it must not use: see the map in ARCHITECTURE.md
    CheckArrows,
    /// Fail if deny.toml does not allow a dependency's licence, source or name
    CheckDeps,
}

/// The work of a soak run.
#[derive(Debug, Clone, Copy)]
enum Soaked {
    Runs(u32),
    Fuzz,
    Model,
}

impl std::str::FromStr for Soaked {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fuzz" => Ok(Self::Fuzz),
            "model" => Ok(Self::Model),
            runs => runs
                .parse()
                .map(Self::Runs)
                .map_err(|_| "must be a number of runs, `fuzz` or `model`".to_owned()),
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
            Soaked::Model => explore()?,
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

/// Prints the problems. Returns true if there are none.
fn report(what: &str, problems: &[String]) -> bool {
    for problem in problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() {
        println!("{what}: ok");
    }
    problems.is_empty()
}

/// Returns a command for the cargo that runs this program, in the root of the workspace.
fn cargo(metadata: &Metadata) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&metadata.workspace_root);
    command
}

fn demo(args: &[String]) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    let program = metadata.target_directory.join("release/muster");
    if !program.exists() {
        eprintln!("{}", first_build(&metadata)?);
    }
    let build = cargo(&metadata)
        .args(["build", "--release", "--package", "muster"])
        .status();
    if !build.context("can't start cargo")?.success() {
        return Ok(false);
    }
    let mut command = Command::new(&program);
    command.current_dir(&metadata.workspace_root).arg("demo");
    // The sample in the binary lacks files that were added since it was built. So the sample's directory is named,
    // unless the arguments choose the fleet.
    let chooses_fleet = |arg: &String| {
        let flag = arg.split('=').next().unwrap_or_default();
        ["--fleet", "--dir"].contains(&flag)
    };
    if !args.iter().any(chooses_fleet) {
        command.args(["--fleet", "fleet"]);
    }
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("can't start {}", program.display()))
}

/// Returns a message that says how long the first release build may take. The estimate uses the figures of
/// `cargo xtask bench build`.
fn first_build(metadata: &Metadata) -> anyhow::Result<String> {
    let file = metadata.workspace_root.join("bench/results/build.json");
    let figures = std::fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
    let figures: serde_json::Value = serde_json::from_slice(&figures)?;
    let rows = figures["rows"].as_array().into_iter().flatten();
    let mut seconds = rows.filter(|row| row["what"] == "muster: processor time");
    let seconds = seconds.find_map(|row| row["spread"]["median"].as_f64());
    let seconds = seconds.with_context(|| format!("no figure in {}", file.display()))?;
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    Ok(format!(
        "building muster for the first time, in release mode; this may take {:.0} minutes on {cores} cores",
        (seconds / cores / 60.0).max(1.0),
    ))
}

/// Runs an example of the testkit, whose dependencies are too heavy for this crate.
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

/// Explores the model of moves in a release build, with the bounds that take minutes. Returns true if it holds.
fn explore() -> anyhow::Result<bool> {
    let metadata = Metadata::read()?;
    let status = cargo(&metadata)
        .args(["test", "--release", "--package", "muster-plan", "--lib"])
        .args(["handover::model", "--", "--ignored", "--nocapture"])
        .status();
    Ok(status.context("can't start cargo")?.success())
}

/// Runs the end-to-end scenarios `runs` times. Returns true if no run failed.
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
