//! Decides the steps in which an app's writer is handed over to another cluster. The old holder is fenced and proves
//! that it has stopped, the record names the new holder, the new holder becomes healthy, and the old one follows. The
//! hub stores what these functions return in the fleet record.

use std::collections::BTreeMap;

use muster_model::{
    fleet_record::{Baseline, Handover, Place, Unproven, Writer},
    ids::{ClusterName, ContentHash, Epoch, InstanceId, Role},
};

/// What a cluster's agent last saw of an app that has a writer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Look {
    /// The enrolment of the agent.
    pub instance: InstanceId,
    /// The epoch of the generation that was in force when the agent began to look.
    pub epoch: Epoch,
    /// The app's role in that generation.
    pub role: Role,
    /// True if every object of the app was applied before the agent began to look, and none was leaving.
    pub is_applied: bool,
    /// True if every object was healthy, too.
    pub is_healthy: bool,
    /// The hash of the rule that the agent evaluated; `None` if the app has none.
    pub rule: Option<ContentHash>,
    /// True if every object of the rule exists, is not being deleted, and has a status of its newest generation. A Job
    /// may be missing.
    pub is_evaluated: bool,
    /// True if the rule says that the app has stopped writing.
    pub stopped: bool,
    /// The UIDs of the objects that the rule names and that exist.
    pub uids: BTreeMap<String, String>,
    /// The values to carry over.
    pub carried: BTreeMap<String, String>,
    /// The reason why the app does not count as stopped, for people.
    pub why: String,
}

/// An order to change an app's writer.
#[derive(Debug, Clone)]
pub struct Order {
    /// The epoch of the record after the change.
    pub epoch: Epoch,
    /// The time, in seconds since 1970.
    pub at: u64,
    /// The person or script that gave it.
    pub by: String,
    /// The reason.
    pub why: String,
}

/// What is known of both sides of a move.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// The side that writes before the move. `None` if its agent is not connected, or has not reported on the app.
    pub old: Option<&'a Look>,
    /// The side that writes after the move.
    pub new: Option<&'a Look>,
    /// True if the agent of the side that writes after the move is connected.
    pub is_new_connected: bool,
    /// True if the old side's cluster has left the fleet.
    pub is_old_gone: bool,
}

/// The next change of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advance {
    /// The old side has stopped. The record names the new holder.
    Promote {
        /// What the new primary gets from the old side.
        carried: BTreeMap<String, String>,
    },
    /// The old side of a move without proof has stopped: its agent has shown it, or a person vouches for it.
    Proven,
    /// The new holder of a move without proof is healthy. Only the late proof is awaited.
    Verified,
    /// The new holder is verified. The old side follows, and what was carried over is dropped.
    Finish,
}

/// Returns the role that a writer's record gives to an app in a cluster that is part of it; `None` for other clusters.
#[must_use]
pub fn role_of(writer: &Writer, cluster: &ClusterName) -> Option<Role> {
    let is_holder = writer.cluster == *cluster;
    match &writer.handover {
        None => is_holder.then_some(Role::Primary),
        Some(Handover::Fencing { to, .. }) => match is_holder {
            true => Some(Role::Fenced),
            false => (to.cluster == *cluster).then_some(Role::Standby),
        },
        Some(Handover::Returning { to }) => match is_holder {
            true => Some(Role::Primary),
            false => (to.cluster == *cluster).then_some(Role::Standby),
        },
        Some(Handover::Promoting { from, .. }) => match is_holder {
            true => Some(Role::Primary),
            false => (from.cluster == *cluster).then_some(Role::Fenced),
        },
    }
}

