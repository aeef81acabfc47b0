//! Decides which app runs in which cluster, and in which role. The fleet record says where the primary of an app is. An
//! app that is not in the record yet gets the first candidate region that Git names. No commit moves a primary.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    fleet_record::{FleetRecord, Handover, Writer},
    ids::{AppName, ClusterName, Epoch, RegionName, Role},
    kinds::Mode,
    load::{App, Cluster, Model, Roles},
    problem::{Problem, Scope},
    yaml,
};

use crate::handover::role_of;

/// The reason in the record for the first holder of an app's writer.
pub const FIRST_PLACEMENT: &str = "first placement";

/// The result of placing every app of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placed {
    /// The roles of every app that has no problem here, by cluster.
    pub roles: Roles,
    /// The fleet record with the writers of apps that are new or renamed. Time and author of a new writer are not set.
    pub record: FleetRecord,
    /// The problems of this commit, such as a change that would move or lose a writer. A problem of an app blocks the
    /// app; a problem of the fleet blocks the commit.
    pub problems: Vec<Problem>,
}

/// What is known besides the model.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The fleet record before this commit.
    pub record: &'a FleetRecord,
    /// The apps that are in the repository but could not be read.
    pub broken: &'a BTreeSet<AppName>,
    /// The reason why no app may get its first writer now, if there is one.
    pub frozen: Option<&'a str>,
}

/// Places every app of a fleet that has no record yet.
#[must_use]
pub fn place_first(model: &Model) -> Placed {
    let known = Known {
        record: &FleetRecord::default(),
        broken: &BTreeSet::new(),
        frozen: None,
    };
    place(model, known)
}

/// Places every app of the model.
#[must_use]
pub fn place(model: &Model, known: Known<'_>) -> Placed {
    let mut placed = Placed {
        record: known.record.clone(),
        problems: lost_holders(model, known.record),
        ..Placed::default()
    };
    let renamed = renamed(model, known);
    let mut changed = false;
    for (name, app) in &model.apps {
        let old = renamed.get(name).copied();
        let holder = known.record.writers.get(old.unwrap_or(name));
        match place_app(model, name, app, holder, known.frozen) {
            Ok(places) => {
                let writer = match holder {
                    Some(holder) => model.clusters.get(&holder.cluster).map(|cluster| Writer {
                        region: cluster.region.clone(),
                        ..holder.clone()
                    }),
                    None => primary(model, &places).map(|(cluster, region)| Writer {
                        region: region.clone(),
                        cluster: cluster.clone(),
                        epoch: known.record.epoch.next(),
                        at: 0,
                        by: String::new(),
                        why: FIRST_PLACEMENT.to_owned(),
                        handover: None,
                    }),
                };
                if let Some(writer) = writer {
                    let before = placed.record.writers.insert(name.clone(), writer.clone());
                    changed |= before != Some(writer);
                }
                placed.roles.insert(name.clone(), places);
            }
            Err(problem) => placed.problems.push(problem),
        }
        if let Some(old) = old {
            // A renamed app that is blocked keeps its writer, too.
            if let Some(writer) = placed.record.writers.remove(old) {
                placed.record.writers.entry(name.clone()).or_insert(writer);
                changed = true;
            }
        }
    }
    // Even a fleet without writers has a record.
    if changed || placed.record.epoch == Epoch::default() {
        placed.record.epoch = known.record.epoch.next();
    }
    placed
}

/// Returns the renamed apps that take over a writer, each with the older name under which the record has it.
fn renamed<'a>(model: &'a Model, known: Known<'_>) -> BTreeMap<&'a AppName, &'a AppName> {
    let mut taken = BTreeSet::new();
    let claims = model
        .apps
        .iter()
        .filter_map(|(name, app)| Some((name, app.spec.formerly.as_ref()?)));
    claims
        .filter(|(name, old)| {
            let writers = &known.record.writers;
            let is_gone = !model.apps.contains_key(*old) && !known.broken.contains(*old);
            is_gone
                && !writers.contains_key(*name)
                && writers.contains_key(*old)
                && taken.insert(*old)
        })
        .collect()
}

