//! One run: makes the cluster's objects those of one generation, as far as it can be done now.
//!
//! Every run does the whole: it reads what is wanted and what the inventory knows, sends what differs
//! in the order of what needs what, then prunes. Being interrupted at any point, by a newer generation
//! or by death, costs nothing but time: the next run does what is left.

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
    bundle::{Gvk, ObjectRef},
    ids::{AppName, ContentHash},
    records,
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

/// How an [`crate::Applier`] works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the agent keeps its records, and what it therefore never deletes.
    pub namespace: String,
    /// What of the cluster it may touch.
    pub reach: NamespaceAccess,
    /// How many objects are deleted unasked within an hour at most, whatever a generation says.
    pub prune_ceiling: Option<usize>,
    /// The most requests that are under way at the same time. How many there are follows what the API
    /// server gains by and what it says.
    pub concurrency: usize,
    /// How long a run waits for the API server to serve a kind that it has just been taught.
    pub established_within: Duration,
    /// The first pause before what failed or waits is tried again; it doubles.
    pub first_retry: Duration,
    /// The longest such pause.
    pub longest_retry: Duration,
    /// The longest pause before an object is corrected that somebody undoes again and again.
    pub longest_fight: Duration,
    /// How long what an app no longer wants stays at most while what it wants is applied and not healthy.
    pub replaced_within: Duration,
    /// The least time between two levels of [`crate::Observed`].
    pub publish_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: records::NAMESPACE.to_owned(),
            reach: NamespaceAccess::default(),
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
    /// Why this object is not the agent's to touch; `None` where it is.
    pub(crate) fn out_of_reach(&self, id: &ObjectRef) -> Option<String> {
        if records::is_record(id, &self.namespace) {
            return Some("it is one of the agent's own records, and no app may have it".to_owned());
        }
        self.reach.forbids(id)
    }
}

/// What stops a whole run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the kinds that the cluster serves can't be read")]
    Discovery(#[source] RequestError),
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It came to its end.
    Ran {
        /// Every object had its turn. Otherwise requests are under way, whose end wakes the engine.
        settled: bool,
        /// Something is worth another try for a reason that no object's own time tells.
        unfinished: bool,
    },
    /// A newer generation or the end of the agent came first.
    Interrupted,
}

/// What a run should look at beside what has changed.
#[derive(Debug, Default)]
pub(crate) struct Recheck {
    /// Send every object, changed or not.
    pub(crate) everything: bool,
    /// Look at these, and send them where they are not as they were left.
    pub(crate) drifted: HashSet<Identity>,
}

/// All of it can be shared with requests that outlive a run. Only one run is under way at a time.
pub(crate) struct Engine {
    cluster: Cluster,
    config: Config,
    kinds: RwLock<Arc<Kinds>>,
    /// By bundle.
    prepared: Mutex<HashMap<ContentHash, Arc<Prepared>>>,
    /// Groups and versions to be asked for again.
    vanished: Mutex<HashSet<(String, String)>>,
    inventory: Arc<Inventory>,
    tracker: Arc<ObjectTracker>,
    observer: Mutex<Observer>,
    schedule: Schedule,
    under_way: Arc<UnderWay>,
    /// What was found of objects that may have drifted, until a run takes it.
    findings: Mutex<HashMap<Identity, Finding>>,
    /// Objects that may have drifted, and that could not be looked at yet.
    postponed: Mutex<HashSet<Identity>>,
    /// What is there and is not to be changed, of those that are created only where they are missing.
    present: Mutex<HashSet<Identity>>,
    /// What was found on objects that are not wanted, for the generation in which that was.
    marks: Mutex<HashMap<Identity, prune::Found>>,
    generation: Mutex<Option<ContentHash>>,
    /// The bundles of that generation.
    bundles: Mutex<HashSet<ContentHash>>,
    /// What people have approved, in that generation.
    approved: Mutex<BTreeSet<ContentHash>>,
    /// Objects of which a copy is kept while they are recreated; `None` before that was asked.
    saved: Mutex<Option<HashSet<String>>>,
    /// Why objects were not deleted when that was last asked for.
    refusals: Mutex<HashMap<Identity, String>>,
    state: Mutex<replaced::ObjectState>,
    /// When what an app no longer wants may go though what it wants is not healthy.
    replaced_at: Mutex<Option<Instant>>,
    events: Recorder,
}

