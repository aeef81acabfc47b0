//! The interface between an agent's stream and its cluster. [`crate::ClusterClient`] implements it with
//! `muster_apply`; a benchmark can use an implementation that applies instantly.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use muster_model::{
    fleet_record::SealedRecord,
    ids::{AppName, ContentHash, Role},
    policy::PruneOrders,
};
use muster_plan::delivery::{Known, Numbered, Term};
use muster_proto::v1;
use prost::Message as _;
use tokio::sync::watch;

use crate::memory_budget::TooLarge;

/// A generation as received from the hub, with every bundle that the cluster lacks.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The generation's number and content hash.
    pub number: Numbered,
    /// The term of the hub that sent it.
    pub term: Term,
    /// The incarnation of the hub's store.
    pub incarnation: String,
    /// The prune budget and the approved deletions.
    pub prune: PruneOrders,
    /// The fleet record; `None` if the hub has none.
    pub record: Option<SealedRecord>,
    /// The bundles, in the generation's order.
    pub bundles: Vec<ArrivedBundle>,
}

/// A compressed bundle as received from the hub. Its content has been checked against its hash.
#[derive(Debug, Clone)]
pub struct PackedBundle {
    packed: Vec<u8>,
    /// The size of the unpacked bundle in bytes.
    pub(crate) size: usize,
}

/// The reason why bytes are not the expected bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not compressed or are incomplete.
    #[error("a bundle that can't be unpacked")]
    Damaged,
    /// The unpacked bundle is larger than allowed.
    #[error("a bundle of over {} MiB", MAX_BUNDLE / 1024 / 1024)]
    TooLarge,
    /// The bytes have another hash.
    #[error("a bundle with the wrong hash")]
    OtherHash,
}

/// The size of the largest bundle that is unpacked, in bytes. Hubs deliver at most 32 MiB.
pub(crate) const MAX_BUNDLE: u64 = 64 * 1024 * 1024;

impl PackedBundle {
    /// Wraps `packed` after checking that it unpacks to at most `most` bytes with this hash.
    ///
    /// # Errors
    /// [`UnpackError`] if it does not.
    pub fn new(packed: Vec<u8>, hash: ContentHash, most: u64) -> Result<Self, UnpackError> {
        let mut bundle = Self { packed, size: 0 };
        let encoded = bundle.unpack_at_most(most)?;
        bundle.size = encoded.len();
        match ContentHash::of(&encoded) == hash {
            true => Ok(bundle),
            false => Err(UnpackError::OtherHash),
        }
    }

    /// Unpacks and returns the encoded bundle.
    ///
    /// # Errors
    /// [`UnpackError`] if it can't be unpacked.
    pub fn unpack(&self) -> Result<Vec<u8>, UnpackError> {
        self.unpack_at_most(MAX_BUNDLE)
    }

    fn unpack_at_most(&self, most: u64) -> Result<Vec<u8>, UnpackError> {
        use std::io::Read as _;
        let mut encoded = Vec::new();
        let decoder = zstd::Decoder::with_buffer(self.packed.as_slice());
        let read = decoder.and_then(|d| d.take(most + 1).read_to_end(&mut encoded));
        match read {
            Err(_) => Err(UnpackError::Damaged),
            Ok(_) if encoded.len() as u64 > most => Err(UnpackError::TooLarge),
            Ok(_) => Ok(encoded),
        }
    }
}

/// A bundle of a received generation, with its bytes if the cluster does not already hold it.
#[derive(Debug, Clone)]
pub struct ArrivedBundle {
    /// The app that the bundle belongs to.
    pub app: AppName,
    /// The app's role in this cluster.
    pub role: Role,
    /// The hash of the encoded bundle.
    pub hash: ContentHash,
    /// The compressed bundle, or `None` if the cluster already holds it. It stays compressed so that the bundles
    /// of a generation are unpacked one after another.
    pub packed: Option<PackedBundle>,
}

/// The observed state of a cluster, as the agent reports it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Level {
    /// The generation in force.
    pub in_force: Option<Numbered>,
    /// Each app's report, by the app's name. An unchanged report keeps the same `Arc`.
    pub apps: BTreeMap<String, Arc<v1::AppReport>>,
    /// Problems that do not belong to a single app.
    pub problems: Vec<String>,
    /// True if the agent has processed every object of the generation and has run the prune, whatever the results.
    pub settled: bool,
    /// The cluster-scoped kinds of the generation's objects, as `KIND.GROUP`, without Kubernetes' own kinds.
    pub cluster_scoped: Vec<String>,
}

impl Level {
    /// Returns a digest with which a hub checks whether it has received exactly this observed state.
    #[must_use]
    pub fn digest(&self) -> ContentHash {
        let report = v1::Report {
            generation: self.in_force.map_or(0, |number| number.generation.0),
            content: self
                .in_force
                .map_or_else(Vec::new, |number| number.content.0.to_vec()),
            apps: self
                .apps
                .values()
                .map(|app| v1::AppReport::clone(app))
                .collect(),
            full: true,
            digest: Vec::new(),
            problems: self.problems.clone(),
            settled: self.settled,
            cluster_scoped: self.cluster_scoped.clone(),
        };
        ContentHash::of(&report.encode_to_vec())
    }
}

/// The error when a generation can't be put in force.
#[derive(Debug, thiserror::Error)]
#[error("generation {number} can't be stored in the cluster")]
pub struct TakeError {
    /// The number of the generation.
    pub number: u64,
    /// The reason.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl TakeError {
    /// Returns true if a retry can't help and only another generation can.
    pub(crate) fn is_final(&self) -> bool {
        self.source.is::<TooLarge>()
    }
}

/// The cluster of an agent, as its stream uses it.
pub trait Cluster: Send + Sync + 'static {
    /// Returns the generation in force, and the newest term and the incarnation that the agent has accepted from a hub.
    fn known(&self) -> Known;

    /// Returns true if the cluster holds the bundle with this hash.
    fn holds(&self, hash: ContentHash) -> bool;

    /// Stores a newer term for the generation that is already in force.
    fn note_term(
        &self,
        term: Term,
        incarnation: &str,
    ) -> impl Future<Output = Result<(), TakeError>> + Send;

    /// Stores a fleet record with the generation in force.
    fn note_record(
        &self,
        record: SealedRecord,
    ) -> impl Future<Output = Result<(), TakeError>> + Send;

    /// Stores the complete generation in the cluster and then puts it in force.
    fn take(&self, generation: Arrived) -> impl Future<Output = Result<(), TakeError>> + Send;

    /// Returns a channel with the observed state, updated whenever it changes.
    fn level(&self) -> watch::Receiver<Arc<Level>>;

    /// Returns the objects of an app, or of all apps if `app` is empty.
    fn objects(&self, app: &str) -> Vec<v1::ObjectState>;
}
