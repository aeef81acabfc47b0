//! A fleet repository's files at one commit, as values: what the Git crate reads and everything else
//! decides on.

use std::{collections::BTreeMap, sync::Arc};

use crate::ids::{AppName, ObjectId};

/// The largest file that is read, in bytes. An object of Kubernetes can't exceed 1.5 MiB in etcd, and
/// the largest published sets of CRDs stay below this.
pub const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// What stands at one path of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file; `id` changes whenever the content does, so that work can be kept by it.
    File {
        /// Git's blob id of the content.
        id: ObjectId,
        /// The content.
        bytes: Arc<[u8]>,
    },
    /// A file over [`MAX_FILE_BYTES`], which is not read.
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// A symbolic link, which is never followed.
    Symlink {
        /// Where it points, as written.
        target: String,
    },
    /// Another repository's commit.
    Submodule,
}

/// Every file of a repository, by its path from the repository's root with `/` between the parts.
/// Paths are as Git has them: nothing about them has been checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries by path.
    pub entries: BTreeMap<String, Entry>,
}

/// An immutable tree of files at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: ObjectId,
    /// First line of the commit's message.
    pub subject: String,
    /// The author's name.
    pub author: String,
    /// When it was committed, in seconds since 1970.
    pub committed_at: i64,
    /// The files.
    pub tree: Arc<Tree>,
    /// The commit and those before it, children before their parents; not all of them.
    pub recent: Vec<Recent>,
}

/// A commit and what its message says to Muster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// The commit.
    pub commit: ObjectId,
    /// Apps that it lets leave with all that they have (trailer `Muster-Prune`).
    pub lets_go: Vec<AppName>,
}

/// Trailer of a commit's message that names an app that leaves the repository with all that it has.
pub const PRUNE_TRAILER: &str = "Muster-Prune";
