//! Admission of streams: one process for each cluster is served.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Instant, SystemTime},
};

use muster_model::ids::{ClusterName, InstanceId};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::log::Chain;
use muster_store::Txn;
use tonic::Status;

use super::{AUDIT_EVERY, Current, HELD_FOR, Sessions, lock};
use crate::{observed::MAX_NUMBER, store_schema::AuditEntry};

/// The agent to which a stream belongs.
pub(crate) struct Caller {
    pub(crate) cluster: ClusterName,
    pub(crate) instance: InstanceId,
    pub(crate) not_after: SystemTime,
    /// The version of the fleet's CAs that the agent knows.
    pub(crate) trust: u64,
    pub(crate) address: std::net::SocketAddr,
}

/// Returns true if a refusal of this cluster for this reason must be recorded in the audit log, because none was
/// recorded within [`AUDIT_EVERY`]. The time in `audited` changes only then, so that a lasting refusal is recorded once
/// an hour.
fn is_audit_due(
    audited: &mut HashMap<(ClusterName, &'static str), Instant>,
    key: (ClusterName, &'static str),
    now: Instant,
) -> bool {
    audited.retain(|_, when| now.duration_since(*when) < AUDIT_EVERY);
    match audited.entry(key) {
        Entry::Occupied(_) => false,
        Entry::Vacant(entry) => {
            entry.insert(now);
            true
        }
    }
}

impl Sessions {
    /// Checks that a stream of this caller with this hello can be served. The error contains the metric's reason.
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
            let why = "the agent names a term or generation that no hub can have issued";
            return Err(("impossible_number", Status::invalid_argument(why)));
        }
        Ok(())
    }

    /// Makes a stream the current one of its cluster. The newest process wins, since the older stream is usually dead
    /// and nobody has noticed. But a process that connects again after it was replaced is alive, and then neither is
    /// served.
    pub(super) fn enter(&self, cluster: &ClusterName, stream: Current) -> Result<(), Status> {
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
                     Stop one of them; both are refused for a minute"
                )));
            }
            if before.process != stream.process {
                replaced.insert((cluster.clone(), before.process), Instant::now());
            }
            before.stop.cancel();
        } else if replaced.contains_key(&(cluster.clone(), stream.process)) {
            return Err(Status::failed_precondition(format!(
                "two agents took turns as cluster {cluster}; both are refused for a minute"
            )));
        }
        current.insert(cluster.clone(), stream);
        Ok(())
    }

    /// Counts a refusal, shows its reason in the cluster's status until the agent is served again, and records it in
    /// the audit log, at most once an hour for each reason. Returns the status for the agent.
    pub(super) async fn hold(&self, caller: &Caller, reason: &'static str, why: String) -> Status {
        let cluster = &caller.cluster;
        let who = format!("{cluster}/{} at {}", caller.instance, caller.address);
        self.metrics.refuse(reason, &who, &why);
        self.observed
            .update(cluster, |level| level.refusal = Some(why.clone()));
        let key = (cluster.clone(), reason);
        let is_due = is_audit_due(&mut lock(&self.audited), key, Instant::now());
        if is_due {
            let entry = AuditEntry::new(
                &format!("agent of cluster {cluster}"),
                format!("refused: {why}"),
            );
            if let Err(error) = self.store.commit(entry.put(Txn::new())).await {
                tracing::error!(error = %Chain(&error), "the audit log can't be written");
            }
        }
        Status::failed_precondition(why)
    }

    pub(super) fn leave(&self, cluster: &ClusterName, id: u64) {
        let mut current = lock(&self.current);
        if current.get(cluster).is_some_and(|stream| stream.id == id) {
            current.remove(cluster);
        }
        if !current.contains_key(cluster) {
            self.observed.left(cluster);
        }
    }
}

#[cfg(test)]
mod tests;
