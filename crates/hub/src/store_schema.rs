//! What the hub keeps in its store: keys and the documents behind them.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use muster_model::{
    ids::{AppName, ClusterName, ContentHash, Generation, InstanceId, Role},
    policy::PruneOrders,
    problem::Problem,
};
use muster_plan::delivery::Term;
use muster_store::{Expected, Store, StoreError, Txn, Versioned};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The fleet's CA, certificate and key in PEM.
pub(crate) const CA: &str = "ca/current";
/// The CA that takes its place, where one does.
pub(crate) const CA_NEXT: &str = "ca/next";
/// How often the fleet's CAs have changed, and when.
pub(crate) const CA_STATE: &str = "ca/state";
/// The [`Term`] of the hub that leads.
pub(crate) const TERM: &str = "hub/term";
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
/// Prefix of the last known level of clusters.
pub(crate) const OBSERVED: &str = "observed/";
/// Prefix of [`ApprovalRecord`]s by cluster and set.
pub(crate) const APPROVAL: &str = "approval/";
/// Prefix of [`LoginRecord`]s by the number of their certificate.
pub(crate) const LOGIN: &str = "login/";
/// A counter that whoever lets logins follow, or takes them back, raises.
pub(crate) const LOGIN_TURNS: &str = "logins/turns";
/// Prefix of counters by cluster, which every enrolment and removal raises: neither misses the other.
pub(crate) const MEMBERSHIP: &str = "membership/";
/// Prefix of suspicions by cluster.
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

/// The commit in force and what it says of the fleet, for status before the repository is read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    pub(crate) commit: String,
    pub(crate) subject: String,
    pub(crate) author: String,
    pub(crate) committed_at: i64,
    pub(crate) fleet: String,
    pub(crate) regions: Vec<RegionRecord>,
    pub(crate) apps: Vec<AppRecord>,
    /// Region by cluster.
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
    pub(crate) held: bool,
}

/// What a cluster should run.
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
    /// Who used it: the instance, and the hash of its request, so that an agent whose answer was lost
    /// may ask again, and nobody else.
    pub(crate) used: Option<(InstanceId, ContentHash)>,
    /// The version of the CAs that it trusts.
    #[serde(default)]
    pub(crate) trust: u64,
}

/// A certificate that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Its number.
    pub(crate) serial: String,
    /// The version of the CAs that come with it.
    pub(crate) trust: u64,
}

/// An enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) enrolled: u64,
    pub(crate) revoked: bool,
    /// The number of the certificate that it shows. Empty where it is not known.
    #[serde(default)]
    pub(crate) shown: String,
    /// The numbers of those that it was granted since, and that nobody has shown: an answer may be lost.
    #[serde(default)]
    pub(crate) granted: Vec<String>,
    /// The version of the CAs that came with the certificate that it shows.
    #[serde(default)]
    pub(crate) trust: u64,
    /// The same of those that it was granted and that nobody has shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) trusts: BTreeMap<String, u64>,
    /// Why it is held: its key is in two places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<String>,
}

/// Certificates that were granted and never shown, of which the oldest are forgotten.
const GRANTED: usize = 16;

impl InstanceRecord {
    /// An enrolment with its first certificate.
    pub(crate) fn new(grant: Grant) -> Self {
        let mut record = Self {
            enrolled: now(),
            revoked: false,
            shown: String::new(),
            granted: Vec::new(),
            trust: 0,
            trusts: BTreeMap::new(),
            held: None,
        };
        record.grant(grant);
        record
    }

    /// Notes that this certificate was shown. Whether that is new.
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

    /// Whether this is the certificate that it shows. Where that is not known it is from now on.
    pub(crate) fn is_shown(&mut self, serial: &str) -> bool {
        if self.shown.is_empty() && self.granted.is_empty() {
            serial.clone_into(&mut self.shown);
        }
        self.shown == serial
    }

    /// Adds a certificate that is granted now.
    pub(crate) fn grant(&mut self, grant: Grant) {
        self.trusts.insert(grant.serial.clone(), grant.trust);
        self.granted.push(grant.serial);
        if self.granted.len() > GRANTED {
            let oldest = self.granted.remove(0);
            self.trusts.remove(&oldest);
        }
    }

    /// Forgets the numbers: the world is newer than this record.
    pub(crate) fn forget(&mut self) {
        self.shown.clear();
        self.granted.clear();
        self.trusts.clear();
    }
}

/// A login of a person or script. A certificate without one is good for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoginRecord {
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) issued: u64,
    pub(crate) expires: u64,
    /// Who made it.
    pub(crate) by: String,
    pub(crate) removed: bool,
    /// It is the one of the hub's own machine, which the hub makes anew.
    #[serde(default)]
    pub(crate) local: bool,
    /// The version of the CAs that it trusts.
    #[serde(default)]
    pub(crate) trust: u64,
    /// Its owner has shown another in its place.
    #[serde(default)]
    pub(crate) followed: bool,
    /// The number of the login whose place it takes, until it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
}

/// A set of objects of a cluster that a person lets be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApprovalRecord {
    pub(crate) app: AppName,
    /// Who reported that it waits.
    pub(crate) instance: InstanceId,
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) reason: String,
}

/// Something that a person ordered, or that can't be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRecord {
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) what: String,
}

/// What is wrong with the hub's own records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store fails.
    #[error("the hub's store can't be used")]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error("the record `{key}` in the hub's store can't be read; restore a backup")]
    Damaged {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A record in its type.
pub(crate) fn decode<T: DeserializeOwned>(
    key: &str,
    versioned: &Versioned,
) -> Result<T, RecordError> {
    serde_json::from_slice(&versioned.value).map_err(|source| RecordError::Damaged {
        key: key.to_owned(),
        source,
    })
}

/// A record's bytes.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// An entry of the audit log, with its key: entries are in the order in which they were made.
#[derive(Debug, Clone)]
pub(crate) struct AuditEntry {
    key: String,
    pub(crate) record: AuditRecord,
}

impl AuditEntry {
    /// Of what was done now.
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

    /// The transaction with it.
    pub(crate) fn put(&self, txn: Txn) -> Txn {
        txn.put(self.key.clone(), encode(&self.record))
    }
}

/// The transaction with an entry in the audit log.
pub(crate) fn audited(txn: Txn, who: &str, what: String) -> Txn {
    AuditEntry::new(who, what).put(txn)
}

/// The record under a key, with its revision.
pub(crate) async fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<(T, u64)>, RecordError> {
    match store.get(key).await? {
        Some(versioned) => Ok(Some((decode(key, &versioned)?, versioned.revision))),
        None => Ok(None),
    }
}

/// The transaction that holds only where nobody else takes a turn at this counter meanwhile: neither misses what the
/// other writes.
pub(crate) async fn turn(store: &dyn Store, txn: Txn, key: String) -> Result<Txn, RecordError> {
    let found: Option<(u64, u64)> = read(store, &key).await?;
    let (count, revision) = found.map_or((0, None), |(count, at)| (count, Some(at)));
    Ok(txn
        .when(key.clone(), Expected::unchanged(revision))
        .put(key, encode(&(count + 1))))
}

/// The term that leads, with its revision in the store: the condition of every write of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) term: Term,
    pub(crate) revision: u64,
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Seconds since 1970, as the protocol's messages hold them.
pub(crate) fn timestamp(time: SystemTime) -> i64 {
    i64::try_from(seconds(time)).unwrap_or_default()
}

/// Seconds since 1970, now.
pub(crate) fn now() -> u64 {
    seconds(muster_pki::clock::now())
}
