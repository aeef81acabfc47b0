//! The streams of all agents. There is one current stream for each cluster; agents that must not be served are refused.

mod admission;
mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use muster_model::ids::{ClusterName, InstanceId};
use muster_proto::v1;
use muster_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

pub(crate) use self::admission::Caller;
use self::stream::Stream;
use crate::{
    authority::admit, blobs::Blobs, ca_rotation::Cas, fleet_loop::Published,
    leadership::Leadership, metrics::Metrics, observed::Observed,
};

/// The time in which an agent must send its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// The time in which an agent must list its objects when a person asks for them.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The time for which two processes of one cluster are both refused after they took turns.
const HELD_FOR: Duration = Duration::from_secs(60);

/// The interval at which refusals of a cluster for the same reason are repeated in the audit log.
const AUDIT_EVERY: Duration = Duration::from_secs(3600);
/// The most by which an agent's generation number may exceed the hub's. It can be higher if the hub's store was
/// restored, but no fleet uses up this many numbers.
const AHEAD: u64 = 1_000_000_000;
/// The most characters of an agent's version that are stored.
const VERSION_LENGTH: usize = 64;

/// The sending side of an agent's stream.
pub(crate) type Outgoing = mpsc::Sender<Result<v1::HubMessage, Status>>;

/// Takes the objects that an agent lists, or the reason why the hub does not accept its list.
type Answer = oneshot::Sender<Result<Vec<v1::ObjectState>, &'static str>>;

/// A question to an agent about the objects of an app.
struct Question {
    app: String,
    answer: Answer,
}

/// The current stream of one cluster.
struct Current {
    id: u64,
    instance: InstanceId,
    process: u64,
    stop: CancellationToken,
    questions: mpsc::Sender<Question>,
}

