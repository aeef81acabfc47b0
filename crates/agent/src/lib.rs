//! The agent of one cluster: takes what its hub says, keeps and applies it, reports what is. This file
//! is the composition root.

mod cluster;
mod cluster_client;
mod dial;
mod identity;
mod leader_election;
mod memory_budget;
mod readiness;
mod report;
mod stream;

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

/// The namespace where an agent keeps what is its own.
pub const NAMESPACE: &str = muster_model::records::NAMESPACE;
/// Time for requests under way to end.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// A stream that has lasted so long was a good one.
const LASTING: Duration = Duration::from_secs(60);
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Where the hub has said no, it is asked seldom: only a person can change its mind.
const REFUSED: Duration = Duration::from_secs(20);

/// An agent's settings.
pub struct AgentConfig {
    /// How its cluster is reached.
    pub kube: kube::Config,
    /// The namespace for what is its own.
    pub namespace: String,
    /// What of its cluster it may touch.
    pub reach: NamespaceAccess,
    /// How many objects it deletes unasked within an hour at most, whatever the hub says.
    pub prune_ceiling: Option<usize>,
    /// The token to join with, the first time.
    pub join_token: Option<JoinToken>,
    /// The hub's address, where it is another than the one that the token named.
    pub hub: Option<String>,
    /// Where probes and metrics are served, in plain HTTP.
    pub http: Option<SocketAddr>,
}

/// Why an agent can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The client can't be made.
    #[error("no client for the cluster can be made")]
    Client(#[source] Box<kube::Error>),
    /// No identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another agent has taken the lead.
    #[error("another agent has taken the lead in this cluster")]
    LeadLost,
    /// An address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
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
            "Whether there is a stream to the hub",
            metrics.connected.clone(),
        );
        registry.register(
            "leading",
            "Whether this agent acts in its cluster",
            metrics.leading.clone(),
        );
        registry.register(
            "generation",
            "The generation in force",
            metrics.generation.clone(),
        );
        registry.register(
            "certificate_end_timestamp_seconds",
            "When the agent's certificate ends, unless it is renewed",
            metrics.certificate_end.clone(),
        );
        metrics
    }
}

