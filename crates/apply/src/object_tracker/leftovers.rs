//! Objects that are no longer in Git: leaving, or pending approval.

use std::collections::{BTreeMap, HashSet};

use muster_model::bundle::ObjectRef;

use super::ObjectTracker;
use crate::{
    inventory::Identity,
    observed::{Leftover, LeftoverState, PendingApproval},
};

impl ObjectTracker {
    /// Sets the objects that are no longer desired and not gone.
    pub(crate) fn set_leftovers(&self, leftovers: BTreeMap<Identity, Leftover>) {
        let mut state = self.state();
        if state.leftovers != leftovers {
            state.leftovers = leftovers;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Adds objects that are no longer desired and not known yet, and drops those that are desired
    /// again.
    pub(crate) fn expect_leftovers(
        &self,
        leaving: BTreeMap<Identity, Leftover>,
        desired: &HashSet<&Identity>,
    ) {
        let mut guard = self.state();
        let state = &mut *guard;
        let before = state.leftovers.len();
        state.leftovers.retain(|key, _| !desired.contains(key));
        let pending: HashSet<&ObjectRef> = state
            .pending_approvals
            .iter()
            .flat_map(|pending_approval| &pending_approval.objects)
            .collect();
        let mut changed = state.leftovers.len() != before;
        for (key, leftover) in leaving {
            if !pending.contains(&leftover.id) && !state.leftovers.contains_key(&key) {
                state.leftovers.insert(key, leftover);
                changed = true;
            }
        }
        drop(guard);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Sets the deletions that are pending approval.
    pub(crate) fn set_pending_approvals(&self, pending_approvals: Vec<PendingApproval>) {
        let mut state = self.state();
        if state.pending_approvals != pending_approvals {
            state.pending_approvals = pending_approvals;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Returns true if an object that is no longer desired waits for something else.
    pub(crate) fn waits_for_replacements(&self) -> bool {
        let state = self.state();
        let mut all = state.leftovers.values();
        all.any(|leftover| leftover.state == LeftoverState::Waiting)
    }
}
