//! Transactions: conditions on keys, followed by writes.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A transaction: conditions that must all hold, and the writes to carry out if they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions that must hold before the writes.
    pub conditions: Vec<Condition>,
    /// The new value of each key; `None` deletes it. A key is written at most once.
    pub writes: BTreeMap<String, Option<Bytes>>,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key that is checked.
    pub key: String,
    /// The expected state of the key.
    pub expected: Expected,
}

/// The state of a key that a condition expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The last write of the key was at this revision.
    Revision(u64),
}

impl Txn {
    /// Returns a transaction without conditions and writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the condition that `key` is in the state `expected`.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, expected: Expected) -> Self {
        self.conditions.push(Condition {
            key: key.into(),
            expected,
        });
        self
    }

    /// Adds a write of `value` to `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.insert(key.into(), Some(value.into()));
        self
    }

    /// Adds the deletion of `key`, which may be absent.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.insert(key.into(), None);
        self
    }
}

impl Expected {
    /// Returns the expectation that a key is unchanged since it was read with this revision. `None` means that it had
    /// no value.
    #[must_use]
    pub fn unchanged(revision: Option<u64>) -> Self {
        revision.map_or(Self::Absent, Self::Revision)
    }
}
