//! The current state of every desired object. It combines the results of the engine with what the
//! watches see, and is published as the observed state.

mod drift;
mod gates;
mod leftovers;
mod object;
mod publish;
mod seen;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash, Generation, Role},
};
use muster_plan::health::Assessment;
use tokio::{sync::Notify, time::Instant};

use self::object::{Object, health, is_well};
pub(crate) use self::{gates::Gate, seen::Seen};
use crate::{
    inventory::Identity,
    managed_fields::FieldsDigest,
    observed::{DriftEvent, Leftover, ObjectState, ObservedBundle, PendingApproval},
};

/// The number of drifts that are remembered for each app.
const DRIFTS: usize = 10;

/// A desired object, as the engine reports it to the tracker.
pub(crate) struct TrackedObject {
    pub(crate) key: Identity,
    pub(crate) id: Arc<ObjectRef>,
    /// The health of a Job that has ended, for the time after it is gone.
    pub(crate) ended: Option<Assessment>,
    /// The object's UID, if its desired content is already applied.
    pub(crate) applied: Option<String>,
}

/// A bundle, as the engine reports it to the tracker.
pub(crate) struct TrackedBundle {
    pub(crate) app: AppName,
    pub(crate) role: Role,
    pub(crate) hash: ContentHash,
    pub(crate) objects: Vec<TrackedObject>,
}

#[derive(Default)]
struct State {
    generation: Option<(Generation, ContentHash)>,
    settled: bool,
    problem: Option<String>,
    sections: Vec<TrackedBundle>,
    section_of: HashMap<Identity, usize>,
    objects: HashMap<Identity, Object>,
    /// What the watches saw of objects that exist and are not desired now. They may be desired
    /// again.
    others: HashMap<Identity, Seen>,
    leftovers: BTreeMap<Identity, Leftover>,
    pending_approvals: Vec<PendingApproval>,
    cluster_scoped: Vec<String>,
    /// The latest drifts of each app.
    drifts: HashMap<AppName, VecDeque<DriftEvent>>,
    /// Groups of objects. Others wait until all objects of a group are healthy.
    gates: Vec<Gate>,
    /// True if something has happened that the engine waits for.
    woken: bool,
    /// Objects that no controller has reported on, each with the end of the wait for a report. They
    /// are sorted by that time.
    silent: BTreeSet<(Instant, Identity)>,
    /// Sections that have changed since they were published.
    stale: HashSet<usize>,
    published: Vec<Arc<ObservedBundle>>,
    /// Objects that have drifted.
    drifted: HashSet<Identity>,
    /// Objects whose drift is known and is not reverted for a while.
    resting: HashSet<Identity>,
    /// For each object, the digest of the fields that people's tools own and that Muster has decided
    /// not to take over.
    tolerated: HashMap<Identity, FieldsDigest>,
}

/// The state that the engine and the watches share.
#[derive(Default)]
pub(crate) struct ObjectTracker {
    state: Mutex<State>,
    changed: Notify,
    /// Signals that the result of a run differs from the one before. That is published immediately.
    ended: Notify,
    drift: Notify,
    /// Signals that the API server answers again.
    answers: Notify,
    /// Signals that a watch has seen something new.
    seen: Notify,
}

impl ObjectTracker {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a generation. The state of objects that are still desired is retained.
    pub(crate) fn begin(
        &self,
        generation: (Generation, ContentHash),
        sections: Vec<TrackedBundle>,
        cluster_scoped: Vec<String>,
    ) {
        let mut state = self.state();
        state.cluster_scoped = cluster_scoped;
        let same = state.generation == Some(generation);
        let mut objects = std::mem::take(&mut state.objects);
        state.section_of.clear();
        for (index, section) in sections.iter().enumerate() {
            for row in &section.objects {
                state.section_of.insert(row.key.clone(), index);
                let mut object = objects.remove(&row.key).unwrap_or_default();
                let seen = state.others.remove(&row.key);
                object.seen = object.seen.or(seen);
                object.ended.clone_from(&row.ended);
                if row.applied.is_some() {
                    // The states `Drifted` and `LeftAlone` are ended by the code that sets them.
                    let left = ObjectState::is_left(&object.state);
                    if !left || object.uid != row.applied {
                        object.state = ObjectState::Applied;
                    }
                    object.uid.clone_from(&row.applied);
                } else if object.state == ObjectState::Applied {
                    // The old state belongs to other content.
                    object.state = ObjectState::Pending;
                }
                state.objects.insert(row.key.clone(), object);
            }
        }
        let seen = objects.into_iter();
        let seen = seen.filter_map(|(key, object)| Some((key, object.seen?)));
        state.others.extend(seen);
        let State {
            resting,
            tolerated,
            objects,
            ..
        } = &mut *state;
        resting.retain(|key| objects.contains_key(key));
        tolerated.retain(|key, _| objects.contains_key(key));
        state.generation = Some(generation);
        state.settled &= same;
        state.stale = (0..sections.len()).collect();
        state.sections = sections;
        drop(state);
        self.changed.notify_one();
    }

    /// Sets the state of an object. Returns true if the state is new.
    pub(crate) fn set_state(&self, key: &Identity, state: ObjectState) -> bool {
        self.set_state_if(key, state, |_| true)
    }

