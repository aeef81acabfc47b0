//! Gates: groups of objects that others wait for, and the signal that wakes the engine.

use super::{ObjectTracker, State, object::is_well};
use crate::inventory::Identity;

/// A group of objects that others wait for. The flag is true for a Job that must have completed.
pub(crate) type Gate = Vec<(Identity, bool)>;

impl ObjectTracker {
    /// Wakes the engine when all objects of one of these groups are healthy.
    pub(crate) fn wait_for(&self, gates: Vec<Gate>) {
        let mut state = self.state();
        state.gates = gates;
        let open = (0..state.gates.len()).any(|gate| state.is_open(gate));
        drop(state);
        if open {
            self.wake();
        }
    }

    /// Wakes the engine.
    pub(crate) fn wake(&self) {
        self.state().woken = true;
        self.drift.notify_one();
    }

    /// Waits until something has drifted or the engine is woken.
    pub(crate) async fn until_woken(&self) {
        let calm = |state: &State| state.drifted.is_empty() && !state.woken;
        while calm(&self.state()) {
            self.drift.notified().await;
        }
    }
}

impl State {
    /// Returns true if every object of a group is healthy.
    pub(super) fn is_open(&self, gate: usize) -> bool {
        let well = |(key, hook): &(Identity, bool)| {
            self.objects
                .get(key)
                .is_some_and(|object| is_well(object, *hook))
        };
        self.gates[gate].iter().all(well)
    }
}
