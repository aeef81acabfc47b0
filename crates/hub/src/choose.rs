//! Which bundles a cluster should run: of every app the newest good one, or what it last was.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ClusterName, ContentHash},
    load::{Loaded, Model},
    policy::PruneOrders,
    problem::Problem,
};
use muster_plan::compose::{Offer, compose, problems_of};
use muster_render::{RenderedBundle, conflict};

use crate::{
    fleet::{EPOCH, Outcome},
    records::ListedBundle,
    wanted::{Wanted, content_of},
};

/// Bundles by hash.
pub(crate) type Bundles = HashMap<ContentHash, Arc<RenderedBundle>>;

/// A bundle as it is compared and chosen.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) listed: ListedBundle,
    pub(crate) rendered: Arc<RenderedBundle>,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.listed == other.listed
    }
}

/// A bundle in force as a candidate; the new one itself where they are the same.
fn in_force(known: &Bundles, listed: &ListedBundle, new: Option<&Candidate>) -> Option<Candidate> {
    if let Some(new) = new.filter(|new| new.listed == *listed) {
        return Some(new.clone());
    }
    let rendered = known.get(&listed.hash)?;
    Some(Candidate {
        listed: listed.clone(),
        rendered: Arc::clone(rendered),
    })
}

/// For every cluster the bundles that it should run, the problems that this choice met, and the apps
/// that wait somewhere because of them.
pub(crate) struct Chosen {
    pub(crate) chosen: BTreeMap<ClusterName, BTreeMap<AppName, Candidate>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) held: BTreeSet<AppName>,
}

/// Which app may take which older name's place. What still stands in the repository gives nothing up.
fn renamed<'a>(model: &Model, loaded: &'a Loaded) -> BTreeMap<&'a AppName, &'a AppName> {
    let mut taken = HashSet::new();
    let gone = |old: &AppName| !model.apps.contains_key(old) && !loaded.broken.contains(old);
    let claims = loaded.formerly.iter();
    claims
        .filter(|(_, old)| gone(old) && taken.insert(*old))
        .collect()
}

/// Chooses for every cluster. `known` are the bundles in force, `verified` the sets in which no object
/// stands twice.
pub(crate) fn choose(
    model: &Model,
    outcome: &Outcome,
    before: &BTreeMap<ClusterName, Arc<Wanted>>,
    known: &Bundles,
    verified: &mut HashSet<ContentHash>,
) -> Chosen {
    let mut problems = Vec::new();
    let mut held = BTreeSet::new();
    let mut all = BTreeMap::new();
    let mut used = HashSet::new();
    let broken = |app: &AppName| {
        outcome.loaded.broken.contains(app)
            || (model.apps.contains_key(app) && !outcome.rendered.bundles.contains_key(app))
    };
    let renamed = renamed(model, &outcome.loaded);
    let renamed_to: HashMap<&AppName, &AppName> =
        renamed.iter().map(|(new, old)| (*old, *new)).collect();
    for cluster in model.clusters.keys() {
        let last: HashMap<&AppName, &ListedBundle> = before
            .get(cluster)
            .map(|wanted| {
                wanted
                    .bundles
                    .iter()
                    .map(|listed| (&listed.app, listed))
                    .collect()
            })
            .unwrap_or_default();
        let mut offers: BTreeMap<AppName, Offer<Candidate>> = BTreeMap::new();
        for (app, places) in &outcome.rendered.bundles {
            let (Some(rendered), Some(role)) = (
                places.get(cluster),
                outcome.roles.get(app).and_then(|roles| roles.get(cluster)),
            ) else {
                continue;
            };
            let listed = ListedBundle {
                app: app.clone(),
                role: *role,
                hash: rendered.hash,
            };
            let new = Candidate {
                listed,
                rendered: Arc::clone(rendered),
            };
            // What ran under the older name is what the app last was.
            let older = || last.get(renamed.get(app)?);
            let last = last.get(app).or_else(older);
            let last = last.and_then(|last| in_force(known, last, Some(&new)));
            offers.insert(
                app.clone(),
                Offer {
                    new: Some(new),
                    last,
                },
            );
        }
        let stays = |app: &AppName| broken(renamed_to.get(app).copied().unwrap_or(app));
        for (app, listed) in last.iter().filter(|(app, _)| stays(app)) {
            let last = in_force(known, listed, None);
            offers
                .entry(AppName::clone(app))
                .or_insert(Offer { new: None, last });
        }
        // Two apps that become one: unless the one takes over now, the other stays too.
        let mut merged: Vec<(&AppName, &AppName, Option<Candidate>)> = renamed
            .iter()
            .filter(|(new, _)| last.contains_key(*new))
            .filter_map(|(new, old)| Some((*new, *old, in_force(known, last.get(old)?, None))))
            .collect();
        let mut verify = |chosen: &BTreeMap<AppName, Candidate>| {
            let listed: Vec<ListedBundle> = chosen.values().map(|c| c.listed.clone()).collect();
            let set = content_of(EPOCH.0, &PruneOrders::default(), &listed);
            if !verified.contains(&set) {
                let found = conflict(chosen.values().map(|candidate| &candidate.rendered));
                if found.is_some() {
                    return found;
                }
                verified.insert(set);
            }
            used.insert(set);
            None
        };
        let mut composed = compose(&offers, &mut verify);
        merged.retain(|(new, ..)| {
            let offered = offers.get(*new).and_then(|offer| offer.new.as_ref());
            offered.is_some() && offered != composed.chosen.get(*new)
        });
        if !merged.is_empty() {
            let older = merged.into_iter();
            offers.extend(older.map(|(_, old, last)| (old.clone(), Offer { new: None, last })));
            composed = compose(&offers, &mut verify);
        }
        for conflict in &composed.conflicts {
            problems.extend(problems_of(cluster, conflict));
        }
        let kept_back = |(app, offer): (&AppName, &Offer<Candidate>)| {
            let waits = offer.new.is_some() && offer.new.as_ref() != composed.chosen.get(app);
            waits.then(|| app.clone())
        };
        held.extend(offers.iter().filter_map(kept_back));
        all.insert(cluster.clone(), composed.chosen);
    }
    *verified = used;
    Chosen {
        chosen: all,
        problems,
        held,
    }
}
