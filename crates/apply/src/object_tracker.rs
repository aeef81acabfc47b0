//! What is known about every wanted object at this moment, put together from what the engine did and
//! what the watches see, and published as a level.

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
    observed::{DriftEvent, Hold, Leftover, ObjectState, ObservedBundle},
};

/// Drifts of one app that are remembered.
const DRIFTS: usize = 10;

/// A wanted object as the board is told of it.
pub(crate) struct TrackedObject {
    pub(crate) key: Identity,
    pub(crate) id: Arc<ObjectRef>,
    /// How it is when it is gone, where it is a Job that has ended.
    pub(crate) ended: Option<Assessment>,
    /// Its UID, where it needs no request.
    pub(crate) applied: Option<String>,
}

/// A bundle as the board is told of it.
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
    /// What the watches saw of objects that are there and not wanted now: they may be wanted again.
    others: HashMap<Identity, Seen>,
    leftovers: BTreeMap<Identity, Leftover>,
    holds: Vec<Hold>,
    cluster_scoped: Vec<String>,
    /// The latest drift of each app.
    drifts: HashMap<AppName, VecDeque<DriftEvent>>,
    /// Groups of objects for which others wait until all of them are well.
    gates: Vec<Gate>,
    /// Something that the engine waits for has happened.
    woken: bool,
    /// Objects on which nobody has reported, with the time until which that is waited for; in order.
    silent: BTreeSet<(Instant, Identity)>,
    /// Sections whose published form is no longer true.
    stale: HashSet<usize>,
    published: Vec<Arc<ObservedBundle>>,
    /// Objects that are not as they were left.
    drifted: HashSet<Identity>,
    /// Objects of which that is known, and which are left so for a while.
    resting: HashSet<Identity>,
    /// What people's tools have on objects, where it was looked at and is left so.
    tolerated: HashMap<Identity, FieldsDigest>,
}

/// Shared by the engine and the watches.
#[derive(Default)]
pub(crate) struct ObjectTracker {
    state: Mutex<State>,
    changed: Notify,
    /// A run has ended otherwise than the one before, which is told at once.
    ended: Notify,
    drift: Notify,
    /// The API server answers again.
    answers: Notify,
    /// A watch has seen something new.
    seen: Notify,
}

impl ObjectTracker {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a generation. What is known about objects that are still wanted stays known.
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
                    // Whoever says that it is left as it is also ends that.
                    let left = ObjectState::is_left(&object.state);
                    if !left || object.uid != row.applied {
                        object.state = ObjectState::Applied;
                    }
                    object.uid.clone_from(&row.applied);
                } else if object.state == ObjectState::Applied {
                    // That was said of what it was before.
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

    /// Says how an object stands. The answer is whether that is new.
    pub(crate) fn set_state(&self, key: &Identity, state: ObjectState) -> bool {
        self.set_state_if(key, state, |_| true)
    }

    /// Says how an object stands that stands so.
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

    /// Forgets what is said of an object whose turn comes, but for what it waits for.
    pub(crate) fn clear_result(&self, key: &Identity) {
        let said = |state: &ObjectState| !matches!(state, ObjectState::Waiting(_));
        self.set_state_if(key, ObjectState::Pending, said);
    }

    /// Says that an object is as it was applied, where it was left otherwise.
    pub(crate) fn is_as_applied(&self, key: &Identity) {
        let otherwise =
            |state: &ObjectState| state.is_left() || matches!(state, ObjectState::Failed(_));
        self.set_state_if(key, ObjectState::Applied, otherwise);
    }

    /// Says that nobody wants an object to be left alone any more.
    pub(crate) fn end_left_alone(&self, key: &Identity) {
        let alone = |state: &ObjectState| matches!(state, ObjectState::LeftAlone(_));
        self.set_state_if(key, ObjectState::Applied, alone);
    }

    /// The health of a wanted object.
    pub(crate) fn health_of(&self, key: &Identity) -> Assessment {
        let state = self.state();
        state
            .objects
            .get(key)
            .map_or_else(|| health(&Object::default()), health)
    }

    /// Whether an object is applied and healthy; with `hook`, whether a Job has completed.
    pub(crate) fn is_well(&self, key: &Identity, hook: bool) -> bool {
        let state = self.state();
        state
            .objects
            .get(key)
            .is_some_and(|object| is_well(object, hook))
    }

    /// Why a wanted object is not applied; `None` where it is.
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

    /// Says what an object waits for whose turn has come and which nothing is known of yet.
    pub(crate) fn set_waiting(&self, key: &Identity, why: &str) {
        let waits =
            |state: &ObjectState| matches!(state, ObjectState::Pending | ObjectState::Waiting(_));
        self.set_state_if(key, ObjectState::Waiting(why.to_owned()), waits);
    }

    /// Says what the API server answered: the object's UID and, where its kind has one, its generation.
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

    /// Says that somebody undoes an object again and again; `None` where that is over.
    pub(crate) fn set_fight(&self, key: &Identity, message: Option<String>) {
        self.update(key, |object| {
            let changed = object.fought != message;
            object.fought = message;
            changed
        });
    }

    /// Says what the pods of an object that is not well say.
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

    /// Says that everything had its turn, or what stood in the way of all of it.
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

    /// Says that nothing stands in the way of all of it, though not everything had its turn.
    pub(crate) fn clear_problem(&self) {
        let mut state = self.state();
        if state.problem.take().is_some() {
            drop(state);
            self.changed.notify_one();
            self.ended.notify_one();
        }
    }

    /// The API server answers again: watches that wait before they try again need not.
    pub(crate) fn server_answers(&self) {
        self.answers.notify_waiters();
    }

    /// Returns when the API server answers again.
    pub(crate) async fn until_server_answers(&self) {
        self.answers.notified().await;
    }
}
