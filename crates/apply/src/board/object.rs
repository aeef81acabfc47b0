//! One wanted object: how far it got, what a watch saw of it, and what that says of its health.

use muster_plan::health::{Assessment, Health};
use tokio::time::Instant;

use super::Seen;
use crate::level::Standing;

#[derive(Default)]
pub(super) struct Object {
    pub(super) standing: Standing,
    /// `metadata.generation` that the API server answered; an older sight of it says nothing.
    pub(super) generation: Option<i64>,
    /// The UID that the inventory has.
    pub(super) uid: Option<String>,
    pub(super) seen: Option<Seen>,
    /// As in [`super::Row`].
    pub(super) ended: Option<Assessment>,
    /// What its pods say, where it is not well.
    pub(super) reason: Option<String>,
    /// Somebody undoes it again and again, as this says.
    pub(super) fought: Option<String>,
}

/// Whether no watch has seen yet what was applied.
pub(super) fn is_unobserved(object: &Object) -> bool {
    object.standing == Standing::Applied
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
    let applied = matches!(object.standing, Standing::Applied | Standing::LeftAlone(_));
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
    match (&object.seen, &object.standing) {
        (Some(seen), _) if object.uid.as_ref().is_some_and(|uid| *uid != seen.uid) => say(
            Health::Progressing,
            "another object of this name is there; it is being replaced",
        ),
        (Some(seen), Standing::Applied) if seen.generation < object.generation => {
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
        (None, Standing::LeftAlone(message)) => say(Health::Healthy, message),
        (None, Standing::Applied) if object.ended.is_some() => {
            object.ended.clone().unwrap_or(Assessment::HEALTHY)
        }
        (None, Standing::Applied) => say(Health::Progressing, "it has not been observed yet"),
        (
            None,
            Standing::Waiting(message)
            | Standing::Failed(message)
            | Standing::Approval { why: message, .. }
            | Standing::Drifted(message),
        ) => say(Health::Missing, message),
        (None, Standing::Pending) => Assessment {
            health: Health::Missing,
            message: None,
        },
    }
}
