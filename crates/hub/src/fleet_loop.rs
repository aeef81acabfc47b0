//! From a snapshot to what every cluster should run. One loop, woken by a new snapshot, that does the
//! whole of it each time: load, place, render, compose, number, write.

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
const SUPERSEDE_AFTER: Duration = Duration::from_secs(5);

/// What could not be written is tried again after this, and then after up to that.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl FleetLoop {
    /// Runs until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut render_cache = RenderCache::default();
        let mut done: Option<ObjectId> = None;
        // What was rendered and could not be written.
        let mut unwritten: Option<(ObjectId, Outcome)> = None;
        let mut again_after = Backoff::new(RETRY_DELAYS.0, RETRY_DELAYS.1);
        let mut interrupted = false;
        let mut lead = self.leadership.watch();
        let mut approvals = self.store.watch(store_schema::APPROVAL);
        let mut unconfirmed = self.store.watch(store_schema::SUSPECT);
        // All of them: the first turn looks at them anyway.
        let _ = approvals.changes().await;
        let _ = unconfirmed.changes().await;
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
                        let brought = self.bring_in(&mut render_cache, &snapshot, &outcome).await;
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
                changed = unconfirmed.changes() => match changed {
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
