//! One agent acts in a cluster at a time: it holds a Lease there. An agent that was killed and started
//! again in the same place takes over at once, since its predecessor is known to be dead; one in
//! another place waits until the Lease runs out.

use std::{path::Path, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE: &str = "muster-agent";
/// Without a renewal its holder may no longer act after this time.
const TTL: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// What another waits after it saw the last renewal: the lease's own time, and the longest that a request
/// of the last holder may still be under way at the API server.
const TAKE_OVER: Duration = Duration::from_secs(15 + 25);
/// A holder stops acting this long before another may begin.
const STOP_BEFORE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The lead in a cluster.
pub(crate) struct Lead {
    leases: Api<Lease>,
    holder: Holder,
}

/// Who holds: a place, and a process in it.
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
        // A pod's containers of one name follow each other; on a host, process ids tell.
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

    /// Whether another holder is known to be dead.
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

/// When a process started, in clock ticks since boot; with its id this names one process. None where
/// it has ended.
fn started(pid: u32) -> Option<u64> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The command's name stands in brackets and may hold anything; state and numbers follow it.
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

    /// Waits until this agent has the lead; `None` where it is told to stop first.
    pub(crate) async fn take(&self, stop: &CancellationToken) -> Option<()> {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => return Some(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the agents' Lease can't be read or written; trying again")
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// One try. A foreign lease runs out when this agent has watched it unchanged for its whole time:
    /// no two clocks are compared.
    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(LEASE).await? else {
            let metadata = ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            };
            let lease = Lease {
                metadata,
                spec: Some(self.spec(0)),
            };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let other = spec.holder_identity.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let free =
            other.is_empty() || other == self.holder.text() || self.holder.knows_dead(&other);
        if !free {
            let since = match seen {
                Some((last, since)) if *last == version => *since,
                _ => {
                    tracing::info!(
                        holder = other,
                        "another agent leads in this cluster; waiting"
                    );
                    seen.insert((version, Instant::now())).1
                }
            };
            if since.elapsed() < TAKE_OVER {
                return Ok(false);
            }
        }
        let spec = self.spec(spec.lease_transitions.unwrap_or(0) + 1);
        self.write(lease, spec).await
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

    /// Renews until told to stop, then gives the lead back. Returns early where the lead is lost: the
    /// caller must stop acting at once.
    pub(crate) async fn keep(&self, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEW_EVERY) => {}
            }
            loop {
                let sent = Instant::now();
                let left = (TTL - STOP_BEFORE).saturating_sub(renewed.elapsed());
                match tokio::time::timeout(left, self.renew()).await {
                    Ok(Ok(true)) => {
                        renewed = sent;
                        break;
                    }
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the agents' Lease was not renewed; trying again")
                    }
                    Err(_) => return,
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    async fn renew(&self) -> Result<bool, kube::Error> {
        let lease = self.leases.get(LEASE).await?;
        let mut spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() != Some(&self.holder.text()) {
            return Ok(false);
        }
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.write(lease, spec).await
    }

    /// Lets another begin at once.
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

/// Whether a write was won; a conflict means that another was faster.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
