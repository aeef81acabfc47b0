//! The observed state of a generation's objects, which an [`crate::Applier`] publishes.

use std::sync::Arc;

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash, Generation, Role},
};
use muster_plan::health::Health;

/// The progress of applying one object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ObjectState {
    /// The object has not been processed yet.
    #[default]
    Pending,
    /// The API server has accepted the object.
    Applied,
    /// The object can't be applied before something else has happened.
    Waiting(String),
    /// The object failed, for this reason: for example, the API server refused it, another app owns it, or the agent
    /// may not touch it.
    Failed(String),
    /// The object can't be changed. Its recreation is pending approval.
    Approval {
        /// The hash that names exactly this recreation: the live object, its new content, and what
        /// would be lost.
        set: ContentHash,
        /// What can't be changed, and what would be lost.
        why: String,
    },
    /// Muster does not touch the object, for this reason.
    LeftAlone(String),
    /// The object has drifted in these fields. The app's policy says that drift is not reverted.
    Drifted(String),
}

impl ObjectState {
    /// Adds words in front of the message.
    pub(crate) fn about(self, words: &str) -> Self {
        match self {
            Self::Waiting(why) => Self::Waiting(format!("{words}: {why}")),
            Self::Failed(why) => Self::Failed(format!("{words}: {why}")),
            other => other,
        }
    }

    /// Returns true if the object is left alone, or has drift that is not reverted.
    pub(crate) fn is_left(&self) -> bool {
        matches!(self, Self::LeftAlone(_) | Self::Drifted(_))
    }
}

/// One object of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedObject {
    /// The object, with its real namespace.
    pub id: Arc<ObjectRef>,
    /// The object's UID, once a watch has seen it.
    pub uid: Option<String>,
    /// The progress of applying the object.
    pub state: ObjectState,
    /// The object's health.
    pub health: Health,
    /// What is wrong with the object, or what it waits for.
    pub message: Option<String>,
    /// True if the object has pods. Their messages may explain more than its own.
    pub has_pods: bool,
}

/// The number of objects in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All objects.
    pub total: usize,
    /// Objects that the API server has accepted, or that are left alone.
    pub applied: usize,
    /// Objects that wait for something else, or whose recreation is pending approval.
    pub waiting: usize,
    /// Objects that failed, or that somebody else changes or deletes repeatedly.
    pub failed: usize,
    /// Objects whose drift is not reverted.
    pub drifted: usize,
    /// Objects that are healthy or suspended.
    pub healthy: usize,
}

/// The observed state of one bundle of the generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBundle {
    /// The app of the bundle.
    pub app: AppName,
    /// The role of the app.
    pub role: Role,
    /// The hash of the bundle.
    pub hash: ContentHash,
    /// The objects, in the bundle's order.
    pub objects: Vec<ObservedObject>,
    /// The number of objects in each state.
    pub counts: Counts,
    /// The worst health of the objects.
    pub health: Health,
    /// The latest drifts of the objects, newest last. Their number is limited.
    pub drifts: Vec<DriftEvent>,
}

/// An object that is no longer in Git and not gone yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The object.
    pub id: ObjectRef,
    /// The app that the object came from.
    pub app: AppName,
    /// The reason why the object still exists, as a state.
    pub state: LeftoverState,
    /// The reason why the object still exists, as a message for people.
    pub message: String,
}

/// The reason why an object that is no longer in Git still exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverState {
    /// The deletion is pending approval.
    Approval,
    /// The object waits for another one to be healthy, or to be gone.
    Waiting,
    /// The object is being deleted, and its finalizers are not done.
    Deleting,
    /// The object can't be deleted, its deletion is stuck, or its state can't be read.
    Refused,
}

/// Objects of one app whose deletion is pending approval: they are no longer in Git, or have to be
/// recreated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingApproval {
    /// The app that the objects came from.
    pub app: AppName,
    /// The hash that names exactly this set of objects, by their UIDs. An approval is valid for
    /// this set only.
    pub set: ContentHash,
    /// True if the objects are still in Git and are created again right after their deletion.
    pub recreate: bool,
    /// Why the objects are not deleted without approval.
    pub reason: String,
    /// The objects.
    pub objects: Vec<ObjectRef>,
}

/// A drift of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftEvent {
    /// When the drift was found, in seconds since 1970.
    pub at: u64,
    /// The object.
    pub id: ObjectRef,
    /// The fields with their old and new values, without the values of a Secret.
    pub difference: String,
    /// True if the drift was reverted.
    pub corrected: bool,
    /// True if the object did not drift but was recreated, because a field can't be changed or a Job runs again for a
    /// new bundle.
    pub recreated: bool,
}

/// The current state of everything that is observed. Each value replaces the previous one
/// (level-triggered). A bundle whose `Arc` is the same as in the previous value has not changed.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The observed generation with its content hash; `None` before the first.
    pub generation: Option<(Generation, ContentHash)>,
    /// True if every object of the generation was processed and the prune has run, whatever their
    /// results.
    pub settled: bool,
    /// What prevented the whole generation from being applied, such as an API server that does not
    /// answer.
    pub problem: Option<String>,
    /// The bundles.
    pub bundles: Vec<Arc<ObservedBundle>>,
    /// Objects that are no longer in Git and not gone yet, sorted by group, kind, namespace and
    /// name.
    pub leftovers: Vec<Leftover>,
    /// What is pending approval: first deletions by app, then recreations.
    pub pending_approvals: Vec<PendingApproval>,
    /// Kinds of desired objects that live outside namespaces and that are not Kubernetes' own, as
    /// `KIND.GROUP`.
    pub cluster_scoped: Vec<String>,
}
