//! Selects the bundles that each cluster should run: the newest good bundle of every app, or the last good one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use muster_model::{
    bundle::Conflict,
    ids::{AppName, ClusterName, ContentHash, Role},
    policy::PruneOrders,
    problem::Problem,
    scopes::Scopes,
};
use muster_plan::compose::{Offer, compose, problems_of};
use muster_render::{RenderedBundle, conflicts, scopes};
use muster_worker::{Facts, Outcome};

use crate::{
    desired_state::{DesiredState, content_of},
    store_schema::ListedBundle,
};

/// Rendered bundles by their hash.
pub(crate) type Bundles = HashMap<ContentHash, Arc<RenderedBundle>>;

/// A bundle that may be chosen for a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) listed: ListedBundle,
    pub(crate) rendered: Arc<RenderedBundle>,
}

impl Candidate {
    pub(crate) fn new(app: &AppName, role: Role, rendered: &Arc<RenderedBundle>) -> Self {
        let listed = ListedBundle {
            app: app.clone(),
            role,
            hash: rendered.hash,
        };
        Self {
            listed,
            rendered: Arc::clone(rendered),
        }
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.listed == other.listed
    }
}

/// Returns the bundle in force as a candidate. If it equals the new one, returns the new one.
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

/// The chosen bundles of every cluster, the problems found while choosing, and the apps that are blocked in some
/// cluster because of them.
pub(crate) struct Selection {
    pub(crate) chosen: BTreeMap<ClusterName, BTreeMap<AppName, Candidate>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) blocked: BTreeSet<AppName>,
}

/// Returns the renamed apps, each with the older name that it replaces. An older name that is still in the repository
/// can't be replaced.
fn renamed<'a>(facts: &Facts, outcome: &'a Outcome) -> BTreeMap<&'a AppName, &'a AppName> {
    let mut taken = HashSet::new();
    let gone = |old: &AppName| !facts.apps.contains_key(old) && !outcome.broken.contains(old);
    let claims = outcome.formerly.iter();
    claims
        .filter(|(_, old)| gone(old) && taken.insert(*old))
        .collect()
}

/// Returns the apps whose newest bundle was not chosen.
fn apps_at_older_bundle(
    offers: &BTreeMap<AppName, Offer<Candidate>>,
    chosen: &BTreeMap<AppName, Candidate>,
) -> Vec<AppName> {
    let waits = |(app, offer): (&AppName, &Offer<Candidate>)| {
        let waits = offer.new.is_some() && offer.new.as_ref() != chosen.get(app);
        waits.then(|| app.clone())
    };
    offers.iter().filter_map(waits).collect()
}

/// Returns a hash of a set of bundles and of the known scopes of kinds. A set that was checked and contains no object
/// twice is remembered by this hash, so that it is not checked again.
fn verified_as(listed: &[ListedBundle], scopes: &Scopes) -> ContentHash {
    let mut content = content_of(0, &PruneOrders::default(), listed).0.to_vec();
    for kind in scopes.iter() {
        content.push(0);
        content.extend_from_slice(kind.as_bytes());
    }
    ContentHash::of(&content)
}

