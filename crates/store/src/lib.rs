//! The hub's state: a small revisioned key-value store behind a trait.
//!
//! Keys are texts with `/` between their parts, values are bytes. The store has one revision that
//! grows by one with every transaction that changes something; each key remembers the revision that
//! wrote it last. A transaction checks conditions on keys and then writes, all or nothing. That is
//! what etcd's transactions and watches offer too, so that a second engine fits behind [`Store`]
//! without a change above it. [`SqliteStore`] is the first engine: one file, one hub.

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
    /// What was written.
    pub value: Bytes,
    /// The store's revision after the transaction that wrote it; at least 1.
    pub revision: u64,
}

/// Where a hub keeps its state.
///
/// Whatever a call returns was durable before it was visible. Calls of one process see its own
/// finished commits.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// When the engine can't read.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// All keys that start with `prefix`, in byte order, as they were at one moment. The empty
    /// prefix means all.
    ///
    /// # Errors
    /// When the engine can't read.
    async fn range(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// Like [`range`](Self::range), with revisions only: the way to list big values.
    ///
    /// # Errors
    /// When the engine can't read.
    async fn keys(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError>;

    /// Carries out `txn` if all its conditions hold, and returns the store's revision after it. When
    /// this returns, the change is on disk. A transaction that changes nothing (no writes, or only
    /// deletions of keys that don't exist) leaves the revision as it is.
    ///
    /// The transaction goes on when the returned future is dropped.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] names the first condition that did not hold; nothing was written. Any
    /// other error means that the engine could not write, and nothing was written either; only where
    /// the process or machine dies at that moment may the change be found, whole, after the restart.
    async fn commit(&self, txn: Txn) -> Result<u64, CommitError>;

    /// Tells which keys under `prefix` change from now on. See [`Watch`].
    fn watch(&self, prefix: &str) -> Watch;

    /// The store's revision: 0 when it was just created.
    ///
    /// # Errors
    /// When the engine can't read.
    async fn revision(&self) -> Result<u64, StoreError>;

    /// The random name made when this store was created, or restored from a backup.
    fn incarnation(&self) -> &str;
}
