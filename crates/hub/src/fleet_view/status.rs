//! Builds the fleet's status from each cluster's desired state and last observed state.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    fleet_record::{Handover, Place, Writer},
    ids::{AppName, ClusterName},
};
use muster_plan::handover::verified;
use muster_proto::{VERSION, v1};

use crate::{
    desired_state::{DesiredState, FleetState},
    moves::{next, side_of},
    observed::Level,
    store_schema::{AppRecord, InForce, ListedBundle, now},
};

/// The most objects that the status lists for each set pending approval, unless the request names apps.
const FEW: usize = 3;

/// Returns a cluster's status from its desired state and its last observed state.
fn cluster(
    name: &ClusterName,
    region: &str,
    desired: Option<&DesiredState>,
    level: Option<&Level>,
    in_force: &InForce,
    apps_asked: &[String],
) -> v1::ClusterStatus {
    let none = Level::default();
    let seen = level.unwrap_or(&none);
    let synced = desired
        .is_some_and(|desired| seen.in_force.map(|n| n.content) == Some(desired.number.content));
    let listed: BTreeMap<&str, &ListedBundle> = desired
        .map(|desired| {
            desired
                .bundles
                .iter()
                .map(|b| (b.app.as_str(), b))
                .collect()
        })
        .unwrap_or_default();
    let names: BTreeSet<&str> = listed
        .keys()
        .copied()
        .chain(seen.apps.keys().map(String::as_str))
        .collect();
    let asked = |name: &&str| apps_asked.is_empty() || apps_asked.iter().any(|asked| asked == name);
    let apps: Vec<v1::ClusterApp> = names
        .into_iter()
        .filter(asked)
        .map(|name| {
            let mut app = app(name, listed.get(name).copied(), seen.apps.get(name));
            if apps_asked.is_empty() {
                // For a whole fleet this could be a lot of data that nobody reads.
                app.drifts.clear();
                for hold in &mut app.holds {
                    hold.objects.truncate(FEW);
                }
            }
            app
        })
        .collect();
    let any = |state| apps.iter().any(|app| app.state() == state);
    let state = if seen.instance.is_none() {
        v1::ClusterState::Unjoined
    } else if !seen.connected {
        v1::ClusterState::Offline
    } else if any(v1::ClusterState::Failing)
        || !seen.problems.is_empty()
        || seen.refusal.is_some()
        || seen.cut.is_some()
    {
        v1::ClusterState::Failing
    } else if !synced || any(v1::ClusterState::Progressing) {
        v1::ClusterState::Progressing
    } else {
        v1::ClusterState::Synced
    };
    v1::ClusterStatus {
        name: name.to_string(),
        region: region.to_owned(),
        state: state.into(),
        connected: seen.connected,
        last_seen: i64::try_from(seen.last_seen).unwrap_or_default(),
        agent_version: seen.version.clone(),
        wanted: desired.map_or(0, |desired| desired.number.generation.0),
        in_force: seen.in_force.map_or(0, |number| number.generation.0),
        commit: if synced {
            in_force.commit.clone()
        } else {
            String::new()
        },
        apps,
        problems: seen
            .problems
            .iter()
            .chain(&seen.refusal)
            .chain(&seen.cut)
            .cloned()
            .collect(),
    }
}

fn app(
    name: &str,
    listed: Option<&ListedBundle>,
    report: Option<&v1::AppReport>,
) -> v1::ClusterApp {
    let none = v1::AppReport::default();
    let seen = report.unwrap_or(&none);
    let synced = listed.is_some_and(|listed| listed.hash.0.as_slice() == seen.hash.as_slice());
    v1::ClusterApp {
        app: name.to_owned(),
        role: listed
            .map(|listed| listed.role.to_string())
            .unwrap_or_default(),
        synced,
        phase: seen.phase,
        health: seen.health.clone(),
        objects: seen.objects,
        applied: seen.applied,
        problems: seen.problems.clone(),
        holds: seen.holds.clone(),
        drifted: seen.drifted,
        drifts: seen.drifts.clone(),
        leaving: seen.leaving,
        stuck: seen.stuck,
    }
}

