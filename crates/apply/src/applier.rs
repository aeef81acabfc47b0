//! The loop around the engine. Every wake-up runs the same code on the newest generation.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, InventoryError, Observed, StoredGeneration,
    cluster::{Cluster, explain},
    engine::{Engine, Outcome, Recheck, RunError},
    inventory::Inventory,
    object_tracker::ObjectTracker,
    pods::explain_workloads,
};

/// How long the loop waits after a wake-up, so that objects that drift together are checked in one
/// run.
const GATHER: Duration = Duration::from_millis(20);

/// Applies generations to one cluster until it is stopped.
///
/// Only one may run for a cluster at a time.
pub struct Applier {
    orders: watch::Sender<Orders>,
    tracker: Arc<ObjectTracker>,
    observed: watch::Receiver<Arc<Observed>>,
    resync: Arc<Notify>,
    stop: CancellationToken,
    started: CancellationToken,
    work: JoinHandle<()>,
    publish: JoinHandle<()>,
    explain: JoinHandle<()>,
}

/// The instructions for the work loop.
#[derive(Clone, Default)]
struct Orders {
    desired: Option<Arc<StoredGeneration>>,
    rest: Option<String>,
}

impl Applier {
    /// Starts the applier. It reads the inventory, retries until that succeeds, and then waits for
    /// a first generation. It changes nothing before [`Applier::set_desired`] is called and
    /// nothing before the inventory is read. An inventory that can't be read is reported as the
    /// cluster's problem.
    #[must_use]
    pub fn start(client: Client, config: Config) -> Self {
        let cluster = Cluster::new(client.clone(), config.concurrency);
        let inventory = Arc::new(Inventory::new(cluster.clone(), &config.namespace));
        let tracker = Arc::new(ObjectTracker::default());
        let (orders, given) = watch::channel(Orders::default());
        let (publisher, observed) = watch::channel(Arc::default());
        let (resync, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let started = CancellationToken::new();
        let publish = {
            let (tracker, every) = (tracker.clone(), config.publish_every);
            tokio::spawn(async move { tracker.publish(publisher, every).await })
        };
        let explain = tokio::spawn(explain_workloads(client, tracker.clone(), observed.clone()));
        let work = Work {
            retry: Retry {
                next: config.first_retry,
                config: config.clone(),
            },
            engine: Arc::new(Engine::new(cluster, config, inventory, tracker.clone())),
            tracker: tracker.clone(),
            orders: given,
            resync: resync.clone(),
            stop: stop.clone(),
            started: started.clone(),
        };
        let work = tokio::spawn(work.run());
        Self {
            orders,
            tracker,
            observed,
            resync,
            stop,
            started,
            work,
            publish,
            explain,
        }
    }

    /// Returns once the inventory has been read.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Makes this generation the desired one and interrupts a run for an older generation. A
    /// generation that is older than the desired one is ignored.
    pub fn set_desired(&self, stored: Arc<StoredGeneration>) {
        self.orders.send_if_modified(|Orders { desired, .. }| {
            let older = desired
                .as_ref()
                .is_some_and(|now| stored.generation < now.generation);
            if !older {
                *desired = Some(stored);
            }
            !older
        });
    }

    /// Pauses the applier if `why` holds a reason; `None` resumes the work. During a pause,
    /// requests that are under way are awaited, nothing new is written, and the reason is reported
    /// as the cluster's problem.
    pub fn pause(&self, why: Option<String>) {
        let clear_problem = why.is_none();
        let changed = self.orders.send_if_modified(|Orders { rest, .. }| {
            let changes = *rest != why;
            *rest = why;
            changes
        });
        if changed && clear_problem {
            self.tracker.server_answers();
        }
    }

    /// Sends every object again, even if nothing has changed.
    pub fn resync(&self) {
        self.resync.notify_one();
    }

    /// Returns a receiver of the observed state. Each value replaces the previous one.
    #[must_use]
    pub fn observed(&self) -> watch::Receiver<Arc<Observed>> {
        self.observed.clone()
    }

    /// Stops the work. When this returns, no request is under way.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // The task ends by itself. A panic in it has already been reported.
        let _ = (&mut self.work).await;
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.stop.cancel();
        self.work.abort();
        self.publish.abort();
        self.explain.abort();
    }
}