    /// Sets the state of an object if `is` returns true for its current state.
    fn set_state_if(
        &self,
        key: &Identity,
        state: ObjectState,
        is: impl FnOnce(&ObjectState) -> bool,
    ) -> bool {
        self.update(key, |object| {
            let changed = object.state != state && is(&object.state);
            if changed {
                object.state = state;
            }
            changed
        })
    }

    /// Resets the state of an object that is about to be processed, unless it is waiting.
    pub(crate) fn clear_result(&self, key: &Identity) {
        let said = |state: &ObjectState| !matches!(state, ObjectState::Waiting(_));
        self.set_state_if(key, ObjectState::Pending, said);
    }

    /// Marks an object as applied if it had failed, drifted or been left alone.
    pub(crate) fn is_as_applied(&self, key: &Identity) {
        let otherwise =
            |state: &ObjectState| state.is_left() || matches!(state, ObjectState::Failed(_));
        self.set_state_if(key, ObjectState::Applied, otherwise);
    }

    /// Marks an object as applied if it was left alone.
    pub(crate) fn end_left_alone(&self, key: &Identity) {
        let alone = |state: &ObjectState| matches!(state, ObjectState::LeftAlone(_));
        self.set_state_if(key, ObjectState::Applied, alone);
    }

    /// Returns the health of a desired object.
    pub(crate) fn health_of(&self, key: &Identity) -> Assessment {
        let state = self.state();
        state
            .objects
            .get(key)
            .map_or_else(|| health(&Object::default()), health)
    }

    /// Returns true if an object is applied and healthy; with `hook`, if a Job has completed.
    pub(crate) fn is_well(&self, key: &Identity, hook: bool) -> bool {
        let state = self.state();
        state
            .objects
            .get(key)
            .is_some_and(|object| is_well(object, hook))
    }

    /// Returns why a desired object is not applied, or `None` if it is.
    pub(crate) fn why_not_applied(&self, key: &Identity) -> Option<String> {
        let state = self.state();
        match state.objects.get(key).map(|object| &object.state) {
            Some(ObjectState::Applied | ObjectState::LeftAlone(_) | ObjectState::Drifted(_)) => {
                None
            }
            Some(
                ObjectState::Waiting(why)
                | ObjectState::Failed(why)
                | ObjectState::Approval { why, .. },
            ) => Some(why.clone()),
            Some(ObjectState::Pending) | None => Some("not applied yet".to_owned()),
        }
    }

    /// Sets what an object waits for, if it has not been processed yet or is already waiting.
    pub(crate) fn set_waiting(&self, key: &Identity, why: &str) {
        let waits =
            |state: &ObjectState| matches!(state, ObjectState::Pending | ObjectState::Waiting(_));
        self.set_state_if(key, ObjectState::Waiting(why.to_owned()), waits);
    }

    /// Records the API server's answer: the object's UID and, if its kind has one, its generation.
    pub(crate) fn applied(&self, key: &Identity, uid: &str, generation: Option<i64>) {
        self.update(key, |object| {
            let changed = object.state != ObjectState::Applied
                || object.uid.as_deref() != Some(uid)
                || object.generation != generation;
            object.state = ObjectState::Applied;
            object.uid = Some(uid.to_owned());
            object.generation = generation;
            changed
        });
    }

    /// Sets the message for an object that somebody else repeatedly changes or deletes; `None` when
    /// that has stopped.
    pub(crate) fn set_fight(&self, key: &Identity, message: Option<String>) {
        self.update(key, |object| {
            let changed = object.fought != message;
            object.fought = message;
            changed
        });
    }

    /// Sets the reason why an object is not healthy, as the messages of its pods explain it.
    pub(crate) fn set_reason(&self, key: &Identity, reason: Option<String>) {
        self.update(key, |object| {
            let changed = object.reason != reason;
            object.reason = reason;
            changed
        });
    }

    fn update(&self, key: &Identity, change: impl FnOnce(&mut Object) -> bool) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(object) = state.objects.get_mut(key)
            && change(object)
        {
            state.stale.extend(state.section_of.get(key));
            let mut gates = 0..state.gates.len();
            let opens = |gate: usize| {
                let mut members = state.gates[gate].iter();
                members.any(|(member, _)| member == key) && state.is_open(gate)
            };
            let opens = gates.any(opens);
            drop(guard);
            self.changed.notify_one();
            if opens {
                self.wake();
            }
            return true;
        }
        false
    }

    /// Records that everything was processed, or the problem that prevented the whole run.
    pub(crate) fn settle(&self, problem: Option<String>) {
        let mut state = self.state();
        let settled = problem.is_none();
        if state.settled != settled || state.problem != problem {
            state.settled = settled;
            state.problem = problem;
            drop(state);
            self.changed.notify_one();
            self.ended.notify_one();
        }
    }

    /// Records that the whole run has no problem, although not everything was processed.
    pub(crate) fn clear_problem(&self) {
        let mut state = self.state();
        if state.problem.take().is_some() {
            drop(state);
            self.changed.notify_one();
            self.ended.notify_one();
        }
    }

    /// Tells the watches that the API server answers again, so that they end their back-off.
    pub(crate) fn server_answers(&self) {
        self.answers.notify_waiters();
    }

    /// Waits until the API server answers again.
    pub(crate) async fn until_server_answers(&self) {
        self.answers.notified().await;
    }
}
