use super::*;
use crate::metadata::{Dep, DepKind, Node, Package, Resolve};

/// Builds a workspace from lines `crate -> used`, where `-dev->` means a dev-dependency. Crates named
/// `muster*` and `xtask` are members of the workspace.
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
            "{from} must be pure but depends on reqwest: {way}\n  remove that dependency (or its \
                 feature), or move the code to a crate that may have effects"
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
        "muster-hub -> muster-fuzz",
        "muster-hub -> muster-testkit",
        "muster-store -> muster-model",
        "muster-runtime -> muster-model",
        "muster-new -> muster-model",
    ]);
    assert_eq!(
        check(&bad),
        [
            "muster-hub must not use muster-apply; see the map of crates in ARCHITECTURE.md",
            "muster-hub must not use muster-fuzz; see the map of crates in ARCHITECTURE.md",
            "muster-hub must not use muster-testkit; see the map of crates in ARCHITECTURE.md",
            "muster-new: no rule says what this crate may use; add one to arrows.rs and ARCHITECTURE.md",
            "muster-plan must not use muster-render; see the map of crates in ARCHITECTURE.md",
            "muster-runtime must not use muster-model; see the map of crates in ARCHITECTURE.md",
            "muster-store must not use muster-model; see the map of crates in ARCHITECTURE.md",
        ]
    );
}