/// Pauses between looks at whether a kind is served.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// How long a request that changes an object waits for its kind's watch to have seen it, since people
/// may have said on the object that it is to be left alone.
const LISTED_WITHIN: Duration = Duration::from_secs(10);
/// How long a run waits for one request that may hang before it goes on without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// How one object's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// As it should be; `true` where it was sent in this run.
    Good(bool),
    /// It failed, or waits for something; it has a time of its own to be tried again.
    Bad,
    /// Held back until something else is well, which will be noticed.
    Gated,
    /// This agent may not touch it.
    OutOfReach,
    /// A request about it has not ended, maybe one of an earlier run.
    UnderWay,
    /// Not had yet.
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

    /// When something is to be done next without a reason from outside.
    pub(crate) fn next(&self) -> Option<Instant> {
        let replaced_at = *self.replaced_at();
        let next = self.schedule.next(|key| self.under_way.has(key));
        next.into_iter().chain(replaced_at).min()
    }

    /// Returns when no request is under way.
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

    /// Whether a person has approved this, in the generation that is worked on.
    fn is_approved(&self, set: ContentHash) -> bool {
        self.approved().contains(&set)
    }

    /// Begins to work on a generation; what was found for another is void.
    fn take_up(&self, kept: &StoredGeneration) {
        let hash = kept.hash;
        let mut generation = self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let approved = std::mem::replace(&mut *self.approved(), kept.prune.approved.clone());
        if *generation != Some(hash) {
            *generation = Some(hash);
            self.marks().clear();
            self.postponed().extend(self.tracker.take_tolerated());
            let bundles = kept.bundles.iter().map(crate::StoredBundle::hash).collect();
            let mut before = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *before, bundles);
            let changed = kept.bundles.iter().filter(|b| !before.contains(&b.hash()));
            let changed: HashSet<_> = changed.map(|b| &b.bundle().header.app).collect();
            let approves = approved != kept.prune.approved;
            self.schedule.retry_all(|key| {
                let entry = self.inventory.get(key);
                approves || entry.is_none_or(|entry| changed.contains(&entry.app))
            });
        }
    }

    /// Makes the cluster what `kept` says. After a cancellation no request is begun; those under way
    /// go on by themselves, and what they come to is recorded.
    pub(crate) async fn run(
        self: &Arc<Self>,
        kept: &StoredGeneration,
        recheck: &Recheck,
        cancel: &CancellationToken,
    ) -> Result<Outcome, RunError> {
        let prepared = self.prepare(kept);
        self.take_up(kept);
        self.discover(kept, &prepared, cancel).await?;
        let (desired, claims) = desired(kept, &prepared, &self.kinds(), &self.inventory);
        let desired: Vec<Arc<DesiredObject>> = desired.into_iter().map(Arc::new).collect();
        let items: Vec<Item<'_>> = desired.iter().map(|desired| desired.item()).collect();
        let headers = kept.bundles.iter().map(|bundle| &bundle.bundle().header);
        let after: After<'_> = headers
            .clone()
            .map(|header| (&header.app, header.after.as_slice()))
            .collect();
        let order = order(&items, &after);
        self.observer().judge_by(
            headers
                .map(|h| (h.app.clone(), h.policy.health.clone()))
                .collect(),
        );
        let refused = claims.iter().map(|claim| {
            let app = kept.bundles[claim.bundle].bundle().header.app.clone();
            (app, format!("{}: {}", claim.id, claim.refusal))
        });
        let refused: Vec<(AppName, String)> = refused.collect();
        self.announce(kept, &desired, claims);
        self.follow(&desired);
        let keys: HashSet<&Identity> = desired.iter().map(|object| &object.key).collect();
        self.announce_leaving(&keys);
        let known = |key: &Identity| self.inventory.get(key).is_some();
        self.schedule.retain(|key| keys.contains(key) || known(key));

        if let Err(error) = self.load_saved().await {
            // Nothing is recreated without a copy, so that this stops nothing else.
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
            let replacements = self.replacements(kept, &desired, refused);
            unfinished |= self
                .prune(kept, &items, &replacements, recheck, cancel)
                .await?;
            let waits = self.tracker.waits_for_replacements();
            *self.replaced_at() = replacements.due.filter(|_| waits);
            gates.extend(replacements.gates.into_iter().filter(|_| waits));
            // Kinds may have come and gone.
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

    /// Tells the board what is wanted.
    fn announce(
        &self,
        kept: &StoredGeneration,
        desired: &[Arc<DesiredObject>],
        claims: Vec<Claim>,
    ) {
        let mut sections: Vec<TrackedBundle> = kept
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
            .begin((kept.generation, kept.hash), sections, outside);
        for claim in claims {
            self.tracker
                .set_state(&claim.key, ObjectState::Failed(claim.refusal));
        }
    }

    /// Tells the board what is not wanted any more, before anything is done about it.
    fn announce_leaving(&self, desired: &HashSet<&Identity>) {
        let entries = self.inventory.entries().into_iter();
        let leaving = entries.filter(|(key, entry)| !desired.contains(key) && entry.uid.is_some());
        let leaving = leaving.map(|(key, entry)| {
            let leftover = crate::Leftover {
                id: entry.id.clone(),
                app: entry.app.clone(),
                state: LeftoverState::Waiting,
                message: "it goes when what is wanted has been applied".to_owned(),
            };
            (key, leftover)
        });
        self.tracker.expect_leftovers(leaving.collect(), desired);
    }

    /// Writes into the inventory every object that may be sent in this run. One that is only put right
    /// is what it was before, whatever becomes of the request.
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

    /// Watches the kinds of everything that is wanted or in the inventory: all of the cluster's
    /// objects, or those of the namespaces that the agent is limited to.
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
                let watched = Watched::of(id, self.config.reach.is_limited());
                kinds.entry(watched).or_insert(kind);
            }
        }
        self.observer().follow(&kinds);
    }

    /// Remembers that a kind that was served is not served any more.
    fn vanish(&self, gvk: &Gvk) {
        let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        vanished.insert((gvk.group.clone(), gvk.version.clone()));
    }
}

/// What is not wanted and not gone, while it is put together.
type Leftovers = BTreeMap<Identity, crate::Leftover>;