/// Runs an agent until it is told to stop.
///
/// # Errors
/// [`AgentError`] where it can't start, or has lost the lead.
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
        reach: config.reach.clone(),
        prune_ceiling: config.prune_ceiling,
        ..ApplyConfig::default()
    };
    let prover = Prover {
        identities: IdentityStore::new(client.clone(), &config.namespace),
        client: client.clone(),
        namespace: config.namespace.clone(),
        reach: config.reach,
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
    let kept = tokio::spawn({
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
    // Renewals have ended when the lead is given back, so that none takes it again.
    acting.cancel();
    let _ = kept.await;
    if let Err(error) = lead.release().await {
        tracing::warn!(%error, "the lead was not given back; another agent waits until it runs out");
    }
    acted?;
    if let Err(unfinished) = shutdown.finish(STOP_WITHIN).await {
        tracing::warn!(%unfinished, "stopped all the same");
    }
    Ok(())
}

/// Whether there is an identity or a token to get one, once the API server can say; not where this
/// agent is told to stop first. With a token alone the agent's namespace is made, for its Lease.
async fn may_begin(prover: &Prover, stop: &CancellationToken) -> Result<bool, IdentityError> {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        let looked = async {
            let kept = prover.identities.kept(prover.join_token.as_ref()).await?;
            match kept {
                Some(_) => Ok(()),
                None => prover.identities.ensure_namespace().await,
            }
        };
        match looked.await {
            Ok(()) => return Ok(true),
            Err(error @ IdentityError::Cluster(_)) => {
                tracing::warn!(error = %Chain(&error), "the agent can't look for its identity; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Waits for the lead, and proves meanwhile that it could be taken. Whether it was.
async fn take_lead(lead: &Lead, prover: &Prover, ready: &Part, stop: &CancellationToken) -> bool {
    let (sender, fit) = watch::channel(None);
    tokio::select! {
        taken = lead.take(fit, stop) => taken.is_some(),
        never = prover.run(ready, sender) => match never {},
    }
}

/// What an agent that leads goes by.
struct Leading<'a> {
    lead: &'a Lead,
    /// Why it may write nothing for now.
    resting: watch::Receiver<Option<String>>,
    metrics: &'a Metrics,
    /// Ends with the lead.
    acting: &'a CancellationToken,
}

/// Does an agent's work for as long as it leads.
async fn act(
    prover: &Prover,
    apply: &ApplyConfig,
    ready: &Part,
    leading: Leading<'_>,
) -> Result<(), AgentError> {
    let acting = leading.acting;
    let identities = &prover.identities;
    let opening = async {
        let opening = open_identity(identities, prover.join_token.as_ref(), acting);
        let Some(mut identity) = opening.await? else {
            return Ok(None);
        };
        if let Some(hub) = &prover.hub {
            identity.hub.clone_from(hub);
        }
        let cluster = open_cluster(&prover.client, apply, &identity.enrolment, acting).await?;
        Ok::<_, AgentError>(cluster.map(|cluster| (cluster, identity)))
    };
    let mut resting = leading.resting.clone();
    let opened = tokio::select! {
        opened = opening => opened?,
        // Nothing is held yet that would be worth waiting for.
        Ok(_) = resting.wait_for(Option::is_some) => None,
    };
    let Some((cluster, identity)) = opened else {
        return Ok(());
    };
    let metrics = leading.metrics;
    tokio::spawn(show_generation(cluster.level(), metrics.generation.clone()));
    // The hub is asked first: what it has now may be the way out of what is in force.
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

/// The identity, however long hub or API server let it wait; not where only a person can help.
async fn open_identity(
    identities: &IdentityStore,
    token: Option<&JoinToken>,
    stop: &CancellationToken,
) -> Result<Option<Identity>, IdentityError> {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match identities.open(token).await {
            Ok(identity) => return Ok(Some(identity)),
            Err(error @ (IdentityError::Cluster(_) | IdentityError::Dial(_))) => {
                tracing::warn!(error = %Chain(&error), "the agent has no identity yet; trying again");
            }
            Err(IdentityError::Refused(status)) if status.code() == Code::Unavailable => {
                tracing::warn!(
                    why = status.message(),
                    "the hub can't enrol just now; trying again"
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
                tracing::warn!(error = %Chain(&error), "the cluster can't be opened; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Hands on whether anything may be written.
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
            // The lead has ended, and with it all of this soon.
            std::future::pending::<()>().await;
        }
    }
}

/// Follows the hub, stream after stream, until told to stop. Without a hub the cluster goes on with
/// what is in force.
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
        // Another may lead by now, and speaks to the hub.
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
                    // The stream begins anew with what is known now.
                    () = cluster.forgotten() => Ok(()),
                    renewed = renew(identities, channel.clone(), &identity, &asked) => {
                        next = Some(renewed);
                        Ok(())
                    }
                };
                match ended {
                    // The certificate has ended, whatever the time is here: it is good for a new one.
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
            // The stream begins anew under the new certificate.
            let hub = std::mem::take(&mut identity.hub);
            identity = Identity { hub, ..renewed };
        }
        metrics.connected.set(0);
        // A hub that welcomes everybody and ends all streams at once is not asked more often for that.
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
            "no stream to the hub; the cluster goes on with what is in force"
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Shows the generation in force until the cluster is closed.
async fn show_generation(mut level: watch::Receiver<Arc<Level>>, gauge: Gauge<u64, AtomicU64>) {
    loop {
        let number = level.borrow_and_update().in_force;
        gauge.set(number.map_or(0, |number| number.generation.0));
        if level.changed().await.is_err() {
            return;
        }
    }
}

/// A refusal by name is not asked again soon.
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

/// Waits until a new certificate is due, or the hub asks for that, and gets one, however often it takes.
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
                tracing::warn!(error = %Chain(&error), "no new certificate yet; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
