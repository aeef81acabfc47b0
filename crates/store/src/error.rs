//! What can go wrong with the store, in words for the person who runs the hub.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold. Read again and decide again.
    #[error("{key} is not as the transaction expects it: something else changed it")]
    Conflict {
        /// The key of the first condition that did not hold.
        key: String,
    },
    /// The engine could not write.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a store can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error(
        "{path} is in use by another process (it holds the lock {lock}): stop that hub, or give this \
         one a state directory of its own"
    )]
    InUse {
        /// The store.
        path: PathBuf,
        /// The lock file that the other process holds.
        lock: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a muster store: name the file that a hub or `muster hub backup` wrote")]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer muster.
    #[error(
        "{path} has format {found}, written by a newer muster; this one knows formats up to {known}: \
         run the newer version, or restore a backup that was made before the upgrade"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// The format of the file.
        found: i32,
        /// The newest format that this program knows.
        known: i32,
    },
    /// The file's content is broken.
    #[error(
        "{path} is damaged ({detail}): keep a copy of it, then restore a backup with \
         `muster hub restore`"
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What the check found first.
        detail: String,
    },
    /// A file would be overwritten.
    #[error("{path} exists already: name another file, or move that one away")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("no space is left to write {path}: free some, and the store goes on by itself")]
    Full {
        /// The store.
        path: PathBuf,
        /// What the engine said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file operation around the engine failed.
    #[error("can't {doing} {path}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The engine failed.
    #[error("can't {doing} {path}")]
    Engine {
        /// What was tried.
        doing: &'static str,
        /// The store.
        path: PathBuf,
        /// What the engine said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store was closed, because the process is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// An engine's error, told apart by what a person can do about it.
    pub(crate) fn engine(doing: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full {
                path,
                source: source.into(),
            },
            Some(ErrorCode::NotADatabase) => Self::NotAStore { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged {
                path,
                detail: source.to_string(),
            },
            _ => Self::Engine {
                doing,
                path,
                source: source.into(),
            },
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}