/// Selects the bundles of every cluster. `known` holds the bundles in force, `verified` the sets in which no object
/// occurs twice. `seen` returns the cluster-scoped kinds that a cluster's agent has reported. `moves` returns true for the
/// apps whose writer a move takes from a cluster or to it.
pub(crate) fn select_bundles(
    facts: &Facts,
    outcome: &Outcome,
    before: &BTreeMap<ClusterName, Arc<DesiredState>>,
    known: &Bundles,
    verified: &mut HashSet<ContentHash>,
    seen: impl Fn(&ClusterName) -> Vec<String>,
    moves: impl Fn(&AppName, &ClusterName) -> bool,
) -> Selection {
    let mut met = BTreeMap::new();
    let rendered = outcome.bundles.values().flat_map(BTreeMap::values);
    let defined = scopes(rendered.chain(known.values()));
    let mut blocked = BTreeSet::new();
    let mut all = BTreeMap::new();
    let mut used = HashSet::new();
    let broken: HashSet<&AppName> = outcome.blocked().collect();
    let renamed = renamed(facts, outcome);
    let renamed_to: HashMap<&AppName, &AppName> =
        renamed.iter().map(|(new, old)| (*old, *new)).collect();
    for cluster in facts.clusters.keys() {
        let last: HashMap<&AppName, &ListedBundle> = before
            .get(cluster)
            .map(|desired| {
                desired
                    .bundles
                    .iter()
                    .map(|listed| (&listed.app, listed))
                    .collect()
            })
            .unwrap_or_default();
        let mut offers: BTreeMap<AppName, Offer<Candidate>> = BTreeMap::new();
        for (app, places) in &outcome.bundles {
            let (Some(rendered), Some(role)) = (
                places.get(cluster),
                outcome.roles.get(app).and_then(|roles| roles.get(cluster)),
            ) else {
                continue;
            };
            let new = Candidate::new(app, *role, rendered);
            // The app's last bundle may have run under its older name.
            let older = || last.get(renamed.get(app)?);
            let last = last.get(app).or_else(older);
            let last = last.and_then(|last| in_force(known, last, Some(&new)));
            // No other app's claim to an object holds up a move. The agent leaves such an object to its owner.
            let is_moved = moves(app, cluster);
            let last = if is_moved { Some(new.clone()) } else { last };
            offers.insert(
                app.clone(),
                Offer {
                    new: Some(new),
                    last,
                },
            );
        }
        let stays = |app: &AppName| broken.contains(renamed_to.get(app).copied().unwrap_or(app));
        for (app, listed) in last.iter().filter(|(app, _)| stays(app)) {
            let last = in_force(known, listed, None);
            offers
                .entry(AppName::clone(app))
                .or_insert(Offer { new: None, last });
        }
        // Two apps may become one: the old one stays until the merged one is chosen.
        let mut merged: Vec<(&AppName, &AppName, Option<Candidate>)> = renamed
            .iter()
            .filter(|(new, _)| last.contains_key(*new))
            .filter_map(|(new, old)| Some((*new, *old, in_force(known, last.get(old)?, None))))
            .collect();
        let mut scopes = defined.clone();
        scopes.extend(seen(cluster));
        let mut verify = |chosen: &BTreeMap<AppName, Candidate>| {
            let listed: Vec<ListedBundle> = chosen.values().map(|c| c.listed.clone()).collect();
            let set = verified_as(&listed, &scopes);
            if !verified.contains(&set) {
                let bundles = chosen.values().map(|candidate| &candidate.rendered);
                let found = conflicts(bundles, &scopes);
                if !found.is_empty() {
                    return found;
                }
                verified.insert(set);
            }
            used.insert(set);
            Vec::new()
        };
        let holds = |candidate: &Candidate, conflict: &Conflict| {
            candidate.rendered.holds(conflict, &scopes)
        };
        let mut composed = compose(&offers, &mut verify, holds);
        merged.retain(|(new, ..)| {
            let offered = offers.get(*new).and_then(|offer| offer.new.as_ref());
            offered.is_some() && offered != composed.chosen.get(*new)
        });
        let mut waits = apps_at_older_bundle(&offers, &composed.chosen);
        if !merged.is_empty() {
            // Apps that stay at an older bundle no longer offer their new one, so that it can't claim objects.
            for name in &waits {
                if let Some(offer) = offers.get_mut(name) {
                    offer.new = None;
                }
            }
            let older = merged.into_iter();
            offers.extend(older.map(|(_, old, last)| (old.clone(), Offer { new: None, last })));
            let mut conflicts = composed.conflicts;
            composed = compose(&offers, &mut verify, holds);
            waits.extend(apps_at_older_bundle(&offers, &composed.chosen));
            conflicts.append(&mut composed.conflicts);
            composed.conflicts = conflicts;
        }
        met.insert(cluster.clone(), composed.conflicts);
        blocked.extend(waits);
        all.insert(cluster.clone(), composed.chosen);
    }
    *verified = used;
    Selection {
        chosen: all,
        problems: problems_of(&met),
        blocked,
    }
}
