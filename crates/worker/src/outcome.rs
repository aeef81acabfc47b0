//! What a commit comes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ClusterName, FleetName, RegionName},
    load::{Model, Roles},
    policy::PruneBudget,
    problem::Problem,
};
use muster_render::RenderedBundle;
use serde::{Deserialize, Serialize};

/// What a repository says of its fleet, besides objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The fleet's name.
    pub fleet: FleetName,
    /// How much may be deleted unasked.
    pub prune: PruneBudget,
    /// Regions by name.
    pub regions: BTreeMap<RegionName, RegionFacts>,
    /// The region of every cluster.
    pub clusters: BTreeMap<ClusterName, RegionName>,
    /// Apps that could be read, by name.
    pub apps: BTreeMap<AppName, AppFacts>,
}

/// Where a region is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionFacts {
    /// Such as `EU`.
    pub continent: String,
    /// ISO 3166 code.
    pub country: String,
    /// Empty where it is not said.
    pub city: String,
}

/// What is said of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppFacts {
    /// Its tier.
    pub tier: String,
    /// Its mode.
    pub mode: String,
    /// Empty where it is not said.
    pub owner: String,
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

/// What reading and rendering a commit gave.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Unless a problem holds back the whole commit.
    pub facts: Option<Facts>,
    /// Apps that stand in the repository and could not be read.
    pub broken: BTreeSet<AppName>,
    /// Apps that claim an older name, with it.
    pub formerly: BTreeMap<AppName, AppName>,
    /// The role of every app in every cluster that carries it.
    pub roles: Roles,
    /// Bundles by app and cluster. An app with a problem anywhere has none.
    pub bundles: BTreeMap<AppName, BTreeMap<ClusterName, Arc<RenderedBundle>>>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Outcome {
    /// The apps that stand in the repository and have no bundles, since there is a problem.
    pub fn held(&self) -> impl Iterator<Item = &AppName> {
        let read = self.facts.iter().flat_map(|facts| facts.apps.keys());
        let without = read.filter(|app| !self.bundles.contains_key(*app));
        without.chain(&self.broken)
    }
}
