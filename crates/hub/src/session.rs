//! The streams of all agents: who is served, which of a cluster's streams counts, and who is held.

mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures::StreamExt as _;
use muster_model::ids::{ClusterName, InstanceId};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::log::Chain;
use muster_store::{Store, Txn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use self::stream::Stream;
use crate::{
    authority::admit,
    blobs::Blobs,
    fleet::Published,
    leadership::Leadership,
    metrics::Metrics,
    observed::{MAX_NUMBER, Observed},
    records::AuditEntry,
    rotation::Cas,
};

/// An agent that does not say hello in this time is no agent.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// An agent that does not list its objects in this time is not waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long two processes of one cluster are both held after they took turns.
const HELD_FOR: Duration = Duration::from_secs(60);

/// What is held for one reason is in the audit log once in this time.
const AUDIT_EVERY: Duration = Duration::from_secs(3600);
/// How far an agent may be ahead of a hub whose state is older: numbers are not used up so fast.
const AHEAD: u64 = 1_000_000_000;
/// Characters of an agent's version that are kept.
const VERSION_LENGTH: usize = 64;

/// What a stream takes to the agent.
pub(crate) type Outgoing = mpsc::Sender<Result<v1::HubMessage, Status>>;

/// A question to an agent about its objects.
struct Question {
    app: String,
    answer: oneshot::Sender<Vec<v1::ObjectState>>,
}

/// The stream of one cluster that counts.
struct Current {
    id: u64,
    instance: InstanceId,
    process: u64,
    stop: CancellationToken,
    questions: mpsc::Sender<Question>,
}

/// Every stream.
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
    /// Processes that were replaced, by when: one that comes back proves that two are alive.
    replaced: Mutex<HashMap<(ClusterName, u64), Instant>>,
    /// Clusters that were held lately, by reason and when.
    audited: Mutex<HashMap<(ClusterName, &'static str), Instant>>,
    /// When a generation was numbered anew for a cluster.
    renumbered: Mutex<HashMap<ClusterName, Instant>>,
}

/// Who a stream belongs to.
pub(crate) struct Caller {
    pub(crate) cluster: ClusterName,
    pub(crate) instance: InstanceId,
    pub(crate) not_after: SystemTime,
    /// The version of the fleet's CAs that it knows.
    pub(crate) trust: u64,
    pub(crate) address: std::net::SocketAddr,
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
        let wanted = self.published.borrow().wanted.get(&caller.cluster).cloned();
        let known = wanted.map_or(0, |wanted| wanted.number.generation.0);
        if hello.generation > known.saturating_add(AHEAD) {
            let why = format!(
                "its agent names generation {}, and this hub's is {known}: no hub can have given it",
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
                level.held = Some(status.message().to_owned());
            });
            let _ = outgoing.send(Err(status)).await;
            return;
        }
        // Who was removed since the call began would not be found by the removal.
        if let Err(error) = admit(self.store.as_ref(), &caller.cluster, &caller.instance).await {
            self.leave(&caller.cluster, id);
            let _ = outgoing
                .send(Err(Status::permission_denied(error.to_string())))
                .await;
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

    /// Whether a stream of this caller that begins like this is served.
    pub(crate) fn check(caller: &Caller, hello: &v1::Hello) -> Result<(), (&'static str, Status)> {
        if hello.protocol != PROTOCOL_VERSION {
            let why = format!(
                "the agent (version {}) speaks protocol {}, this hub (version {VERSION}) {PROTOCOL_VERSION}; upgrade the older one",
                hello.version, hello.protocol
            );
            return Err(("protocol", Status::failed_precondition(why)));
        }
        if hello.cluster != caller.cluster.as_str() {
            let why = format!(
                "the certificate is cluster {}'s, but the agent asks for {}",
                caller.cluster, hello.cluster
            );
            return Err(("other_cluster", Status::permission_denied(why)));
        }
        // One agent must not be able to use up the fleet's numbers.
        let term = hello.term.clone().unwrap_or_default();
        if term.number > MAX_NUMBER || hello.generation > MAX_NUMBER {
            let why = "the agent names a term or generation that no hub can have given";
            return Err(("impossible_number", Status::invalid_argument(why)));
        }
        Ok(())
    }

    /// Makes a stream the one of its cluster. The newest process wins, since the older stream is
    /// usually a dead one that nobody has noticed; but one that comes back after it was replaced is
    /// alive, and then neither is served.
    fn enter(&self, cluster: &ClusterName, stream: Current) -> Result<(), Status> {
        let mut current = lock(&self.current);
        let mut replaced = lock(&self.replaced);
        replaced.retain(|_, when| when.elapsed() < HELD_FOR);
        if let Some(before) = current.get(cluster) {
            if replaced.contains_key(&(cluster.clone(), stream.process)) {
                before.stop.cancel();
                replaced.insert((cluster.clone(), before.process), Instant::now());
                replaced.insert((cluster.clone(), stream.process), Instant::now());
                return Err(Status::failed_precondition(format!(
                    "two agents take turns as cluster {cluster}: is this a copy of the cluster? \
                     Stop one of them; both are held for a minute"
                )));
            }
            if before.process != stream.process {
                replaced.insert((cluster.clone(), before.process), Instant::now());
            }
            before.stop.cancel();
        } else if replaced.contains_key(&(cluster.clone(), stream.process)) {
            return Err(Status::failed_precondition(format!(
                "two agents took turns as cluster {cluster}; both are held for a minute"
            )));
        }
        current.insert(cluster.clone(), stream);
        Ok(())
    }

    /// Does not deliver to a cluster, and says why for as long as that lasts. Once an hour it is in the audit log.
    async fn hold(&self, caller: &Caller, reason: &'static str, why: String) -> Status {
        let cluster = &caller.cluster;
        let who = format!("{cluster}/{} at {}", caller.instance, caller.address);
        self.metrics.refuse(reason, &who, &why);
        self.observed
            .update(cluster, |level| level.held = Some(why.clone()));
        let first = {
            let mut audited = lock(&self.audited);
            audited.retain(|_, when| when.elapsed() < AUDIT_EVERY);
            let key = (cluster.clone(), reason);
            audited.insert(key, Instant::now()).is_none()
        };
        if first {
            let entry = AuditEntry::new(
                &format!("agent of cluster {cluster}"),
                format!("held: {why}"),
            );
            if let Err(error) = self.store.commit(entry.put(Txn::new())).await {
                tracing::error!(error = %Chain(&error), "the audit log can't be written");
            }
        }
        Status::failed_precondition(why)
    }

    fn leave(&self, cluster: &ClusterName, id: u64) {
        let mut current = lock(&self.current);
        if current.get(cluster).is_some_and(|stream| stream.id == id) {
            current.remove(cluster);
        }
        if !current.contains_key(cluster) {
            self.observed.left(cluster);
        }
    }

    /// Ends a cluster's stream.
    pub(crate) fn end(&self, cluster: &ClusterName) {
        if let Some(stream) = lock(&self.current).remove(cluster) {
            stream.stop.cancel();
        }
    }

    /// Ends a cluster's stream where it is another instance's.
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

    /// The objects of an app in a cluster, asked of its agent.
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
            answered.await.map_err(|_| "its agent went away")
        };
        let answered = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        answered.map_err(|_| "its agent did not answer in 10 s")?
    }
}
