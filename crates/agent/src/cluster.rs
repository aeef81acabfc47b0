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

/// A bundle of a generation; its bytes where the cluster did not hold it.
#[derive(Debug, Clone)]
pub struct ArrivedBundle {
    /// The app.
    pub app: AppName,
    /// Its role.
    pub role: Role,
    /// Hash of the encoded bundle.
    pub hash: ContentHash,
    /// The encoded bundle, unless it is held already.
    pub encoded: Option<Vec<u8>>,
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
