//! One run: makes the cluster's objects those of one generation, as far as it can be done now.
//!
//! Every run does the whole: it reads what is wanted and what the inventory knows, sends what differs
//! in the order of what needs what, then prunes. Being interrupted at any point, by a newer generation
//! or by death, costs nothing but time: the next run does what is left.

mod body;
mod prune;
mod wanted;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use kube::Client;
use muster_model::{bundle::Gvk, ids::ContentHash};
use muster_plan::order::{Item, Order, order};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::wanted::{Prepared, Wanted, wanted};
use crate::{
    Kept, KeptBundle,
    board::{Board, Row, Section, Standing},
    cluster::{Cluster, RequestError, explain, retried},
    inventory::{Identity, Inventory, InventoryError},
    kinds::{Kind, Kinds, Lookup},
    observe::Observer,
};

/// How an [`crate::Applier`] works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the agent keeps its records, and what it therefore never deletes.
    pub namespace: String,
    /// Requests under way at the same time.
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
            concurrency: 16,
            established_within: Duration::from_secs(15),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            publish_every: Duration::from_millis(50),
        }
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
    /// What is being deleted since an earlier run.
    terminating: HashSet<Identity>,
    /// Groups and versions to be asked for again.
    vanished: Mutex<HashSet<(String, String)>>,
    inventory: Arc<Inventory>,
    board: Arc<Board>,
    observer: Observer,
}

/// Pauses between looks at whether a kind is served.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// How often an object is sent again that was refused right after its definition changed: the API
/// server takes up a new schema a moment after it has answered.
const SCHEMA_ATTEMPTS: u32 = 6;
const SCHEMA_PAUSE: Duration = Duration::from_millis(150);

/// How one object's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// As it should be; `true` where it was sent in this run.
    Good(bool),
    Bad,
    /// Not had yet.
    None,
}

