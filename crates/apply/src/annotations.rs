//! The annotations with which an object, in Git or in the cluster, changes how it is applied.

/// Annotation of an object, in Git or in the cluster, that is not to be touched (`disabled`).
pub(crate) const RECONCILE: &str = "muster.dev/reconcile";
/// The word for what is switched off.
pub(crate) const DISABLED: &str = "disabled";
/// Annotation of an object that is created where there is none, and never changed.
pub(crate) const IF_NOT_PRESENT: &str = "muster.dev/if-not-present";
/// Annotation that stands above the app's `conflicts`.
pub(crate) const CONFLICTS: &str = "muster.dev/conflicts";