/// Returns the primary among an app's places, with its region.
fn primary<'a>(
    model: &'a Model,
    places: &'a BTreeMap<ClusterName, Role>,
) -> Option<(&'a ClusterName, &'a RegionName)> {
    let (cluster, _) = places.iter().find(|(_, role)| **role == Role::Primary)?;
    Some((cluster, &model.clusters.get(cluster)?.region))
}

const LOST_HOLDER: &str = "any more, but it holds the writer of";

/// Returns the cluster that a problem says is lost although it holds writers.
#[must_use]
pub fn lost_holder(problem: &Problem) -> Option<ClusterName> {
    let is_lost = problem.scope == Scope::Fleet && problem.message.contains(LOST_HOLDER);
    let file = problem.file.rsplit('/').next().filter(|_| is_lost)?;
    file.strip_suffix(".yaml")?.parse().ok()
}

/// Returns the problems of a commit that removes clusters which hold writers.
fn lost_holders(model: &Model, record: &FleetRecord) -> Vec<Problem> {
    let mut lost: BTreeMap<(&RegionName, &ClusterName), Vec<&str>> = BTreeMap::new();
    let held = record.writers.iter();
    for (app, writer) in held.filter(|(_, w)| !model.clusters.contains_key(&w.cluster)) {
        let apps = lost.entry((&writer.region, &writer.cluster)).or_default();
        apps.push(app.as_str());
    }
    let problem = |((region, cluster), apps): ((&RegionName, &ClusterName), Vec<&str>)| {
        let file = format!("regions/{region}/{cluster}.yaml");
        let message = format!(
            "there is no cluster `{cluster}` {LOST_HOLDER} {}",
            apps.join(", ")
        );
        let help = format!(
            "bring the file back. If nothing runs in this cluster any more and its data is lost: \
             `muster cluster remove {cluster} --override writers --reason TEXT`"
        );
        Problem::new(Scope::Fleet, &file, message).help(help)
    };
    lost.into_iter().map(problem).collect()
}

