//! What is known about every wanted object at this moment, put together from what the engine did and
//! what the watches see, and published as a level.

mod object;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash, Generation, Role},
};
use muster_plan::health::{Assessment, Health, worst_of};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::object::{Object, health, is_unobserved, is_well};
use crate::{
    inventory::Identity,
    level::{
        Counts, DriftEvent, Hold, Leftover, LeftoverState, Observed, ObservedBundle,
        ObservedObject, Standing,
    },
    owned::Owned,
};

/// Drifts of one app that are remembered.
const DRIFTS: usize = 10;

/// What a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    /// `metadata.generation`, where the kind has one.
    pub(crate) generation: Option<i64>,
    /// `metadata.resourceVersion`, where the kind has no generation.
    pub(crate) version: Option<String>,
    pub(crate) assessment: Assessment,
    /// As in [`ObservedObject`].
    pub(crate) has_pods: bool,
    /// A person has said on the object that it is not to be touched.
    pub(crate) left_alone: bool,
    /// Nobody has reported on it. From then on that is no reason to wait: its kind has no controller that
    /// reports.
    pub(crate) silent_until: Option<Instant>,
}

/// Objects for which others wait, each with whether it is a Job that must have completed.
pub(crate) type Gate = Vec<(Identity, bool)>;

/// A wanted object as the board is told of it.
pub(crate) struct Row {
    pub(crate) key: Identity,
    pub(crate) id: Arc<ObjectRef>,
    /// How it is when it is gone, where it is a Job that has ended.
    pub(crate) ended: Option<Assessment>,
    /// Its UID, where it needs no request.
    pub(crate) applied: Option<String>,
}

/// A bundle as the board is told of it.
pub(crate) struct Section {
    pub(crate) app: AppName,
    pub(crate) role: Role,
    pub(crate) hash: ContentHash,
    pub(crate) rows: Vec<Row>,
}

#[derive(Default)]
struct State {
    generation: Option<(Generation, ContentHash)>,
    settled: bool,
    problem: Option<String>,
    sections: Vec<Section>,
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
    tolerated: HashMap<Identity, Owned>,
}

