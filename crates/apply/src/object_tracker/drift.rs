//! Drift: which objects have changed since they were applied, and which changes are not reverted.

use std::collections::HashSet;

use muster_model::ids::AppName;

use super::{DRIFTS, ObjectTracker};
use crate::{
    inventory::Identity,
    managed_fields::FieldsDigest,
    observed::{DriftEvent, ObjectState},
};

impl ObjectTracker {
    /// Reports an object that has drifted.
    pub(crate) fn drift(&self, key: Identity) {
        let mut state = self.state();
        if !state.resting.contains(&key) {
            state.drifted.insert(key);
            drop(state);
            self.drift.notify_one();
        }
    }

    /// Ignores reports of an object's drift for a while. The engine corrects the object when its
    /// back-off is over.
    pub(crate) fn pause_drift(&self, key: &Identity) {
        self.state().resting.insert(key.clone());
    }

    /// Ends [`Self::pause_drift`].
    pub(crate) fn resume_drift(&self, key: &Identity) {
        self.state().resting.remove(key);
    }

    /// Takes the objects that have drifted since the last call.
    pub(crate) fn take_drifted(&self) -> HashSet<Identity> {
        let mut state = self.state();
        state.woken = false;
        std::mem::take(&mut state.drifted)
    }

    /// Remembers the fields of an object that people's tools own and that Muster does not take
    /// over.
    pub(crate) fn tolerate(&self, key: &Identity, people: Option<FieldsDigest>) {
        let mut state = self.state();
        match people {
            Some(people) => state.tolerated.insert(key.clone(), people),
            None => state.tolerated.remove(key),
        };
    }

    /// Returns true if people's tools own exactly the fields that [`Self::tolerate`] remembered for
    /// the object.
    pub(crate) fn is_tolerated(&self, key: &Identity, people: Option<FieldsDigest>) -> bool {
        self.state().tolerated.get(key).copied() == people
    }

    /// Takes the objects whose differences from Git were not reverted. A new generation may revert
    /// them.
    pub(crate) fn take_tolerated(&self) -> HashSet<Identity> {
        let mut state = self.state();
        let tolerated = std::mem::take(&mut state.tolerated);
        let objects = state.objects.iter();
        let drifted = objects.filter(|(_, o)| matches!(o.state, ObjectState::Drifted(_)));
        drifted
            .map(|(key, _)| key.clone())
            .chain(tolerated.into_keys())
            .collect()
    }

    /// Remembers a drift for the status.
    pub(crate) fn drifts(&self, app: &AppName, event: DriftEvent) {
        let mut guard = self.state();
        let state = &mut *guard;
        let drifts = state.drifts.entry(app.clone()).or_default();
        if drifts.len() == DRIFTS {
            drifts.pop_front();
        }
        drifts.push_back(event);
        let section = state
            .sections
            .iter()
            .position(|section| section.app == *app);
        state.stale.extend(section);
        drop(guard);
        self.changed.notify_one();
    }
}
