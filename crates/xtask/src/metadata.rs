//! Reads `cargo metadata`: the packages of the workspace and all their dependencies.

use std::{path::PathBuf, process::Command};

use anyhow::Context;
use serde::Deserialize;

/// The parts of `cargo metadata` that the checks read.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_members: Vec<String>,
    pub(crate) resolve: Resolve,
    pub(crate) workspace_root: PathBuf,
    pub(crate) target_directory: PathBuf,
}

/// One package in one version.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// The source of the package. `None` for a crate of this workspace.
    pub(crate) source: Option<String>,
}

/// The dependency graph of the packages.
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

/// A package and its dependencies.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Dep>,
}

/// A dependency of a package.
#[derive(Debug, Deserialize)]
pub(crate) struct Dep {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<DepKind>,
}

/// The kind of a dependency.
#[derive(Debug, Deserialize)]
pub(crate) struct DepKind {
    /// `None` for a normal dependency, otherwise `build` or `dev`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Runs `cargo metadata` for the platform of this machine.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(["--filter-platform", &host()?])
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("can't start `cargo metadata`")?;
        anyhow::ensure!(
            output.status.success(),
            "`cargo metadata` failed; if Cargo.lock is out of date, run `cargo check`"
        );
        serde_json::from_slice(&output.stdout).context("can't parse the output of `cargo metadata`")
    }

    /// Returns the names of the workspace's crates.
    pub(crate) fn members(&self) -> Vec<&str> {
        let member = |package: &&Package| self.workspace_members.contains(&package.id);
        self.packages
            .iter()
            .filter(member)
            .map(|package| package.name.as_str())
            .collect()
    }
}

/// Returns the host platform of this machine's compiler.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("can't start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}
