//! Carries out on one cluster what `muster_plan` decides: server-side apply in the order of what needs
//! what, an inventory of what was applied, prune, and a view of how it all is.
//!
//! [`Applier`] is the whole of it: give it a generation, read what it observes. [`GenerationStore`] keeps
//! the generation in the cluster itself, so that an agent without its hub goes on.

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
    Counts, DriftEvent, Hold, Leftover, LeftoverState, ObjectState, Observed, ObservedBundle,
    ObservedObject,
};
pub use stored_generation::{
    GenerationReader, GenerationStore, GenerationStoreError, Pointer, StoredBundle,
    StoredBundleError, StoredGeneration,
};

/// The field manager of everything that is applied.
pub const FIELD_MANAGER: &str = muster_plan::fields::MANAGER;

/// The label that says which app an object belongs to. It is for people and narrows watches; the
/// inventory is the truth.
pub const APP_LABEL: &str = "muster.dev/app";
