//! One run: it changes the cluster's objects to those of one generation, as far as that is possible
//! now.
//!
//! Every run does the whole work: it reads the desired state and the inventory, sends what differs
//! in the order of the dependencies, and then prunes. A run can be interrupted at any point, by a
//! newer generation or by a crash; the next run does the rest.

mod body;
mod dependents;
mod desired;
mod discover;
mod drift;
mod prune;
mod recreate;
mod replaced;
mod schedule;
mod send;
mod stages;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use kube::runtime::events::{Recorder, Reporter};
use muster_model::{
    agent_records,
    bundle::{Gvk, ObjectRef},
    ids::{AppName, ClusterName, ContentHash},
    scopes::is_namespaced,
};
use muster_plan::{
    health::{Assessment, Health},
    order::{After, Item, Order, order},
    retry::Pauses,
};
use tokio_util::sync::CancellationToken;

pub use self::body::applied_objects;
use self::{
    desired::{Claim, DesiredObject, Prepared, desired},
    drift::Finding,
    schedule::{Schedule, UnderWay},
    stages::Work,
};
use crate::{
    NamespaceAccess, StoredGeneration,
    cluster::{Cluster, RequestError, explain},
    inventory::{Identity, Inventory, InventoryError},
    kinds::{Kind, Kinds},
    object_tracker::{ObjectTracker, TrackedBundle, TrackedObject},
    observed::{LeftoverState, ObjectState},
    watches::{Observer, Watched},
};

/// The configuration of an [`crate::Applier`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The namespace of the agent's own records. Apps can't own these records, and prune never
    /// deletes them.
    pub namespace: String,
    /// The name of the cluster in its fleet; `None` if it is in none.
    pub cluster: Option<ClusterName>,
    /// The part of the cluster that the agent may touch.
    pub namespaces: NamespaceAccess,
    /// The most objects that are deleted without approval within an hour, whatever a generation
    /// says.
    pub prune_ceiling: Option<usize>,
    /// The most requests that are under way at the same time. The actual limit adapts to how fast
    /// the API server answers and to what it refuses.
    pub concurrency: usize,
    /// The longest time that a run waits for the API server to serve a kind that was defined in the
    /// same run.
    pub established_within: Duration,
    /// The first pause before something that failed or waits is tried again. Each further pause is
    /// twice as long.
    pub first_retry: Duration,
    /// The longest pause between two attempts.
    pub longest_retry: Duration,
    /// The longest pause before Muster reverts an object that somebody else changes repeatedly.
    pub longest_fight: Duration,
    /// The longest time that an object that left Git stays while its app's new objects are applied
    /// but not healthy.
    pub replaced_within: Duration,
    /// The shortest time between two published [`crate::Observed`] values. A run's result is published immediately.
    pub publish_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: agent_records::NAMESPACE.to_owned(),
            cluster: None,
            namespaces: NamespaceAccess::default(),
            prune_ceiling: None,
            concurrency: 128,
            established_within: Duration::from_secs(15),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            longest_fight: Duration::from_secs(300),
            replaced_within: Duration::from_secs(600),
            publish_every: Duration::from_millis(50),
        }
    }
}

impl Config {
    /// Returns why the agent may not touch this object, or `None` if it may.
    pub(crate) fn out_of_reach(&self, id: &ObjectRef) -> Option<String> {
        if agent_records::is_record(id, &self.namespace) {
            return Some("it is one of the agent's own records, and no app may own it".to_owned());
        }
        self.namespaces.forbids(id)
    }
}

/// An error that stops a whole run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the kinds that the cluster serves can't be read")]
    Discovery(#[source] RequestError),
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// The result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The run reached its end.
    Ran {
        /// True if every object was processed. Otherwise requests are still under way, and their
        /// end wakes the engine.
        settled: bool,
        /// True if the run must be repeated for a reason that no object's own back-off covers.
        unfinished: bool,
    },
    /// The run was interrupted by a newer generation, a pause, or the end of the agent.
    Interrupted,
}

/// The objects that a run checks in addition to what has changed.
#[derive(Debug, Default)]
pub(crate) struct Recheck {
    /// Sends every object, even if nothing has changed.
    pub(crate) everything: bool,
    /// Objects to check. Those that have drifted are sent.
    pub(crate) drifted: HashSet<Identity>,
}

