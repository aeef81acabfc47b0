//! The schema of the hub's store: its keys and the records behind them.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use muster_model::{
    ids::{AppName, ClusterName, ContentHash, Generation, InstanceId, RegionName, Role},
    policy::PruneOrders,
    problem::Problem,
};
use muster_plan::delivery::Term;
use muster_store::{Expected, Store, StoreError, Txn, Versioned};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The fleet's CA: its certificate and its key, in PEM.
pub(crate) const CA: &str = "ca/current";
/// The CA that replaces the current one, during a rotation.
pub(crate) const CA_NEXT: &str = "ca/next";
/// The number of changes to the fleet's CAs, and the time of the last one.
pub(crate) const CA_STATE: &str = "ca/state";
/// The [`Term`] of the hub that leads.
pub(crate) const TERM: &str = "hub/term";
/// The [`muster_model::fleet_record::FleetRecord`].
pub(crate) const FLEET_RECORD: &str = "fleet/record";
/// The [`InForce`] commit.
pub(crate) const IN_FORCE: &str = "repo/in-force";
/// Prefix of [`DesiredRecord`]s by cluster.
pub(crate) const DESIRED: &str = "wanted/";
/// Prefix of lists of bundles ([`ListedBundle`]) by content hash.
pub(crate) const CONTENT: &str = "content/";
/// Prefix of compressed bundles by hash.
pub(crate) const BLOB: &str = "blob/";
/// Prefix of [`JoinRecord`]s by the hash of their secret.
pub(crate) const JOIN: &str = "join/";
/// Prefix of [`InstanceRecord`]s by cluster and instance.
pub(crate) const INSTANCE: &str = "instance/";
/// Prefix of the last observed states, by cluster.
pub(crate) const OBSERVED: &str = "observed/";
/// Prefix of [`ApprovalRecord`]s by cluster and set.
pub(crate) const APPROVAL: &str = "approval/";
/// Prefix of [`LoginRecord`]s by the serial number of their certificate.
pub(crate) const LOGIN: &str = "login/";
/// A counter that is raised whenever a login moves to a new CA or is removed. If both happen at the same time, one of
/// the two transactions conflicts, and is retried.
pub(crate) const LOGIN_TURNS: &str = "logins/turns";
/// Prefix of counters by cluster. Every enrolment and removal raises its cluster's counter, so that of two concurrent
/// ones the later conflicts.
pub(crate) const MEMBERSHIP: &str = "membership/";
/// Prefix of the marks of unconfirmed clusters, by cluster.
pub(crate) const SUSPECT: &str = "suspect/";
/// Prefix of [`AuditRecord`]s by time.
pub(crate) const AUDIT: &str = "audit/";

pub(crate) fn desired_key(cluster: &ClusterName) -> String {
    format!("{DESIRED}{cluster}")
}

pub(crate) fn content_key(content: ContentHash) -> String {
    format!("{CONTENT}{content}")
}

pub(crate) fn instance_key(cluster: &ClusterName, instance: &InstanceId) -> String {
    format!("{INSTANCE}{cluster}/{instance}")
}

/// The commit in force and its description of the fleet. After a restart it feeds the status until the repository has
/// been read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    pub(crate) commit: String,
    pub(crate) subject: String,
    pub(crate) author: String,
    pub(crate) committed_at: i64,
    pub(crate) fleet: String,
    pub(crate) regions: Vec<RegionRecord>,
    pub(crate) apps: Vec<AppRecord>,
    /// Each cluster with its region.
    pub(crate) clusters: Vec<(ClusterName, String)>,
    pub(crate) problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegionRecord {
    pub(crate) name: String,
    pub(crate) continent: String,
    pub(crate) country: String,
    pub(crate) city: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppRecord {
    pub(crate) name: AppName,
    pub(crate) tier: String,
    pub(crate) mode: String,
    pub(crate) owner: String,
    /// True if the app has a problem, so that its last good bundle stays in force. The stored record
    /// keeps the field's original name.
    #[serde(rename = "held")]
    pub(crate) blocked: bool,
    /// The cluster of each region to which the app's writer can move.
    #[serde(default)]
    pub(crate) targets: BTreeMap<RegionName, ClusterName>,
}

impl AppRecord {
    /// Returns the record of an app that has left the repository, or whose document can't be read: only its
    /// name is known.
    pub(crate) fn gone(name: &AppName) -> Self {
        Self {
            name: name.clone(),
            tier: String::new(),
            mode: String::new(),
            owner: String::new(),
            blocked: true,
            targets: BTreeMap::new(),
        }
    }
}

/// The desired state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DesiredRecord {
    pub(crate) generation: Generation,
    pub(crate) content: ContentHash,
    pub(crate) commit: String,
    pub(crate) epoch: u64,
    #[serde(default)]
    pub(crate) prune: PruneOrders,
}

