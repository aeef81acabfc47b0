//! How large a generation may be that this agent takes. The fleet repository decides what is in one; an agent
//! that was ended for its memory could not even be told of the fix.

use std::fmt;

use muster_apply::StoredBundle;
use muster_runtime::process;

/// Of the memory, the text of all manifests may be this part. For a while there are two generations of it, each also
/// compressed, and API servers answer with as much.
const TEXT: u64 = 10;
/// Memory for one object, whatever its text: what is known of it here, and of its predecessor.
const OBJECT: u64 = 12 * 1024;

/// What an agent takes, and what it has taken of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    memory: u64,
    objects: u64,
    bytes: u64,
}

/// A generation is larger than that.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its manifests have over {limit}, and with {} MiB of memory this agent takes that and no more; give the agent \
     more memory (`resources` of its chart), or the cluster less", memory / MIB
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
    /// By the memory that this process may have.
    pub(crate) fn of_this_process() -> Self {
        Self {
            memory: process::memory(),
            objects: 0,
            bytes: 0,
        }
    }

    /// How many bytes of manifests.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory / TEXT
    }

    /// What is said where there is more text than that.
    pub(crate) fn too_much_text(&self) -> TooLarge {
        TooLarge {
            limit: Limit::Bytes(self.bytes()),
            memory: self.memory,
        }
    }

    /// Takes one more bundle.
    ///
    /// # Errors
    /// [`TooLarge`] says what there is too much of.
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
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_said_in_figures() {
        let memory = 512 * MIB;
        let check = |objects, bytes| {
            let room = MemoryBudget {
                memory,
                objects,
                bytes,
            };
            room.check().map_err(|e| e.to_string())
        };
        assert_eq!(check(43_690, 51 * MIB), Ok(()));
        insta::assert_snapshot!(check(43_691, 0).unwrap_err(), @"its manifests have over 43690 objects, and with 512 MiB of memory this agent takes that and no more; give the agent more memory (`resources` of its chart), or the cluster less");
        insta::assert_snapshot!(check(1, 52 * MIB).unwrap_err(), @"its manifests have over 51 MiB, and with 512 MiB of memory this agent takes that and no more; give the agent more memory (`resources` of its chart), or the cluster less");
    }
}
