//! Decides which app runs in which cluster, and in which role. The first candidate region of an active-passive app
//! is its primary.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    ids::{ClusterName, RegionName, Role},
    kinds::Mode,
    load::{App, Model, Roles},
};

/// Returns the roles of every app of the model, by cluster.
#[must_use]
pub fn place(model: &Model) -> Roles {
    model
        .apps
        .iter()
        .map(|(name, app)| (name.clone(), place_app(model, app)))
        .collect()
}

fn place_app(model: &Model, app: &App) -> BTreeMap<ClusterName, Role> {
    let fits = |name: &ClusterName| {
        model
            .clusters
            .get(name)
            .is_some_and(|cluster| app.spec.placement.allows(name, cluster))
    };
    if app.spec.mode == Mode::ActiveActive {
        let placed = model.clusters.keys().filter(|name| fits(name));
        return placed.map(|name| (name.clone(), Role::Active)).collect();
    }
    let mut carriers = candidates(model, app).into_iter().filter_map(|region| {
        // Only one cluster per region runs an app that writes. Two would both be primaries.
        let mut inside = model
            .clusters
            .iter()
            .filter(|(_, cluster)| cluster.region == *region);
        inside
            .find(|(name, _)| fits(name))
            .map(|(name, _)| name.clone())
    });
    let primary = carriers.next().map(|cluster| (cluster, Role::Primary));
    let standbys = match app.spec.mode {
        Mode::Singleton => Vec::new(),
        Mode::ActivePassive | Mode::ActiveActive => carriers.collect(),
    };
    primary
        .into_iter()
        .chain(standbys.into_iter().map(|cluster| (cluster, Role::Standby)))
        .collect()
}

/// Returns an app's regions, in the order in which they are considered for its primary.
fn candidates<'a>(model: &'a Model, app: &'a App) -> Vec<&'a RegionName> {
    let named = &app.spec.placement.regions;
    if named.is_empty() {
        return model.regions.keys().collect();
    }
    let mut seen = BTreeSet::new();
    named.iter().filter(|region| seen.insert(*region)).collect()
}
