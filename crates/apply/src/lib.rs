//! Carries out on one cluster what `muster_plan` decides: server-side apply in the order of what needs
//! what, an inventory of what was applied, prune, and a view of how it all is.
//!
//! [`Applier`] is the whole of it: give it a generation, read what it observes. [`KeptStore`] keeps
//! the generation in the cluster itself, so that an agent without its hub goes on.

mod applier;
mod board;
mod cluster;
mod engine;
mod inventory;
mod kept;
mod kinds;
mod level;
mod limit;
mod observe;
mod owned;
mod packed;
mod pods;
mod reach;
mod requests;
mod slim;

pub use applier::Applier;
pub use cluster::{RequestError, connect};
pub use engine::{Config, applied_objects};
pub use inventory::{InventoryError, check_inventory};
pub use kept::{Kept, KeptBundle, KeptBundleError, KeptError, KeptReader, KeptStore, Pointer};
pub use level::{
    Counts, DriftEvent, Hold, Leftover, LeftoverState, Observed, ObservedBundle, ObservedObject,
    Standing,
};
pub use reach::Reach;

/// The field manager of everything that is applied.
pub const FIELD_MANAGER: &str = muster_plan::fields::MANAGER;

/// The label that says which app an object belongs to. It is for people and narrows watches; the
/// inventory is the truth.
pub const APP_LABEL: &str = "muster.dev/app";
