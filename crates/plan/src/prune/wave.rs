//! The order in which objects are deleted. An object that comes after others is deleted only when they no longer
//! exist, so their finalizers have run.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::ids::AppName;

use crate::order::{After, Foundation, Item, Phase};

/// An object that is to be deleted and still exists.
#[derive(Debug, Clone, Copy)]
pub struct Leaving<'a> {
    /// The object, its app, and the kinds that it defines.
    pub item: Item<'a>,
    /// True if the object can be deleted now: it is not already being deleted, and its deletion was not
    /// refused.
    pub deletable: bool,
    /// True if the object is a ClusterRole whose rules a controller aggregates from other ClusterRoles. It is
    /// deleted before them; otherwise that controller would recreate it.
    pub aggregates: bool,
}

/// The objects that can be deleted now, and the objects that wait for others. Objects are identified by their
/// index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wave {
    /// Objects to delete now.
    pub delete: Vec<usize>,
    /// Pairs of objects. The first object of a pair is deleted only after the second one is gone.
    pub behind: Vec<(usize, usize)>,
}

/// Decides which of the leaving objects are deleted now:
///
/// - Within an app, objects are deleted in the reverse of the order in which they are applied.
/// - An app is deleted after the apps that depend on it.
/// - An app's workloads and settings are deleted after the custom resources of the kinds that it defines, in any app.
/// - An aggregated ClusterRole is deleted before the other ClusterRoles.
/// - The objects in a namespace or of a definition are deleted before the namespace or the definition.
#[must_use]
pub fn wave(leaving: &[Leaving<'_>], after: &After<'_>) -> Wave {
    let phases: Vec<Phase> = leaving.iter().map(|l| Phase::of(l.item.id)).collect();
    let mut last_phase: BTreeMap<&AppName, (Phase, usize)> = BTreeMap::new();
    let mut namespaces: BTreeMap<&str, usize> = BTreeMap::new();
    let mut aggregate = None;
    for (index, (object, &phase)) in leaving.iter().zip(&phases).enumerate() {
        let app = object.item.app;
        let last = last_phase.entry(app).or_insert((phase, index));
        if phase > last.0 {
            *last = (phase, index);
        }
        if let Some(namespace) = &object.item.id.namespace {
            namespaces.entry(namespace).or_insert(index);
        }
        if object.aggregates {
            aggregate.get_or_insert(index);
        }
    }
    let dependents = dependents(&last_phase, after);
    // An app that defines a kind is assumed to contain the operator of the kind's objects.
    let mut looked_after: BTreeMap<&AppName, usize> = BTreeMap::new();
    for definer in leaving {
        if let Some(defines) = definer.item.defines {
            let object = leaving.iter().position(|l| defines.covers(l.item.id));
            if let Some(object) = object {
                looked_after.entry(definer.item.app).or_insert(object);
            }
        }
    }
    let behind = |index: usize| -> Option<usize> {
        let object = &leaving[index];
        let (id, app, phase) = (object.item.id, object.item.app, phases[index]);
        let (last, other) = last_phase[app];
        if last > phase {
            return Some(other);
        }
        if phase != Phase::Foundation
            && let Some(&other) = dependents.get(app)
        {
            return Some(other);
        }
        if phase <= Phase::Workload
            && let Some(&other) = looked_after.get(app)
        {
            return Some(other);
        }
        let part = id.gvk.kind == "ClusterRole" && !object.aggregates;
        if part && aggregate.is_some() {
            return aggregate;
        }
        match Foundation::of(id)? {
            Foundation::Namespace => namespaces.get(id.name.as_str()).copied(),
            Foundation::Definition | Foundation::ApiService => {
                let defines = object.item.defines?;
                leaving
                    .iter()
                    .position(|other| defines.covers(other.item.id))
            }
        }
    };
    let mut wave = Wave::default();
    for index in (0..leaving.len()).filter(|&index| leaving[index].deletable) {
        match behind(index) {
            None => wave.delete.push(index),
            Some(other) => wave.behind.push((index, other)),
        }
    }
    if wave.delete.is_empty() && leaving.iter().all(|object| object.deletable) {
        // The objects wait for each other in a cycle.
        let last = phases.iter().max();
        let all = (0..leaving.len()).filter(|&index| Some(&phases[index]) == last);
        wave.delete = all.collect();
        wave.behind.clear();
    }
    wave
}

/// Returns, for each leaving app, an object of another leaving app that depends on it, directly or indirectly.
/// Namespaces and definitions don't count, because they are deleted last anyway.
fn dependents<'a>(
    leaving: &BTreeMap<&'a AppName, (Phase, usize)>,
    after: &After<'a>,
) -> BTreeMap<&'a AppName, usize> {
    let mut all = BTreeMap::new();
    for (&app, &(phase, index)) in leaving {
        if phase == Phase::Foundation {
            continue;
        }
        let mut seen = BTreeSet::from([app]);
        let mut open = vec![app];
        while let Some(next) = open.pop() {
            for before in after.get(next).copied().unwrap_or_default() {
                if seen.insert(before) {
                    all.entry(before).or_insert(index);
                    open.push(before);
                }
            }
        }
    }
    // Apps that depend on each other in a cycle do not wait.
    let circle = |app: &AppName| {
        let mut seen = BTreeSet::new();
        let mut open = vec![app];
        while let Some(next) = open.pop() {
            for before in after.get(next).copied().unwrap_or_default() {
                if before == app {
                    return true;
                }
                if seen.insert(before) {
                    open.push(before);
                }
            }
        }
        false
    };
    all.retain(|app, _| !circle(app));
    all
}

#[cfg(test)]
mod tests;