/// Returns what is known of a holder before it is fenced.
///
/// # Errors
/// Returns the reason, for people, why a later proof that it has stopped could not be believed.
pub fn baseline(writer: &Writer, look: Option<&Look>) -> Result<Baseline, String> {
    let holder = &writer.cluster;
    let Some(look) = look else {
        return Err(format!(
            "the agent of {holder}, which holds the writer, is not connected or has not reported on the app"
        ));
    };
    let Some(rule) = look.rule else {
        return Err(
            "the app has no `writer.stopped`, so nothing can prove that the old side has stopped writing"
                .to_owned(),
        );
    };
    if look.role != Role::Primary || look.epoch < writer.epoch {
        return Err(format!(
            "{holder} has not become the primary of epoch {} yet",
            writer.epoch
        ));
    }
    if !look.is_evaluated && !look.stopped {
        return Err(format!(
            "`writer.stopped` can't be evaluated in {holder} now, so a proof could not be told from it: {}",
            look.why
        ));
    }
    if look.stopped {
        return Err(format!(
            "`writer.stopped` is true in {holder}, where the app is the primary. So it proves nothing"
        ));
    }
    Ok(Baseline {
        instance: look.instance.clone(),
        rule,
        uids: look.uids.clone(),
    })
}

/// Begins a move: the holder is fenced.
#[must_use]
pub fn fence(writer: &Writer, to: Place, baseline: Baseline, order: Order) -> Writer {
    Writer {
        handover: Some(Handover::Fencing { to, baseline }),
        ..ordered(writer, order)
    }
}

/// Ends a move before the record names the new holder: the old one, which is fenced, becomes the primary again. `to` is
/// the cluster that would have got the writer.
#[must_use]
pub fn give_back(writer: &Writer, to: Place, order: Order) -> Writer {
    Writer {
        handover: Some(Handover::Returning { to }),
        ..ordered(writer, order)
    }
}

/// Moves the writer without proof that the holder has stopped, because a person vouches for it. `instance` is the
/// enrolment of the holder's agent.
#[must_use]
pub fn force(writer: &Writer, to: Place, instance: Option<InstanceId>, order: Order) -> Writer {
    let from = writer.place();
    let handover = Handover::Promoting {
        from,
        carried: BTreeMap::new(),
        unproven: Some(Unproven {
            instance,
            verified: false,
        }),
    };
    Writer {
        region: to.region,
        cluster: to.cluster,
        handover: Some(handover),
        ..ordered(writer, order)
    }
}

fn ordered(writer: &Writer, order: Order) -> Writer {
    Writer {
        region: writer.region.clone(),
        cluster: writer.cluster.clone(),
        epoch: order.epoch,
        at: order.at,
        by: order.by,
        why: order.why,
        handover: None,
    }
}

/// Returns the next change of a move.
///
/// # Errors
/// Returns what the move waits for, for people. A writer that is not moved waits for nothing.
pub fn advance(writer: &Writer, seen: Seen<'_>) -> Result<Advance, String> {
    match &writer.handover {
        None => Err(String::new()),
        Some(Handover::Fencing { to, baseline }) => {
            let look = fenced(writer, &writer.cluster, seen.old)?;
            proves(&writer.cluster, baseline, look)?;
            // As long as the record names the old holder, the move can still be ended.
            if !seen.is_new_connected {
                return Err(format!(
                    "the agent of {}, which gets the writer, is not connected",
                    to.cluster
                ));
            }
            Ok(Advance::Promote {
                carried: look.carried.clone(),
            })
        }
        Some(Handover::Returning { .. }) => verified(writer, seen.new).map(|()| Advance::Finish),
        Some(Handover::Promoting { from, unproven, .. }) => {
            let verified = verified(writer, seen.new);
            let Some(unproven) = unproven.as_ref().filter(|_| !seen.is_old_gone) else {
                return verified.map(|()| Advance::Finish);
            };
            let proof = || {
                let look = fenced(writer, &from.cluster, seen.old)?;
                if unproven.instance.as_ref() != Some(&look.instance) {
                    return Err(format!(
                        "{} has joined again since the move was ordered without proof, so its agent can't prove anything \
                         about the writer that was there",
                        from.cluster
                    ));
                }
                let waits = || {
                    let why = not_stopped(&from.cluster, look);
                    format!("{why}. A person ordered this move without proof")
                };
                // Without a rule, the fence is all that its agent can show.
                let shown = look.stopped || look.rule.is_none();
                shown.then_some(()).ok_or_else(waits)
            };
            match (proof(), verified) {
                (Ok(()), _) => Ok(Advance::Proven),
                (Err(_), Ok(())) if !unproven.verified => Ok(Advance::Verified),
                (Err(_), Err(waits)) | (Err(waits), Ok(())) => Err(waits),
            }
        }
    }
}

