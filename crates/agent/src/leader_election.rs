//! One agent acts in a cluster at a time: it holds a Lease there. An agent that was killed and started
//! again in the same place takes over at once, since its predecessor is known to be dead; one in
//! another place waits until the Lease is given back or runs out. One that is not known to be fit
//! leaves a free Lease to others for a while. A holder that can't renew its Lease writes nothing until it
//! can, and goes on telling what it sees.

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

const LEASE: &str = muster_model::records::LEASE;
/// Without a renewal its holder may no longer act after this time.
const TTL: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// What another waits after it saw the last renewal: the lease's own time, and the longest that a request
/// of the last holder may still be under way at the API server.
const TAKE_OVER: Duration = Duration::from_secs(15 + 25);
/// A holder stops acting this long before another may begin.
const STOP_BEFORE: Duration = Duration::from_secs(3);
/// Between two tries to renew a Lease that somebody else writes just now.
const BETWEEN: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the Lease is watched before it is looked at again, since it is also freed by time alone.
const WATCH_FOR: Duration = Duration::from_secs(5);
/// How long an agent that may be broken leaves a free Lease to one that is not.
const LEAVE_TO_OTHERS: Duration = Duration::from_secs(60);

/// The lead in a cluster.
pub(crate) struct Lead {
    leases: Api<Lease>,
    holder: Holder,
}

/// What an agent that waits has seen of the Lease.
#[derive(Default)]
struct Seen {
    holder: String,
    version: Option<(String, Instant)>,
    free_since: Option<Instant>,
}

impl Seen {
    /// Whether the Lease was seen in this version for so long that its holder no longer acts.
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

    /// Waits until this agent has the lead; `None` where it is told to stop first. `fit` says whether
    /// this agent can do the work, once that is known.
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

    /// One try: `None` where the lead was won, or the version of the Lease that was seen. A foreign
    /// lease runs out when this agent has watched it unchanged for its whole time: no two clocks are
    /// compared.
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

    /// Waits until the Lease is another than this version, for a while at most.
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

    /// Renews until told to stop. Where renewing fails for too long, nothing may be written until it is
    /// possible again: `rest` says why. Returns early where another has taken the lead.
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
                        tracing::info!("the agents' Lease is renewed; this agent acts again");
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

    /// Whether the Lease is known to be this agent's still.
    pub(crate) async fn is_own(&self) -> bool {
        let lease = tokio::time::timeout(RENEW_EVERY, self.leases.get(LEASE)).await;
        let spec = lease.ok().and_then(Result::ok).and_then(|lease| lease.spec);
        spec.and_then(|spec| spec.holder_identity) == Some(self.holder.text())
    }

    /// Whether the lead is this agent's still, and now renewed. Somebody else may have written the Lease at the
    /// same moment (a label, a backup's annotation); only its holder says whose the lead is.
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
