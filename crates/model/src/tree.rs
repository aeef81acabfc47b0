//! The files of a fleet repository at one commit, as plain values. The Git crate reads them, and all other
//! crates work on them.

use std::{collections::BTreeMap, sync::Arc};

use crate::ids::{AppName, ObjectId};

/// The maximum size of a file that is read, in bytes. A Kubernetes object can't exceed 1.5 MiB in etcd, and
/// the largest published sets of CRDs are smaller than this limit.
pub const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// The entry at one path of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file. Its `id` changes whenever the content does, so results can be cached by it.
    File {
        /// The Git blob id of the content.
        id: ObjectId,
        /// The content.
        bytes: Arc<[u8]>,
    },
    /// A file over [`MAX_FILE_BYTES`], which is not read.
    TooLarge {
        /// The size of the file in bytes.
        size: u64,
    },
    /// A symbolic link, which is never followed.
    Symlink {
        /// The target of the link, as written.
        target: String,
    },
    /// A submodule: a commit of another repository.
    Submodule,
}

/// All files of a repository, by path from the repository's root, with `/` between the parts. Paths are
/// taken from Git unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries by path.
    pub entries: BTreeMap<String, Entry>,
}

/// An immutable tree of files at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The id of the commit.
    pub commit: ObjectId,
    /// The first line of the commit message.
    pub subject: String,
    /// The author's name.
    pub author: String,
    /// The commit time, in seconds since 1970.
    pub committed_at: i64,
    /// The files.
    pub tree: Arc<Tree>,
    /// The commit and its most recent ancestors, children before their parents.
    pub recent: Vec<Recent>,
}

/// A commit and the instructions to Muster in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// The id of the commit.
    pub commit: ObjectId,
    /// Apps whose objects may all be deleted (trailer `Muster-Prune`).
    pub lets_go: Vec<AppName>,
}

/// The trailer of a commit message that names an app whose objects may all be deleted, because the app
/// leaves the repository.
pub const PRUNE_TRAILER: &str = "Muster-Prune";
