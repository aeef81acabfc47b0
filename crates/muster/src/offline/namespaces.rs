//! Hints about namespaces that objects are in but that no app creates.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Context as _;
use muster_model::{
    bundle::Bundle,
    ids::{AppName, ClusterName, ContentHash},
    problem::{Problem, Scope},
    scopes::is_namespaced,
};
use muster_plan::compose::in_words;
use muster_worker::Outcome;

/// The namespaces that every cluster of a fleet has: those of Kubernetes, and the agent's.
const BUILT_IN: [&str; 5] = [
    "default",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    muster_model::agent_records::NAMESPACE,
];

/// The namespaces that a bundle uses, and those that it creates.
#[derive(Default)]
struct Namespaces {
    used: BTreeSet<String>,
    brought: BTreeSet<String>,
}

/// Returns a hint for each namespace that an app uses in a cluster where no app creates it. It is not an error,
/// because namespaces can also be created in other ways.
pub(super) fn hints(outcome: &Outcome) -> anyhow::Result<Vec<Problem>> {
    let all = outcome.bundles.values().flat_map(BTreeMap::values);
    let mut read: HashMap<ContentHash, Namespaces> = HashMap::new();
    for rendered in all {
        if read.contains_key(&rendered.hash) {
            continue;
        }
        let bundle =
            Bundle::decode(&rendered.bytes).context("a rendered bundle can't be read back")?;
        let mut found = Namespaces::default();
        for id in bundle.objects.into_iter().map(|object| object.id) {
            if id.gvk.group.is_empty() && id.gvk.kind == "Namespace" {
                found.brought.insert(id.name);
            } else if is_namespaced(&id.gvk.group, &id.gvk.kind) == Some(true) {
                let namespace = id.namespace.filter(|namespace| !namespace.is_empty());
                found
                    .used
                    .insert(namespace.unwrap_or_else(|| bundle.header.namespace.clone()));
            }
        }
        read.insert(rendered.hash, found);
    }
    let mut brought: BTreeMap<&ClusterName, BTreeSet<&str>> = BTreeMap::new();
    for (cluster, rendered) in outcome.bundles.values().flatten() {
        let names = read[&rendered.hash].brought.iter().map(String::as_str);
        brought.entry(cluster).or_default().extend(names);
    }
    let mut missing: BTreeMap<(&AppName, &str), Vec<&ClusterName>> = BTreeMap::new();
    for (app, places) in &outcome.bundles {
        for (cluster, rendered) in places {
            for namespace in &read[&rendered.hash].used {
                let name = namespace.as_str();
                if !brought[cluster].contains(name) && !BUILT_IN.contains(&name) {
                    missing.entry((app, name)).or_default().push(cluster);
                }
            }
        }
    }
    let hint = |((app, namespace), clusters): ((&AppName, &str), Vec<&ClusterName>)| {
        let clusters = in_words(&clusters);
        let message = format!("no app creates the namespace `{namespace}` in {clusters}");
        Problem::new(Scope::Hint, &format!("apps/{app}/app.yaml"), message)
            .help("add the Namespace to an app, unless it is created in another way")
    };
    Ok(missing.into_iter().map(hint).collect())
}