/// All streams, and what they share.
pub(crate) struct Sessions {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) published: Arc<Published>,
    pub(crate) metrics: Metrics,
    pub(crate) cas: watch::Receiver<Arc<Cas>>,
    pub(crate) stop: CancellationToken,
    next: AtomicU64,
    current: Mutex<HashMap<ClusterName, Current>>,
    /// The processes that were replaced, and when. If one of them connects again, two processes are alive.
    replaced: Mutex<HashMap<(ClusterName, u64), Instant>>,
    /// The last time that a refusal was recorded in the audit log, by cluster and reason.
    audited: Mutex<HashMap<(ClusterName, &'static str), Instant>>,
    /// The last time that a cluster's generation was renumbered.
    renumbered: Mutex<HashMap<ClusterName, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts that the composition root made"
    )]
    pub(crate) fn new(
        store: Arc<dyn Store>,
        leadership: Arc<Leadership>,
        blobs: Arc<Blobs>,
        observed: Arc<Observed>,
        published: Arc<Published>,
        metrics: Metrics,
        cas: watch::Receiver<Arc<Cas>>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            leadership,
            blobs,
            observed,
            published,
            metrics,
            cas,
            stop,
            next: AtomicU64::new(0),
            current: Mutex::default(),
            replaced: Mutex::default(),
            audited: Mutex::default(),
            renumbered: Mutex::default(),
        })
    }

    /// Runs a stream to its end.
    pub(crate) async fn run(
        self: Arc<Self>,
        caller: Caller,
        mut incoming: Streaming<v1::AgentMessage>,
        outgoing: Outgoing,
    ) {
        let who = format!(
            "{}/{} at {}",
            caller.cluster, caller.instance, caller.address
        );
        let hello = tokio::time::timeout(HELLO_WITHIN, incoming.next()).await;
        let Ok(Some(Ok(v1::AgentMessage {
            message: Some(v1::agent_message::Message::Hello(hello)),
        }))) = hello
        else {
            self.metrics
                .refuse("no_hello", &who, "the stream did not begin with a hello");
            let _ = outgoing
                .send(Err(Status::invalid_argument(
                    "a stream begins with a hello",
                )))
                .await;
            return;
        };
        if let Err((reason, status)) = Self::check(&caller, &hello) {
            self.metrics.refuse(reason, &who, status.message());
            let _ = outgoing.send(Err(status)).await;
            return;
        }
        let desired = self
            .published
            .borrow()
            .desired
            .get(&caller.cluster)
            .cloned();
        let known = desired.map_or(0, |desired| desired.number.generation.0);
        if hello.generation > known.saturating_add(AHEAD) {
            let why = format!(
                "its agent names generation {}, and this hub's is {known}: no hub can have issued it",
                hello.generation
            );
            let status = self.hold(&caller, "impossible_number", why).await;
            let _ = outgoing.send(Err(status)).await;
            return;
        }
        let (questions, asked) = mpsc::channel(4);
        let stop = self.stop.child_token();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let current = Current {
            id,
            instance: caller.instance.clone(),
            process: hello.process,
            stop: stop.clone(),
            questions,
        };
        if let Err(status) = self.enter(&caller.cluster, current) {
            self.metrics.refuse("two_processes", &who, status.message());
            self.observed.update(&caller.cluster, |level| {
                level.refusal = Some(status.message().to_owned());
            });
            let _ = outgoing.send(Err(status)).await;
            return;
        }
        // The cluster may have been removed before this stream was registered, so that the removal did not end it.
        if let Err(error) = admit(self.store.as_ref(), &caller.cluster, &caller.instance).await {
            self.leave(&caller.cluster, id);
            let why = error.to_string();
            if let Some(reason) = error.refusal() {
                self.metrics.refuse(reason, &who, &why);
            }
            let _ = outgoing.send(Err(Status::permission_denied(why))).await;
            return;
        }
        self.metrics.agents.inc();
        tracing::info!(cluster = %caller.cluster, instance = %caller.instance, version = hello.version.get(..VERSION_LENGTH.min(hello.version.len())).unwrap_or_default(), generation = hello.generation, "agent connected");
        let mut stream = Stream::new(&self, &caller, &outgoing, &hello);
        let end = stream.live(&hello, incoming, asked, &stop).await;
        self.metrics.agents.dec();
        self.leave(&caller.cluster, id);
        match &end {
            Ok(why) => tracing::info!(cluster = %caller.cluster, why, "agent's stream ended"),
            Err(status) => {
                tracing::warn!(cluster = %caller.cluster, why = status.message(), "agent's stream was ended");
                let _ = outgoing.try_send(Err(status.clone()));
            }
        }
    }

    /// Ends a cluster's stream.
    pub(crate) fn end(&self, cluster: &ClusterName) {
        if let Some(stream) = lock(&self.current).remove(cluster) {
            stream.stop.cancel();
        }
    }

    /// Ends a cluster's stream if it belongs to another instance.
    pub(crate) fn end_others(&self, cluster: &ClusterName, instance: &InstanceId) {
        let mut current = lock(&self.current);
        if current
            .get(cluster)
            .is_some_and(|stream| stream.instance != *instance)
            && let Some(stream) = current.remove(cluster)
        {
            stream.stop.cancel();
        }
    }

    /// Asks a cluster's agent for the objects of an app.
    pub(crate) async fn objects(
        &self,
        cluster: &ClusterName,
        app: &str,
    ) -> Result<Vec<v1::ObjectState>, &'static str> {
        let questions = lock(&self.current)
            .get(cluster)
            .map(|stream| stream.questions.clone());
        let questions = questions.ok_or("its agent is not connected")?;
        let (answer, answered) = oneshot::channel();
        let question = Question {
            app: app.to_owned(),
            answer,
        };
        let asking = async {
            let asked = questions.send(question).await;
            asked.map_err(|_| "its agent is not connected")?;
            answered.await.map_err(|_| "its agent disconnected")?
        };
        let answered = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        answered.map_err(|_| "its agent did not answer in 10 s")?
    }
}
