//! What `cargo metadata` says of the workspace and of all that it depends on.

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
    /// Where it comes from; nothing for a crate of this workspace.
    pub(crate) source: Option<String>,
}

/// Which package uses which.
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

/// A package and what it uses.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Dep>,
}

/// One arrow.
#[derive(Debug, Deserialize)]
pub(crate) struct Dep {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<DepKind>,
}

/// What an arrow is for.
#[derive(Debug, Deserialize)]
pub(crate) struct DepKind {
    /// Nothing for what is compiled in, else `build` or `dev`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Asks cargo, for the platform of this machine.
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
            "`cargo metadata` failed; where Cargo.lock is behind the manifests, run `cargo check`"
        );
        serde_json::from_slice(&output.stdout).context("can't read what `cargo metadata` prints")
    }

    /// The names of the workspace's crates.
    pub(crate) fn members(&self) -> Vec<&str> {
        let member = |package: &&Package| self.workspace_members.contains(&package.id);
        self.packages
            .iter()
            .filter(member)
            .map(|package| package.name.as_str())
            .collect()
    }
}

/// The platform that this machine's compiler builds for.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("can't start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}
