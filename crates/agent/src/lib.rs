//! The agent of one cluster. It receives generations from its hub, stores them in the cluster, applies
//! them, and reports the observed state. This file is the composition root.

mod cluster;
mod cluster_client;
mod dial;
mod identity;
mod leader_election;
mod memory_budget;
mod readiness;
mod report;
mod stream;
mod writer_looks;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use kube::Client;
use leader_election::Lead;
use muster_apply::Config as ApplyConfig;
use muster_pki::JoinToken;
use muster_runtime::{
    backoff::Backoff,
    http::{Part, Readiness},
    log::Chain,
    process,
    shutdown::Shutdown,
};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use readiness::Prover;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

pub use cluster::{Arrived, ArrivedBundle, Cluster, Level, PackedBundle, TakeError, UnpackError};
pub use cluster_client::{ClusterClient, OpenError};
pub use dial::{DialError, dial};
pub use identity::{Identity, IdentityError, IdentityStore};
pub use muster_apply::NamespaceAccess;
pub use stream::{StreamError, follow};

/// The default namespace for an agent's own records.
pub const NAMESPACE: &str = muster_model::agent_records::NAMESPACE;
/// How long a shutdown waits for unfinished requests.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// A stream that lasted at least this long counts as a success and resets the back-off.
const LASTING: Duration = Duration::from_secs(60);
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// The pause after a refusal by the hub. It is long because only a person can remove the cause.
const REFUSED: Duration = Duration::from_secs(20);

/// An agent's settings.
pub struct AgentConfig {
    /// The client configuration for the API server of the agent's cluster.
    pub kube: kube::Config,
    /// The namespace for the agent's own records.
    pub namespace: String,
    /// The namespaces that the agent may touch.
    pub namespaces: NamespaceAccess,
    /// The most objects that the agent deletes in an hour without an approval, even if the hub allows more.
    pub prune_ceiling: Option<usize>,
    /// The token for joining the fleet. It is needed only once.
    pub join_token: Option<JoinToken>,
    /// The hub's address, if it differs from the one in the join token.
    pub hub: Option<String>,
    /// The address where probes and metrics are served over plain HTTP.
    pub http: Option<SocketAddr>,
}

/// The reason why an agent can't start or can't continue.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The Kubernetes client can't be created.
    #[error("can't create a Kubernetes client for the cluster")]
    Client(#[source] Box<kube::Error>),
    /// The agent has no identity and can't get one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The agent's records can't be read from the cluster.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another agent has become the leader in this cluster.
    #[error("another agent has taken the lead in this cluster")]
    LeadLost,
    /// The agent can't renew its Lease, and has loaded nothing yet.
    #[error("the agent can't start: {0}")]
    CantRenew(String),
    /// The agent can't listen on the address for probes and metrics.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Default)]
struct Metrics {
    connected: Gauge,
    leading: Gauge,
    generation: Gauge<u64, AtomicU64>,
    certificate_end: Gauge,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("muster_agent");
        registry.register(
            "connected",
            "1 while the agent has a stream to the hub",
            metrics.connected.clone(),
        );
        registry.register(
            "leading",
            "1 while this agent leads in its cluster and may write to it",
            metrics.leading.clone(),
        );
        registry.register(
            "generation",
            "The number of the generation in force",
            metrics.generation.clone(),
        );
        registry.register(
            "certificate_end_timestamp_seconds",
            "When the agent's current certificate expires, in Unix time",
            metrics.certificate_end.clone(),
        );
        metrics
    }
}

