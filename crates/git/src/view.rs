//! The published state of the followed repository, for the hub and for people.

use std::{sync::Arc, time::SystemTime};

use muster_model::{ids::ObjectId, tree::Snapshot};

/// The newest commit of the followed reference that was read completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// The commit.
    pub commit: ObjectId,
    /// The time when this process first saw the commit.
    pub since: SystemTime,
    /// The old commit, if a force-push replaced it with this one.
    pub forced_from: Option<ObjectId>,
}

/// A problem that currently prevents the hub from following the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, and what to do about it.
    pub text: String,
    /// The time since which every attempt has failed.
    pub since: SystemTime,
    /// The time of the next attempt, unless a poke comes first.
    pub retry_at: SystemTime,
}

/// The state of the followed repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoState {
    /// The remote's address, without secrets.
    pub remote: String,
    /// The followed reference, in words.
    pub reference: String,
    /// The time of the last attempt to read the remote, successful or not. A change of this field alone does
    /// not wake subscribers.
    pub last_attempt: Option<SystemTime>,
    /// True once this process has read the remote successfully. Until then, the tip comes from an earlier process.
    pub asked: bool,
    /// The newest commit that was read completely, if there is one.
    pub tip: Option<Tip>,
    /// The current problem with the repository, if there is one.
    pub problem: Option<Problem>,
}

/// The state and the files of the repository. The last good snapshot stays, whatever happens to the remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoView {
    /// The state of the repository.
    pub state: RepoState,
    /// The files at [`RepoState::tip`].
    pub snapshot: Option<Arc<Snapshot>>,
}
