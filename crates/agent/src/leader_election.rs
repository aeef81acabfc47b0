//! Leader election among the agents of one cluster. Only the holder of a Lease acts in the cluster.
//!
//! An agent that was killed and restarted in the same pod or on the same host takes over immediately, because
//! its predecessor is known to be dead. An agent elsewhere waits until the Lease is released or
//! expires. An agent that is not known to be ready leaves a free Lease to others for a while. A holder
//! that can't renew its Lease writes nothing until it can, but continues to report what it observes.

use std::{path::Path, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams, WatchEvent, WatchParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

const LEASE: &str = muster_model::agent_records::LEASE;
/// The lifetime of the Lease. Once this time has passed since the last renewal, the holder must not act.
const TTL: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long another agent waits after it saw the last renewal: the lifetime of the Lease, plus the longest
/// time that a request of the last holder may still run in the API server.
const TAKE_OVER: Duration = Duration::from_secs(15 + 25);
/// A holder stops acting this long before its Lease expires.
const STOP_BEFORE: Duration = Duration::from_secs(3);
/// The pause between two attempts to renew a Lease after a write conflict.
const BETWEEN: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the Lease is watched before it is read again. An expiry causes no watch event.
const WATCH_FOR: Duration = Duration::from_secs(5);
/// How long an agent that is not known to be ready leaves a free Lease to other agents.
const LEAVE_TO_OTHERS: Duration = Duration::from_secs(60);

/// This agent's claim to lead in its cluster.
pub(crate) struct Lead {
    leases: Api<Lease>,
    holder: Holder,
}

/// What a waiting agent has seen of the Lease.
#[derive(Default)]
struct Seen {
    holder: String,
    version: Option<(String, Instant)>,
    free_since: Option<Instant>,
}

impl Seen {
    /// Returns true if the Lease has stayed in this version for so long that its holder no longer acts.
    fn has_run_out(&mut self, version: &str, holder: &str) -> bool {
        if self.holder != holder {
            tracing::info!(holder, "another agent leads in this cluster; waiting");
            holder.clone_into(&mut self.holder);
        }
        match &self.version {
            Some((last, since)) if last == version => since.elapsed() >= TAKE_OVER,
            _ => {
                self.version = Some((version.to_owned(), Instant::now()));
                false
            }
        }
    }
}

/// The identity of a Lease holder: a place (pod or host) and a process in it.
struct Holder {
    place: String,
    process: String,
}

impl Holder {
    fn this() -> Self {
        let process = format!(
            "{}-{}",
            std::process::id(),
            started(std::process::id()).unwrap_or(0)
        );
        // In a pod, at most one agent container runs at a time, so the pod's UID is enough to know that an earlier
        // holder is dead. On a host, several agents may run, and their process IDs distinguish them.
        if let Ok(uid) = std::env::var("POD_UID") {
            return Self {
                place: format!("pod-{uid}"),
                process,
            };
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let namespace: String = namespace
            .to_string_lossy()
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        Self {
            place: format!("host-{}-{namespace}", boot.trim()),
            process,
        }
    }

    fn text(&self) -> String {
        format!("{}/{}", self.place, self.process)
    }

    /// Returns true if the other holder is known to be dead.
    fn knows_dead(&self, other: &str) -> bool {
        let Some((place, process)) = other.split_once('/') else {
            return false;
        };
        if place != self.place {
            return false;
        }
        if place.starts_with("pod-") {
            return true;
        }
        let alive = process.split_once('-').is_some_and(|(pid, start)| {
            let running = pid.parse().ok().and_then(started);
            running.is_some() && running == start.parse().ok()
        });
        !alive
    }
}

/// Returns when a process started, in clock ticks since boot, or `None` if it has ended. Together with the
/// process id this identifies one process.
fn started(pid: u32) -> Option<u64> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The command name is in parentheses and may contain any character; the state and the numbers follow it.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Lead {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            holder: Holder::this(),
        }
    }

    /// Waits until this agent holds the Lease. Returns `None` if `stop` fires first. `fit` says whether this
    /// agent is ready to lead, once that is known.
    pub(crate) async fn take(
        &self,
        mut fit: watch::Receiver<Option<bool>>,
        stop: &CancellationToken,
    ) -> Option<()> {
        let mut seen = Seen::default();
        loop {
            let now = fit.borrow_and_update().unwrap_or_default();
            let version = match self.attempt(&mut seen, now).await {
                Ok(None) => return Some(()),
                Ok(version) => version,
                Err(error) => {
                    tracing::warn!(%error, "the agents' Lease can't be read or written; trying again");
                    None
                }
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = self.changes(version) => {}
                Ok(()) = fit.changed() => {}
            }
        }
    }

    /// Tries once to acquire the Lease. Returns `None` on success, and otherwise the version of the Lease
    /// that was seen. Another holder's Lease counts as expired once this agent has seen it unchanged for
    /// [`TAKE_OVER`], so that the clocks of two machines are never compared.
    async fn attempt(&self, seen: &mut Seen, fit: bool) -> Result<Option<String>, kube::Error> {
        let lease = self.leases.get_opt(LEASE).await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
        let spec = spec.unwrap_or_default();
        let metadata = lease.as_ref().map(|lease| &lease.metadata);
        let version = metadata.and_then(|metadata| metadata.resource_version.clone());
        let version = version.unwrap_or_default();
        let other = spec.holder_identity.unwrap_or_default();
        let known =
            other.is_empty() || other == self.holder.text() || self.holder.knows_dead(&other);
        if !known && !seen.has_run_out(&version, &other) {
            seen.free_since = None;
            return Ok(Some(version));
        }
        let free_since = seen.free_since.get_or_insert_with(Instant::now);
        if !fit && free_since.elapsed() < LEAVE_TO_OTHERS {
            return Ok(Some(version));
        }
        let won = match lease {
            Some(lease) => {
                let spec = self.spec(spec.lease_transitions.unwrap_or(0) + 1);
                self.write(lease, spec).await?
            }
            None => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(LEASE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(0)),
                };
                won(self.leases.create(&PostParams::default(), &lease).await)?
            }
        };
        Ok((!won).then_some(version))
    }

    /// Waits until the Lease changes from this version, but not much longer than [`WATCH_FOR`].
    async fn changes(&self, version: Option<String>) {
        let watch = async |version: String| {
            let params = WatchParams::default().fields(&format!("metadata.name={LEASE}"));
            let mut events = self.leases.watch(&params, &version).await.ok()?.boxed();
            match events.next().await {
                Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => None,
                Some(Ok(_)) => Some(()),
            }
        };
        let watched = match version {
            Some(version) if !version.is_empty() => {
                tokio::time::timeout(WATCH_FOR, watch(version)).await
            }
            _ => Ok(None),
        };
        if let Ok(None) = watched {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        LeaseSpec {
            holder_identity: Some(self.holder.text()),
            lease_duration_seconds: i32::try_from(TTL.as_secs()).ok(),
            acquire_time: now.clone(),
            renew_time: now,
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn write(&self, mut lease: Lease, spec: LeaseSpec) -> Result<bool, kube::Error> {
        lease.spec = Some(spec);
        won(self
            .leases
            .replace(LEASE, &PostParams::default(), &lease)
            .await)
    }

    /// Renews the Lease until `stop` fires. If renewals fail for too long, the agent must not write until one
    /// succeeds, and `rest` holds the reason. Returns early if another agent has acquired the Lease.
    pub(crate) async fn keep(
        &self,
        stop: &CancellationToken,
        rest: &watch::Sender<Option<String>>,
    ) {
        let mut renewed = Instant::now();
        let mut pause = RENEW_EVERY;
        let mut why = "the API server does not answer".to_owned();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let sent = Instant::now();
            let left = (TTL - STOP_BEFORE).saturating_sub(renewed.elapsed());
            let within = if left.is_zero() { RENEW_EVERY } else { left };
            match tokio::time::timeout(within, self.renew()).await {
                Ok(Ok(true)) => {
                    renewed = sent;
                    pause = RENEW_EVERY;
                    if rest.send_replace(None).is_some() {
                        tracing::info!(
                            "the agents' Lease is renewed; this agent writes to the cluster again"
                        );
                    }
                    continue;
                }
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the agents' Lease was not renewed; trying again");
                    why = error.to_string();
                }
                Err(_) => {}
            }
            pause = LOOK_EVERY;
            if renewed.elapsed() >= TTL - STOP_BEFORE {
                let why =
                    format!("the agent changes nothing, since it can't renew its Lease: {why}");
                rest.send_if_modified(|rest| {
                    let changes = rest.as_ref() != Some(&why);
                    *rest = Some(why);
                    changes
                });
            }
        }
    }

    /// Returns true if the API server confirms that this agent still holds the Lease.
    pub(crate) async fn is_own(&self) -> bool {
        let lease = tokio::time::timeout(RENEW_EVERY, self.leases.get(LEASE)).await;
        let spec = lease.ok().and_then(Result::ok).and_then(|lease| lease.spec);
        spec.and_then(|spec| spec.holder_identity) == Some(self.holder.text())
    }

    /// Renews the Lease. Returns false if another agent holds it. On a write conflict it tries again, because
    /// the other writer may only have changed a label or an annotation; only `holderIdentity` says who leads.
    async fn renew(&self) -> Result<bool, kube::Error> {
        loop {
            let lease = self.leases.get(LEASE).await?;
            let mut spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_ref() != Some(&self.holder.text()) {
                return Ok(false);
            }
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            if self.write(lease, spec).await? {
                return Ok(true);
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Releases the Lease, so that another agent can take over immediately.
    pub(crate) async fn release(&self) -> Result<(), kube::Error> {
        let lease = self.leases.get(LEASE).await?;
        let mut spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() == Some(&self.holder.text()) {
            spec.holder_identity = None;
            self.write(lease, spec).await?;
        }
        Ok(())
    }
}

/// Returns true if the write succeeded, and false on a conflict: somebody else wrote the Lease first.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
