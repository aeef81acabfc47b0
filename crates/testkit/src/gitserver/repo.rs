//! A bare repository with a clone to work in.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::output;
use crate::scratch::Scratch;

/// The bare repository's name below [`GitRepo::root`].
const NAME: &str = "fleet.git";

/// A bare repository `fleet.git` and a clone of it with a work tree, on branch `main`.
#[derive(Debug)]
pub struct GitRepo {
    directory: PathBuf,
    /// Removed with this, where it is ours.
    _scratch: Option<Scratch>,
}

impl GitRepo {
    /// An empty repository and its clone, which are gone when this is dropped.
    ///
    /// # Errors
    /// Fails if `git` is missing or fails.
    pub fn new() -> anyhow::Result<Self> {
        let scratch = Scratch::temporary("git")?;
        let repo = Self::at(scratch.path())?;
        Ok(Self {
            _scratch: Some(scratch),
            ..repo
        })
    }

    /// A repository and its clone in a directory of the caller's; made where they are missing.
    ///
    /// # Errors
    /// Fails if `git` is missing or fails.
    pub fn at(directory: &Path) -> anyhow::Result<Self> {
        let repo = Self {
            directory: directory.to_owned(),
            _scratch: None,
        };
        let (root, bare, work) = (repo.root(), repo.path(), repo.work());
        if work.exists() {
            return Ok(repo);
        }
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let init = ["init", "--quiet", "--initial-branch=main"];
        output(git(&root).args(init).arg("--bare").arg(&bare))?;
        output(git(&root).args(init).arg(&work))?;
        repo.git(&["remote", "add", "origin", &bare.to_string_lossy()])?;
        Ok(repo)
    }

    /// The directory to serve: the repository is `fleet.git` in it.
    pub fn root(&self) -> PathBuf {
        self.directory.join("served")
    }

    /// The bare repository.
    pub fn path(&self) -> PathBuf {
        self.root().join(NAME)
    }

    /// The clone with a work tree.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Runs `git` in the clone, for its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(git(&self.work()).args(arguments))
    }

    /// Runs `git` in the bare repository, for its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn git_bare(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(git(&self.path()).args(arguments))
    }

    /// Writes files, whose names need not be text, without committing them.
    ///
    /// # Errors
    /// Fails if one cannot be written.
    pub fn write(&self, files: &[(&[u8], &[u8])]) -> anyhow::Result<()> {
        for (name, content) in files {
            let path = self.work().join(OsStr::from_bytes(name));
            path.parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&path, content))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Commits these files beside what is in the work tree already, and gives the commit's id.
    ///
    /// # Errors
    /// Fails if `git` fails.
    pub fn commit(&self, subject: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (name.as_bytes(), content.as_bytes()))
            .collect();
        self.write(&files)?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", subject])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Pushes the current branch.
    ///
    /// # Errors
    /// Fails if `git` fails, as where the push is no fast-forward.
    pub fn push(&self) -> anyhow::Result<()> {
        self.git(&["push", "--quiet", "origin", "HEAD"]).map(drop)
    }

    /// Pushes the current branch over whatever is there.
    ///
    /// # Errors
    /// Fails if `git` fails.
    pub fn force_push(&self) -> anyhow::Result<()> {
        self.git(&["push", "--quiet", "--force", "origin", "HEAD"])
            .map(drop)
    }

    /// Deletes a branch of the bare repository.
    ///
    /// # Errors
    /// Fails if `git` fails.
    pub fn delete_branch(&self, name: &str) -> anyhow::Result<()> {
        self.git_bare(&["update-ref", "-d", &format!("refs/heads/{name}")])
            .map(drop)
    }

    /// [`GitRepo::commit`] and [`GitRepo::push`].
    ///
    /// # Errors
    /// Fails if `git` fails.
    pub fn publish(&self, subject: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let commit = self.commit(subject, files)?;
        self.push()?;
        Ok(commit)
    }
}

/// `git` in this directory, without the settings of the user and of the process around us (a hook
/// sets `GIT_DIR`, for one).
fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"GIT_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        // Only a collection that a test asks for, not one in the background that outlives it.
        .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"])
        .args(["-c", "protocol.file.allow=always"]);
    command
}
