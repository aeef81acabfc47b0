//! The result of reading and rendering a commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_model::{
    fleet_record::FleetRecord,
    ids::{AppName, ClusterName, FleetName, RegionName},
    load::{Model, Roles},
    policy::PruneBudget,
    problem::Problem,
};
use muster_plan::placement::targets;
use muster_render::RenderedBundle;
use serde::{Deserialize, Serialize};

/// The facts that a repository states about its fleet, apart from the apps' objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The fleet's name.
    pub fleet: FleetName,
    /// How much may be deleted without approval.
    pub prune: PruneBudget,
    /// The regions, by name.
    pub regions: BTreeMap<RegionName, RegionFacts>,
    /// The region of every cluster.
    pub clusters: BTreeMap<ClusterName, RegionName>,
    /// The apps that could be read, by name.
    pub apps: BTreeMap<AppName, AppFacts>,
}

/// The location of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionFacts {
    /// The continent, such as `EU`.
    pub continent: String,
    /// The country's ISO 3166 code.
    pub country: String,
    /// The city, or an empty string if the repository names none.
    pub city: String,
}

/// The facts that a repository states about an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppFacts {
    /// The app's tier.
    pub tier: String,
    /// The app's mode.
    pub mode: String,
    /// The app's owner, or an empty string if the repository names none.
    pub owner: String,
    /// The cluster of each region to which the app's writer can move.
    pub targets: BTreeMap<RegionName, ClusterName>,
}

impl Facts {
    pub(crate) fn of(model: &Model) -> Self {
        let regions = model.regions.iter().map(|(name, region)| {
            let location = &region.spec.location;
            let facts = RegionFacts {
                continent: format!("{:?}", location.continent).to_uppercase(),
                country: location.country.clone(),
                city: location.city.clone().unwrap_or_default(),
            };
            (name.clone(), facts)
        });
        let apps = model.apps.iter().map(|(name, app)| {
            let facts = AppFacts {
                tier: app.spec.tier.to_string(),
                mode: app.spec.mode.to_string(),
                owner: app.spec.owner.clone().unwrap_or_default(),
                targets: targets(model, app),
            };
            (name.clone(), facts)
        });
        let clusters = model.clusters.iter();
        Self {
            fleet: model.fleet.name.clone(),
            prune: model.fleet.spec.prune,
            regions: regions.collect(),
            clusters: clusters
                .map(|(name, cluster)| (name.clone(), cluster.region.clone()))
                .collect(),
            apps: apps.collect(),
        }
    }
}

/// The result of reading and rendering a commit.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The facts of the fleet. `None` if a problem blocks the whole commit.
    pub facts: Option<Facts>,
    /// The apps that are in the repository but could not be read.
    pub broken: BTreeSet<AppName>,
    /// The former name of each app that was renamed, by the app's current name.
    pub formerly: BTreeMap<AppName, AppName>,
    /// The role of every app in every cluster that the app is placed in.
    pub roles: Roles,
    /// The fleet record with the writers of apps that are new or renamed.
    pub record: FleetRecord,
    /// The bundles, by app and cluster. An app with a problem in any cluster has no bundle.
    pub bundles: BTreeMap<AppName, BTreeMap<ClusterName, Arc<RenderedBundle>>>,
    /// The problems that were found.
    pub problems: Vec<Problem>,
}

impl Outcome {
    /// Returns the blocked apps: those that are in the repository but have no bundles, because of a problem.
    pub fn blocked(&self) -> impl Iterator<Item = &AppName> {
        let read = self.facts.iter().flat_map(|facts| facts.apps.keys());
        let without = read.filter(|app| !self.bundles.contains_key(*app));
        without.chain(&self.broken)
    }
}
