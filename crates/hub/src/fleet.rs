//! From a snapshot to what every cluster should run. One loop, woken by a new snapshot, that does the
//! whole of it each time: load, place, render, compose, number, write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use muster_git::RepoView;
use muster_model::{
    ids::{AppName, ClusterName, ContentHash, Epoch, Generation, ObjectId},
    policy::{PruneBudget, PruneOrders},
    problem::Problem,
    tree::{Recent, Snapshot},
};
use muster_plan::delivery::Numbered;
use muster_render::RenderedBundle;
use muster_runtime::{backoff::Backoff, log::Chain};
use muster_store::{CommitError, Expected, Store, Txn};
use muster_worker::{Facts, Outcome, WorkError, Worker};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    approvals::{self, Approved},
    blobs::{self, Blobs},
    choose::{Bundles, Candidate, Chosen, choose},
    leadership::Leadership,
    metrics::Metrics,
    observed::{Level, Observed},
    records::{self, AppRecord, InForce, ListedBundle, RecordError, RegionRecord, WantedRecord},
    suspects::Suspects,
    wanted::{FleetState, Wanted, content_of},
};

/// The fleet's epoch until roles can move.
pub(crate) const EPOCH: Epoch = Epoch(1);

/// What the loop publishes.
pub(crate) type Published = watch::Sender<Arc<FleetState>>;