fn place_app(
    model: &Model,
    name: &AppName,
    app: &App,
    holder: Option<&Writer>,
    frozen: Option<&str>,
) -> Result<BTreeMap<ClusterName, Role>, Problem> {
    let problem = |field: &[&str], message: String| {
        let problem = Problem::new(Scope::App(name.clone()), &app.file.path, message);
        let text = &app.file.text;
        let documents = yaml::parse_written(text).unwrap_or_default();
        match documents.iter().find(|node| !node.is_null()) {
            Some(node) => problem.at(text, node.descend(field.iter().copied()).at),
            None => problem,
        }
    };
    let fits = |(cluster_name, cluster): &(&ClusterName, &Cluster)| {
        app.spec.placement.allows(cluster_name, cluster)
    };
    let held = holder.and_then(|writer| Some((writer, model.clusters.get(&writer.cluster)?)));
    if app.spec.mode == Mode::ActiveActive {
        if let Some(Writer { cluster, .. }) = holder {
            let message = format!(
                "`mode` can't become active-active: cluster `{cluster}` holds this app's writer, and every cluster would write"
            );
            return Err(problem(&["spec", "mode"], message).help(
                "keep the mode. To run it everywhere, add an app with another name and without `formerly`, and remove this one",
            ));
        }
        let placed = model.clusters.iter().filter(fits);
        return Ok(placed
            .map(|(name, _)| (name.clone(), Role::Active))
            .collect());
    }
    let in_region = |region: &RegionName| in_region(model, app, region);
    let candidates = candidates(model, app);
    let primary = match (holder, held) {
        // The problem of a lost holder blocks the whole commit.
        (Some(_), None) => return Ok(BTreeMap::new()),
        (_, Some((writer, cluster))) => {
            if !fits(&(&writer.cluster, cluster)) {
                let message = format!(
                    "`placement` does not fit cluster `{}` any more, which holds this app's writer since epoch {}",
                    writer.cluster, writer.epoch
                );
                return Err(problem(&["spec", "placement"], message).help(format!(
                    "a commit can't move a writer: let `placement` fit `{}` in region `{}`",
                    writer.cluster, cluster.region
                )));
            }
            Some((writer.cluster.clone(), &cluster.region))
        }
        (None, None) => {
            let mut found = candidates
                .iter()
                .filter_map(|region| Some((in_region(region)?, *region)));
            found.next()
        }
    };
    let Some((cluster, home)) = primary else {
        return Ok(BTreeMap::new());
    };
    if let (None, Some(why)) = (holder, frozen) {
        let message = format!("this app gets no writer now: {why}");
        return Err(problem(&["spec", "mode"], message));
    }
    let mut places = BTreeMap::from([(cluster, Role::Primary)]);
    let mut taken = BTreeSet::from([home]);
    if let Some(writer) = holder {
        let role = role_of(writer, &writer.cluster);
        places.insert(writer.cluster.clone(), role.unwrap_or(Role::Primary));
        // The old side of a promotion stays, wherever Git now places the app.
        let other = writer.other_side();
        if let Some((other, there)) =
            other.and_then(|other| Some((&other.cluster, model.clusters.get(&other.cluster)?)))
        {
            taken.insert(&there.region);
            let role = role_of(writer, other).unwrap_or(Role::Fenced);
            // A singleton has no standby.
            if role == Role::Fenced || app.spec.mode == Mode::ActivePassive {
                places.insert(other.clone(), role);
            }
        }
        if let Some(Handover::Fencing { to, .. }) = &writer.handover {
            let there = model.clusters.get(&to.cluster);
            if !there.is_some_and(|there| fits(&(&to.cluster, there))) {
                let message = format!(
                    "`placement` does not fit cluster `{}`, to which this app's writer is being moved",
                    to.cluster
                );
                return Err(problem(&["spec", "placement"], message).help(format!(
                    "let it fit until the move is finished, or end the move: `muster app move {name} --to {}`",
                    writer.region
                )));
            }
        }
    }
    if app.spec.mode == Mode::ActivePassive {
        let others = candidates
            .into_iter()
            .filter(|region| !taken.contains(region));
        places.extend(
            others
                .filter_map(in_region)
                .map(|cluster| (cluster, Role::Standby)),
        );
    }
    Ok(places)
}

/// Returns the clusters to which the writer of an app can move: one for each region where Git lets the app run. An
/// active-active app has none.
#[must_use]
pub fn targets(model: &Model, app: &App) -> BTreeMap<RegionName, ClusterName> {
    if app.spec.mode == Mode::ActiveActive {
        return BTreeMap::new();
    }
    let regions = candidates(model, app).into_iter();
    regions
        .filter_map(|region| Some((region.clone(), in_region(model, app, region)?)))
        .collect()
}

/// Returns the cluster of a region in which an app that writes would run. Only one cluster of a region runs such an
/// app: two would both be primaries.
fn in_region(model: &Model, app: &App, region: &RegionName) -> Option<ClusterName> {
    let mut inside = model
        .clusters
        .iter()
        .filter(|(name, cluster)| app.spec.placement.allows(name, cluster));
    inside
        .find(|(_, cluster)| cluster.region == *region)
        .map(|(name, _)| name.clone())
}

/// Returns an app's candidate regions, in the order in which they are considered for its first primary.
fn candidates<'a>(model: &'a Model, app: &'a App) -> Vec<&'a RegionName> {
    let named = &app.spec.placement.regions;
    if named.is_empty() {
        return model.regions.keys().collect();
    }
    let mut seen = BTreeSet::new();
    named.iter().filter(|region| seen.insert(*region)).collect()
}

#[cfg(test)]
mod tests;
