//! What is known about the followed repository at a moment, for the hub and for people.

use std::{sync::Arc, time::SystemTime};

use muster_model::{ids::ObjectId, tree::Snapshot};

/// The commit in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// The commit.
    pub commit: ObjectId,
    /// When it was first seen by this process.
    pub since: SystemTime,
    /// The commit that a force-push took away, if that is how this one came.
    pub forced_from: Option<ObjectId>,
}

/// Why the repository can't be followed at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong and what to do.
    pub text: String,
    /// Since when every attempt failed.
    pub since: SystemTime,
    /// The next attempt, unless a poke comes first.
    pub retry_at: SystemTime,
}

/// The state of the followed repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoState {
    /// The remote's address, without secrets.
    pub remote: String,
    /// What of it is followed, in words.
    pub reference: String,
    /// When the remote was last asked, with or without success. A change of this alone wakes no
    /// subscriber.
    pub last_attempt: Option<SystemTime>,
    /// Whether this process has asked it with success. Before that the tip is what an earlier one found.
    pub asked: bool,
    /// The commit in force, if there ever was a good one.
    pub tip: Option<Tip>,
    /// What is wrong, if something is.
    pub problem: Option<Problem>,
}

/// State and files. The last good snapshot stays, whatever happens to the remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoView {
    /// The state.
    pub state: RepoState,
    /// The files at [`RepoState::tip`].
    pub snapshot: Option<Arc<Snapshot>>,
}