/// Why a commit did not come into force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FleetError {
    /// The records fail.
    #[error("the hub's records fail")]
    Record(#[from] RecordError),
    /// The write fails.
    #[error("the generations can't be written")]
    Commit(#[from] CommitError),
    /// A bundle can't be compressed or read back.
    #[error("a bundle can't be compressed or read back")]
    Blob(#[source] std::io::Error),
    /// A bundle that a cluster runs is lost. To go on without it would delete its objects.
    #[error("the bundle {hash} of app `{app}`, which is in force, is not in the store; restore a backup", hash = hash.short())]
    Lost {
        /// Whose.
        app: AppName,
        /// Which.
        hash: ContentHash,
    },
    /// Another term leads, and nothing was written.
    #[error("this hub's term has ended")]
    NotLeading,
    /// Nothing reads and renders.
    #[error("the commit can't be read and rendered")]
    Work(#[from] WorkError),
    /// Compressing panicked.
    #[error("compressing ended badly")]
    Task(#[from] tokio::task::JoinError),
}

/// The loop.
pub(crate) struct FleetLoop {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) views: watch::Receiver<RepoView>,
    pub(crate) published: Arc<Published>,
    pub(crate) metrics: Metrics,
    pub(crate) worker: Worker,
}

/// How long a newer commit waits for one that is being worked on. What was rendered of that is not lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// What could not be written is tried again after this, and then after up to that.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What a cluster should run.
struct List {
    budget: PruneBudget,
    unknown: BTreeSet<AppName>,
    bundles: Vec<ListedBundle>,
}

/// What else decides on a generation.
struct Orders<'a> {
    approved: &'a Approved,
    suspects: &'a Suspects,
    /// The last numbers of clusters that come back.
    numbers: &'a BTreeMap<ClusterName, Generation>,
}

/// What is kept from one commit to the next.
#[derive(Default)]
struct Workshop {
    /// Sets of bundles in which no object stands twice, by content.
    verified: HashSet<ContentHash>,
    /// The bundles in force: what an app falls back to when its newest can't be had.
    in_force: Bundles,
}

/// The apps that commits since the one in force let leave with all that they have; where that is not
/// among those before it, as after a force-push, the newest commit alone counts.
fn lets_go(snapshot: &Snapshot, in_force: &str) -> BTreeSet<AppName> {
    let recent = &snapshot.recent;
    let known = |recent: &Recent| recent.commit.to_string() == in_force;
    let new = recent.iter().position(known).unwrap_or(1);
    recent
        .iter()
        .take(new)
        .flat_map(|recent| recent.lets_go.iter().cloned())
        .collect()
}

/// The names of the apps that may leave a cluster with all that they have: those that it had, or of
/// which something is left there, that are not in its new list and are `meant` to leave; and what was
/// decided before.
fn leaving(
    list: &[ListedBundle],
    before: Option<&Wanted>,
    level: Option<&Level>,
    meant: impl Fn(&AppName) -> bool,
) -> BTreeSet<ContentHash> {
    let listed: BTreeSet<&AppName> = list.iter().map(|listed| &listed.app).collect();
    let had = before.into_iter().flat_map(|wanted| wanted.bundles.iter());
    let had = had.map(|listed| listed.app.clone());
    let left = level.into_iter().flat_map(|level| level.apps.keys());
    let left = left.filter_map(|app| app.parse().ok());
    let gone = had
        .chain(left)
        .filter(|app| !listed.contains(app) && meant(app));
    let back: BTreeSet<ContentHash> = listed.iter().map(|app| PruneOrders::leaving(app)).collect();
    let decided = before.into_iter().flat_map(|wanted| &wanted.prune.approved);
    let decided = decided.filter(|name| PruneOrders::is_leaving(name) && !back.contains(*name));
    gone.map(|app| PruneOrders::leaving(&app))
        .chain(decided.copied())
        .collect()
}

impl FleetLoop {
    /// Runs until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut workshop = Workshop::default();
        let mut done: Option<ObjectId> = None;
        // What was rendered and could not be written.
        let mut unwritten: Option<(ObjectId, Outcome)> = None;
        let mut again_after = Backoff::new(AGAIN.0, AGAIN.1);
        let mut interrupted = false;
        let mut lead = self.leadership.watch();
        let mut approvals = self.store.watch(records::APPROVAL);
        let mut suspects = self.store.watch(records::SUSPECT);
        // All of them: the first turn looks at them anyway.
        let _ = approvals.changes().await;
        let _ = suspects.changes().await;
        loop {
            let snapshot = {
                let view = self.views.borrow_and_update();
                // What an earlier process fetched may be what ended it, or older than what came into force
                // after that.
                view.snapshot.clone().filter(|_| view.state.asked)
            };
            let leads = lead.borrow_and_update().is_some();
            let mut failed = None;
            if let Some(snapshot) = snapshot.filter(|s| leads && done != Some(s.commit)) {
                let started = Instant::now();
                let commit = snapshot.commit;
                let worked = match unwritten.take().filter(|(of, _)| *of == commit) {
                    Some((_, outcome)) => Ok(Some(outcome)),
                    None => tokio::select! {
                        worked = self.work(&snapshot, interrupted) => worked,
                        () = stop.cancelled() => {
                            self.worker.abandon();
                            return;
                        }
                    },
                };
                interrupted = matches!(worked, Ok(None));
                let brought = match worked {
                    Ok(Some(outcome)) => {
                        let brought = self.bring_in(&mut workshop, &snapshot, &outcome).await;
                        if brought.is_err() {
                            unwritten = Some((commit, outcome));
                        }
                        brought
                    }
                    // The newer one is next.
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                match brought {
                    Ok(()) => {
                        done = Some(commit);
                        again_after.reset();
                        let took = started.elapsed();
                        self.metrics.commit_seconds.observe(took.as_secs_f64());
                        tracing::info!(commit = %commit.short(), ?took, "commit is worked through");
                    }
                    Err(error) => {
                        // Also where the repository goes back to the commit before.
                        done = None;
                        let (why, pause) = (Chain(&error).to_string(), again_after.next_delay());
                        tracing::error!(commit = %commit.short(), error = why, ?pause, "the commit could not be worked through; trying again");
                        self.published.send_modify(|state| {
                            let mut changed = FleetState::clone(state);
                            changed.failed = Some(format!(
                                "commit {} can't come into force: {why}",
                                commit.short()
                            ));
                            *state = Arc::new(changed);
                        });
                        self.metrics.commits_failed.inc();
                        failed = Some(pause);
                    }
                }
            }
            let again = self.worker.again();
            let again = async {
                match again {
                    Some(again) => tokio::time::sleep(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = again => {
                    done = None;
                    unwritten = None;
                }
                changed = self.views.changed() => if changed.is_err() { return },
                changed = lead.changed() => if changed.is_err() { return },
                // The same commit under other orders.
                changed = approvals.changes() => match changed {
                    Some(_) => done = None,
                    None => return,
                },
                changed = suspects.changes() => match changed {
                    Some(_) => done = None,
                    None => return,
                },
                () = tokio::time::sleep(failed.unwrap_or_default()), if failed.is_some() => {}
            }
        }
    }

    /// Reads and renders a snapshot; nothing where a newer one came meanwhile. After that one is worked on to its
    /// end: commits that come faster than they can be worked on must not keep everything back.
    async fn work(
        &mut self,
        snapshot: &Snapshot,
        interrupted: bool,
    ) -> Result<Option<Outcome>, FleetError> {
        let mut views = self.views.clone();
        let newer = async {
            if interrupted {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(PATIENCE).await;
            let is_newer = |view: &RepoView| {
                let newest = view.snapshot.as_ref();
                newest.is_some_and(|newest| newest.commit != snapshot.commit)
            };
            if views.wait_for(is_newer).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let commit = snapshot.commit.to_string();
        let ended = self.worker.ended();
        let worked = self.worker.work(&commit, &snapshot.tree, newer).await;
        self.metrics
            .workers_ended
            .inc_by(self.worker.ended() - ended);
        Ok(worked?)
    }

    async fn bring_in(
        &self,
        workshop: &mut Workshop,
        snapshot: &Snapshot,
        outcome: &Outcome,
    ) -> Result<(), FleetError> {
        let _numbering = self.leadership.numbering().await;
        let approved = approvals::all(self.store.as_ref()).await?;
        let suspects = Arc::new(Suspects::load(self.store.as_ref()).await?);
        let before = self.published.borrow().clone();
        let Some(facts) = &outcome.facts else {
            // The whole last good snapshot stays in force; only the problems are new, and what people
            // order meanwhile.
            let lists = before.wanted.iter().map(|(cluster, wanted)| {
                let list = List {
                    budget: suspects.budget(cluster, wanted.prune.budget),
                    unknown: wanted.prune.unknown.clone(),
                    bundles: wanted.bundles.to_vec(),
                };
                (cluster.clone(), list)
            });
            let commit = &before.in_force.commit;
            let none = |_: &AppName| false;
            let numbers = BTreeMap::new();
            let orders = Orders {
                approved: &approved,
                suspects: &suspects,
                numbers: &numbers,
            };
            let wanted = if before.current {
                self.number(lists.collect(), &orders, &before, none, commit)
            } else {
                // It may be older than what the clusters run.
                before.wanted.clone()
            };
            let mut state = FleetState {
                current: before.current,
                failed: None,
                suspects,
                in_force: Arc::clone(&before.in_force),
                wanted,
            };
            if state.wanted != before.wanted {
                self.write(&before, &state, &BTreeMap::new(), &approved)
                    .await?;
            }
            let mut in_force = InForce::clone(&before.in_force);
            in_force.problems.clone_from(&outcome.problems);
            state.in_force = Arc::new(in_force);
            self.publish(state);
            return Ok(());
        };
        self.recall(workshop, outcome, &before).await?;
        let Chosen {
            chosen,
            mut problems,
            held,
        } = choose(
            facts,
            outcome,
            &before.wanted,
            &workshop.in_force,
            &mut workshop.verified,
            |cluster| {
                self.observed
                    .get(cluster)
                    .map_or_else(Vec::new, |level| level.cluster_scoped)
            },
        );
        problems.extend(outcome.problems.iter().cloned());
        problems.sort();
        problems.dedup();
        let in_force = Arc::new(describe(facts, outcome, snapshot, problems, &held));
        let budget = facts.prune;
        let lists = chosen.iter().map(|(cluster, bundles)| {
            let suspect = suspects.is(cluster);
            let level = self.observed.get(cluster);
            let there = |app: &&AppName| {
                let level = level.as_ref();
                suspect || level.is_some_and(|level| level.apps.contains_key(app.as_str()))
            };
            let unknown = outcome
                .held()
                .filter(|app| !bundles.contains_key(*app))
                .filter(there);
            let list = List {
                budget: suspects.budget(cluster, budget),
                unknown: unknown.cloned().collect(),
                bundles: bundles.values().map(|c| c.listed.clone()).collect(),
            };
            (cluster.clone(), list)
        });
        let said = lets_go(snapshot, &before.in_force.commit);
        let apps = &facts.apps;
        let meant = |app: &AppName| said.contains(app) || apps.contains_key(app);
        let commit = &in_force.commit;
        let numbers = self.numbers(facts, &before).await?;
        let orders = Orders {
            approved: &approved,
            suspects: &suspects,
            numbers: &numbers,
        };
        let wanted = self.number(lists.collect(), &orders, &before, meant, commit);
        let state = FleetState {
            current: true,
            failed: None,
            suspects,
            in_force,
            wanted,
        };
        if state.in_force != before.in_force || state.wanted != before.wanted {
            self.write(&before, &state, &chosen, &approved).await?;
        }
        let bundles = chosen.values().flat_map(BTreeMap::values);
        workshop.in_force = bundles
            .map(|c| (c.listed.hash, Arc::clone(&c.rendered)))
            .collect();
        self.publish(state);
        Ok(())
    }

    /// Numbers what changed. An app that a cluster no longer has is deleted there where that is `meant`;
    /// otherwise its agent asks.
    fn number(
        &self,
        lists: BTreeMap<ClusterName, List>,
        orders: &Orders<'_>,
        before: &FleetState,
        meant: impl Fn(&AppName) -> bool,
        commit: &str,
    ) -> BTreeMap<ClusterName, Arc<Wanted>> {
        let mut shared: HashMap<ContentHash, Arc<[ListedBundle]>> = HashMap::new();
        let mut number = |cluster: &ClusterName, list: List| {
            let List {
                budget,
                unknown,
                bundles: list,
            } = list;
            let now = before.wanted.get(cluster);
            let level = self.observed.get(cluster);
            let mut approved = orders.approved.get(cluster).cloned().unwrap_or_default();
            if !orders.suspects.is(cluster) {
                approved.extend(leaving(
                    &list,
                    now.map(AsRef::as_ref),
                    level.as_ref(),
                    &meant,
                ));
            }
            let mut prune = PruneOrders {
                budget,
                approved,
                unknown,
            };
            let mut content = content_of(EPOCH.0, &prune, &list);
            if let Some(now) = now.filter(|now| now.number.content == content) {
                return Arc::clone(now);
            }
            if !prune.approved.is_empty() {
                let now = now.map(AsRef::as_ref);
                prune.approved = approvals::pending(&prune.approved, now, level.as_ref());
                content = content_of(EPOCH.0, &prune, &list);
            }
            let known = orders.numbers.get(cluster).copied();
            let generation = now
                .map(|now| now.number.generation)
                .or(known)
                .unwrap_or(Generation(0))
                .next();
            let since = now
                .filter(|now| now.prune.budget == budget && now.bundles.as_ref() == list.as_slice())
                .map_or(generation, |now| now.since);
            let bundles = shared.entry(content).or_insert_with(|| list.into());
            Arc::new(Wanted {
                number: Numbered {
                    generation,
                    content,
                },
                since,
                commit: commit.to_owned(),
                epoch: EPOCH.0,
                prune,
                bundles: Arc::clone(bundles),
            })
        };
        let numbered = lists.into_iter().map(|(cluster, list)| {
            let wanted = number(&cluster, list);
            (cluster, wanted)
        });
        numbered.collect()
    }

    /// The last numbers of clusters that come back to the fleet.
    async fn numbers(
        &self,
        facts: &Facts,
        before: &FleetState,
    ) -> Result<BTreeMap<ClusterName, Generation>, FleetError> {
        let mut numbers = BTreeMap::new();
        let clusters = facts.clusters.keys();
        for cluster in clusters.filter(|cluster| !before.wanted.contains_key(*cluster)) {
            let key = records::wanted_key(cluster);
            let record = records::read::<WantedRecord>(self.store.as_ref(), &key).await?;
            numbers.extend(record.map(|(record, _)| (cluster.clone(), record.generation)));
        }
        Ok(numbers)
    }

    fn publish(&self, state: FleetState) {
        self.published.send_replace(Arc::new(state));
    }

    /// Brings every bundle in force that is not rendered anew to hand, from the store after a restart.
    async fn recall(
        &self,
        workshop: &mut Workshop,
        outcome: &Outcome,
        before: &FleetState,
    ) -> Result<(), FleetError> {
        let rendered = outcome.bundles.values().flat_map(BTreeMap::values);
        let rendered: HashSet<ContentHash> = rendered.map(|bundle| bundle.hash).collect();
        for listed in before
            .wanted
            .values()
            .flat_map(|wanted| wanted.bundles.iter())
        {
            if rendered.contains(&listed.hash) || workshop.in_force.contains_key(&listed.hash) {
                continue;
            }
            let Some(packed) = self
                .blobs
                .get(listed.hash)
                .await
                .map_err(RecordError::from)?
            else {
                let (app, hash) = (listed.app.clone(), listed.hash);
                return Err(FleetError::Lost { app, hash });
            };
            let bytes = blobs::decompress(&packed).map_err(FleetError::Blob)?;
            let bundle = RenderedBundle::from_encoded(bytes)
                .map_err(|error| FleetError::Blob(std::io::Error::other(error)))?;
            workshop.in_force.insert(listed.hash, Arc::new(bundle));
        }
        Ok(())
    }

    /// Writes what changed in one transaction, which holds only while this hub leads.
    async fn write(
        &self,
        before: &FleetState,
        after: &FleetState,
        chosen: &BTreeMap<ClusterName, BTreeMap<AppName, Candidate>>,
        approved: &Approved,
    ) -> Result<(), FleetError> {
        let lead = self.leadership.now().ok_or(FleetError::NotLeading)?;
        let referenced = |state: &FleetState| -> (HashSet<ContentHash>, HashSet<ContentHash>) {
            let contents = state
                .wanted
                .values()
                .map(|wanted| wanted.number.content)
                .collect();
            let bundles = state
                .wanted
                .values()
                .flat_map(|w| w.bundles.iter().map(|b| b.hash));
            (contents, bundles.collect())
        };
        let ((old_contents, old_blobs), (contents, bundles)) =
            (referenced(before), referenced(after));
        let mut txn = Txn::new().when(records::TERM, Expected::Revision(lead.revision));
        let mut fresh: HashMap<ContentHash, &Arc<RenderedBundle>> = HashMap::new();
        for candidate in chosen.values().flat_map(BTreeMap::values) {
            if !old_blobs.contains(&candidate.listed.hash) {
                fresh.insert(candidate.listed.hash, &candidate.rendered);
            }
        }
        let to_pack: Vec<(ContentHash, Arc<RenderedBundle>)> = fresh
            .into_iter()
            .map(|(hash, bundle)| (hash, Arc::clone(bundle)))
            .collect();
        let packed: Vec<(ContentHash, Bytes)> = tokio::task::spawn_blocking(move || {
            let pack = |(hash, bundle): (ContentHash, Arc<RenderedBundle>)| {
                blobs::compress(&bundle.bytes).map(|packed| (hash, packed))
            };
            to_pack.into_iter().map(pack).collect::<Result<_, _>>()
        })
        .await?
        .map_err(FleetError::Blob)?;
        for (hash, packed) in packed {
            txn = txn.put(blobs::key(hash), packed.clone());
            self.blobs.remember(hash, packed);
        }
        let mut written = HashSet::new();
        for (cluster, wanted) in &after.wanted {
            let content = wanted.number.content;
            if !old_contents.contains(&content) && written.insert(content) {
                let list: Vec<&ListedBundle> = wanted.bundles.iter().collect();
                txn = txn.put(records::content_key(content), records::encode(&list));
            }
            if before.wanted.get(cluster) != Some(wanted) {
                txn = txn.put(
                    records::wanted_key(cluster),
                    records::encode(&wanted.record()),
                );
            }
        }
        // What went out of use stays for one more commit, for streams in the middle of sending it.
        for (prefix, kept) in [
            (records::BLOB, (&bundles, &old_blobs)),
            (records::CONTENT, (&contents, &old_contents)),
        ] {
            for (key, _) in self.store.keys(prefix).await.map_err(RecordError::from)? {
                let hash = key[prefix.len()..].parse::<ContentHash>();
                if hash.is_ok_and(|hash| !kept.0.contains(&hash) && !kept.1.contains(&hash)) {
                    txn = txn.delete(key);
                }
            }
        }
        txn = approvals::without_done(txn, approved, &after.wanted);
        txn = txn.put(records::IN_FORCE, records::encode(after.in_force.as_ref()));
        match self.store.commit(txn).await {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { key }) if key == records::TERM => {
                self.leadership.lost(lead).await;
                Err(FleetError::NotLeading)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn describe(
    facts: &Facts,
    outcome: &Outcome,
    snapshot: &Snapshot,
    problems: Vec<Problem>,
    held: &BTreeSet<AppName>,
) -> InForce {
    let regions = facts.regions.iter().map(|(name, region)| RegionRecord {
        name: name.to_string(),
        continent: region.continent.clone(),
        country: region.country.clone(),
        city: region.city.clone(),
    });
    let mut apps: Vec<AppRecord> = facts
        .apps
        .iter()
        .map(|(name, app)| AppRecord {
            name: name.clone(),
            tier: app.tier.clone(),
            mode: app.mode.clone(),
            owner: app.owner.clone(),
            held: held.contains(name) || !outcome.bundles.contains_key(name),
        })
        .collect();
    let unread = |name: &AppName| AppRecord {
        name: name.clone(),
        tier: String::new(),
        mode: String::new(),
        owner: String::new(),
        held: true,
    };
    apps.extend(outcome.broken.iter().map(unread));
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    apps.dedup_by(|a, b| a.name == b.name);
    InForce {
        commit: snapshot.commit.to_string(),
        subject: snapshot.subject.clone(),
        author: snapshot.author.clone(),
        committed_at: snapshot.committed_at,
        fleet: facts.fleet.to_string(),
        regions: regions.collect(),
        apps,
        clusters: facts
            .clusters
            .iter()
            .map(|(name, region)| (name.clone(), region.to_string()))
            .collect(),
        problems,
    }
}
