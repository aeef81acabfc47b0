//! The fleet loop turns each snapshot of the repository into one generation per cluster. A new snapshot wakes it, and
//! it does everything each time: load, place, render, compose, number, write.

mod bring_in;
mod numbering;
mod transaction;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muster_git::RepoView;
use muster_model::{
    ids::{AppName, ContentHash, ObjectId},
    tree::Snapshot,
};
use muster_runtime::{backoff::Backoff, log::Chain};
use muster_store::{CommitError, Store};
use muster_worker::{Outcome, WorkError, Worker};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::bring_in::RenderCache;
use crate::{
    blobs::Blobs,
    desired_state::FleetState,
    leadership::Leadership,
    metrics::Metrics,
    observed::Observed,
    store_schema::{self, RecordError},
};

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
}

/// The time for which a commit is in progress before a newer commit may interrupt it. Finished renderings of the
/// interrupted commit are not lost.
const SUPERSEDE_AFTER: Duration = Duration::from_secs(5);

/// The first and the longest pause before a failed commit is retried.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl FleetLoop {
    /// Runs until `stop` fires.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut render_cache = RenderCache::default();
        let mut done: Option<ObjectId> = None;
        // The last commit that was rendered but could not be written.
        let mut unwritten: Option<(ObjectId, Outcome)> = None;
        let mut again_after = Backoff::new(RETRY_DELAYS.0, RETRY_DELAYS.1);
        let mut interrupted = false;
        let mut lead = self.leadership.watch();
        let mut approvals = self.store.watch(store_schema::APPROVAL);
        let mut unconfirmed = self.store.watch(store_schema::SUSPECT);
        // Drop the initial notifications: the first iteration reads all approvals and unconfirmed clusters anyway.
        let _ = approvals.changes().await;
        let _ = unconfirmed.changes().await;
        loop {
            let snapshot = {
                let view = self.views.borrow_and_update();
                // Wait for this process's own fetch: the commit that an earlier process fetched may have crashed it, or
                // may be older than the commit in force.
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
                        let brought = self.bring_in(&mut render_cache, &snapshot, &outcome).await;
                        if brought.is_err() {
                            unwritten = Some((commit, outcome));
                        }
                        brought
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
    ) -> Result<Option<Outcome>, FleetError> {
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
        let worked = self.worker.work(&commit, &snapshot.tree, newer).await;
        self.metrics
            .workers_ended
            .inc_by(self.worker.ended() - ended);
        Ok(worked?)
    }
}
