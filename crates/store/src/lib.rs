//! The hub's state: a small revisioned key-value store behind a trait.
//!
//! Keys are text with `/` between their parts; values are bytes. The store has one revision, which grows by one with
//! every transaction that changes something. Each key has the revision of its last write. A transaction checks
//! conditions on keys and then writes, all or nothing. etcd's transactions and watches offer the same, so an etcd
//! engine could implement [`Store`] without changes to its callers. [`SqliteStore`] is the only engine so far: one file
//! for one hub.

mod error;
mod sqlite;
mod txn;
mod watch;

use async_trait::async_trait;
use bytes::Bytes;

pub use error::{CommitError, StoreError};
pub use sqlite::{RESTORED_KEY, Restored, SqliteStore, backup, backup_to, restore, restore_from};
pub use txn::{Condition, Expected, Txn};
pub use watch::{Changes, Watch};

/// A value and the revision of the transaction that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The store's revision after the transaction that wrote the value; at least 1.
    pub revision: u64,
}

/// A store for the state of a hub.
///
/// Everything that a call returns is already durable. A call sees all commits that the same process has finished
/// before.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns the value of `key`, if it has one.
    ///
    /// # Errors
    /// If the engine can't read.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Returns all keys that start with `prefix` and their values, in byte order, from one consistent snapshot. The
    /// empty prefix matches all keys.
    ///
    /// # Errors
    /// If the engine can't read.
    async fn range(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// Like [`range`](Self::range), but returns only the revisions. Use it to list keys with large values.
    ///
    /// # Errors
    /// If the engine can't read.
    async fn keys(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError>;

    /// Carries out `txn` if all its conditions hold, and returns the store's revision after it. When this returns, the
    /// change is on disk. A transaction that changes nothing (no writes, or only deletions of keys that don't exist)
    /// does not change the revision.
    ///
    /// The transaction continues if the returned future is dropped.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] names the first condition that did not hold; nothing was written. Any other error
    /// means that the engine could not write, and nothing was written either. If the process or machine crashes during
    /// the call, the whole change may still be in the store after the restart.
    async fn commit(&self, txn: Txn) -> Result<u64, CommitError>;

    /// Watches which keys under `prefix` change from now on. See [`Watch`].
    fn watch(&self, prefix: &str) -> Watch;

    /// Returns the store's revision. It is 0 in a new store.
    ///
    /// # Errors
    /// If the engine can't read.
    async fn revision(&self) -> Result<u64, StoreError>;

    /// Returns the incarnation: a random name that is chosen when the store is created or restored from a backup.
    fn incarnation(&self) -> &str;
}
