//! The loop around the engine: whatever wakes it, it runs the same code on the newest generation.

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

/// Objects that drift together are looked at together.
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

/// What the work is to do now.
#[derive(Clone, Default)]
struct Orders {
    desired: Option<Arc<StoredGeneration>>,
    rest: Option<String>,
}

impl Applier {
    /// Reads the inventory, however often that takes, and waits for a first generation. Nothing is changed
    /// before [`Applier::want`], nor without the inventory: that it can't be read is observed as the cluster's
    /// problem.
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

    /// Makes this the wanted generation. A run for an older one is interrupted. One that is older
    /// than the wanted one is ignored.
    pub fn want(&self, kept: Arc<StoredGeneration>) {
        self.orders.send_if_modified(|Orders { desired, .. }| {
            let older = desired
                .as_ref()
                .is_some_and(|now| kept.generation < now.generation);
            if !older {
                *desired = Some(kept);
            }
            !older
        });
    }

    /// Writes nothing for as long as there is a reason, which is observed as the cluster's problem. What
    /// is under way is awaited.
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

    /// Sends every object again, changed or not.
    pub fn resync(&self) {
        self.resync.notify_one();
    }

    /// The level of what is observed, newest wins.
    #[must_use]
    pub fn observed(&self) -> watch::Receiver<Arc<Observed>> {
        self.observed.clone()
    }

    /// Ends the work. When this returns, no request is under way.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // It ends by itself, and a panic in it has been reported.
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

/// When what failed is tried again.
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
    /// Fires when the inventory has been read.
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

    /// Reads the inventory.
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
            let again = match (desired, rest) {
                (Some(_), Some(why)) => {
                    self.engine.calm().await;
                    self.tracker.settle(Some(why));
                    None
                }
                (Some(kept), None) => {
                    recheck.drifted.extend(self.tracker.take_drifted());
                    let again = self.once(&kept, &mut recheck).await;
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
                () = tracker.until_woken() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)),
                    if again.is_some() => {}
            }
        }
    }

    /// One run; the answer is when to try again without a reason from outside. A doubt that a run
    /// could not look into stays.
    async fn once(&mut self, kept: &StoredGeneration, recheck: &mut Recheck) -> Option<Instant> {
        let interrupt = self.stop.child_token();
        let result = {
            let mut run = std::pin::pin!(self.engine.run(kept, recheck, &interrupt));
            loop {
                tokio::select! {
                    result = &mut run => break result,
                    // The run is not dropped: it records what its requests came to.
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
                tracing::warn!(generation = %kept.generation, problem, "the generation can't be applied");
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
