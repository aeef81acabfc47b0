//! The programs of local clusters: those that this machine already has are used, and the rest is built.

use std::{collections::BTreeMap, path::PathBuf};

use muster_testkit::{
    local::ClusterOptions,
    tools::{Program, cache_dir},
};
use serde::Deserialize;

use crate::status::terminal::{length, names};

/// The figures of `cargo xtask bench build`.
const BUILD_FIGURES: &str = include_str!("../../../../bench/results/build.json");

/// The part of the figures that is used here.
#[derive(Debug, Deserialize)]
struct Figures {
    rows: Vec<Row>,
}

/// One figure: what was measured, and its values.
#[derive(Debug, Deserialize)]
struct Row {
    what: String,
    spread: Spread,
}

/// The values of a figure.
#[derive(Debug, Deserialize)]
struct Spread {
    median: f64,
}

/// Finds the programs of clusters with this many nodes, and builds those that this machine does not have. Before
/// building, it prints which installed programs it uses, and how long the build of the others may take.
///
/// # Errors
/// Fails if a program can't be built.
pub(super) async fn provide(nodes: usize) -> anyhow::Result<BTreeMap<Program, PathBuf>> {
    let parts = ClusterOptions {
        nodes,
        controllers: true,
        ..ClusterOptions::new("any")
    };
    let needed: Vec<Program> = parts
        .components()
        .iter()
        .map(|each| each.program())
        .collect();
    tokio::task::spawn_blocking(move || {
        let mut programs = BTreeMap::new();
        let mut missing = Vec::new();
        for program in needed {
            if let Some(cached) = program.cached()? {
                programs.insert(program, cached);
                continue;
            }
            let (installed, unusable) = program.installed();
            for unusable in unusable {
                eprintln!("{unusable}");
            }
            match installed {
                Some(installed) => {
                    let path = installed.path.display();
                    eprintln!("using {} {} ({path})", program.name(), installed.version);
                    programs.insert(program, installed.path);
                }
                None => missing.push(program),
            }
        }
        if !missing.is_empty() {
            eprintln!("{}", announcement(&missing, cores())?);
        }
        for program in missing {
            programs.insert(program, program.build()?);
        }
        Ok(programs)
    })
    .await?
}

/// The number of processors that a build can use.
fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// Says which programs are built, where they are stored, and how long that may take.
fn announcement(missing: &[Program], cores: f64) -> anyhow::Result<String> {
    let programs = names(missing.iter().map(|program| program.name()), missing.len());
    let figures: Figures = serde_json::from_str(BUILD_FIGURES)?;
    let seconds = |program: &Program| {
        let mut rows = figures.rows.iter();
        let row = rows.find(|row| row.what == format!("{}: processor time", program.name()));
        row.map(|row| row.spread.median / cores)
    };
    let time = match missing.iter().map(seconds).sum::<Option<f64>>() {
        Some(seconds) => format!("; this may take {}", length(seconds.round() as i64)),
        None => String::new(),
    };
    Ok(format!(
        "building {programs} from source, once, into {}{time}. To skip this, set KUBEBUILDER_ASSETS to a folder \
         that has them for Kubernetes {}, or put them on the PATH",
        cache_dir()?.display(),
        Program::ApiServer.version()?,
    ))
}

#[cfg(test)]
mod tests;
