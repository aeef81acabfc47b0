//! The choice of the bundles that one cluster should run: the newest good bundle of every app, or the last good
//! one if the newest is broken. A choice never creates a new conflict: the chosen bundles of two apps contain
//! the same object only if both apps' bundles in force already contain it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_model::{
    bundle::Conflict,
    ids::{AppName, ClusterName},
    problem::{Problem, Scope},
};

/// The bundles of an app that a cluster could run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer<B> {
    /// The bundle from the newest commit; `None` if it has none, for example because the app has a problem there.
    pub new: Option<B>,
    /// The bundle that was last assigned to the cluster; `None` if there was none.
    pub last: Option<B>,
}

/// The choice for one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed<B> {
    /// The bundle to run, by app.
    pub chosen: BTreeMap<AppName, B>,
    /// The conflicts that block apps, and the conflicts about objects that the last bundles of both apps already
    /// contain.
    pub conflicts: Vec<Conflict>,
}

/// Chooses among the offers. If two apps claim one object, the app that newly claims it stays at its last bundle; if
/// both newly claim it, both stay at their last bundles. If the last bundles of both already contain the object, the
/// conflict blocks neither app: the cluster's agent knows which app had the object first.
///
/// `conflicts` finds every object that two of the given bundles contain. `holds` returns true if a bundle
/// contains the object of a conflict.
pub fn compose<B: Clone + PartialEq>(
    offers: &BTreeMap<AppName, Offer<B>>,
    mut conflicts: impl FnMut(&BTreeMap<AppName, B>) -> Vec<Conflict>,
    holds: impl Fn(&B, &Conflict) -> bool,
) -> Composed<B> {
    let mut blocked: BTreeSet<AppName> = BTreeSet::new();
    let mut met = Vec::new();
    loop {
        let choose = |(name, offer): (&AppName, &Offer<B>)| {
            let newest = offer.new.as_ref().filter(|_| !blocked.contains(name));
            let bundle = newest.or(offer.last.as_ref());
            bundle.map(|bundle| (name.clone(), bundle.clone()))
        };
        let chosen: BTreeMap<AppName, B> = offers.iter().filter_map(choose).collect();
        let had = |app: &AppName, conflict: &Conflict| {
            let last = offers.get(app).and_then(|offer| offer.last.as_ref());
            last.is_some_and(|last| holds(last, conflict))
        };
        let (mut settled, mut new, mut old) = (Vec::new(), Vec::new(), Vec::new());
        for mut conflict in conflicts(&chosen) {
            let [(first, _), (second, _)] = &conflict.claims;
            let (owner, list) = match (had(first, &conflict), had(second, &conflict)) {
                (true, true) => (None, &mut old),
                (true, false) => (Some(first.clone()), &mut settled),
                (false, true) => (Some(second.clone()), &mut settled),
                (false, false) => (None, &mut new),
            };
            conflict.owner = owner;
            list.push(conflict);
        }
        // Blocking an app in favor of an owner may also resolve a conflict between two new claims.
        let next = if settled.is_empty() { new } else { settled };
        if next.is_empty() {
            met.extend(old);
            return Composed {
                chosen,
                conflicts: met,
            };
        }
        for conflict in next {
            for (app, _) in &conflict.claims {
                if conflict.owner.as_ref() != Some(app) {
                    blocked.insert(app.clone());
                }
            }
            met.push(conflict);
        }
    }
}

/// Turns conflicts into problems of the apps. Both apps of a conflict get a problem, or only the other app if the
/// object's owner is known. A conflict that occurs in several clusters gives each app only one problem.
#[must_use]
pub fn problems_of(conflicts: &BTreeMap<ClusterName, Vec<Conflict>>) -> Vec<Problem> {
    let mut places: BTreeMap<Clash<'_>, Vec<&ClusterName>> = BTreeMap::new();
    for (cluster, conflict) in conflicts
        .iter()
        .flat_map(|(c, all)| all.iter().map(move |one| (c, one)))
    {
        let [first, second] = &conflict.claims;
        for (claim, other) in [(first, second), (second, first)] {
            if conflict.owner.as_ref() == Some(&claim.0) {
                continue;
            }
            let clash = Clash {
                claim,
                other,
                object: &conflict.object,
                owned: conflict.owner.is_some(),
            };
            places.entry(clash).or_default().push(cluster);
        }
    }
    let problem = |(clash, clusters): (Clash<'_>, Vec<&ClusterName>)| {
        let Clash {
            claim: (app, file),
            other: (other, other_file),
            object,
            owned,
        } = clash;
        let one = clusters.len() == 1;
        let clusters = in_words(&clusters);
        let (message, help) = if owned {
            (
                format!(
                    "{object} belongs to app `{other}`, in {other_file}; {clusters} already ha{s} it from that app",
                    s = if one { "s" } else { "ve" }
                ),
                format!(
                    "an object belongs to one app; remove it here, or from `{other}` in the same commit"
                ),
            )
        } else {
            (
                format!(
                    "{object} is also in app `{other}`, in {other_file}; {clusters} would get it from both"
                ),
                "an object belongs to one app; remove it from the other".to_owned(),
            )
        };
        Problem::new(Scope::App(app.clone()), file, message).help(help)
    };
    places.into_iter().map(problem).collect()
}

/// Formats clusters for a message: `cluster a`, or `5 clusters (a, b, c, …)`.
#[must_use]
pub fn in_words(clusters: &[&ClusterName]) -> String {
    if let [one] = clusters {
        return format!("cluster {one}");
    }
    let more = if clusters.len() > 3 { ", …" } else { "" };
    let shown: Vec<&str> = clusters.iter().take(3).map(|name| name.as_str()).collect();
    format!("{} clusters ({}{more})", clusters.len(), shown.join(", "))
}

/// An app's claim to an object that another app also claims.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Clash<'a> {
    claim: &'a (AppName, Arc<str>),
    other: &'a (AppName, Arc<str>),
    object: &'a str,
    /// True if the other app already has the object.
    owned: bool,
}

#[cfg(test)]
mod tests;
