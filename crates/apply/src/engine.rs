//! One run: makes the cluster's objects those of one generation, as far as it can be done now.
//!
//! Every run does the whole: it reads what is wanted and what the inventory knows, sends what differs
//! in the order of what needs what, then prunes. Being interrupted at any point, by a newer generation
//! or by death, costs nothing but time: the next run does what is left.

mod body;
mod discover;
mod doubts;
mod prune;
mod recreate;
mod send;
mod stages;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::runtime::events::{Recorder, Reporter};
use muster_model::{
    bundle::{Gvk, ObjectRef},
    ids::ContentHash,
};
use muster_plan::order::{Item, Order, order};
use tokio_util::sync::CancellationToken;

pub(crate) use self::wanted::{DISABLED, RECONCILE};
use self::{
    stages::Work,
    wanted::{Prepared, Wanted, wanted},
};
use crate::{
    Kept,
    board::{Board, Row, Section},
    cluster::{Cluster, RequestError, explain},
    inventory::{Identity, Inventory, InventoryError},
    kinds::{Kind, Kinds},
    observe::{Observer, Watched},
};

/// How an [`crate::Applier`] works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the agent keeps its records, and what it therefore never deletes.
    pub namespace: String,
    /// The only namespaces whose objects it may touch; `None` where it may touch the whole cluster.
    pub namespaces: Option<BTreeSet<String>>,
    /// The most requests that are under way at the same time. How many there are follows what the API
    /// server gains by and what it says.
    pub concurrency: usize,
    /// How long a run waits for the API server to serve a kind that it has just been taught.
    pub established_within: Duration,
    /// The first pause before what failed or waits is tried again; it doubles.
    pub first_retry: Duration,
    /// The longest such pause.
    pub longest_retry: Duration,
    /// The least time between two levels of [`crate::Observed`].
    pub publish_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "muster-system".to_owned(),
            namespaces: None,
            concurrency: 128,
            established_within: Duration::from_secs(15),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            publish_every: Duration::from_millis(50),
        }
    }
}

impl Config {
    /// Why this object is not the agent's to touch; `None` where it is.
    pub(crate) fn out_of_reach(&self, id: &ObjectRef) -> Option<String> {
        let namespaces = self.namespaces.as_ref()?;
        let within = id
            .namespace
            .as_ref()
            .is_some_and(|n| namespaces.contains(n));
        (!within).then(|| {
            let names: Vec<&str> = namespaces.iter().map(String::as_str).collect();
            let s = if names.len() == 1 { "" } else { "s" };
            format!(
                "this agent is limited to the namespace{s} {}",
                names.join(", ")
            )
        })
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
    /// Everything is as it should be, as far as requests can tell.
    Done,
    /// Something failed or waits and is worth another try.
    Unfinished,
    /// A newer generation or the end of the agent came first.
    Interrupted,
}

/// What a run should look at beside what has changed.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// Send every object, changed or not.
    pub(crate) everything: bool,
    /// Look at these, and send them where they are not as they were left.
    pub(crate) drifted: HashSet<Identity>,
}

pub(crate) struct Engine {
    cluster: Cluster,
    config: Config,
    kinds: Kinds,
    /// By bundle.
    prepared: HashMap<ContentHash, Arc<Prepared>>,
    /// Groups and versions to be asked for again.
    vanished: Mutex<HashSet<(String, String)>>,
    inventory: Arc<Inventory>,
    board: Arc<Board>,
    observer: Observer,
    /// What is there and is not to be changed, of those that are created only where they are missing.
    present: Mutex<HashSet<Identity>>,
    /// What was found on objects that are not wanted, for the generation in which that was.
    marks: HashMap<Identity, prune::Found>,
    generation: Option<ContentHash>,
    /// Objects of which a copy is kept while they are recreated; `None` before that was asked.
    saved: Mutex<Option<HashSet<String>>>,
    events: Recorder,
}

/// Pauses between looks at whether a kind is served.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// How long a run that changes objects waits for the watches to have seen them, since people may have
/// said on the objects that they are to be left alone.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

/// How one object's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// As it should be; `true` where it was sent in this run.
    Good(bool),
    Bad,
    /// Held back until something else is well, which will be noticed.
    Gated,
    /// This agent may not touch it.
    OutOfReach,
    /// Not had yet.
    None,
}

impl Engine {
    pub(crate) fn new(
        cluster: Cluster,
        config: Config,
        inventory: Arc<Inventory>,
        board: Arc<Board>,
    ) -> Self {
        let reporter = Reporter {
            controller: "muster-agent".to_owned(),
            instance: None,
        };
        Self {
            observer: Observer::new(cluster.client.clone(), board.clone(), inventory.clone()),
            events: Recorder::new(cluster.client.clone(), reporter),
            cluster,
            config,
            kinds: Kinds::default(),
            prepared: HashMap::new(),
            vanished: Mutex::default(),
            present: Mutex::default(),
            marks: HashMap::new(),
            generation: None,
            saved: Mutex::default(),
            inventory,
            board,
        }
    }

