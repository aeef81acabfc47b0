//! A bare Git repository with a clone that has a work tree.

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
    /// The temporary directory of the repository, if the caller gave none. It is removed when this is dropped.
    _scratch: Option<Scratch>,
}

impl GitRepo {
    /// Creates an empty repository and its clone, which are removed when this is dropped.
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

    /// Opens the repository and its clone in the caller's directory, and creates them if they are missing.
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

    /// Opens the repository that an earlier run has left in this directory. Returns `None` if it has no commit.
    pub fn kept(directory: &Path) -> Option<Self> {
        let repo = Self {
            directory: directory.to_owned(),
            _scratch: None,
        };
        repo.has_commit().then_some(repo)
    }

    /// Returns true if a commit has been pushed to the bare repository's default branch.
    pub fn has_commit(&self) -> bool {
        let head = ["rev-parse", "--verify", "--quiet", "HEAD"];
        self.git_bare(&head).is_ok()
    }

    /// Makes another clone of the bare repository, in a new directory.
    ///
    /// # Errors
    /// Fails if `git` fails, for example because the directory is not empty.
    pub fn clone_to(&self, directory: &Path) -> anyhow::Result<()> {
        let directory = directory.to_string_lossy();
        self.git_bare(&["clone", "--quiet", ".", &directory])
            .map(drop)
    }

    /// The directory to serve. It contains the repository as `fleet.git`.
    pub fn root(&self) -> PathBuf {
        self.directory.join("served")
    }

    /// The path of the bare repository.
    pub fn path(&self) -> PathBuf {
        self.root().join(NAME)
    }

    /// The path of the clone's work tree.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Runs `git` in the clone and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(git(&self.work()).args(arguments))
    }

    /// Runs `git` in the bare repository and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn git_bare(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(git(&self.path()).args(arguments))
    }

    /// Writes files without committing them. Their names need not be UTF-8.
    ///
    /// # Errors
    /// Fails if a file can't be written.
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

    /// Commits these files together with everything else in the work tree, and returns the commit's id.
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
    /// Fails if `git` fails, for example because the push is not a fast-forward.
    pub fn push(&self) -> anyhow::Result<()> {
        self.git(&["push", "--quiet", "origin", "HEAD"]).map(drop)
    }

    /// Pushes the current branch with `--force`.
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

    /// Commits the files and pushes, as [`GitRepo::commit`] and [`GitRepo::push`] do.
    ///
    /// # Errors
    /// Fails if `git` fails.
    pub fn publish(&self, subject: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let commit = self.commit(subject, files)?;
        self.push()?;
        Ok(commit)
    }
}

/// Returns a `git` command for this directory, without the user's settings and the parent process's `GIT_*` variables
/// (a hook sets `GIT_DIR`, for example).
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
        // Garbage is collected only when a test asks for it, not in the background.
        .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"])
        .args(["-c", "protocol.file.allow=always"]);
    command
}
