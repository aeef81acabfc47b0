//! The arrows between crates. A crate that decides must not be able to act: what `model`, `render`
//! and `plan` say can then be tested by value, in microseconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::metadata::Metadata;

/// Crates that must stay without effects, whatever they use indirectly.
const PURE: [&str; 3] = ["muster-model", "muster-render", "muster-plan"];

/// Crates that reach a network, a database, a repository or a runtime.
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

/// Which crates of the workspace each of them may use. Those that may use all are not listed.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("muster-model", &[]),
    ("muster-render", &["muster-model"]),
    ("muster-plan", &["muster-model"]),
    ("muster-proto", &["muster-model"]),
    ("muster-git", &["muster-model"]),
    ("muster-store", &["muster-model"]),
    ("muster-pki", &["muster-model"]),
    ("muster-runtime", &["muster-model"]),
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

/// What the hub must not use: it never touches a cluster itself.
const HUB_DENIED: [&str; 2] = ["muster-apply", "muster-agent"];

/// Roots and test parts, which may use any crate.
const FREE: [&str; 5] = [
    "muster",
    "muster-testkit",
    "muster-bench",
    "muster-e2e",
    "xtask",
];

/// What is wrong with the arrows, for people; empty when all hold.
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
                problems.push(format!("{pure}: there is no such crate; see arrows.rs"));
            }
            None => {}
            Some(way) => {
                let effect = way.last().copied().unwrap_or_default();
                problems.push(format!(
                    "{pure} must be pure and reaches {effect}: {}\n  \
                     take that dependency (or its feature) out, or move the code to a crate that acts",
                    way.join(" -> ")
                ));
            }
        }
    }
    problems
}

/// What one crate uses of the workspace and may not.
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

/// Who uses whom, by name, in normal and build dependencies.
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

    /// The shortest way from a crate to one of the others, both ends included.
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
mod tests {
    use super::*;
    use crate::metadata::{Dep, DepKind, Node, Package, Resolve};

    /// A workspace from `crate -> used` lines; `-dev->` is a dev-dependency. Crates named `muster*` and
    /// `xtask` are its members.
    fn workspace(arrows: &[&str]) -> Metadata {
        let mut deps: BTreeMap<String, Vec<Dep>> = BTreeMap::new();
        for name in PURE {
            deps.insert(name.into(), Vec::new());
        }
        for arrow in arrows {
            let (from, kind, to) = match arrow.split_once(" -dev-> ") {
                Some((from, to)) => (from, Some("dev".to_owned()), to),
                None => {
                    let (from, to) = arrow.split_once(" -> ").unwrap();
                    (from, None, to)
                }
            };
            deps.entry(to.into()).or_default();
            deps.entry(from.into()).or_default().push(Dep {
                pkg: to.into(),
                dep_kinds: vec![DepKind { kind }],
            });
        }
        let names: Vec<String> = deps.keys().cloned().collect();
        let package = |name: &String| Package {
            id: name.clone(),
            name: name.clone(),
            version: "1.0.0".into(),
            license: None,
            source: None,
        };
        Metadata {
            packages: names.iter().map(package).collect(),
            workspace_members: names
                .iter()
                .filter(|name| name.starts_with("muster") || *name == "xtask")
                .cloned()
                .collect(),
            resolve: Resolve {
                nodes: deps
                    .into_iter()
                    .map(|(id, deps)| Node { id, deps })
                    .collect(),
            },
            workspace_root: "/".into(),
            target_directory: "/".into(),
        }
    }

    #[test]
    fn what_the_map_allows_is_no_problem() {
        let good = workspace(&[
            "muster-render -> muster-model",
            "muster-hub -> muster-render",
            "muster-hub -> tokio",
            "muster -> muster-hub",
            "muster -> muster-agent",
            "muster-agent -> muster-apply",
            "muster-model -> serde",
            "muster-model -dev-> tokio",
            "muster-plan -dev-> muster-testkit",
        ]);
        assert_eq!(check(&good), Vec::<String>::new());
    }

    #[test]
    fn a_pure_crate_that_reaches_an_effect_is_told_the_way() {
        let bad = workspace(&[
            "muster-render -> muster-model",
            "muster-model -> jsonschema",
            "jsonschema -> reqwest",
            "reqwest -> tokio",
        ]);
        let way = |from: &str, way: &str| {
            format!(
                "{from} must be pure and reaches reqwest: {way}\n  take that dependency (or its \
                 feature) out, or move the code to a crate that acts"
            )
        };
        assert_eq!(
            check(&bad),
            [
                way("muster-model", "muster-model -> jsonschema -> reqwest"),
                way(
                    "muster-render",
                    "muster-render -> muster-model -> jsonschema -> reqwest"
                ),
            ]
        );
    }

    #[test]
    fn an_arrow_that_the_map_does_not_have_is_refused() {
        let bad = workspace(&[
            "muster-plan -> muster-render",
            "muster-hub -> muster-apply",
            "muster-hub -> muster-testkit",
            "muster-new -> muster-model",
        ]);
        assert_eq!(
            check(&bad),
            [
                "muster-hub must not use muster-apply; see the map of crates in ARCHITECTURE.md",
                "muster-hub must not use muster-testkit; see the map of crates in ARCHITECTURE.md",
                "muster-new: no rule says what this crate may use; add one to arrows.rs and ARCHITECTURE.md",
                "muster-plan must not use muster-render; see the map of crates in ARCHITECTURE.md",
            ]
        );
    }
}
