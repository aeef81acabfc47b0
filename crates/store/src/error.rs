//! The errors of the store, with messages for the operator of the hub.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// The reason why a transaction was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold. The caller should read the state again and decide again.
    #[error("{key} is not as the transaction expects: something else changed it")]
    Conflict {
        /// The key of the first condition that did not hold.
        key: String,
    },
    /// The engine could not write.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The reason why a store can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error(
        "{path} is in use by another process (it holds the lock {lock}): stop that hub, or give this \
         one its own state directory"
    )]
    InUse {
        /// The path of the store.
        path: PathBuf,
        /// The path of the lock file that the other process holds.
        lock: PathBuf,
    },
    /// The file is not a store.
    #[error("{path} is not a muster store: name the file that a hub or `muster hub backup` wrote")]
    NotAStore {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file was written by a newer version of Muster.
    #[error(
        "{path} has format {found}, written by a newer muster; this one knows formats up to {known}: \
         run the newer version, or restore a backup that was made before the upgrade"
    )]
    Newer {
        /// The path of the store.
        path: PathBuf,
        /// The format of the file.
        found: i32,
        /// The newest format that this version knows.
        known: i32,
    },
    /// The content of the file is damaged.
    #[error(
        "{path} is damaged ({detail}): keep a copy of it, then restore a backup with \
         `muster hub restore`"
    )]
    Damaged {
        /// The path of the store.
        path: PathBuf,
        /// The first problem that the check found.
        detail: String,
    },
    /// The file to write exists already.
    #[error("{path} exists already: name another file, or move that one away")]
    Exists {
        /// The path of the file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("no space is left to write {path}: free some, and the store continues by itself")]
    Full {
        /// The path of the store.
        path: PathBuf,
        /// The error of the engine.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file operation around the engine failed.
    #[error("can't {doing} {path}")]
    File {
        /// The operation that failed, as a verb phrase before the path.
        doing: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The engine failed.
    #[error("can't {doing} {path}")]
    Engine {
        /// The operation that failed, as a verb phrase before the path.
        doing: &'static str,
        /// The path of the store.
        path: PathBuf,
        /// The error of the engine.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store is closed, because the process is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Converts an error of the engine. The variants differ by what an operator can do about them.
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