/// Shared by the engine and the watches.
#[derive(Default)]
pub(crate) struct Board {
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

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a generation. What is known about objects that are still wanted stays known.
    pub(crate) fn begin(
        &self,
        generation: (Generation, ContentHash),
        sections: Vec<Section>,
        cluster_scoped: Vec<String>,
    ) {
        let mut state = self.state();
        state.cluster_scoped = cluster_scoped;
        let same = state.generation == Some(generation);
        let mut objects = std::mem::take(&mut state.objects);
        state.section_of.clear();
        for (index, section) in sections.iter().enumerate() {
            for row in &section.rows {
                state.section_of.insert(row.key.clone(), index);
                let mut object = objects.remove(&row.key).unwrap_or_default();
                let seen = state.others.remove(&row.key);
                object.seen = object.seen.or(seen);
                object.ended.clone_from(&row.ended);
                if row.applied.is_some() {
                    // Whoever says that it is left as it is also ends that.
                    let left = Standing::is_left(&object.standing);
                    if !left || object.uid != row.applied {
                        object.standing = Standing::Applied;
                    }
                    object.uid.clone_from(&row.applied);
                } else if object.standing == Standing::Applied {
                    // That was said of what it was before.
                    object.standing = Standing::Pending;
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
    pub(crate) fn stand(&self, key: &Identity, standing: Standing) -> bool {
        self.restand(key, standing, |_| true)
    }

    /// Says how an object stands that stands so.
    fn restand(
        &self,
        key: &Identity,
        standing: Standing,
        is: impl FnOnce(&Standing) -> bool,
    ) -> bool {
        self.update(key, |object| {
            let changed = object.standing != standing && is(&object.standing);
            if changed {
                object.standing = standing;
            }
            changed
        })
    }

    /// Forgets what is said of an object whose turn comes, but for what it waits for.
    pub(crate) fn turn_comes(&self, key: &Identity) {
        let said = |standing: &Standing| !matches!(standing, Standing::Waiting(_));
        self.restand(key, Standing::Pending, said);
    }

    /// Says that an object is as it was applied, where it was left otherwise.
    pub(crate) fn is_as_applied(&self, key: &Identity) {
        let otherwise =
            |standing: &Standing| standing.is_left() || matches!(standing, Standing::Failed(_));
        self.restand(key, Standing::Applied, otherwise);
    }

    /// Says that nobody wants an object to be left alone any more.
    pub(crate) fn end_left_alone(&self, key: &Identity) {
        let alone = |standing: &Standing| matches!(standing, Standing::LeftAlone(_));
        self.restand(key, Standing::Applied, alone);
    }

    /// Remembers what people's tools have on an object that is left so.
    pub(crate) fn tolerate(&self, key: &Identity, people: Option<Owned>) {
        let mut state = self.state();
        match people {
            Some(people) => state.tolerated.insert(key.clone(), people),
            None => state.tolerated.remove(key),
        };
    }

    /// Whether that is all that people's tools have on an object.
    pub(crate) fn is_tolerated(&self, key: &Identity, people: Option<Owned>) -> bool {
        self.state().tolerated.get(key).copied() == people
    }

    /// Takes the objects that are not as Git says and are left so: another generation may say otherwise.
    pub(crate) fn reconsider(&self) -> HashSet<Identity> {
        let mut state = self.state();
        let tolerated = std::mem::take(&mut state.tolerated);
        let objects = state.objects.iter();
        let drifted = objects.filter(|(_, o)| matches!(o.standing, Standing::Drifted(_)));
        drifted
            .map(|(key, _)| key.clone())
            .chain(tolerated.into_keys())
            .collect()
    }

    /// Whether a person has said on the object that it is not to be touched.
    pub(crate) fn is_left_alone(&self, key: &Identity) -> bool {
        let state = self.state();
        let seen = state
            .objects
            .get(key)
            .and_then(|object| object.seen.as_ref());
        seen.is_some_and(|seen| seen.left_alone)
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
        match state.objects.get(key).map(|object| &object.standing) {
            Some(Standing::Applied | Standing::LeftAlone(_) | Standing::Drifted(_)) => None,
            Some(
                Standing::Waiting(why) | Standing::Failed(why) | Standing::Approval { why, .. },
            ) => Some(why.clone()),
            Some(Standing::Pending) | None => Some("not applied yet".to_owned()),
        }
    }

    /// Whether something that is no longer wanted waits for something else.
    pub(crate) fn waits_for_replacements(&self) -> bool {
        let state = self.state();
        let mut all = state.leftovers.values();
        all.any(|leftover| leftover.state == LeftoverState::Waiting)
    }

    /// Says what an object waits for whose turn has come and which nothing is known of yet.
    pub(crate) fn waits(&self, key: &Identity, why: &str) {
        let waits =
            |standing: &Standing| matches!(standing, Standing::Pending | Standing::Waiting(_));
        self.restand(key, Standing::Waiting(why.to_owned()), waits);
    }

    /// Wakes the engine when all objects of one of these groups are well.
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

    /// Says what the API server answered: the object's UID and, where its kind has one, its generation.
    pub(crate) fn applied(&self, key: &Identity, uid: &str, generation: Option<i64>) {
        self.update(key, |object| {
            let changed = object.standing != Standing::Applied
                || object.uid.as_deref() != Some(uid)
                || object.generation != generation;
            object.standing = Standing::Applied;
            object.uid = Some(uid.to_owned());
            object.generation = generation;
            changed
        });
    }

    /// Remembers a drift.
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

    /// Says what a watch saw; `None` where it saw the object go.
    pub(crate) fn see(&self, key: &Identity, seen: Option<Seen>) {
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
            // Whoever changes what fails may have repaired it.
            let fails = matches!(
                object.standing,
                Standing::Failed(_) | Standing::Approval { .. }
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

    /// Waits until the watches have seen what was applied of these objects.
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

    /// Says that a watch saw the object with this UID go.
    pub(crate) fn see_go(&self, key: &Identity, uid: Option<&str>) {
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

    /// Says that somebody undoes an object again and again; `None` where that is over.
    pub(crate) fn fight(&self, key: &Identity, message: Option<String>) {
        self.update(key, |object| {
            let changed = object.fought != message;
            object.fought = message;
            changed
        });
    }

    /// Says what the pods of an object that is not well say.
    pub(crate) fn explain(&self, key: &Identity, reason: Option<String>) {
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
    pub(crate) fn goes_on(&self) {
        let mut state = self.state();
        if state.problem.take().is_some() {
            drop(state);
            self.changed.notify_one();
            self.ended.notify_one();
        }
    }

    /// Says what is not wanted and not gone.
    pub(crate) fn leave(&self, leftovers: BTreeMap<Identity, Leftover>) {
        let mut state = self.state();
        if state.leftovers != leftovers {
            state.leftovers = leftovers;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Says what is not wanted, where nothing is known of it yet, and forgets what is wanted again.
    pub(crate) fn expect_to_leave(
        &self,
        leaving: BTreeMap<Identity, Leftover>,
        wanted: &HashSet<&Identity>,
    ) {
        let mut guard = self.state();
        let state = &mut *guard;
        let before = state.leftovers.len();
        state.leftovers.retain(|key, _| !wanted.contains(key));
        let held: HashSet<&ObjectRef> = state.holds.iter().flat_map(|hold| &hold.objects).collect();
        let mut changed = state.leftovers.len() != before;
        for (key, leftover) in leaving {
            if !held.contains(&leftover.id) && !state.leftovers.contains_key(&key) {
                state.leftovers.insert(key, leftover);
                changed = true;
            }
        }
        drop(guard);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Says what is not wanted and waits for an approval.
    pub(crate) fn hold(&self, holds: Vec<Hold>) {
        let mut state = self.state();
        if state.holds != holds {
            state.holds = holds;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Reports an object that is not as it was left.
    pub(crate) fn drift(&self, key: Identity) {
        let mut state = self.state();
        if !state.resting.contains(&key) {
            state.drifted.insert(key);
            drop(state);
            self.drift.notify_one();
        }
    }

    /// Leaves an object as somebody has made it for a while, whatever the watches see meanwhile: its time
    /// to be looked at comes.
    pub(crate) fn rest(&self, key: &Identity) {
        self.state().resting.insert(key.clone());
    }

    /// Ends that.
    pub(crate) fn end_rest(&self, key: &Identity) {
        self.state().resting.remove(key);
    }

    /// Takes what has drifted since the last call.
    pub(crate) fn take_drifted(&self) -> HashSet<Identity> {
        let mut state = self.state();
        state.woken = false;
        std::mem::take(&mut state.drifted)
    }

    /// Returns when something has drifted, or the engine is woken.
    pub(crate) async fn stirred(&self) {
        let calm = |state: &State| state.drifted.is_empty() && !state.woken;
        while calm(&self.state()) {
            self.drift.notified().await;
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

    /// Publishes the level whenever it has changed: at most once in `pause`, and at the end of a run.
    pub(crate) async fn publish(&self, to: watch::Sender<Arc<Observed>>, pause: Duration) {
        loop {
            let silence = self.state().silent.first().map(|(until, _)| *until);
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(silence.unwrap_or_else(Instant::now)),
                    if silence.is_some() => self.end_silence(),
            }
            to.send_replace(Arc::new(self.level()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ended.notified() => {}
            }
        }
    }

    /// Takes objects on which nobody has reported for long enough for well.
    fn end_silence(&self) {
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

    fn level(&self) -> Observed {
        let mut guard = self.state();
        let state = &mut *guard;
        let known = std::mem::take(&mut state.published);
        let mut known: HashMap<_, _> = known.into_iter().map(|b| (b.app.clone(), b)).collect();
        for (index, section) in state.sections.iter().enumerate() {
            let known = known.remove(&section.app);
            let bundle = if let Some(known) = &known
                && !state.stale.contains(&index)
            {
                known.clone()
            } else {
                let drifts = state.drifts.get(&section.app);
                let bundle = observe(section, &state.objects, drifts);
                known
                    .filter(|known| **known == bundle)
                    .unwrap_or_else(|| Arc::new(bundle))
            };
            state.published.push(bundle);
        }
        state.stale.clear();
        Observed {
            generation: state.generation,
            settled: state.settled,
            problem: state.problem.clone(),
            bundles: state.published.clone(),
            leftovers: state.leftovers.values().cloned().collect(),
            holds: state
                .holds
                .iter()
                .cloned()
                .chain(recreations(&state.published))
                .collect(),
            cluster_scoped: state.cluster_scoped.clone(),
        }
    }
}

impl State {
    /// Whether every object of a group is well.
    fn is_open(&self, gate: usize) -> bool {
        let well = |(key, hook): &(Identity, bool)| {
            self.objects
                .get(key)
                .is_some_and(|object| is_well(object, *hook))
        };
        self.gates[gate].iter().all(well)
    }
}

/// What can only be created anew and waits for an approval.
fn recreations(bundles: &[Arc<ObservedBundle>]) -> impl Iterator<Item = Hold> {
    // A level is published often, and of most bundles nothing waits.
    let waiting = bundles.iter().filter(|bundle| bundle.counts.waiting > 0);
    let objects =
        waiting.flat_map(|bundle| bundle.objects.iter().map(move |object| (bundle, object)));
    objects.filter_map(|(bundle, object)| {
        let Standing::Approval { set, why } = &object.standing else {
            return None;
        };
        Some(Hold {
            app: bundle.app.clone(),
            set: *set,
            recreate: true,
            reason: why.clone(),
            objects: vec![(*object.id).clone()],
        })
    })
}

fn observe(
    section: &Section,
    objects: &HashMap<Identity, Object>,
    drifts: Option<&VecDeque<DriftEvent>>,
) -> ObservedBundle {
    let mut counts = Counts {
        total: section.rows.len(),
        ..Counts::default()
    };
    let row = |row: &Row| {
        let none = Object::default();
        let object = objects.get(&row.key).unwrap_or(&none);
        let Assessment { health, message } = health(object);
        let standing = match &object.fought {
            Some(message) => &Standing::Failed(message.clone()),
            None => &object.standing,
        };
        match standing {
            Standing::Pending => {}
            Standing::Applied | Standing::LeftAlone(_) => counts.applied += 1,
            Standing::Waiting(_) | Standing::Approval { .. } => counts.waiting += 1,
            Standing::Failed(_) => counts.failed += 1,
            Standing::Drifted(_) => counts.drifted += 1,
        }
        counts.healthy += usize::from(matches!(health, Health::Healthy | Health::Suspended));
        ObservedObject {
            id: row.id.clone(),
            uid: object.seen.as_ref().map(|seen| seen.uid.clone()),
            standing: standing.clone(),
            health,
            message,
            has_pods: object.seen.as_ref().is_some_and(|seen| seen.has_pods),
        }
    };
    let objects: Vec<_> = section.rows.iter().map(row).collect();
    ObservedBundle {
        app: section.app.clone(),
        role: section.role,
        hash: section.hash,
        health: worst_of(objects.iter().map(|object| object.health)),
        objects,
        counts,
        drifts: drifts.into_iter().flatten().cloned().collect(),
    }
}
