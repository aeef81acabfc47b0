//! What an agent's stream needs of its cluster: the real one applies with `muster_apply`; a bench may
//! put one in its place whose apply is instant.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use muster_model::{
    ids::{AppName, ContentHash, Role},
    policy::PruneOrders,
};
use muster_plan::delivery::{Known, Numbered, Term};
use muster_proto::v1;
use prost::Message as _;
use tokio::sync::watch;

use crate::memory_budget::TooLarge;

/// A generation with all that it needs, as it arrived.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Number and content.
    pub number: Numbered,
    /// The hub's term.
    pub term: Term,
    /// The hub's store.
    pub incarnation: String,
    /// What it says about deleting.
    pub prune: PruneOrders,
    /// The bundles in order.
    pub bundles: Vec<ArrivedBundle>,
}

/// A bundle as it came over the wire, whose content was compared with its hash.
#[derive(Debug, Clone)]
pub struct PackedBundle {
    packed: Vec<u8>,
    /// Bytes of it when it is unpacked.
    pub(crate) size: usize,
}

/// Bytes can't be a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// They are not compressed, or broken off.
    #[error("a bundle that can't be unpacked")]
    Damaged,
    /// More than any bundle has.
    #[error("a bundle of over {} MiB", MAX_BUNDLE / 1024 / 1024)]
    TooLarge,
    /// They are another one.
    #[error("a bundle whose hash is another's")]
    OtherHash,
}

/// The largest bundle that is unpacked, in bytes: hubs deliver 32 MiB.
pub(crate) const MAX_BUNDLE: u64 = 64 * 1024 * 1024;

impl PackedBundle {
    /// Takes these bytes if they are the bundle of this hash, and no more than `most` when they are unpacked.
    ///
    /// # Errors
    /// [`UnpackError`] where they are not.
    pub fn new(packed: Vec<u8>, hash: ContentHash, most: u64) -> Result<Self, UnpackError> {
        let mut bundle = Self { packed, size: 0 };
        let encoded = bundle.unpack_at_most(most)?;
        bundle.size = encoded.len();
        match ContentHash::of(&encoded) == hash {
            true => Ok(bundle),
            false => Err(UnpackError::OtherHash),
        }
    }

    /// The encoded bundle.
    ///
    /// # Errors
    /// [`UnpackError`] where there is none.
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

/// A bundle of a generation; its bytes where the cluster did not hold it.
#[derive(Debug, Clone)]
pub struct ArrivedBundle {
    /// The app.
    pub app: AppName,
    /// Its role.
    pub role: Role,
    /// Hash of the encoded bundle.
    pub hash: ContentHash,
    /// The bundle, unless it is held already. A generation's bundles are unpacked one after the other.
    pub packed: Option<PackedBundle>,
}

/// The level of a cluster, as it is reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Level {
    /// What is in force.
    pub in_force: Option<Numbered>,
    /// Each app's state; the same `Arc` as before has not changed.
    pub apps: BTreeMap<String, Arc<v1::AppReport>>,
    /// What concerns no single app.
    pub problems: Vec<String>,
    /// Every object had its turn, and so had deleting.
    pub settled: bool,
    /// Kinds of the generation's objects that live outside namespaces though Kubernetes itself does not have
    /// them, as `KIND.GROUP`.
    pub cluster_scoped: Vec<String>,
}

impl Level {
    /// A digest by which a hub knows whether it has this level.
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

/// A generation did not come into force.
#[derive(Debug, thiserror::Error)]
#[error("generation {number} can't be kept in the cluster")]
pub struct TakeError {
    /// Its number.
    pub number: u64,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl TakeError {
    /// Whether only another generation can help.
    pub(crate) fn is_final(&self) -> bool {
        self.source.is::<TooLarge>()
    }
}

/// An agent's cluster.
pub trait Cluster: Send + Sync + 'static {
    /// What is in force, and under which hub it came.
    fn known(&self) -> Known;

    /// Whether a bundle is held.
    fn holds(&self, hash: ContentHash) -> bool;

    /// Notes a newer term under which nothing else has changed.
    fn note_term(
        &self,
        term: Term,
        incarnation: &str,
    ) -> impl Future<Output = Result<(), TakeError>> + Send;

    /// Keeps a generation in the cluster, whole, and then puts it in force.
    fn take(&self, generation: Arrived) -> impl Future<Output = Result<(), TakeError>> + Send;

    /// The level now, and whenever it changes.
    fn level(&self) -> watch::Receiver<Arc<Level>>;

    /// The objects of an app; of all apps where it is empty.
    fn objects(&self, app: &str) -> Vec<v1::ObjectState>;
}