impl Engine {
    pub(crate) fn new(
        client: Client,
        config: Config,
        inventory: Arc<Inventory>,
        board: Arc<Board>,
    ) -> Self {
        Self {
            observer: Observer::new(client.clone(), board.clone(), inventory.clone()),
            cluster: Cluster { client },
            config,
            kinds: Kinds::default(),
            prepared: HashMap::new(),
            terminating: HashSet::new(),
            vanished: Mutex::default(),
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

        let mut turns = self.first_turns(&wanted, doubt, cancel).await;
        self.announce(kept, &wanted, &turns);
        self.write_ahead(&wanted, &turns, &order).await?;
        self.follow(&wanted);

        let mut late = Vec::new();
        for stage in &order.stages {
            let (now, parked) = self.ready(stage, &wanted, &order, &mut turns, cancel).await;
            late.extend(parked);
            self.send(now, &wanted, &order, &mut turns, cancel).await;
        }
        self.send_late(late, &wanted, &order, &mut turns, cancel)
            .await;

        let mut unfinished = turns.iter().any(|turn| !matches!(turn, Turn::Good(_)));
        if !cancel.is_cancelled() {
            unfinished |= self.prune(&items, cancel).await;
            // Kinds may have come and gone.
            self.follow(&wanted);
        }
        self.inventory.flush().await?;
        Ok(match (cancel.is_cancelled(), unfinished) {
            (true, _) => Outcome::Interrupted,
            (false, true) => Outcome::Unfinished,
            (false, false) => Outcome::Done,
        })
    }

    /// Tells the board what is wanted.
    fn announce(&self, kept: &Kept, wanted: &[Wanted<'_>], turns: &[Turn]) {
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
        for (wanted, turn) in wanted.iter().zip(turns) {
            let entry = matches!(turn, Turn::Good(_)).then(|| self.inventory.get(&wanted.key));
            let row = Row {
                key: wanted.key.clone(),
                id: wanted.id.clone(),
                applied: entry.flatten().and_then(|entry| entry.uid.clone()),
            };
            sections[wanted.bundle].rows.push(row);
        }
        self.board.begin((kept.generation, kept.hash), sections);
    }

    /// Says of each object whether it has to be sent at all: not where the inventory knows its UID and
    /// that this very content was applied.
    async fn first_turns(
        &self,
        wanted: &[Wanted<'_>],
        doubt: &Doubt,
        cancel: &CancellationToken,
    ) -> Vec<Turn> {
        let mut turns = vec![Turn::None; wanted.len()];
        let mut doubted = Vec::new();
        for (index, object) in wanted.iter().enumerate() {
            let Some(entry) = self.inventory.get(&object.key) else {
                continue;
            };
            let Some(uid) = entry.uid.as_deref() else {
                continue;
            };
            if entry.applied == Some(object.digest) && !doubt.everything {
                turns[index] = Turn::Good(false);
                if let Some(kind) = object
                    .kind
                    .as_ref()
                    .filter(|_| doubt.drifted.contains(&object.key))
                {
                    doubted.push((index, kind.clone(), uid.to_owned()));
                }
            }
        }
        // What a watch says can be older than what was applied since; the object itself decides.
        let looks = stream::iter(doubted).map(|(index, kind, uid)| async move {
            let object = &wanted[index];
            let path = kind.path(&object.id);
            let live = retried(cancel, || self.cluster.metadata(&path)).await;
            let same = live.is_ok_and(|live| {
                live.is_some_and(|live| live.uid == uid && live.app() == Some(object.app.as_str()))
            });
            (index, same)
        });
        let mut looks = looks.buffer_unordered(self.config.concurrency);
        while let Some((index, same)) = looks.next().await {
            if !same {
                turns[index] = Turn::None;
            }
        }
        turns
    }

    /// Writes into the inventory every object that may be sent in this run.
    async fn write_ahead(
        &self,
        wanted: &[Wanted<'_>],
        turns: &[Turn],
        order: &Order,
    ) -> Result<(), InventoryError> {
        for (index, object) in wanted.iter().enumerate() {
            let taught = order.needs[index]
                .iter()
                .any(|&need| wanted[need].defines.is_some());
            if turns[index] == Turn::None && (object.kind.is_some() || taught) {
                self.inventory
                    .begin(&object.key, &object.id, object.app, object.defines);
            }
        }
        self.inventory.flush().await
    }

    /// Watches the kinds of everything that is wanted or in the inventory.
    fn follow(&mut self, wanted: &[Wanted<'_>]) {
        let mut kinds: HashMap<(String, String), Arc<Kind>> = HashMap::new();
        let mut add = |kind: Arc<Kind>| {
            kinds
                .entry((kind.gvk.group.clone(), kind.gvk.kind.clone()))
                .or_insert(kind);
        };
        for wanted in wanted {
            if let Some(kind) = self.kinds.any_version(&wanted.id.gvk) {
                add(kind);
            }
        }
        for (_, entry) in self.inventory.entries() {
            if let Some(kind) = self.kinds.any_version(&entry.id.gvk) {
                add(kind);
            }
        }
        self.observer.follow(&kinds);
    }

    /// Splits a stage into what can be sent now and what waits for its kind to be served; says of the
    /// rest why it can't be sent.
    async fn ready(
        &mut self,
        stage: &[usize],
        wanted: &[Wanted<'_>],
        order: &Order,
        turns: &mut [Turn],
        cancel: &CancellationToken,
    ) -> (Vec<(usize, Arc<Kind>)>, Vec<usize>) {
        let mut looked = HashSet::new();
        let (mut now, mut parked) = (Vec::new(), Vec::new());
        for &index in stage {
            if turns[index] != Turn::None || cancel.is_cancelled() {
                continue;
            }
            let object = &wanted[index];
            if let Some(&need) = order.needs[index]
                .iter()
                .find(|need| turns[**need] == Turn::Bad)
            {
                self.wait(
                    object,
                    &mut turns[index],
                    format!("{} is not applied", wanted[need].id),
                );
                continue;
            }
            let gvk = &object.id.gvk;
            let taught = order.needs[index]
                .iter()
                .any(|&need| wanted[need].defines.is_some());
            if taught
                && !matches!(self.kinds.find(gvk), Lookup::Served(_))
                && looked.insert((&gvk.group, &gvk.version))
            {
                // An error is as good as a no: it is asked again.
                let _ = self
                    .kinds
                    .refresh_version(&self.cluster, &gvk.group, &gvk.version)
                    .await;
            }
            match self.kinds.find(gvk) {
                Lookup::Served(kind) => now.push((index, kind)),
                _ if taught => parked.push(index),
                Lookup::OtherVersion(kind) => {
                    let message = format!(
                        "the cluster serves {} in {}, not in {}",
                        gvk.kind,
                        kind.gvk.api_version(),
                        gvk.api_version()
                    );
                    self.wait(object, &mut turns[index], message);
                }
                Lookup::Unknown => {
                    self.wait(object, &mut turns[index], unknown_kind(gvk));
                }
            }
        }
        (now, parked)
    }

    fn wait(&self, object: &Wanted<'_>, turn: &mut Turn, message: String) {
        self.board.stand(&object.key, Standing::Waiting(message));
        *turn = Turn::Bad;
    }

    /// Sends objects, several at a time.
    async fn send(
        &self,
        now: Vec<(usize, Arc<Kind>)>,
        wanted: &[Wanted<'_>],
        order: &Order,
        turns: &mut [Turn],
        cancel: &CancellationToken,
    ) {
        let new_schema = |index: usize, turns: &[Turn]| {
            let mut needs = order.needs[index].iter();
            needs.any(|&need| wanted[need].defines.is_some() && turns[need] == Turn::Good(true))
        };
        let now: Vec<_> = now
            .into_iter()
            .map(|(index, kind)| (index, kind, new_schema(index, turns)))
            .collect();
        let requests = now.into_iter().map(|(index, kind, new_schema)| async move {
            if cancel.is_cancelled() {
                return (index, Turn::None);
            }
            (
                index,
                self.send_one(&wanted[index], &kind, new_schema, cancel)
                    .await,
            )
        });
        let mut requests = stream::iter(requests).buffer_unordered(self.config.concurrency);
        while let Some((index, turn)) = requests.next().await {
            turns[index] = turn;
        }
    }

    async fn send_one(
        &self,
        object: &Wanted<'_>,
        kind: &Kind,
        new_schema: bool,
        cancel: &CancellationToken,
    ) -> Turn {
        let body = match body::of(object, kind) {
            Ok(body) => body,
            Err(error) => {
                let message = format!("the object can't be read: {error}");
                self.board.stand(&object.key, Standing::Failed(message));
                return Turn::Bad;
            }
        };
        let path = kind.path(&object.id);
        let mut attempt = 0;
        self.inventory.leaves(&object.key);
        let answer = loop {
            let answer = retried(cancel, || self.cluster.apply(&path, body.clone())).await;
            attempt += 1;
            let refused = answer.as_ref().is_err_and(|error| !error.is_transient());
            if !(refused && new_schema && attempt < SCHEMA_ATTEMPTS) {
                break answer;
            }
            if cancel
                .run_until_cancelled(tokio::time::sleep(SCHEMA_PAUSE))
                .await
                .is_none()
            {
                break answer;
            }
        };
        if answer.as_ref().is_err_and(|error| !error.is_transient()) {
            self.inventory.refused(&object.key);
        }
        let standing = match answer {
            Ok(live) => {
                self.inventory
                    .applied(&object.key, &live.uid, object.digest);
                self.board.applied(&object.key, &live.uid, live.generation);
                if live.deletion_timestamp.is_none() {
                    return Turn::Good(true);
                }
                Standing::Waiting("it is being deleted, and is created again afterwards".to_owned())
            }
            Err(error) if error.namespace_terminating() => {
                Standing::Waiting("its namespace is being deleted".to_owned())
            }
            Err(error) if error.is_not_found() => Standing::Waiting(error.to_string()),
            Err(error) if error.is_no_path() => {
                self.vanish(&kind.gvk);
                Standing::Waiting(unknown_kind(&kind.gvk))
            }
            Err(error) => Standing::Failed(refusal(&kind.gvk, &error)),
        };
        self.board.stand(&object.key, standing);
        Turn::Bad
    }

    /// Remembers that a kind that was served is not served any more.
    fn vanish(&self, gvk: &Gvk) {
        let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        vanished.insert((gvk.group.clone(), gvk.version.clone()));
    }

    /// Waits, for a bounded time, until the kinds of these objects are served, and sends each as soon
    /// as its own is.
    async fn send_late(
        &mut self,
        mut late: Vec<usize>,
        wanted: &[Wanted<'_>],
        order: &Order,
        turns: &mut [Turn],
        cancel: &CancellationToken,
    ) {
        let end = Instant::now() + self.config.established_within;
        let mut pause = FIRST_LOOK;
        for &index in &late {
            let message = "its kind is not served yet".to_owned();
            self.board
                .stand(&wanted[index].key, Standing::Waiting(message));
        }
        while !late.is_empty() && Instant::now() < end {
            let slept = cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
            if slept.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_LOOK);
            let (now, parked) = self.ready(&late, wanted, order, turns, cancel).await;
            if !now.is_empty() {
                self.follow(wanted);
            }
            self.send(now, wanted, order, turns, cancel).await;
            late = parked;
        }
    }

    /// Reads what can be read of the bundles without the cluster, once for each bundle.
    fn prepare(&mut self, kept: &Kept) -> Vec<Arc<Prepared>> {
        let known = std::mem::take(&mut self.prepared);
        let prepare = |bundle: &KeptBundle| {
            let prepared = known.get(&bundle.hash()).cloned();
            prepared.unwrap_or_else(|| Arc::new(Prepared::of(bundle.bundle())))
        };
        let prepared: Vec<_> = kept.bundles.iter().map(prepare).collect();
        self.prepared = kept
            .bundles
            .iter()
            .map(KeptBundle::hash)
            .zip(prepared.iter().cloned())
            .collect();
        prepared
    }

    /// Asks what kinds there are: the first time, and when an object's kind is unknown and nothing in
    /// the set will teach it.
    async fn discover(
        &mut self,
        kept: &Kept,
        prepared: &[Arc<Prepared>],
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let vanished = std::mem::take(
            self.vanished
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (group, version) in vanished {
            self.kinds.forget_version(&group, &version);
        }
        let known = self.kinds.is_loaded() && {
            let prepared = prepared.iter().flat_map(|prepared| &prepared.objects);
            let defined: Vec<_> = prepared
                .filter_map(|object| object.defines.as_ref())
                .collect();
            kept.bundles
                .iter()
                .flat_map(|bundle| &bundle.bundle().objects)
                .all(|object| {
                    matches!(self.kinds.find(&object.id.gvk), Lookup::Served(_))
                        || defined
                            .iter()
                            .any(|definition| definition.covers(&object.id))
                })
        };
        if known {
            return Ok(());
        }
        for attempt in 1.. {
            match self.kinds.refresh(&self.cluster).await {
                Err(error) if error.is_transient() && attempt < 4 => {
                    let pause = tokio::time::sleep(FIRST_LOOK * 5 * attempt);
                    if cancel.run_until_cancelled(pause).await.is_none() {
                        return Err(RunError::Discovery(error));
                    }
                }
                Err(error) => return Err(RunError::Discovery(error)),
                Ok(()) => break,
            }
        }
        Ok(())
    }
}

fn unknown_kind(gvk: &Gvk) -> String {
    format!(
        "the cluster does not know the kind {} of {}; is its CustomResourceDefinition missing?",
        gvk.kind,
        gvk.api_version()
    )
}

/// Validation of a large object can fill pages.
const LONGEST_REFUSAL: usize = 1000;

/// What the API server said, short enough to be shown and without a value of a Secret.
fn refusal(gvk: &Gvk, error: &RequestError) -> String {
    let mut text = explain(error);
    // It shows the value whose type is wrong.
    if gvk.group.is_empty()
        && gvk.kind == "Secret"
        && let Some(at) = text.find("got &value")
    {
        text.truncate(at);
        text.push_str("got another type");
    }
    if text.len() > LONGEST_REFUSAL {
        let mut end = LONGEST_REFUSAL;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What is not wanted and not gone, while it is put together.
type Leftovers = BTreeMap<Identity, crate::Leftover>;