/// The engine behind an applier. Requests that outlive a run share it. Only one run is under way at
/// a time.
pub(crate) struct Engine {
    cluster: Cluster,
    config: Config,
    kinds: RwLock<Arc<Kinds>>,
    /// The prepared bundles, by their hash.
    prepared: Mutex<HashMap<ContentHash, Arc<Prepared>>>,
    /// Groups and versions that have to be discovered again.
    vanished: Mutex<HashSet<(String, String)>>,
    inventory: Arc<Inventory>,
    tracker: Arc<ObjectTracker>,
    observer: Mutex<Observer>,
    schedule: Schedule,
    under_way: Arc<UnderWay>,
    /// The results of checks for drift, until a run takes them.
    findings: Mutex<HashMap<Identity, Finding>>,
    /// Objects that may have drifted and could not be checked yet.
    postponed: Mutex<HashSet<Identity>>,
    /// Objects with `if-not-present` that existed before Muster could create them. They are not
    /// changed.
    present: Mutex<HashSet<Identity>>,
    /// What was found about objects that are no longer desired. It is valid for the current
    /// generation only.
    marks: Mutex<HashMap<Identity, prune::Found>>,
    generation: Mutex<Option<ContentHash>>,
    /// The bundles of the current generation.
    bundles: Mutex<HashSet<ContentHash>>,
    /// What people have approved in the current generation.
    approved: Mutex<BTreeSet<ContentHash>>,
    /// The names of the stored copies of objects that are being recreated; `None` until they are
    /// listed.
    saved: Mutex<Option<HashSet<String>>>,
    /// The reason why the last deletion of an object was refused.
    refusals: Mutex<HashMap<Identity, String>>,
    state: Mutex<replaced::ObjectState>,
    /// The time at which objects that left Git may be deleted although their replacements are not
    /// healthy.
    replaced_at: Mutex<Option<Instant>>,
    events: Recorder,
}

/// The first pause between two checks of whether a kind is served.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// The longest time to wait, before an object is changed, until the watch of its kind has listed
/// the live objects. Only the live object shows whether a person has set `reconcile: disabled`.
const LISTED_WITHIN: Duration = Duration::from_secs(10);
/// The longest time that a run waits for one request that may hang, before it continues without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// How far one object got in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The object is as desired or left alone; `true` if it was sent in this run.
    Good(bool),
    /// The object failed or waits for something. Its own back-off says when it is tried again.
    Bad,
    /// The object waits until something else is healthy. The object tracker notices that.
    Gated,
    /// This agent may not touch the object.
    OutOfReach,
    /// A request about the object has not ended. It may be one of an earlier run.
    UnderWay,
    /// The object has not been processed yet.
    None,
}

impl Engine {
    pub(crate) fn new(
        cluster: Cluster,
        config: Config,
        inventory: Arc<Inventory>,
        tracker: Arc<ObjectTracker>,
    ) -> Self {
        let reporter = Reporter {
            controller: "muster-agent".to_owned(),
            instance: None,
        };
        let observer = Observer::new(cluster.client.clone(), tracker.clone(), inventory.clone());
        let failures = Pauses {
            first: config.first_retry,
            longest: config.longest_retry,
        };
        Self {
            observer: Mutex::new(observer),
            events: Recorder::new(cluster.client.clone(), reporter),
            schedule: Schedule::new(failures, config.longest_fight),
            under_way: Arc::default(),
            findings: Mutex::default(),
            postponed: Mutex::default(),
            cluster,
            config,
            kinds: RwLock::default(),
            prepared: Mutex::default(),
            vanished: Mutex::default(),
            present: Mutex::default(),
            marks: Mutex::default(),
            generation: Mutex::default(),
            bundles: Mutex::default(),
            approved: Mutex::default(),
            saved: Mutex::default(),
            refusals: Mutex::default(),
            state: Mutex::default(),
            replaced_at: Mutex::default(),
            inventory,
            tracker,
        }
    }

    pub(crate) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Returns the time of the next work that is due without an outside event.
    pub(crate) fn next(&self) -> Option<Instant> {
        let replaced_at = *self.replaced_at();
        let next = self.schedule.next(|key| self.under_way.has(key));
        next.into_iter().chain(replaced_at).min()
    }

    /// Waits until no request is under way.
    pub(crate) async fn calm(&self) {
        self.under_way.tasks.close();
        self.under_way.tasks.wait().await;
        self.under_way.tasks.reopen();
    }

