//! Measures Muster and its peers. It prints tables, writes the figures to `bench/results`, and updates
//! the figures in `docs/benchmarks.md`. Run it as `cargo xtask bench`.

mod apply;
mod build;
mod commit;
mod fanout;
mod fleet;
mod hostile;
mod machine;
mod peers;
mod render;
mod report;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::report::Section;

/// Measure Muster and its peers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    bench: Choice,
    /// Number of rounds of `render` and `render-alone`, 5 if not set. The other sections have fixed numbers of
    /// measurements, also as parts of `all`
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Also write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The program that `build-program` builds
    #[arg(hide = true)]
    program: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// All benchmarks except `build`
    All,
    /// Objects per second into a real API server, compared with kubectl, Flux's package and bare requests
    Apply,
    /// From `git push` to the object in four real clusters
    Commit,
    /// One commit to 500 and 2,000 simulated clusters
    Fanout,
    /// 10,000 simulated clusters under an attack of 5,000 connections per second
    Hostile,
    /// Objects per second for 50 apps in 200 clusters, compared with Helm and Kustomize
    Render,
    /// The first builds of Muster and of the programs of its demo, with empty caches. Not part of `all`
    Build,
    /// Build one program of a control plane; used by `build`
    #[value(hide = true)]
    BuildProgram,
    /// Like `render` but without the peers, for profiling; writes no file
    RenderAlone,
}

impl Cli {
    /// Returns the number of rounds.
    ///
    /// # Errors
    /// Fails if a number is given for a benchmark that has no rounds.
    fn rounds(&self) -> anyhow::Result<u32> {
        let has_rounds = matches!(
            self.bench,
            Choice::All | Choice::Render | Choice::RenderAlone
        );
        anyhow::ensure!(
            has_rounds || self.repeat.is_none(),
            "--repeat works only with `render`, `render-alone` and `all`; the other sections have fixed numbers of \
             measurements"
        );
        Ok(self.repeat.unwrap_or(5))
    }
}

/// A benchmark: its choice, and the function that runs it. Only `render` uses the number of rounds.
type Bench = (Choice, fn(u32) -> anyhow::Result<Section>);

const BENCHES: [Bench; 6] = [
    (Choice::Render, render::measure),
    (Choice::Apply, apply::measure),
    (Choice::Commit, commit::measure),
    (Choice::Fanout, fanout::measure),
    (Choice::Hostile, hostile::measure),
    (Choice::Build, build::measure),
];

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let rounds = cli.rounds()?;
    anyhow::ensure!(
        !cfg!(debug_assertions),
        "a debug build gives useless figures; run `cargo xtask bench`"
    );
    if cli.bench == Choice::RenderAlone {
        println!("\n{}", render::alone(rounds)?.table());
        return Ok(());
    }
    if cli.bench == Choice::BuildProgram {
        return build::build_program(cli.program.as_deref().unwrap_or_default());
    }
    let mut sections = Vec::new();
    for (choice, measure) in BENCHES {
        let among_all = cli.bench == Choice::All && choice != Choice::Build;
        if among_all || cli.bench == choice {
            let section = measure(rounds)?;
            println!("\n{}", section.table());
            section.save()?;
            sections.push(section);
        }
    }
    if let Some(file) = cli.out {
        report::write(&file, &serde_json::to_string_pretty(&sections)?)?;
    }
    report::update_document()
}

#[cfg(test)]
mod tests;
