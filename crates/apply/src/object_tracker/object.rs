//! One wanted object: how far it got, what a watch saw of it, and what that says of its health.

use muster_plan::health::{Assessment, Health};
use tokio::time::Instant;

use super::Seen;
use crate::observed::ObjectState;

#[derive(Default)]
pub(super) struct Object {
    pub(super) state: ObjectState,
    /// `metadata.generation` that the API server answered; an older sight of it says nothing.
    pub(super) generation: Option<i64>,
    /// The UID that the inventory has.
    pub(super) uid: Option<String>,
    pub(super) seen: Option<Seen>,
    /// As in [`super::TrackedObject`].
    pub(super) ended: Option<Assessment>,
    /// What its pods say, where it is not well.
    pub(super) reason: Option<String>,
    /// Somebody undoes it again and again, as this says.
    pub(super) fought: Option<String>,
}

/// Whether no watch has seen yet what was applied.
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

/// Whether an object is applied as it should be and healthy. A Job for which others wait has to have
/// completed: one that nobody lets run has not.
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

/// The health of an object as it should be: a sight of it from before the last request proves nothing
/// about what was asked for.
pub(super) fn health(object: &Object) -> Assessment {
    let say = |health, message: &str| Assessment {
        health,
        message: Some(message.to_owned()),
    };
    match (&object.seen, &object.state) {
        (Some(seen), _) if object.uid.as_ref().is_some_and(|uid| *uid != seen.uid) => say(
            Health::Progressing,
            "another object of this name is there; it is being replaced",
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