    fn kinds(&self) -> Arc<Kinds> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.clone()
    }

    fn observer(&self) -> MutexGuard<'_, Observer> {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn findings(&self) -> MutexGuard<'_, HashMap<Identity, Finding>> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn postponed(&self) -> MutexGuard<'_, HashSet<Identity>> {
        self.postponed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, HashMap<Identity, String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, replaced::ObjectState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replaced_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.replaced_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<Identity, prune::Found>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn approved(&self) -> MutexGuard<'_, BTreeSet<ContentHash>> {
        self.approved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if a person has approved the recreation with this hash in the current
    /// generation.
    fn is_approved(&self, set: ContentHash) -> bool {
        self.approved().contains(&set)
    }

    /// Starts to work on a generation. What was found for another generation is dropped.
    fn take_up(&self, stored: &StoredGeneration) {
        let hash = stored.hash;
        let mut generation = self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let approved = std::mem::replace(&mut *self.approved(), stored.prune.approved.clone());
        if *generation != Some(hash) {
            *generation = Some(hash);
            self.marks().clear();
            self.postponed().extend(self.tracker.take_tolerated());
            let bundles = stored
                .bundles
                .iter()
                .map(crate::StoredBundle::hash)
                .collect();
            let mut before = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *before, bundles);
            let changed = stored
                .bundles
                .iter()
                .filter(|b| !before.contains(&b.hash()));
            let changed: HashSet<_> = changed.map(|b| &b.bundle().header.app).collect();
            let approves = approved != stored.prune.approved;
            self.schedule.retry_all(|key| {
                let entry = self.inventory.get(key);
                approves || entry.is_none_or(|entry| changed.contains(&entry.app))
            });
        }
    }

    /// Changes the cluster to match the generation `stored`. After a cancellation no request is started.
    /// Requests that are under way continue, and their results are recorded.
    pub(crate) async fn run(
        self: &Arc<Self>,
        stored: &StoredGeneration,
        recheck: &Recheck,
        cancel: &CancellationToken,
    ) -> Result<Outcome, RunError> {
        let prepared = self.prepare(stored);
        self.take_up(stored);
        self.discover(stored, &prepared, cancel).await?;
        let urgent = stored.urgent(self.config.cluster.as_ref());
        let kinds = self.kinds();
        let (desired, claims) = desired(stored, &prepared, &kinds, &self.inventory, &urgent);
        let desired: Vec<Arc<DesiredObject>> = desired.into_iter().map(Arc::new).collect();
        let items: Vec<Item<'_>> = desired.iter().map(|desired| desired.item()).collect();
        let headers = stored.bundles.iter().map(|bundle| &bundle.bundle().header);
        let after: After<'_> = headers
            .clone()
            .filter(|header| !urgent.contains(&header.app))
            .map(|header| (&header.app, header.after.as_slice()))
            .collect();
        let order = order(&items, &after);
        self.observer().judge_by(
            headers
                .map(|h| (h.app.clone(), h.policy.health.clone()))
                .collect(),
        );
        let refused = claims.iter().map(|claim| {
            let app = stored.bundles[claim.bundle].bundle().header.app.clone();
            (app, format!("{}: {}", claim.id, claim.refusal))
        });
        let refused: Vec<(AppName, String)> = refused.collect();
        self.announce(stored, &desired, claims);
        self.follow(&desired);
        let keys: HashSet<&Identity> = desired.iter().map(|object| &object.key).collect();
        self.announce_leaving(&keys);
        let known = |key: &Identity| self.inventory.get(key).is_some();
        self.schedule.retain(|key| keys.contains(key) || known(key));

        if let Err(error) = self.load_saved().await {
            // An object is never recreated without a copy, so this error need not stop the run.
            tracing::warn!(
                error = explain(&error),
                "the copies of objects that were being recreated can't be read"
            );
        }
        let due = self.schedule.begin();
        let (mut turns, drifted) = self.first_turns(&desired, recheck, &due, cancel).await;
        self.tell_differences(&desired, &drifted);
        self.write_ahead(&desired, &turns, &drifted, &order, cancel)
            .await?;

        let drifted = drifted.resent();
        let work = Work::new(&desired, &order, drifted, cancel);
        let mut gates = self.send_all(&work, &mut turns).await;

        let mut unfinished = turns.contains(&Turn::None);
        if !cancel.is_cancelled() {
            self.observe_soon(&desired, cancel).await;
            let replacements = self.replacements(stored, &desired, refused);
            unfinished |= self
                .prune(stored, (&items, &urgent), &replacements, recheck, cancel)
                .await?;
            let waits = self.tracker.waits_for_replacements();
            *self.replaced_at() = replacements.due.filter(|_| waits);
            gates.extend(replacements.gates.into_iter().filter(|_| waits));
            // The set of served kinds may have changed during the run.
            self.follow(&desired);
        }
        self.schedule.end(due, |key| self.under_way.has(key));
        unfinished |= turns.contains(&Turn::Bad) && self.next().is_none();
        self.tracker.wait_for(gates);
        let good = desired
            .iter()
            .zip(&turns)
            .filter(|(_, turn)| matches!(turn, Turn::Good(_)));
        self.tidy_saved(good.map(|(object, _)| &object.key)).await;
        self.inventory.flush(cancel).await?;
        if cancel.is_cancelled() {
            return Ok(Outcome::Interrupted);
        }
        Ok(Outcome::Ran {
            settled: !turns.contains(&Turn::UnderWay),
            unfinished,
        })
    }

    /// Reports the desired objects to the object tracker.
    fn announce(
        &self,
        stored: &StoredGeneration,
        desired: &[Arc<DesiredObject>],
        claims: Vec<Claim>,
    ) {
        let mut sections: Vec<TrackedBundle> = stored
            .bundles
            .iter()
            .map(|bundle| TrackedBundle {
                app: bundle.bundle().header.app.clone(),
                role: bundle.bundle().header.role,
                hash: bundle.hash(),
                objects: Vec::with_capacity(bundle.bundle().objects.len()),
            })
            .collect();
        for desired in desired {
            let entry = self.inventory.get(&desired.key);
            let failing = self.schedule.is_failing(&desired.key, desired.digest());
            let applied = entry.filter(|entry| entry.applied == Some(desired.digest()) && !failing);
            let ended = applied.as_ref().and_then(|entry| {
                let failed = entry.failed.clone().map(|why| Assessment {
                    health: Health::Degraded,
                    message: Some(why),
                });
                failed.or(entry.finished.then_some(Assessment::HEALTHY))
            });
            let row = TrackedObject {
                key: desired.key.clone(),
                id: desired.id.clone(),
                ended,
                applied: applied.and_then(|entry| entry.uid.clone()),
            };
            sections[desired.bundle].objects.push(row);
        }
        for claim in &claims {
            sections[claim.bundle].objects.push(TrackedObject {
                ended: None,
                key: claim.key.clone(),
                id: claim.id.clone(),
                applied: None,
            });
        }
        let outside = desired.iter().filter(|object| {
            let gvk = &object.id.gvk;
            object.id.namespace.is_none() && is_namespaced(&gvk.group, &gvk.kind).is_none()
        });
        let outside: BTreeSet<String> = outside
            .map(|object| format!("{}.{}", object.id.gvk.kind, object.id.gvk.group))
            .collect();
        let outside = outside.into_iter().collect();
        self.tracker
            .begin((stored.generation, stored.hash), sections, outside);
        for claim in claims {
            self.tracker
                .set_state(&claim.key, ObjectState::Failed(claim.refusal));
        }
    }

    /// Reports to the object tracker which objects are no longer desired, before they are
    /// processed.
    fn announce_leaving(&self, desired: &HashSet<&Identity>) {
        let entries = self.inventory.entries().into_iter();
        let leaving = entries.filter(|(key, entry)| !desired.contains(key) && entry.uid.is_some());
        let leaving = leaving.map(|(key, entry)| {
            let leftover = crate::Leftover {
                id: entry.id.clone(),
                app: entry.app.clone(),
                state: LeftoverState::Waiting,
                message: "it will be deleted after the desired state has been applied".to_owned(),
            };
            (key, leftover)
        });
        self.tracker.expect_leftovers(leaving.collect(), desired);
    }

    /// Writes every object that may be sent in this run into the inventory. The entry of an object
    /// that is only sent to revert drift stays unchanged, because its applied content stays the
    /// same.
    async fn write_ahead(
        &self,
        desired: &[Arc<DesiredObject>],
        turns: &[Turn],
        drifted: &drift::Drifted,
        order: &Order,
        cancel: &CancellationToken,
    ) -> Result<(), InventoryError> {
        for (index, object) in desired.iter().enumerate() {
            let taught = order.needs[index]
                .iter()
                .any(|&need| desired[need].defines().is_some() && turns[need] != Turn::OutOfReach);
            if turns[index] == Turn::None
                && (object.kind.is_some() || taught)
                && !drifted.is_there(index)
            {
                self.inventory
                    .begin(&object.key, &object.id, object.header(), object.defines());
            }
        }
        self.inventory.flush(cancel).await
    }

    /// Watches the kinds of all objects that are desired or in the inventory. The watches cover the
    /// whole cluster, or only the namespaces that the agent is limited to.
    fn follow(&self, desired: &[Arc<DesiredObject>]) {
        let entries = self.inventory.entries();
        let entries = entries.iter().map(|(_, entry)| &entry.id);
        let served = self.kinds();
        let mut kinds: HashMap<Watched, Arc<Kind>> = HashMap::new();
        for id in desired.iter().map(|desired| &*desired.id).chain(entries) {
            if self.config.out_of_reach(id).is_some() {
                continue;
            }
            if let Some(kind) = served.any_version(&id.gvk) {
                let watched = Watched::of(id, self.config.namespaces.is_limited());
                kinds.entry(watched).or_insert(kind);
            }
        }
        self.observer().follow(&kinds);
    }

    /// Records that a kind is no longer served.
    fn vanish(&self, gvk: &Gvk) {
        let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        vanished.insert((gvk.group.clone(), gvk.version.clone()));
    }
}

/// The objects that are no longer desired and not gone yet, as a run collects them.
type Leftovers = BTreeMap<Identity, crate::Leftover>;
