//! The level of what is known about a generation's objects: what an [`crate::Applier`] publishes.

use std::sync::Arc;

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash, Generation, Role},
};
use muster_plan::health::Health;

/// How far the applying of one object got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ObjectState {
    /// Its turn has not come.
    #[default]
    Pending,
    /// The API server has taken it.
    Applied,
    /// It can't be applied before something else has happened.
    Waiting(String),
    /// The API server refused it, for the reason given.
    Failed(String),
    /// It can't be changed, and to delete it and create it anew waits for a person's approval.
    Approval {
        /// Names exactly this recreation: the object that is there, what it would become, and what would
        /// be lost.
        set: ContentHash,
        /// What can't be changed, and what would be lost.
        why: String,
    },
    /// It is as somebody else has it, because a person said so.
    LeftAlone(String),
    /// It is not as it was applied, in these fields, and is left so because its app says so.
    Drifted(String),
}

impl ObjectState {
    /// With words before what it says.
    pub(crate) fn about(self, words: &str) -> Self {
        match self {
            Self::Waiting(why) => Self::Waiting(format!("{words}: {why}")),
            Self::Failed(why) => Self::Failed(format!("{words}: {why}")),
            other => other,
        }
    }

    /// Whether it is there, and left as somebody else has it.
    pub(crate) fn is_left(&self) -> bool {
        matches!(self, Self::LeftAlone(_) | Self::Drifted(_))
    }
}

/// One object of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedObject {
    /// Which object, with the namespace that it is really in.
    pub id: Arc<ObjectRef>,
    /// Its UID, once a watch has seen it.
    pub uid: Option<String>,
    /// How far the applying got.
    pub state: ObjectState,
    /// Its health.
    pub health: Health,
    /// What is wrong with it or being waited for.
    pub message: Option<String>,
    /// Pods of its own run, which may say more than it does.
    pub has_pods: bool,
}

/// How many objects stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All of them.
    pub total: usize,
    /// Taken by the API server.
    pub applied: usize,
    /// Waiting for something else.
    pub waiting: usize,
    /// Refused.
    pub failed: usize,
    /// Left as they drifted.
    pub drifted: usize,
    /// Healthy or suspended.
    pub healthy: usize,
}

/// One bundle of the generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBundle {
    /// The app.
    pub app: AppName,
    /// Its role.
    pub role: Role,
    /// Hash of the bundle.
    pub hash: ContentHash,
    /// Its objects, in the bundle's order.
    pub objects: Vec<ObservedObject>,
    /// How many of them stand how.
    pub counts: Counts,
    /// The worst health of its objects.
    pub health: Health,
    /// The latest drift of its objects, newest last; bounded.
    pub drifts: Vec<DriftEvent>,
}

/// An object that is no longer wanted and not gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Which object.
    pub id: ObjectRef,
    /// The app that it came from.
    pub app: AppName,
    /// What keeps it.
    pub state: LeftoverState,
    /// Why it is still there.
    pub message: String,
}

/// What keeps an object that is no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverState {
    /// A person's approval is missing.
    Approval,
    /// Something else has to be there, or to be gone, first.
    Waiting,
    /// It is being deleted, and its finalizers are not done.
    Deleting,
    /// It can't be deleted, or that can't be told.
    Refused,
}

/// Objects of one app that wait for a person's approval to be deleted: they are no longer wanted, or can
/// only be created anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The app that they came from.
    pub app: AppName,
    /// Names exactly this set of objects, by their UIDs: an approval is for it and no other.
    pub set: ContentHash,
    /// Whether they are wanted, and are created anew at once.
    pub recreate: bool,
    /// Why they are not simply deleted.
    pub reason: String,
    /// The objects.
    pub objects: Vec<ObjectRef>,
}

/// An object that was found to be not as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftEvent {
    /// When it was found, in seconds since 1970.
    pub at: u64,
    /// Which object.
    pub id: ObjectRef,
    /// Its fields with what they were and should be; without the values of a Secret.
    pub difference: String,
    /// Whether it was put back.
    pub corrected: bool,
    /// Whether it did not drift, but was deleted and created anew, since a field can't be changed.
    pub recreated: bool,
}

/// The level of everything that is observed. An `Arc` that is the same as before has not changed.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The generation that this is about, with its content hash; `None` before the first.
    pub generation: Option<(Generation, ContentHash)>,
    /// Whether every object of it had its turn and the prune too, whatever came of them.
    pub settled: bool,
    /// What kept the whole generation from being applied, such as an API server that does not answer.
    pub problem: Option<String>,
    /// The bundles.
    pub bundles: Vec<Arc<ObservedBundle>>,
    /// What is not wanted and not gone, by app and object.
    pub leftovers: Vec<Leftover>,
    /// What waits for an approval: what is not wanted, by app, then what is to be created anew.
    pub holds: Vec<Hold>,
    /// Kinds of wanted objects that live outside namespaces though Kubernetes itself does not have them, as
    /// `KIND.GROUP`.
    pub cluster_scoped: Vec<String>,
}
