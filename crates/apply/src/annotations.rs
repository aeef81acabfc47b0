//! The annotations that change how an object is applied. They are read from the object in Git or
//! from the live object.

/// The annotation that makes Muster leave an object alone if its value is [`DISABLED`]. It works in
/// Git and on the live object.
pub(crate) const RECONCILE: &str = "muster.dev/reconcile";
/// The value of [`RECONCILE`] that switches reconciliation off.
pub(crate) const DISABLED: &str = "disabled";
/// The annotation of an object that is created only if it does not exist, and that is never changed
/// afterwards.
pub(crate) const IF_NOT_PRESENT: &str = "muster.dev/if-not-present";
/// The annotation that overrides the app's `conflicts` policy for one object.
pub(crate) const CONFLICTS: &str = "muster.dev/conflicts";
