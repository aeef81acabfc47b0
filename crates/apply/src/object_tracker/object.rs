//! One desired object: how far it got, what a watch saw of it, and what that says about its health.

use muster_plan::health::{Assessment, Health};
use tokio::time::Instant;

use super::Seen;
use crate::observed::ObjectState;

#[derive(Default)]
pub(super) struct Object {
    pub(super) state: ObjectState,
    /// The `metadata.generation` that the API server returned. A watch event with an older one is
    /// outdated.
    pub(super) generation: Option<i64>,
    /// The UID in the inventory.
    pub(super) uid: Option<String>,
    pub(super) seen: Option<Seen>,
    /// The same as in [`super::TrackedObject`].
    pub(super) ended: Option<Assessment>,
    /// The reason why the object is not healthy, as the messages of its pods explain it.
    pub(super) reason: Option<String>,
    /// The message for people if somebody else repeatedly changes or deletes the object.
    pub(super) fought: Option<String>,
}

/// Returns true if no watch has seen the applied object yet.
pub(super) fn is_unobserved(object: &Object) -> bool {
    object.state == ObjectState::Applied
        && match &object.seen {
            None => true,
            Some(seen) => {
                object.uid.as_ref().is_some_and(|uid| *uid != seen.uid)
                    || seen.generation < object.generation
            }
        }
}

/// Returns true if an object is applied and healthy. With `hook`, a Job must have completed; a
/// suspended one has not.
pub(super) fn is_well(object: &Object, hook: bool) -> bool {
    let applied = matches!(
        object.state,
        ObjectState::Applied | ObjectState::LeftAlone(_)
    );
    applied
        && match health(object).health {
            Health::Healthy => true,
            Health::Suspended => !hook,
            _ => false,
        }
}

/// Returns the health of an object. A watch event from before the last request says nothing about
/// the new content.
pub(super) fn health(object: &Object) -> Assessment {
    let say = |health, message: &str| Assessment {
        health,
        message: Some(message.to_owned()),
    };
    match (&object.seen, &object.state) {
        (Some(seen), _) if object.uid.as_ref().is_some_and(|uid| *uid != seen.uid) => say(
            Health::Progressing,
            "the object was recreated; its new state has not been observed yet",
        ),
        (Some(seen), ObjectState::Applied) if seen.generation < object.generation => {
            say(Health::Progressing, "the change has not been observed yet")
        }
        (Some(seen), _)
            if seen
                .silent_until
                .is_some_and(|until| until <= Instant::now()) =>
        {
            Assessment::HEALTHY
        }
        (Some(seen), _) => {
            let mut assessment = seen.assessment.clone();
            let unwell = matches!(assessment.health, Health::Progressing | Health::Degraded);
            if let Some(reason) = object.reason.as_ref().filter(|_| unwell) {
                assessment.message = Some(match assessment.message {
                    Some(message) => format!("{message} ({reason})"),
                    None => reason.clone(),
                });
            }
            assessment
        }
        (None, ObjectState::LeftAlone(message)) => say(Health::Healthy, message),
        (None, ObjectState::Applied) if object.ended.is_some() => {
            object.ended.clone().unwrap_or(Assessment::HEALTHY)
        }
        (None, ObjectState::Applied) => say(Health::Progressing, "it has not been observed yet"),
        (
            None,
            ObjectState::Waiting(message)
            | ObjectState::Failed(message)
            | ObjectState::Approval { why: message, .. }
            | ObjectState::Drifted(message),
        ) => say(Health::Missing, message),
        (None, ObjectState::Pending) => Assessment {
            health: Health::Missing,
            message: None,
        },
    }
}
