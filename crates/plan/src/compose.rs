//! What one cluster should run: of every app the newest good bundle, or the last good one where the
//! newest can't be had, and never one object from two apps.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    bundle::Conflict,
    ids::{AppName, ClusterName},
    problem::{Problem, Scope},
};

/// What an app has to offer to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer<B> {
    /// From the newest commit; `None` while that is broken.
    pub new: Option<B>,
    /// What the cluster was last told to run; `None` where that was nothing.
    pub last: Option<B>,
}

/// The choice for one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed<B> {
    /// What to run, by app.
    pub chosen: BTreeMap<AppName, B>,
    /// Conflicts that held apps back.
    pub conflicts: Vec<Conflict>,
}

/// Chooses among the offers. Where the newest bundles of two apps claim one object, the one that would
/// newly take it stays at what it last was; both, where both are new.
pub fn compose<B: Clone + PartialEq>(
    offers: &BTreeMap<AppName, Offer<B>>,
    mut conflict: impl FnMut(&BTreeMap<AppName, B>) -> Option<Conflict>,
) -> Composed<B> {
    let mut held: BTreeSet<&AppName> = BTreeSet::new();
    let mut dropped: BTreeSet<&AppName> = BTreeSet::new();
    let mut conflicts = Vec::new();
    loop {
        let choose = |(name, offer): (&AppName, &Offer<B>)| {
            let newest = offer.new.as_ref().filter(|_| !held.contains(name));
            let bundle = newest
                .or(offer.last.as_ref())
                .filter(|_| !dropped.contains(name));
            bundle.map(|bundle| (name.clone(), bundle.clone()))
        };
        let chosen: BTreeMap<AppName, B> = offers.iter().filter_map(choose).collect();
        let Some(found) = conflict(&chosen) else {
            return Composed { chosen, conflicts };
        };
        let claimants: Vec<&AppName> = offers
            .keys()
            .filter(|name| found.claims.iter().any(|(claimant, _)| claimant == *name))
            .collect();
        let movable: Vec<&AppName> = claimants
            .iter()
            .copied()
            .filter(|name| !held.contains(name))
            .filter(|name| {
                offers
                    .get(*name)
                    .is_some_and(|offer| offer.new != offer.last)
            })
            .collect();
        if movable.is_empty() {
            // Two last good bundles that were never in force together: the first by name keeps it.
            let Some(last) = claimants.last() else {
                return Composed { chosen, conflicts };
            };
            if !dropped.insert(last) {
                return Composed { chosen, conflicts };
            }
        }
        held.extend(movable);
        conflicts.push(found);
    }
}

/// A conflict as a problem of either app.
#[must_use]
pub fn problems_of(cluster: &ClusterName, conflict: &Conflict) -> Vec<Problem> {
    let [(first, first_file), (second, second_file)] = &conflict.claims;
    let problem = |app: &AppName, file: &str, other: &AppName, other_file: &str| {
        let message = format!(
            "{} is also in app `{other}`, in {other_file}; cluster {cluster} would get it from both",
            conflict.object
        );
        let scope = Scope::App(app.clone());
        Problem::new(scope, file, message)
            .help("an object belongs to one app; remove it from the other")
    };
    vec![
        problem(first, first_file, second, second_file),
        problem(second, second_file, first, first_file),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Objects = BTreeSet<u8>;

    fn overlap(chosen: &BTreeMap<AppName, Objects>) -> Option<Conflict> {
        let mut owners: BTreeMap<u8, &AppName> = BTreeMap::new();
        for (app, objects) in chosen {
            for object in objects {
                if let Some(other) = owners.insert(*object, app) {
                    return Some(Conflict {
                        object: object.to_string(),
                        claims: [(other.clone(), "a".into()), (app.clone(), "b".into())],
                    });
                }
            }
        }
        None
    }

    fn app(name: &str) -> AppName {
        name.parse().unwrap()
    }

    fn offer(new: Option<&[u8]>, last: Option<&[u8]>) -> Offer<Objects> {
        let set = |objects: &[u8]| objects.iter().copied().collect();
        Offer {
            new: new.map(set),
            last: last.map(set),
        }
    }

    #[test]
    fn the_newcomer_waits() {
        let offers = BTreeMap::from([
            (app("old"), offer(Some(&[1]), Some(&[1]))),
            (app("new"), offer(Some(&[1, 2]), Some(&[2]))),
        ]);
        let composed = compose(&offers, overlap);
        assert_eq!(composed.chosen[&app("new")], BTreeSet::from([2]));
        assert_eq!(composed.chosen[&app("old")], BTreeSet::from([1]));
        assert_eq!(composed.conflicts.len(), 1);
    }

    #[test]
    fn a_broken_app_keeps_its_object_from_the_one_that_takes_it_over() {
        let offers = BTreeMap::from([
            (app("from"), offer(None, Some(&[1]))),
            (app("to"), offer(Some(&[1]), None)),
        ]);
        let composed = compose(&offers, overlap);
        assert_eq!(composed.chosen.keys().collect::<Vec<_>>(), [&app("from")]);
    }

    fn objects() -> impl Strategy<Value = Option<Objects>> {
        proptest::option::of(proptest::collection::btree_set(0..6_u8, 0..3))
    }

    proptest! {
        #[test]
        fn a_cluster_never_gets_an_object_twice(offers in proptest::collection::btree_map("[a-e]", (objects(), objects()), 0..5)) {
            let offers: BTreeMap<AppName, Offer<Objects>> = offers
                .into_iter()
                .map(|(name, (new, last))| (app(&name), Offer { new, last }))
                .collect();
            let composed = compose(&offers, overlap);
            prop_assert!(overlap(&composed.chosen).is_none());
            for (name, chosen) in &composed.chosen {
                let offer = &offers[name];
                prop_assert!(offer.new.as_ref() == Some(chosen) || offer.last.as_ref() == Some(chosen));
            }
            if composed.conflicts.is_empty() {
                for (name, offer) in &offers {
                    prop_assert_eq!(composed.chosen.get(name), offer.new.as_ref().or(offer.last.as_ref()));
                }
            }
        }
    }
}
