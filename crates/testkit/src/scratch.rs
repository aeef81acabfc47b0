//! Directories for the files of a run. They are private to the user and locked by the run. A temporary one is removed
//! at the end of the run; if the run is killed, the next run removes it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The name of the lock file in each directory, which is locked while its owner runs.
const OWNER: &str = "owner.lock";

/// A directory that one process owns.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    temporary: bool,
    /// The lock file. The kernel unlocks it when this process ends for any reason.
    _owner: File,
}

impl Scratch {
    /// Creates an empty directory below the system's temporary directory. The new directory is removed when this is
    /// dropped. Removes the leftovers of killed runs first.
    ///
    /// # Errors
    /// Fails if the directory can't be created, or its parent belongs to another user.
    pub fn temporary(label: &str) -> anyhow::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let root = std::env::temp_dir().join(format!("muster-{user}"));
        private_dir(&root)?;
        let owner = fs::metadata(&root).map(|found| found.uid());
        let owner = owner.with_context(|| format!("cannot inspect {}", root.display()))?;
        anyhow::ensure!(
            owner == user,
            "{} belongs to another user (uid {owner}); set TMPDIR to a directory of yours",
            root.display()
        );
        // This lock is held until the new directory has its owner's lock, so that no sweep removes the directory.
        let lock = open_lock(&root.join(".sweep"))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", root.display()))?;
        sweep(&root)?;
        let path = tempfile::Builder::new()
            .prefix(&format!("{label}-"))
            .tempdir_in(&root)
            .with_context(|| format!("cannot make a directory in {}", root.display()))?
            .keep();
        let owner = take(&path)?;
        Ok(Self {
            path,
            temporary: true,
            _owner: owner,
        })
    }

    /// Locks the given directory for this process, and creates it if it is missing. The directory stays when this is
    /// dropped.
    ///
    /// # Errors
    /// Fails if the directory can't be created, or another running process uses it.
    pub fn kept(path: &Path) -> anyhow::Result<Self> {
        private_dir(path)?;
        let path = path.canonicalize();
        let path = path.context("cannot find a directory just made")?;
        let owner = take(&path)?;
        Ok(Self {
            path,
            temporary: false,
            _owner: owner,
        })
    }

    /// The absolute path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

fn private_dir(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the directory {}", path.display()))
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn take(directory: &Path) -> anyhow::Result<File> {
    let file = open_lock(&directory.join(OWNER))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!(
                "{} is in use by another running process",
                directory.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", directory.display()))
        }
    }
}

/// Removes the directories whose owners have ended.
fn sweep(root: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && take(&path).is_ok() {
            // If a dying process still writes to it, the next sweep removes it.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
