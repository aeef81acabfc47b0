//! What the watches saw: the live objects, and the health of objects that no controller reports on.

use muster_plan::health::Assessment;
use tokio::time::Instant;

use super::{ObjectTracker, object::is_unobserved};
use crate::{inventory::Identity, observed::ObjectState};

/// What a watch saw of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    /// `metadata.generation`, if the kind has one.
    pub(crate) generation: Option<i64>,
    /// `metadata.resourceVersion`, if the kind has no generation.
    pub(crate) version: Option<String>,
    pub(crate) assessment: Assessment,
    /// The same as in [`crate::ObservedObject`].
    pub(crate) has_pods: bool,
    /// True if a person has set `reconcile: disabled` on the object.
    pub(crate) left_alone: bool,
    /// The time from which an object that nobody has reported on counts as healthy, because its
    /// kind seems to have no controller that reports.
    pub(crate) silent_until: Option<Instant>,
}

impl ObjectTracker {
    /// Records what a watch saw; `None` if the object is gone.
    pub(crate) fn record_seen(&self, key: &Identity, seen: Option<Seen>) {
        let silent = seen.as_ref().and_then(|seen| seen.silent_until);
        {
            let mut state = self.state();
            if !state.objects.contains_key(key) {
                match seen {
                    Some(seen) => state.others.insert(key.clone(), seen),
                    None => state.others.remove(key),
                };
                return;
            }
        }
        let (mut released, mut touched) = (false, false);
        let changed = self.update(key, |object| {
            let changed = object.seen != seen;
            let left_alone = |seen: &Option<Seen>| seen.as_ref().is_some_and(|s| s.left_alone);
            released = left_alone(&object.seen) && !left_alone(&seen);
            // A change by somebody may have repaired what failed.
            let fails = matches!(
                object.state,
                ObjectState::Failed(_) | ObjectState::Approval { .. }
            );
            let versions = object.seen.as_ref().zip(seen.as_ref());
            touched = fails
                && versions.is_some_and(|(before, now)| {
                    (before.generation, &before.version) != (now.generation, &now.version)
                });
            object.seen = seen;
            changed
        });
        if released {
            self.wake();
        }
        if touched {
            self.drift(key.clone());
        }
        if changed {
            self.seen.notify_waiters();
        }
        if changed && let Some(until) = silent {
            self.state().silent.insert((until, key.clone()));
        }
    }

    /// Waits until the watches have seen the applied content of these objects.
    pub(crate) async fn until_observed(&self, keys: &[&Identity]) {
        loop {
            let mut seen = std::pin::pin!(self.seen.notified());
            seen.as_mut().enable();
            let all = {
                let state = self.state();
                let objects = keys.iter().filter_map(|key| state.objects.get(*key));
                objects.clone().all(|object| !is_unobserved(object))
            };
            if all {
                return;
            }
            seen.await;
        }
    }

    /// Records that a watch saw the deletion of the object with this UID.
    pub(crate) fn record_deleted(&self, key: &Identity, uid: Option<&str>) {
        let same = |seen: &Seen| Some(&*seen.uid) == uid;
        {
            let mut state = self.state();
            if state.others.get(key).is_some_and(same) {
                state.others.remove(key);
            }
        }
        self.update(key, |object| {
            let gone = object.seen.as_ref().is_some_and(same);
            if gone {
                object.seen = None;
            }
            gone
        });
    }

    /// Returns true if a person has set `reconcile: disabled` on the object.
    pub(crate) fn is_left_alone(&self, key: &Identity) -> bool {
        let state = self.state();
        let seen = state
            .objects
            .get(key)
            .and_then(|object| object.seen.as_ref());
        seen.is_some_and(|seen| seen.left_alone)
    }

    /// Handles objects on which no controller has reported in time. From now on they count as
    /// healthy.
    pub(super) fn end_silence(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let now = Instant::now();
        while let Some((until, key)) = state.silent.pop_first() {
            if until > now {
                state.silent.insert((until, key));
                break;
            }
            state.stale.extend(state.section_of.get(&key));
        }
        let open = (0..state.gates.len()).any(|gate| state.is_open(gate));
        drop(guard);
        if open {
            self.wake();
        }
    }
}