/// Runs an agent until `shutdown` begins.
///
/// # Errors
/// [`AgentError`] if the agent can't start, or another agent has become the leader.
pub async fn run(config: AgentConfig, shutdown: Shutdown) -> Result<(), AgentError> {
    let stop = shutdown.token();
    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::new();
    let ready = readiness.part("agent");
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.map_err(|source| AgentError::Listen { address, source })?;
        let routes = muster_runtime::http::routes(readiness, Arc::new(registry));
        let served = muster_runtime::http::serve(listener, routes, shutdown.clone());
        shutdown.spawn_vital("http", async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "probes and metrics are no longer served");
            }
        });
    }
    let client = muster_apply::connect(config.kube).map_err(|e| AgentError::Client(Box::new(e)))?;
    let apply = ApplyConfig {
        namespace: config.namespace.clone(),
        namespaces: config.namespaces.clone(),
        prune_ceiling: config.prune_ceiling,
        ..ApplyConfig::default()
    };
    let prover = Prover {
        identities: IdentityStore::new(client.clone(), &config.namespace),
        client: client.clone(),
        namespace: config.namespace.clone(),
        namespaces: config.namespaces,
        join_token: config.join_token,
        hub: config.hub,
    };
    let lead = Arc::new(Lead::new(client, &config.namespace));
    if !may_begin(&prover, &stop).await? || !take_lead(&lead, &prover, &ready, &stop).await {
        return Ok(());
    }
    metrics.leading.set(1);
    let acting = stop.child_token();
    let (rest, resting) = watch::channel(None);
    let stored = tokio::spawn({
        let (lead, acting) = (Arc::clone(&lead), acting.clone());
        async move {
            lead.keep(&acting, &rest).await;
            acting.cancel();
        }
    });
    let leading = Leading {
        lead: &lead,
        resting,
        metrics: &metrics,
        acting: &acting,
    };
    let acted = act(&prover, &apply, &ready, leading).await;
    if acted.is_ok() && !stop.is_cancelled() {
        return Err(AgentError::LeadLost);
    }
    // Renewals must end before the Lease is released, or a late renewal would acquire it again.
    acting.cancel();
    let _ = stored.await;
    if let Err(error) = lead.release().await {
        tracing::warn!(%error, "the agents' Lease was not released; another agent can take over only after it has expired");
    }
    acted?;
    if let Err(unfinished) = shutdown.finish(STOP_WITHIN).await {
        tracing::warn!(%unfinished, "the agent stopped before all of its tasks had ended");
    }
    Ok(())
}

