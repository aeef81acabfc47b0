//! Finds programs of a control plane that this machine already has, so that they need not be built.
//!
//! `setup-envtest` and kubebuilder put etcd and kube-apiserver into the folder that `KUBEBUILDER_ASSETS` names;
//! others are on the `PATH`. A program is used only if it reports a version that works with the pinned ones:
//! the same minor version for Kubernetes and kwok, and 3.5 or newer for etcd.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Program;
use crate::process::Process;
use crate::scratch::Scratch;

/// The environment variable with the folder of `setup-envtest`'s binaries.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// How long a program may take to print its version.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A program that is on this machine already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The path of the program.
    pub path: PathBuf,
    /// The version that the program reports, such as `v1.36.3`.
    pub version: String,
}

/// The major and minor number of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Minor(u32, u32);

impl Minor {
    fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.trim_start_matches('v').split('.');
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?))
    }
}

/// An installed program that is not used, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The path of the program.
    pub path: PathBuf,
    /// The reason, such as the program's version or the error of `--version`.
    pub why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not used: {}", self.path.display(), self.why)
    }
}

impl Program {
    /// Returns the first installed program that can be used, and those before it that can't be.
    ///
    /// The folder of `KUBEBUILDER_ASSETS` is searched first, then the `PATH`.
    pub fn installed(self) -> (Option<Installed>, Vec<Unusable>) {
        let assets = std::env::var_os(ASSETS).filter(|folder| !folder.is_empty());
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.installed_in(folders(assets.as_deref(), &path))
    }

    fn installed_in(
        self,
        folders: impl IntoIterator<Item = PathBuf>,
    ) -> (Option<Installed>, Vec<Unusable>) {
        let mut unusable = Vec::new();
        for path in folders.into_iter().map(|folder| folder.join(self.name())) {
            if !path.is_file() {
                continue;
            }
            match self.version_of(&path) {
                Ok(version) => return (Some(Installed { path, version }), unusable),
                Err(why) => unusable.push(Unusable { path, why }),
            }
        }
        (None, unusable)
    }

    /// Asks a program for its version. Returns an error if it does not work with the pinned programs.
    fn version_of(self, path: &Path) -> Result<String, String> {
        let output = printed(path).map_err(|error| format!("{error:#}"))?;
        let version = version_in(&output).ok_or("it prints no version")?;
        let found = Minor::parse(version).ok_or("it prints no version")?;
        let pinned = self.version().map_err(|error| error.to_string())?;
        let fits = match self {
            Self::Etcd => found.0 == 3 && found >= Minor(3, 5),
            _ => Some(found) == Minor::parse(pinned),
        };
        match (fits, self) {
            (true, _) => Ok(version.to_owned()),
            (false, Self::Etcd) => Err(format!(
                "it is version {version}, and 3.5 or newer is needed"
            )),
            (false, _) => Err(format!("it is version {version}, and {pinned} is needed")),
        }
    }
}

/// The folders to search, in order.
fn folders(assets: Option<&OsStr>, path: &OsStr) -> Vec<PathBuf> {
    let path = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    assets.map(PathBuf::from).into_iter().chain(path).collect()
}

/// Runs a program with `--version` and returns what it prints.
fn printed(path: &Path) -> anyhow::Result<String> {
    let scratch = Scratch::temporary("version")?;
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null());
    let process = Process::spawn("--version", command, &scratch.path().join("log"))?;
    let status = process
        .wait(ANSWERS_WITHIN)?
        .ok_or_else(|| anyhow::anyhow!("`--version` does not finish in time"))?;
    anyhow::ensure!(status.success(), "`--version` fails with {status}");
    Ok(process.tail())
}

/// The first word that looks like a version, such as `v1.36.3` or `3.6.5`.
fn version_in(output: &str) -> Option<&str> {
    let mut words = output.split_whitespace();
    words.find(|word| Minor::parse(word).is_some() && word.contains('.'))
}

#[cfg(test)]
mod tests;
