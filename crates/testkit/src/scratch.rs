//! Directories for what a run leaves on disk: private to the user, held by a lock, and removed
//! with the run or, where it was killed, by the next one.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The lock file inside each directory, locked for as long as its owner lives.
const OWNER: &str = "owner.lock";

/// A directory with one owner.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    temporary: bool,
    /// Unlocked by the kernel when we end, however we end.
    _owner: File,
}

impl Scratch {
    /// A new empty directory below the system's temporary one, removed when dropped. Leftovers of
    /// killed runs are removed first.
    ///
    /// # Errors
    /// Fails if the directory cannot be made, or its parent belongs to another user.
    pub fn temporary(label: &str) -> anyhow::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let root = std::env::temp_dir().join(format!("muster-{user}"));
        private_dir(&root)?;
        let owner = fs::metadata(&root).map(|found| found.uid());
        let owner = owner.with_context(|| format!("cannot look at {}", root.display()))?;
        anyhow::ensure!(
            owner == user,
            "{} belongs to another user (uid {owner}); set TMPDIR to a directory of yours",
            root.display()
        );
        // Held while a directory has no owner's lock yet, so that no sweep takes it for a leftover.
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

    /// The given directory, made if it is missing, and kept when dropped.
    ///
    /// # Errors
    /// Fails if it cannot be made or another running process uses it.
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

    /// Where it is, absolute.
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

/// Removes the directories whose owners are gone.
fn sweep(root: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && take(&path).is_ok() {
            // What is still being written to by a dying process goes next time.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