/// The back-off between attempts.
struct Retry {
    next: Duration,
    config: Config,
}

impl Retry {
    fn reset(&mut self) {
        self.next = self.config.first_retry;
    }

    fn take(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.8..1.2));
        self.next = (self.next * 2).min(self.config.longest_retry);
        pause
    }
}

struct Work {
    engine: Arc<Engine>,
    tracker: Arc<ObjectTracker>,
    orders: watch::Receiver<Orders>,
    resync: Arc<Notify>,
    stop: CancellationToken,
    /// Cancelled once the inventory has been read.
    started: CancellationToken,
    retry: Retry,
}

impl Work {
    async fn run(mut self) {
        if self
            .stop
            .clone()
            .run_until_cancelled(self.begin())
            .await
            .is_some()
        {
            self.work().await;
        }
        self.engine.calm().await;
    }

    /// Reads the inventory, and retries until that succeeds.
    async fn begin(&mut self) {
        while let Err(error) = self.engine.inventory().reload().await {
            let problem = explain(&error);
            tracing::warn!(
                problem,
                "nothing can be applied without the inventory; trying again"
            );
            self.tracker.settle(Some(problem));
            tokio::time::sleep(self.retry.take()).await;
        }
        self.retry.reset();
        self.tracker.clear_problem();
        self.started.cancel();
    }

    async fn work(&mut self) {
        let mut recheck = Recheck::default();
        while !self.stop.is_cancelled() {
            let Orders { desired, rest } = self.orders.borrow_and_update().clone();
            let paused = rest.is_some();
            let again = match (desired, rest) {
                (Some(_), Some(why)) => {
                    self.engine.calm().await;
                    self.tracker.settle(Some(why));
                    None
                }
                (Some(stored), None) => {
                    recheck.drifted.extend(self.tracker.take_drifted());
                    let again = self.once(&stored, &mut recheck).await;
                    let next = self.engine.next().map(Instant::from_std);
                    again.into_iter().chain(next).min()
                }
                (None, _) => None,
            };
            let (resync, tracker) = (self.resync.clone(), self.tracker.clone());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.retry.reset();
                }
                () = resync.notified() => recheck.everything = true,
                // What drifts during a pause is corrected after it.
                () = tracker.until_woken(), if !paused => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)),
                    if again.is_some() => {}
            }
        }
    }

    /// Does one run. Returns the time of the next attempt, or `None` if none is needed; an event may
    /// wake the loop earlier. Drifted objects that the run did not check stay in `recheck`.
    async fn once(&mut self, stored: &StoredGeneration, recheck: &mut Recheck) -> Option<Instant> {
        let interrupt = self.stop.child_token();
        let result = {
            let mut run = std::pin::pin!(self.engine.run(stored, recheck, &interrupt));
            loop {
                tokio::select! {
                    result = &mut run => break result,
                    // The run is not dropped, because it records the results of its requests.
                    _ = self.orders.changed(), if !interrupt.is_cancelled() => {
                        self.orders.mark_changed();
                        interrupt.cancel();
                    }
                }
            }
        };
        match result {
            Ok(Outcome::Interrupted) => return None,
            Ok(Outcome::Ran {
                settled,
                unfinished,
            }) => {
                *recheck = Recheck::default();
                if settled {
                    self.tracker.settle(None);
                } else {
                    self.tracker.clear_problem();
                }
                if !unfinished {
                    self.retry.reset();
                    return None;
                }
            }
            Err(error) => {
                let problem = explain(&error);
                tracing::warn!(generation = %stored.generation, problem, "the generation can't be applied");
                self.tracker.settle(Some(problem));
                if let RunError::Inventory(InventoryError::Superseded { .. }) = error
                    && let Err(error) = self.engine.inventory().reload().await
                {
                    tracing::warn!(error = explain(&error), "the inventory can't be read again");
                }
            }
        }
        Some(Instant::now() + self.retry.take())
    }
}
