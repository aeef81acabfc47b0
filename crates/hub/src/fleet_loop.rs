//! The fleet loop turns each snapshot of the repository into one generation per cluster. A new snapshot wakes it, and
//! it does everything each time: load, place, render, compose, number, write.

mod bring_in;
mod numbering;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use muster_git::RepoView;
use muster_model::{
    fleet_record::{FleetRecord, Writer},
    ids::{AppName, ClusterName, ContentHash, ObjectId, Role},
    tree::Snapshot,
};
use muster_render::RenderedBundle;
use muster_runtime::{backoff::Backoff, log::Chain};
use muster_store::{CommitError, Store};
use muster_worker::{Outcome, WorkError, Worker, Writers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::bring_in::RenderCache;
use crate::{
    blobs::Blobs,
    desired_state::FleetState,
    fleet_record::{Stored, without_gone},
    leadership::Leadership,
    metrics::Metrics,
    observed::Observed,
    store_schema::{self, RecordError},
    unconfirmed::Unconfirmed,
};

/// A commit that was read and rendered, with the stored fleet record at that time.
pub(crate) struct Worked {
    outcome: Outcome,
    /// The apps that are being moved, if the commit has a problem as a whole.
    older: Vec<Older>,
    stored: Stored,
    /// The record with which the commit was rendered: the stored one without the writers of apps that are gone.
    base: FleetRecord,
}

/// An app that was rendered from an older commit.
struct Older {
    app: AppName,
    bundles: BTreeMap<ClusterName, Arc<RenderedBundle>>,
    roles: BTreeMap<ClusterName, Role>,
}

/// The channel on which the loop publishes the fleet's state.
pub(crate) type Published = watch::Sender<Arc<FleetState>>;

/// The reason why the hub could not bring a commit into force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FleetError {
    /// A record of the store can't be read.
    #[error("the hub's records can't be read")]
    Record(#[from] RecordError),
    /// The write to the store failed.
    #[error("the generations can't be written")]
    Commit(#[from] CommitError),
    /// A bundle can't be compressed or read back.
    #[error("a bundle can't be compressed or read back")]
    Blob(#[source] std::io::Error),
    /// A bundle that a cluster runs is missing. Continuing without it would delete its objects.
    #[error("the bundle {hash} of app `{app}`, which is in force, is not in the store; restore a backup", hash = hash.short())]
    Lost {
        /// The application whose bundle is missing.
        app: AppName,
        /// The hash of the missing bundle.
        hash: ContentHash,
    },
    /// Another hub leads, and nothing was written.
    #[error("this hub no longer leads")]
    NotLeading,
    /// Somebody changed the fleet record while a commit was processed with it.
    #[error("the fleet record has changed; the commit is processed again")]
    RecordChanged,
    /// A commit would move or remove a writer. Placement never allows that, so this is a bug.
    #[error(
        "the commit would move the writer of app `{0}`, which is a bug in Muster; nothing has changed"
    )]
    MovedWriter(AppName),
    /// The worker that reads and renders the commit failed.
    #[error("the commit can't be read and rendered")]
    Work(#[from] WorkError),
    /// The task that compresses bundles panicked.
    #[error("the compression of bundles failed")]
    Task(#[from] tokio::task::JoinError),
}

/// Watches snapshots and turns each into one generation per cluster.
pub(crate) struct FleetLoop {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) views: watch::Receiver<RepoView>,
    pub(crate) published: Arc<Published>,
    pub(crate) metrics: Metrics,
    pub(crate) worker: Worker,
    pub(crate) heard: Heard,
    /// True if the last commit was placed while no app could get its first writer.
    pub(crate) was_frozen: bool,
    /// For each app with a writer, the last commit in which the app was good.
    pub(crate) good: BTreeMap<AppName, Arc<Snapshot>>,
}

/// The time for which a commit is in progress before a newer commit may interrupt it. Finished renderings of the
/// interrupted commit are not lost.
const SUPERSEDE_AFTER: Duration = Duration::from_secs(5);

/// The interval at which the hub checks whether it must still wait for clusters before it places a first writer.
const FROZEN_LOOK: Duration = Duration::from_secs(5);

/// The first and the longest pause before a failed commit is retried.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl FleetLoop {
    /// Runs until `stop` fires.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut render_cache = RenderCache::default();
        let mut done: Option<ObjectId> = None;
        // The last commit that was rendered but could not be written.
        let mut unwritten: Option<(ObjectId, Worked)> = None;
        let mut again_after = Backoff::new(RETRY_DELAYS.0, RETRY_DELAYS.1);
        let mut interrupted = false;
        let mut lead = self.leadership.watch();
        let mut approvals = self.store.watch(store_schema::APPROVAL);
        let mut unconfirmed = self.store.watch(store_schema::SUSPECT);
        // Drop the initial notifications: the first iteration reads all approvals and unconfirmed clusters anyway.
        let _ = approvals.changes().await;
        let _ = unconfirmed.changes().await;
        let mut record = self.store.watch(store_schema::FLEET_RECORD);
        let _ = record.changes().await;
        loop {
            let snapshot = {
                let view = self.views.borrow_and_update();
                // Wait for this process's own fetch: the commit that an earlier process fetched may have crashed it, or
                // may be older than the commit in force.
                view.snapshot.clone().filter(|_| view.state.asked)
            };
            let leads = lead.borrow_and_update().is_some();
            self.reseal();
            let mut failed = None;
            if let Some(snapshot) = snapshot.filter(|s| leads && done != Some(s.commit)) {
                let started = Instant::now();
                let commit = snapshot.commit;
                let worked = match unwritten.take().filter(|(of, _)| *of == commit) {
                    Some((_, worked)) => Ok(Some(worked)),
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
                    Ok(Some(worked)) => {
                        match self.bring_in(&mut render_cache, &snapshot, &worked).await {
                            Err(FleetError::RecordChanged) => {
                                done = None;
                                continue;
                            }
                            Err(error) => {
                                unwritten = Some((commit, worked));
                                Err(error)
                            }
                            Ok(()) => Ok(()),
                        }
                    }
                    // A newer commit interrupted it, and is next.
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                match brought {
                    Ok(()) => {
                        done = Some(commit);
                        again_after.reset();
                        let took = started.elapsed();
                        self.metrics.commit_seconds.observe(took.as_secs_f64());
                        tracing::info!(commit = %commit.short(), ?took, "commit processed");
                    }
                    Err(error) => {
                        // Nothing counts as done, so that the commit before is processed again if the repository goes
                        // back to it.
                        done = None;
                        let (why, pause) = (Chain(&error).to_string(), again_after.next_delay());
                        tracing::error!(commit = %commit.short(), error = why, ?pause, "the commit could not be processed; retrying");
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
                // An approval or a confirmation changes the generations of the same commit.
                changed = approvals.changes() => match changed {
                    Some(_) => done = None,
                    None => return,
                },
                changed = unconfirmed.changes() => match changed {
                    Some(_) => done = None,
                    None => return,
                },
                // The loop's own changes are published already.
                changed = record.changes() => match changed {
                    Some(_) => if !self.published.borrow().current || self.is_other_record().await {
                        done = None;
                        unwritten = None;
                    },
                    None => return,
                },
                () = tokio::time::sleep(FROZEN_LOOK), if self.was_frozen => if self.heard.frozen(&self.published.borrow()).is_none() {
                    done = None;
                    unwritten = None;
                },
                () = tokio::time::sleep(failed.unwrap_or_default()), if failed.is_some() => {}
            }
        }
    }

    /// Reads and renders a snapshot. Returns `None` if a newer one interrupted it. A snapshot that is read after an
    /// interruption is not interrupted, so that frequent commits can't keep every commit from coming into force.
    async fn work(
        &mut self,
        snapshot: &Snapshot,
        interrupted: bool,
    ) -> Result<Option<Worked>, FleetError> {
        let stored = {
            let state = self.published.borrow().clone();
            Stored::load(self.store.as_ref(), &state.in_force, &state.desired).await?
        };
        let base = self.without_gone(&stored.record);
        let unconfirmed = Unconfirmed::load(self.store.as_ref()).await?;
        let frozen = self.heard.frozen_by(&unconfirmed, &self.published.borrow());
        self.was_frozen = frozen.is_some();
        let writers = Writers {
            record: base.clone(),
            frozen,
        };
        let mut views = self.views.clone();
        let newer = async {
            if interrupted {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SUPERSEDE_AFTER).await;
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
        let worked = self
            .worker
            .work(&commit, &snapshot.tree, &writers, newer)
            .await;
        self.metrics
            .workers_ended
            .inc_by(self.worker.ended() - ended);
        let Some(mut outcome) = worked? else {
            return Ok(None);
        };
        self.remember(snapshot, &outcome);
        let older = self.render_moving(&mut outcome, &writers).await?;
        Ok(Some(Worked {
            outcome,
            older,
            stored,
            base,
        }))
    }

    /// Remembers, for each app with a writer, the last commit in which it was good.
    fn remember(&mut self, snapshot: &Snapshot, outcome: &Outcome) {
        if outcome.facts.is_none() {
            return;
        }
        let snapshot = Arc::new(snapshot.clone());
        // These include the apps that get their first writer, or a new name, with this commit.
        let apps = &outcome.record.writers;
        self.good.retain(|app, _| apps.contains_key(app));
        let good = apps.keys().filter(|app| outcome.bundles.contains_key(*app));
        let good: Vec<AppName> = good.cloned().collect();
        self.good
            .extend(good.into_iter().map(|app| (app, Arc::clone(&snapshot))));
    }

    /// If this commit has a problem with an app that is being moved, renders the app from the last commit in which it
    /// was good, so that the move does not wait until somebody has fixed the commit. The result becomes part of the
    /// outcome, or is returned if this commit has a problem as a whole.
    async fn render_moving(
        &mut self,
        outcome: &mut Outcome,
        writers: &Writers,
    ) -> Result<Vec<Older>, FleetError> {
        let is_renamed = |app: &AppName| outcome.formerly.values().any(|old| old == app);
        let moving = writers.record.writers.iter();
        let moving = moving.filter(|(_, writer)| writer.handover.is_some());
        let blocked: Vec<AppName> = moving
            .map(|(app, _)| app.clone())
            .filter(|app| !outcome.bundles.contains_key(app) && !is_renamed(app))
            .collect();
        let mut all = Vec::new();
        for app in blocked {
            let Some(good) = self.good.get(&app).cloned() else {
                continue;
            };
            let commit = good.commit.to_string();
            let never = std::future::pending();
            let worked = self
                .worker
                .work(&commit, &good.tree, writers, never)
                .await?;
            let Some(mut older) = worked else { continue };
            let places = older.bundles.remove(&app).zip(older.roles.remove(&app));
            let Some((mut bundles, mut roles)) = places else {
                continue;
            };
            tracing::warn!(app = app.as_str(), commit = %good.commit.short(), "the app is being moved, and the newest commit has a problem with it; it is rendered from its last good commit");
            let Some(facts) = &outcome.facts else {
                all.push(Older {
                    app,
                    bundles,
                    roles,
                });
                continue;
            };
            bundles.retain(|name, _| facts.clusters.contains_key(name));
            roles.retain(|name, _| facts.clusters.contains_key(name));
            outcome.bundles.insert(app.clone(), bundles);
            outcome.roles.insert(app, roles);
        }
        Ok(all)
    }

    /// Returns true if the store has another fleet record than the published one.
    async fn is_other_record(&self) -> bool {
        let state = self.published.borrow().clone();
        let stored = Stored::load(self.store.as_ref(), &state.in_force, &state.desired).await;
        stored.map_or(true, |stored| stored.record != *state.record)
    }

    /// Returns the record without the writers of apps that are gone: the app has left the repository, and the writer's
    /// cluster has reported that nothing of it is left there.
    fn without_gone(&self, record: &FleetRecord) -> FleetRecord {
        let state = self.published.borrow().clone();
        let is_gone = |app: &AppName, writer: &Writer| {
            let apps = &state.in_force.apps;
            let nothing_in = |cluster: &ClusterName| {
                let desired = state.desired.get(cluster);
                let level = self.observed.get(cluster);
                let Some((desired, level)) = desired.zip(level).filter(|_| state.current) else {
                    return false;
                };
                let is_listed = desired.bundles.iter().any(|listed| listed.app == *app);
                let is_reported = level.heard
                    && level.settled
                    && level.cut.is_none()
                    && level.in_force == Some(desired.number);
                !is_listed && is_reported && !level.apps.contains_key(app.as_str())
            };
            !apps.iter().any(|listed| listed.name == *app)
                && nothing_in(&writer.cluster)
                && writer
                    .other_side()
                    .is_none_or(|other| nothing_in(&other.cluster))
        };
        without_gone(record, is_gone)
    }

    /// Seals the published record again after a change of the fleet's key.
    fn reseal(&self) {
        self.published.send_if_modified(|state| {
            let sealed = self.leadership.seal(&state.record);
            let changes = *state.sealed != sealed;
            if changes {
                let mut changed = FleetState::clone(state);
                changed.sealed = Arc::new(sealed);
                *state = Arc::new(changed);
            }
            changes
        });
    }
}

/// Whether the hub has heard every cluster that may know a writer that it does not know.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) observed: Arc<Observed>,
    /// The time until which a hub that has just started waits for its clusters.
    pub(crate) by: Instant,
}

impl Heard {
    /// Returns why no app may get its first writer now, and no writer may move: this hub's state may be older than the
    /// fleet, and a cluster that was not heard may know who writes. For a moment after its start, a hub assumes this of
    /// any state, because its volume may have been rolled back without notice.
    pub(crate) fn frozen(&self, state: &FleetState) -> Option<String> {
        self.frozen_by(&state.unconfirmed, state)
    }

    fn frozen_by(&self, unconfirmed: &Unconfirmed, state: &FleetState) -> Option<String> {
        let left = self.by.saturating_duration_since(Instant::now());
        let is_new = !left.is_zero() && !self.observed.is_answered();
        if !unconfirmed.is_whole() && !is_new {
            return None;
        }
        let silent = match unconfirmed.is_whole() {
            true => silent(&self.observed, state),
            false => self.observed.silent(),
        };
        let first = silent.first()?;
        let more = match silent.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        Some(match unconfirmed.is_whole() {
            true => format!(
                "this hub's state may be older than the fleet, and cluster {first}{more} may know who writes but was not \
                 heard. Connect it, or run `muster hub confirm`"
            ),
            false => format!(
                "this hub has just started and has not heard cluster {first}{more} yet. It waits for at most {} s more",
                left.as_secs() + 1
            ),
        })
    }
}

/// Returns the clusters that were not heard. These include the clusters of the commit in force which, as far as
/// this hub knows, no agent has ever joined.
pub(crate) fn silent(observed: &Observed, state: &FleetState) -> BTreeSet<ClusterName> {
    let mut silent = observed.silent();
    let clusters = state.in_force.clusters.iter().map(|(name, _)| name);
    silent.extend(clusters.filter(|name| !observed.has_joined(name)).cloned());
    silent
}
