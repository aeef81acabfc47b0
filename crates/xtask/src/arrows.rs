//! Checks the dependencies between crates. The crates `model`, `render` and `plan` must have no side effects, so
//! that tests can check their results as plain values, in microseconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::metadata::Metadata;

/// The crates that must not depend on any crate with effects, not even indirectly.
const PURE: [&str; 3] = ["muster-model", "muster-render", "muster-plan"];

/// Crates with effects: they access a network, a database, a Git repository, the file system or an async runtime.
const EFFECTS: [&str; 24] = [
    "async-std",
    "axum",
    "curl",
    "git2",
    "gix",
    "h2",
    "hyper",
    "hyper-util",
    "kube",
    "kube-client",
    "kube-runtime",
    "libgit2-sys",
    "libsqlite3-sys",
    "mio",
    "notify",
    "quinn",
    "reqwest",
    "rusqlite",
    "smol",
    "socket2",
    "tokio",
    "tonic",
    "tower",
    "ureq",
];

/// The crates of the workspace that each listed crate may use. The hub and the crates in [`FREE`] are not listed.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("muster-model", &[]),
    ("muster-render", &["muster-model"]),
    ("muster-plan", &["muster-model"]),
    ("muster-proto", &["muster-model"]),
    ("muster-git", &["muster-model"]),
    ("muster-store", &[]),
    ("muster-pki", &["muster-model"]),
    ("muster-runtime", &[]),
    ("muster-apply", &["muster-model", "muster-plan"]),
    (
        "muster-fuzz",
        &[
            "muster-model",
            "muster-render",
            "muster-plan",
            "muster-proto",
            "muster-pki",
        ],
    ),
    (
        "muster-worker",
        &["muster-model", "muster-plan", "muster-render"],
    ),
    (
        "muster-agent",
        &[
            "muster-model",
            "muster-plan",
            "muster-apply",
            "muster-proto",
            "muster-pki",
            "muster-runtime",
        ],
    ),
];

/// The crates that the hub must not use: those that access a cluster, which it never does itself, and the fuzz targets.
const HUB_DENIED: [&str; 3] = ["muster-apply", "muster-agent", "muster-fuzz"];

/// The `muster` binary, tools and tests, which may use any crate.
const FREE: [&str; 5] = [
    "muster",
    "muster-testkit",
    "muster-bench",
    "muster-e2e",
    "xtask",
];

/// Returns a message for each forbidden dependency.
pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let graph = Graph::new(metadata);
    let members = metadata.members();
    let mut problems = Vec::new();
    for member in &members {
        problems.extend(inside(&graph, member, &members));
    }
    for pure in PURE {
        match graph.path_to(pure, &EFFECTS) {
            None if !members.contains(&pure) => {
                problems.push(format!("{pure}: this crate does not exist; see arrows.rs"));
            }
            None => {}
            Some(way) => {
                let effect = way.last().copied().unwrap_or_default();
                problems.push(format!(
                    "{pure} must be pure but depends on {effect}: {}\n  \
                     remove that dependency (or its feature), or move the code to a crate that may have effects",
                    way.join(" -> ")
                ));
            }
        }
    }
    problems
}

/// Returns a message for each crate of the workspace that `member` uses but must not use.
fn inside(graph: &Graph<'_>, member: &str, members: &[&str]) -> Vec<String> {
    let rule = ALLOWED.iter().find(|(name, _)| *name == member);
    let allowed = |used: &str| match rule {
        Some((_, allowed)) => allowed.contains(&used),
        None if member == "muster-hub" => !HUB_DENIED.contains(&used) && !FREE.contains(&used),
        None => true,
    };
    let mut problems = Vec::new();
    if rule.is_none() && member != "muster-hub" && !FREE.contains(&member) {
        problems.push(format!(
            "{member}: no rule says what this crate may use; add one to arrows.rs and ARCHITECTURE.md"
        ));
    }
    for used in graph.uses(member) {
        if members.contains(&used) && !allowed(used) {
            problems.push(format!(
                "{member} must not use {used}; see the map of crates in ARCHITECTURE.md"
            ));
        }
    }
    problems
}

/// The normal and build dependencies of each crate, by name.
struct Graph<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Graph<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let names: BTreeMap<&str, &str> = metadata
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let compiled = node.deps.iter().filter(|dep| {
                let kinds = dep.dep_kinds.iter();
                kinds
                    .into_iter()
                    .any(|kind| kind.kind.as_deref() != Some("dev"))
            });
            if let Some(name) = names.get(node.id.as_str()) {
                let used = compiled.filter_map(|dep| names.get(dep.pkg.as_str()));
                arrows.entry(name).or_default().extend(used);
            }
        }
        Self(arrows)
    }

    fn uses(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.get(name).into_iter().flatten().copied()
    }

    /// Returns the shortest path from a crate to one of `to`, including both ends.
    fn path_to<'b>(&'b self, from: &'b str, to: &[&str]) -> Option<Vec<&'b str>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(name) = queue.pop_front() {
            if to.contains(&name) {
                let mut way = vec![name];
                while let Some(before) = came_from.get(way[way.len() - 1]) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            for used in self.uses(name) {
                if used != from && !came_from.contains_key(used) {
                    came_from.insert(used, name);
                    queue.push_back(used);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