/// Checks that a look shows the app fenced, by an order that is not older than the move.
fn fenced<'a>(
    writer: &Writer,
    cluster: &ClusterName,
    look: Option<&'a Look>,
) -> Result<&'a Look, String> {
    let look = look.ok_or_else(|| missing(cluster))?;
    if look.epoch < writer.epoch || look.role != Role::Fenced {
        return Err(format!("the agent of {cluster} has not fenced the app yet"));
    }
    if !look.is_applied {
        return Err(format!(
            "the fenced objects of {cluster} are not all applied yet"
        ));
    }
    Ok(look)
}

fn missing(cluster: &ClusterName) -> String {
    format!("the agent of {cluster} is not connected, or has not reported on the app")
}

/// Checks that a look proves that the app has stopped since the baseline.
fn proves(cluster: &ClusterName, baseline: &Baseline, look: &Look) -> Result<(), String> {
    let give_back = "Move the writer back to its region and try again";
    if look.instance != baseline.instance {
        return Err(format!(
            "{cluster} has joined again since the writer was fenced there, so its agent can't prove anything about it. \
             {give_back}"
        ));
    }
    if look.rule != Some(baseline.rule) {
        return Err(format!(
            "`writer` has changed in Git since the writer was fenced in {cluster}. {give_back}"
        ));
    }
    let mut replaced = baseline.uids.iter();
    let is_other = |(name, uid): &(&String, &String)| look.uids.get(*name) != Some(*uid);
    if let Some((name, _)) = replaced.find(is_other) {
        return Err(format!(
            "`objects.{name}` in {cluster} is not the object that it was before the writer was fenced. {give_back}"
        ));
    }
    look.stopped
        .then_some(())
        .ok_or_else(|| not_stopped(cluster, look))
}

fn not_stopped(cluster: &ClusterName, look: &Look) -> String {
    let why = match look.why.as_str() {
        "" => "its agent does not say why",
        why => why,
    };
    format!("{cluster} has not proven that the writer has stopped: {why}")
}

/// Checks that the new holder runs the app as its primary, and that it is healthy.
///
/// # Errors
/// Returns what is missing, for people.
pub fn verified(writer: &Writer, look: Option<&Look>) -> Result<(), String> {
    let holder = &writer.cluster;
    let look = look.ok_or_else(|| missing(holder))?;
    if look.epoch < writer.epoch || look.role != Role::Primary || !look.is_applied {
        return Err(format!("{holder} has not applied the promotion yet"));
    }
    match look.is_healthy {
        true => Ok(()),
        false => Err(format!("the app is not healthy in {holder} yet")),
    }
}

/// Returns the writer after a change that [`advance`] returned. `epoch` is the epoch of the record after the change.
#[must_use]
pub fn advanced(writer: &Writer, change: Advance, epoch: Epoch, at: u64) -> Writer {
    let mut after = writer.clone();
    match (&change, &writer.handover) {
        (Advance::Promote { carried }, Some(Handover::Fencing { to, .. })) => {
            after.region = to.region.clone();
            after.cluster = to.cluster.clone();
            after.epoch = epoch;
            after.at = at;
            after.handover = Some(Handover::Promoting {
                from: writer.place(),
                carried: carried.clone(),
                unproven: None,
            });
        }
        (
            Advance::Proven,
            Some(Handover::Promoting {
                from,
                unproven: Some(Unproven {
                    verified: false, ..
                }),
                ..
            }),
        ) => {
            after.handover = Some(Handover::Promoting {
                from: from.clone(),
                carried: BTreeMap::new(),
                unproven: None,
            });
        }
        // The new holder was healthy before.
        (Advance::Proven, Some(Handover::Promoting { .. })) => after.handover = None,
        (
            Advance::Verified,
            Some(Handover::Promoting {
                from,
                unproven: Some(unproven),
                ..
            }),
        ) => {
            after.handover = Some(Handover::Promoting {
                from: from.clone(),
                carried: BTreeMap::new(),
                unproven: Some(Unproven {
                    verified: true,
                    ..unproven.clone()
                }),
            });
        }
        (Advance::Finish, Some(Handover::Promoting { .. } | Handover::Returning { .. })) => {
            after.handover = None
        }
        _ => {}
    }
    after
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
