//! Applies the decisions of `muster_plan` to one cluster: server-side apply in the order of the
//! dependencies, an inventory of what was applied, prune, and the observed state.
//!
//! [`Applier`] does all of that: it takes a generation and publishes the observed state.
//! [`GenerationStore`] stores the generation in the cluster itself, so that an agent can work
//! without its hub.

mod annotations;
mod applier;
mod cluster;
mod compression;
mod engine;
mod field_trimming;
mod inventory;
mod kinds;
mod limit;
mod managed_fields;
mod namespace_access;
mod object_tracker;
mod observed;
mod pods;
mod requests;
mod stored_generation;
mod watches;

pub use applier::Applier;
pub use cluster::{RequestError, connect};
pub use engine::{Config, applied_objects};
pub use inventory::{InventoryError, check_inventory};
pub use namespace_access::NamespaceAccess;
pub use observed::{
    Counts, DriftEvent, Leftover, LeftoverState, ObjectState, Observed, ObservedBundle,
    ObservedObject, PendingApproval,
};
pub use stored_generation::{
    GenerationReader, GenerationStore, GenerationStoreError, Pointer, StoredBundle,
    StoredBundleError, StoredGeneration,
};

/// The field manager of every apply request.
pub const FIELD_MANAGER: &str = muster_plan::fields::MANAGER;

/// The label that holds the app of an object. It informs people and narrows watches. Prune deletes
/// only objects that are in the inventory, whatever their label says.
pub const APP_LABEL: &str = "muster.dev/app";
