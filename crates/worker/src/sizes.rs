//! Leaves out the apps whose files alone would fill a worker's memory.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ObjectId},
    problem::Problem,
    tree::{Entry, Tree},
};

use crate::overseer::problem;

/// Returns the tree without the files of apps that have more than `most` bytes, and a problem for each of these apps.
/// The `app.yaml` of such an app stays in the tree. Files with identical content are counted once.
pub(crate) fn without_large(
    tree: &Arc<Tree>,
    most: u64,
) -> (Arc<Tree>, BTreeMap<AppName, Problem>) {
    let mut sizes: BTreeMap<&str, (u64, HashSet<ObjectId>)> = BTreeMap::new();
    for (path, entry) in &tree.entries {
        if let (Some(app), Entry::File { id, bytes }) = (app_of(path), entry) {
            let (size, seen) = sizes.entry(app).or_default();
            if seen.insert(*id) {
                *size += bytes.len() as u64;
            }
        }
    }
    sizes.retain(|_, (size, _)| *size > most);
    if sizes.is_empty() {
        return (Arc::clone(tree), BTreeMap::new());
    }
    let keeps = |path: &str| {
        let large = app_of(path).is_some_and(|app| sizes.contains_key(app));
        !large || path.ends_with("/app.yaml")
    };
    let entries = tree.entries.iter().filter(|(path, _)| keeps(path));
    let left = Tree {
        entries: entries
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect(),
    };
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let told = sizes.iter().filter_map(|(app, (size, _))| {
        let app: AppName = app.parse().ok()?;
        let message = format!(
            "this app's files have {:.1} MiB in total; the limit for an app is {:.1} MiB",
            mib(*size),
            mib(most)
        );
        let problem = problem(&app, message).help("keep large content elsewhere");
        Some((app, problem))
    });
    (Arc::new(left), told.collect())
}

/// Returns the name of the folder below `apps/` that contains this file.
fn app_of(path: &str) -> Option<&str> {
    Some(path.strip_prefix("apps/")?.split_once('/')?.0)
}

#[cfg(test)]
mod tests;
