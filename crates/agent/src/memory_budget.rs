//! The limit on the size of a generation that this agent accepts. The fleet repository decides how large a
//! generation is. An agent that is killed because it is out of memory could not receive the fix.

use std::fmt;

use muster_apply::StoredBundle;
use muster_runtime::process;

/// The text of all manifests may take at most the agent's memory divided by this. For a while two generations are in
/// memory, each of them also in compressed form, and the API server's answers are of similar size.
const TEXT: u64 = 10;
/// The memory in bytes that one object takes besides its text, for the agent's records of it and its predecessor.
const OBJECT: u64 = 12 * 1024;

/// The memory limit of an agent, and how much of it one generation uses so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    memory: u64,
    objects: u64,
    bytes: u64,
}

/// The error when a generation is too large for the agent's memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its manifests have over {limit}, which is the most that this agent accepts with {} MiB of memory; give the agent \
     more memory (`resources` in its chart), or the cluster fewer objects", memory / MIB
)]
pub(crate) struct TooLarge {
    limit: Limit,
    memory: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Limit {
    Objects(u64),
    Bytes(u64),
}

const MIB: u64 = 1024 * 1024;

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objects(objects) => write!(f, "{objects} objects"),
            Self::Bytes(bytes) => write!(f, "{} MiB", bytes / MIB),
        }
    }
}

impl MemoryBudget {
    /// Returns an unused budget for the memory that this process may use.
    pub(crate) fn of_this_process() -> Self {
        Self {
            memory: process::memory(),
            objects: 0,
            bytes: 0,
        }
    }

    /// Returns the most bytes that all manifests together may have.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory / TEXT
    }

    /// Returns the error for manifests with more text than [`MemoryBudget::bytes`].
    pub(crate) fn too_much_text(&self) -> TooLarge {
        TooLarge {
            limit: Limit::Bytes(self.bytes()),
            memory: self.memory,
        }
    }

    /// Counts one more bundle of the generation.
    ///
    /// # Errors
    /// [`TooLarge`] if the generation now exceeds the budget.
    pub(crate) fn add(&mut self, bundle: &StoredBundle) -> Result<(), TooLarge> {
        let objects = &bundle.bundle().objects;
        self.objects += objects.len() as u64;
        let bytes = objects.iter().map(|object| object.json.len() as u64);
        self.bytes += bytes.sum::<u64>();
        self.check()
    }

    fn check(&self) -> Result<(), TooLarge> {
        let memory = self.memory;
        let objects = memory / OBJECT;
        if self.objects > objects {
            let limit = Limit::Objects(objects);
            return Err(TooLarge { limit, memory });
        }
        match self.bytes > self.bytes() {
            true => Err(self.too_much_text()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