/// A bundle of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListedBundle {
    pub(crate) app: AppName,
    pub(crate) role: Role,
    pub(crate) hash: ContentHash,
}

/// A join token that was handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinRecord {
    pub(crate) cluster: ClusterName,
    pub(crate) expires: u64,
    /// The instance that used the token and the hash of its request. An agent whose answer was lost may repeat that
    /// request; nobody else may use the token.
    pub(crate) used: Option<(InstanceId, ContentHash)>,
    /// The version of the CAs in its trust bundle.
    #[serde(default)]
    pub(crate) trust: u64,
}

/// A certificate that was granted to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The serial number of the certificate.
    pub(crate) serial: String,
    /// The version of the CAs that are sent with the certificate.
    pub(crate) trust: u64,
}

/// The enrolment of an agent's instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) enrolled: u64,
    pub(crate) revoked: bool,
    /// The serial number of the certificate that the agent presents; empty if it is not known.
    #[serde(default)]
    pub(crate) shown: String,
    /// The serial numbers of the certificates that were granted after [`Self::shown`] and have not been presented yet.
    /// There may be several, since an answer may be lost.
    #[serde(default)]
    pub(crate) granted: Vec<String>,
    /// The version of the CAs that were sent with the presented certificate.
    #[serde(default)]
    pub(crate) trust: u64,
    /// The version of the CAs by serial number, for the certificates in [`Self::granted`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) trusts: BTreeMap<String, u64>,
    /// The reason why the instance is suspended, if it is: its key is in two places.
    #[serde(rename = "held", default, skip_serializing_if = "Option::is_none")]
    pub(crate) suspended: Option<String>,
}

/// The most certificates that are remembered as granted and not presented; the oldest are forgotten first.
const GRANTED: usize = 16;

impl InstanceRecord {
    /// Returns the record of an enrolment with its first certificate.
    pub(crate) fn new(grant: Grant) -> Self {
        let mut record = Self {
            enrolled: now(),
            revoked: false,
            shown: String::new(),
            granted: Vec::new(),
            trust: 0,
            trusts: BTreeMap::new(),
            suspended: None,
        };
        record.grant(grant);
        record
    }

    /// Notes that this certificate was presented. Returns true if it was presented for the first time.
    pub(crate) fn show(&mut self, serial: &str) -> bool {
        let known = self.granted.iter().any(|granted| granted == serial);
        if known {
            serial.clone_into(&mut self.shown);
            self.trust = self.trusts.get(serial).copied().unwrap_or_default();
            self.granted.clear();
            self.trusts.clear();
        }
        known
    }

    /// Returns true if this is the certificate that the agent presents. If the record knows no certificate, it adopts
    /// this one.
    pub(crate) fn is_shown(&mut self, serial: &str) -> bool {
        if self.shown.is_empty() && self.granted.is_empty() {
            serial.clone_into(&mut self.shown);
        }
        self.shown == serial
    }

    /// Adds a newly granted certificate.
    pub(crate) fn grant(&mut self, grant: Grant) {
        self.trusts.insert(grant.serial.clone(), grant.trust);
        self.granted.push(grant.serial);
        if self.granted.len() > GRANTED {
            let oldest = self.granted.remove(0);
            self.trusts.remove(&oldest);
        }
    }

