//! What a commit asks for: conditions on keys, then writes.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Conditions that must all hold, and the writes to carry out if they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold before the writes.
    pub conditions: Vec<Condition>,
    /// The new value of each key; `None` deletes it. A key is written at most once.
    pub writes: BTreeMap<String, Option<Bytes>>,
}

/// One key as it must be for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key that is checked.
    pub key: String,
    /// How it must be found.
    pub expected: Expected,
}

/// How a condition expects its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key was written last at this revision.
    Revision(u64),
}

impl Txn {
    /// A transaction without conditions and writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Happens only if `key` is as `expected`.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, expected: Expected) -> Self {
        self.conditions.push(Condition {
            key: key.into(),
            expected,
        });
        self
    }

    /// Writes `value` under `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.insert(key.into(), Some(value.into()));
        self
    }

    /// Removes `key`, if it is there.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.insert(key.into(), None);
        self
    }
}

impl Expected {
    /// What a reader that saw `revision` (`None`: no value) expects to find unchanged.
    #[must_use]
    pub fn unchanged(revision: Option<u64>) -> Self {
        revision.map_or(Self::Absent, Self::Revision)
    }
}