/// Waits until the API server answers, and checks that the agent has an identity, or a token to get one with.
/// Returns false if the agent must stop first. If there is only a token, this creates the agent's namespace,
/// which its Lease needs.
async fn may_begin(prover: &Prover, stop: &CancellationToken) -> Result<bool, IdentityError> {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        let looked = async {
            let stored = prover.identities.stored(prover.join_token.as_ref()).await?;
            match stored {
                Some(_) => Ok(()),
                None => prover.identities.ensure_namespace().await,
            }
        };
        match looked.await {
            Ok(()) => return Ok(true),
            Err(error @ IdentityError::Cluster(_)) => {
                tracing::warn!(error = %Chain(&error), "the agent can't read its identity; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Waits until this agent leads, and runs the readiness checks meanwhile. Returns false if the agent must
/// stop first.
async fn take_lead(lead: &Lead, prover: &Prover, ready: &Part, stop: &CancellationToken) -> bool {
    let (sender, fit) = watch::channel(None);
    tokio::select! {
        taken = lead.take(fit, stop) => taken.is_some(),
        never = prover.run(ready, sender) => match never {},
    }
}

/// The state of an agent while it leads.
struct Leading<'a> {
    lead: &'a Lead,
    /// The reason why the agent may not write to the cluster at the moment.
    resting: watch::Receiver<Option<String>>,
    metrics: &'a Metrics,
    /// Cancelled when this agent no longer leads or must stop.
    acting: &'a CancellationToken,
}

/// Does the work of the leading agent until it no longer leads or must stop.
async fn act(
    prover: &Prover,
    apply: &ApplyConfig,
    ready: &Part,
    leading: Leading<'_>,
) -> Result<(), AgentError> {
    let acting = leading.acting;
    let identities = &prover.identities;
    let opening = async {
        let opening = open_identity(prover, acting);
        let Some(mut identity) = opening.await? else {
            return Ok(None);
        };
        if let Some(hub) = &prover.hub {
            identity.hub.clone_from(hub);
        }
        let apply = ApplyConfig {
            cluster: Some(identity.cluster.clone()),
            ..apply.clone()
        };
        let cluster = open_cluster(&prover.client, &apply, &identity.enrolment, acting).await?;
        Ok::<_, AgentError>(cluster.map(|cluster| (cluster, identity)))
    };
    let mut resting = leading.resting.clone();
    let opened = tokio::select! {
        opened = opening => opened?,
        // Nothing is loaded yet, so the agent ends instead of waiting until its Lease can be renewed.
        Ok(why) = resting.wait_for(Option::is_some) => {
            return Err(AgentError::CantRenew(why.clone().unwrap_or_default()));
        }
    };
    let Some((cluster, identity)) = opened else {
        return Ok(());
    };
    let metrics = leading.metrics;
    tokio::spawn(show_generation(cluster.level(), metrics.generation.clone()));
    // Connecting does not wait for loading: the hub's newest generation may fix the one in force.
    let loading = async {
        cluster.load().await;
        ready.ready();
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        () = serve(&cluster, identity, identities, &leading) => {}
        never = pause(&cluster, leading.resting.clone(), &metrics.leading) => match never {},
        never = loading => match never {},
    }
    cluster.stop().await;
    Ok(())
}

/// Opens the agent's identity. Retries while the hub or the API server does not answer. Returns `None` if the
/// agent must stop first.
///
/// # Errors
/// [`IdentityError`] if only a person can fix the problem.
async fn open_identity(
    prover: &Prover,
    stop: &CancellationToken,
) -> Result<Option<Identity>, IdentityError> {
    let (token, hub) = (prover.join_token.as_ref(), prover.hub.as_deref());
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match prover.identities.open(token, hub).await {
            Ok(identity) => return Ok(Some(identity)),
            Err(error @ (IdentityError::Cluster(_) | IdentityError::Dial(_))) => {
                tracing::warn!(error = %Chain(&error), "the agent has no identity yet; trying again");
            }
            Err(IdentityError::Refused(status)) if status.code() == Code::Unavailable => {
                tracing::warn!(
                    why = status.message(),
                    "the hub can't enrol this agent at the moment; trying again"
                );
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

async fn open_cluster(
    client: &Client,
    config: &ApplyConfig,
    enrolment: &str,
    stop: &CancellationToken,
) -> Result<Option<ClusterClient>, OpenError> {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match ClusterClient::open(client.clone(), config.clone(), enrolment).await {
            Ok(cluster) => return Ok(Some(cluster)),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the agent can't read its records from the cluster; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Pauses and resumes writing in the cluster as `resting` says.
async fn pause(
    cluster: &ClusterClient,
    mut resting: watch::Receiver<Option<String>>,
    leads: &Gauge,
) -> Infallible {
    loop {
        let why = resting.borrow_and_update().clone();
        leads.set(i64::from(why.is_none()));
        cluster.pause(why);
        if resting.changed().await.is_err() {
            // This agent no longer leads, and its tasks are being cancelled.
            std::future::pending::<()>().await;
        }
    }
}

/// Follows the hub, one stream after another, until this agent no longer leads. While the hub can't be
/// reached, the cluster continues with the generation in force.
async fn serve(
    cluster: &ClusterClient,
    mut identity: Identity,
    identities: &IdentityStore,
    leading: &Leading<'_>,
) {
    let (metrics, stop) = (leading.metrics, leading.acting);
    let process = rand::random();
    let mut connected: Option<Instant> = None;
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    while !stop.is_cancelled() {
        // Another agent may lead by now; then only that one may connect to the hub.
        if leading.resting.borrow().is_some() && !leading.lead.is_own().await {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
            continue;
        }
        let end = identity.not_after.duration_since(SystemTime::UNIX_EPOCH);
        let end = end.unwrap_or_default().as_secs();
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        metrics.certificate_end.set(end);
        let renewing = stop.child_token();
        let asked = Notify::new();
        let mut next = None;
        let ended = match dial(&identity.hub, &identity.trust, Some(&identity.credentials)).await {
            Ok(channel) => {
                let following = follow(
                    channel.clone(),
                    &identity.cluster,
                    process,
                    cluster,
                    &renewing,
                    &asked,
                    || {
                        connected = Some(Instant::now());
                        metrics.connected.set(1);
                        tracing::info!(hub = identity.hub, cluster = %identity.cluster, "connected to the hub");
                    },
                );
                let ended = tokio::select! {
                    ended = following => ended,
                    // A new stream starts, whose first message says what the agent knows now.
                    () = cluster.forgotten() => Ok(()),
                    renewed = renew(identities, channel.clone(), &identity, &asked) => {
                        next = Some(renewed);
                        Ok(())
                    }
                };
                match ended {
                    // The hub says that the certificate has expired, whatever the clock says here. The certificate
                    // can still be renewed.
                    Err(StreamError::Status(status)) if status.code() == Code::Unauthenticated => {
                        tracing::warn!(
                            why = status.message(),
                            "the agent asks for a new certificate"
                        );
                        let renewed = identities.renew(channel).await;
                        renewed
                            .map(|renewed| next = Some(renewed))
                            .map_err(|error| (None, Chain(&error).to_string()))
                    }
                    ended => ended.map_err(|error| (wait_of(&error), Chain(&error).to_string())),
                }
            }
            Err(error) => Err((None, Chain(&error).to_string())),
        };
        if let Some(renewed) = next {
            tracing::info!("the agent has a new certificate");
            // The next stream uses the new certificate.
            let hub = std::mem::take(&mut identity.hub);
            identity = Identity { hub, ..renewed };
        }
        metrics.connected.set(0);
        // A hub that accepts every stream and ends it immediately must not reset the back-off.
        if connected
            .take()
            .is_some_and(|since| since.elapsed() >= LASTING)
        {
            backoff.reset();
        }
        let Err((wait, why)) = ended else {
            continue;
        };
        let wait = wait.unwrap_or_else(|| backoff.next_delay());
        tracing::warn!(
            why,
            ?wait,
            "no stream to the hub; the cluster continues with the generation in force"
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Updates the generation metric until the cluster is closed.
async fn show_generation(mut level: watch::Receiver<Arc<Level>>, gauge: Gauge<u64, AtomicU64>) {
    loop {
        let number = level.borrow_and_update().in_force;
        gauge.set(number.map_or(0, |number| number.generation.0));
        if level.changed().await.is_err() {
            return;
        }
    }
}

/// Returns the pause after an explicit refusal, and `None` for errors that the back-off handles.
fn wait_of(error: &StreamError) -> Option<Duration> {
    match error {
        StreamError::Status(status)
            if matches!(
                status.code(),
                Code::PermissionDenied | Code::FailedPrecondition
            ) =>
        {
            Some(REFUSED)
        }
        StreamError::Refused(_) | StreamError::Protocol { .. } => Some(REFUSED),
        _ => None,
    }
}

/// Waits until the certificate must be renewed or the hub asks for that, and retries until it is renewed.
async fn renew(
    identities: &IdentityStore,
    channel: tonic::transport::Channel,
    identity: &Identity,
    asked: &Notify,
) -> Identity {
    tokio::select! {
        () = tokio::time::sleep_until(identity.renew_at) => {}
        () = asked.notified() => tracing::info!("the hub asks for a new certificate"),
    }
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        match identities.renew(channel.clone()).await {
            Ok(identity) => return identity,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the certificate was not renewed; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