    /// Forgets all serial numbers, because the agent's certificates may be newer than this record.
    pub(crate) fn forget(&mut self) {
        self.shown.clear();
        self.granted.clear();
        self.trusts.clear();
    }
}

/// A login of a person or script. The hub refuses a login certificate that has no such record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoginRecord {
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) issued: u64,
    pub(crate) expires: u64,
    /// The login that created it.
    pub(crate) by: String,
    pub(crate) removed: bool,
    /// True if this is the login of the hub's own machine, which the hub renews itself.
    #[serde(default)]
    pub(crate) local: bool,
    /// The version of the CAs in its trust bundle.
    #[serde(default)]
    pub(crate) trust: u64,
    /// True if its owner has presented the login that replaces it.
    #[serde(default)]
    pub(crate) followed: bool,
    /// The serial number of the login that this one replaces. It is cleared once this login has been presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
}

/// A person's approval to delete or recreate a set of objects in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApprovalRecord {
    pub(crate) app: AppName,
    /// The instance that reported the set as pending approval.
    pub(crate) instance: InstanceId,
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) reason: String,
}

/// An entry of the audit log, such as a person's order, a new login, a refused agent or a recreated object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRecord {
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) what: String,
}

/// A failure of the hub's own records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("the hub's store can't be used")]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error("the record `{key}` in the hub's store can't be read; restore a backup")]
    Damaged {
        /// The key of the record.
        key: String,
        /// The error of the JSON parser.
        #[source]
        source: serde_json::Error,
    },
}

/// Decodes a record.
pub(crate) fn decode<T: DeserializeOwned>(
    key: &str,
    versioned: &Versioned,
) -> Result<T, RecordError> {
    serde_json::from_slice(&versioned.value).map_err(|source| RecordError::Damaged {
        key: key.to_owned(),
        source,
    })
}

/// Encodes a record.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// An entry of the audit log with its key. Keys sort entries by time.
#[derive(Debug, Clone)]
pub(crate) struct AuditEntry {
    key: String,
    pub(crate) record: AuditRecord,
}

impl AuditEntry {
    /// Creates an entry with the current time, and logs it.
    pub(crate) fn new(who: &str, what: String) -> Self {
        tracing::info!(who, what, "audit");
        let now = muster_pki::clock::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let (at, micros) = (now.as_secs(), now.subsec_micros());
        let who = who.to_owned();
        Self {
            key: format!("{AUDIT}{at:012}.{micros:06}-{:08x}", rand::random::<u32>()),
            record: AuditRecord { at, who, what },
        }
    }

    /// Adds the entry to the transaction.
    pub(crate) fn put(&self, txn: Txn) -> Txn {
        txn.put(self.key.clone(), encode(&self.record))
    }
}

/// Adds an entry of the audit log to the transaction.
pub(crate) fn audited(txn: Txn, who: &str, what: String) -> Txn {
    AuditEntry::new(who, what).put(txn)
}

/// Reads the record under a key, with its revision.
pub(crate) async fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<(T, u64)>, RecordError> {
    match store.get(key).await? {
        Some(versioned) => Ok(Some((decode(key, &versioned)?, versioned.revision))),
        None => Ok(None),
    }
}

/// Raises the counter under `key` in the transaction. The commit conflicts if somebody else raises the counter
/// meanwhile, so that neither misses what the other writes.
pub(crate) async fn turn(store: &dyn Store, txn: Txn, key: String) -> Result<Txn, RecordError> {
    let found: Option<(u64, u64)> = read(store, &key).await?;
    let (count, revision) = found.map_or((0, None), |(count, at)| (count, Some(at)));
    Ok(txn
        .when(key.clone(), Expected::unchanged(revision))
        .put(key, encode(&(count + 1))))
}

/// The leading term with its revision in the store. Every write that only the leader may do requires that revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) term: Term,
    pub(crate) revision: u64,
}

/// Converts a time to seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Converts a time to seconds since 1970 in the type of the protocol's messages.
pub(crate) fn timestamp(time: SystemTime) -> i64 {
    i64::try_from(seconds(time)).unwrap_or_default()
}

/// Returns the current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    seconds(muster_pki::clock::now())
}