fn writer(
    app: &AppRecord,
    writer: &Writer,
    state: &FleetState,
    levels: impl Fn(&ClusterName) -> Option<Level>,
) -> v1::Writer {
    let (step, unproven) = match &writer.handover {
        None => ("", false),
        Some(Handover::Fencing { .. }) => ("fencing", false),
        Some(Handover::Promoting { unproven, .. }) => ("promoting", unproven.is_some()),
        Some(Handover::Returning { .. }) => ("returning", false),
    };
    let side = |cluster: &ClusterName| {
        let level = levels(cluster);
        level
            .map(|level| side_of(&level, &app.name))
            .unwrap_or_default()
    };
    let to_move = |other: &Place| v1::Move {
        step: step.to_owned(),
        region: other.region.to_string(),
        cluster: other.cluster.to_string(),
        waits: next(&app.name, writer, state, side)
            .err()
            .unwrap_or_default(),
        unproven,
        promoted: step == "promoting" && {
            verified(writer, side(&writer.cluster).look.as_ref()).is_ok()
        },
    };
    v1::Writer {
        r#move: writer.other_side().map(to_move),
        targets: {
            let targets = app.targets.keys();
            let others = targets.filter(|region| **region != writer.region);
            others.map(ToString::to_string).collect()
        },
        region: writer.region.to_string(),
        cluster: writer.cluster.to_string(),
        epoch: writer.epoch.0,
        at: i64::try_from(writer.at).unwrap_or_default(),
        by: writer.by.clone(),
        why: writer.why.clone(),
    }
}

/// Returns the status of the requested clusters and apps. `repo` is the status of the repository.
pub(crate) fn status(
    state: &FleetState,
    levels: impl Fn(&ClusterName) -> Option<Level>,
    repo: v1::Repo,
    request: &v1::StatusRequest,
) -> v1::Status {
    let in_force = &state.in_force;
    let asked =
        |name: &str| request.clusters.is_empty() || request.clusters.iter().any(|c| c == name);
    let clusters = in_force
        .clusters
        .iter()
        .filter(|(name, _)| asked(name.as_str()));
    let clusters = clusters.map(|(name, region)| {
        let desired = state.desired.get(name).map(AsRef::as_ref);
        cluster(
            name,
            region,
            desired,
            levels(name).as_ref(),
            in_force,
            &request.apps,
        )
    });
    // An app that has left Git during its move is shown until the move is finished.
    let is_gone = |(app, writer): &(&AppName, &Writer)| {
        writer.handover.is_some() && !in_force.apps.iter().any(|known| known.name == **app)
    };
    let gone = state.record.writers.iter().filter(is_gone);
    let gone: Vec<AppRecord> = gone.map(|(app, _)| AppRecord::gone(app)).collect();
    let apps = in_force.apps.iter().chain(&gone).filter(|app| {
        request.apps.is_empty() || request.apps.iter().any(|asked| asked == app.name.as_str())
    });
    v1::Status {
        fleet: in_force.fleet.clone(),
        hub_version: VERSION.to_owned(),
        repo: Some(repo),
        problems: in_force.problems.iter().map(Into::into).collect(),
        clusters: clusters.collect(),
        apps: apps
            .map(|app| v1::AppSummary {
                name: app.name.to_string(),
                tier: app.tier.clone(),
                mode: app.mode.clone(),
                owner: app.owner.clone(),
                held: app.blocked,
                writer: {
                    let held = state.record.writers.get(&app.name);
                    held.map(|held| writer(app, held, state, &levels))
                },
            })
            .collect(),
        regions: in_force
            .regions
            .iter()
            .map(|region| v1::RegionSummary {
                name: region.name.clone(),
                continent: region.continent.clone(),
                country: region.country.clone(),
                city: region.city.clone(),
            })
            .collect(),
        now: i64::try_from(now()).unwrap_or_default(),
        epoch: state.record.epoch.0,
    }
}