    pub(crate) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Makes the cluster what `kept` says. After a cancellation no request is begun; those under way
    /// are awaited, and what they came to is recorded.
    pub(crate) async fn run(
        &mut self,
        kept: &Kept,
        doubt: &Doubt,
        cancel: &CancellationToken,
    ) -> Result<Outcome, RunError> {
        let prepared = self.prepare(kept);
        self.discover(kept, &prepared, cancel).await?;
        let (wanted, after) = wanted(kept, &prepared, &self.kinds, &self.inventory);
        let items: Vec<Item<'_>> = wanted.iter().map(Wanted::item).collect();
        let order = order(&items, &after);
        let rules = kept.bundles.iter().map(|bundle| &bundle.bundle().header);
        self.observer.judge_by(
            rules
                .map(|h| (h.app.clone(), h.policy.health.clone()))
                .collect(),
        );
        self.announce(kept, &wanted);
        self.follow(&wanted);

        if let Err(error) = self.load_saved().await {
            // Nothing is recreated without a copy, so that this stops nothing else.
            tracing::warn!(
                error = explain(&error),
                "the copies of objects that were being recreated can't be read"
            );
        }
        let (mut turns, drifted) = self.first_turns(&wanted, doubt, cancel).await;
        self.tell_differences(&wanted, &drifted);
        self.write_ahead(&wanted, &turns, &drifted, &order, cancel)
            .await?;

        let drifted = drifted.resent();
        let work = Work::new(&wanted, &order, drifted, cancel);
        self.send_all(&work, &mut turns).await;

        let mut unfinished = turns
            .iter()
            .any(|turn| matches!(turn, Turn::Bad | Turn::None));
        if !cancel.is_cancelled() {
            unfinished |= self.prune(kept, &items, doubt, cancel).await?;
            // Kinds may have come and gone.
            self.follow(&wanted);
        }
        let good = wanted
            .iter()
            .zip(&turns)
            .filter(|(_, turn)| matches!(turn, Turn::Good(_)));
        self.tidy_saved(good.map(|(object, _)| &object.key)).await;
        self.inventory.flush(cancel).await?;
        Ok(match (cancel.is_cancelled(), unfinished) {
            (true, _) => Outcome::Interrupted,
            (false, true) => Outcome::Unfinished,
            (false, false) => Outcome::Done,
        })
    }

    /// Tells the board what is wanted.
    fn announce(&self, kept: &Kept, wanted: &[Wanted<'_>]) {
        let mut sections: Vec<Section> = kept
            .bundles
            .iter()
            .map(|bundle| Section {
                app: bundle.bundle().header.app.clone(),
                role: bundle.bundle().header.role,
                hash: bundle.hash(),
                rows: Vec::with_capacity(bundle.bundle().objects.len()),
            })
            .collect();
        for wanted in wanted {
            let entry = self.inventory.get(&wanted.key);
            let applied = entry.filter(|entry| entry.applied == Some(wanted.digest));
            let row = Row {
                key: wanted.key.clone(),
                id: wanted.id.clone(),
                applied: applied.and_then(|entry| entry.uid.clone()),
            };
            sections[wanted.bundle].rows.push(row);
        }
        self.board.begin((kept.generation, kept.hash), sections);
    }

    /// Writes into the inventory every object that may be sent in this run. One that is only put right
    /// is what it was before, whatever becomes of the request.
    async fn write_ahead(
        &self,
        wanted: &[Wanted<'_>],
        turns: &[Turn],
        drifted: &doubts::Drifted,
        order: &Order,
        cancel: &CancellationToken,
    ) -> Result<(), InventoryError> {
        for (index, object) in wanted.iter().enumerate() {
            let taught = order.needs[index]
                .iter()
                .any(|&need| wanted[need].defines.is_some() && turns[need] != Turn::OutOfReach);
            if turns[index] == Turn::None
                && (object.kind.is_some() || taught)
                && !drifted.is_there(index)
            {
                self.inventory
                    .begin(&object.key, &object.id, object.app, object.defines);
            }
        }
        self.inventory.flush(cancel).await
    }

    /// Watches the kinds of everything that is wanted or in the inventory: all of the cluster's
    /// objects, or those of the namespaces that the agent is limited to.
    fn follow(&mut self, wanted: &[Wanted<'_>]) {
        let entries = self.inventory.entries();
        let entries = entries.iter().map(|(_, entry)| &entry.id);
        let mut kinds: HashMap<Watched, Arc<Kind>> = HashMap::new();
        for id in wanted.iter().map(|wanted| &*wanted.id).chain(entries) {
            if self.config.out_of_reach(id).is_some() {
                continue;
            }
            if let Some(kind) = self.kinds.any_version(&id.gvk) {
                let limited = self.config.namespaces.is_some();
                let watched = Watched {
                    group: kind.gvk.group.clone(),
                    kind: kind.gvk.kind.clone(),
                    namespace: id.namespace.clone().filter(|_| limited),
                };
                kinds.entry(watched).or_insert(kind);
            }
        }
        self.observer.follow(&kinds);
    }

    /// Remembers that a kind that was served is not served any more.
    fn vanish(&self, gvk: &Gvk) {
        let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        vanished.insert((gvk.group.clone(), gvk.version.clone()));
    }
}

/// What is not wanted and not gone, while it is put together.
type Leftovers = BTreeMap<Identity, crate::Leftover>;
