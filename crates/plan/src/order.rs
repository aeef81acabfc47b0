//! The order in which a set of objects is applied, derived from the set itself.
//!
//! There are two kinds of dependencies. What an object *needs* (its namespace, the definition of its kind) is
//! a hard dependency: without it, the API server rejects the request. What *should come first* (settings
//! before workloads, an app before the apps that depend on it) only decides the stage: if it fails, the later
//! stages are still applied.

use std::collections::{BTreeMap, HashMap};

use muster_model::{
    bundle::{Object, ObjectRef},
    ids::AppName,
};
use serde::{Deserialize, Serialize};

/// The kinds that an object adds to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Definition {
    /// The API group.
    pub group: String,
    /// The one kind that a CustomResourceDefinition defines; `None` for an APIService, which serves
    /// every kind of one group and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The one version that an APIService serves; `None` for a CustomResourceDefinition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// True if objects of the kind are namespaced; `None` if only the API server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaced: Option<bool>,
}

impl Definition {
    /// Returns what an object defines; `None` if it is neither a CustomResourceDefinition nor an APIService with a
    /// service, or if it can't be parsed (the API server will reject it).
    #[must_use]
    pub fn of(object: &Object) -> Option<Self> {
        #[derive(Deserialize)]
        struct Document<S> {
            spec: S,
        }
        #[derive(Deserialize)]
        struct Custom {
            group: String,
            names: Names,
            scope: String,
        }
        #[derive(Deserialize)]
        struct Names {
            kind: String,
        }
        #[derive(Deserialize)]
        struct Service {
            group: String,
            version: String,
            #[serde(default)]
            service: Option<serde::de::IgnoredAny>,
        }
        match Foundation::of(&object.id)? {
            Foundation::Namespace => None,
            Foundation::Definition => {
                let Document { spec } =
                    serde_json::from_str::<Document<Custom>>(&object.json).ok()?;
                Some(Self {
                    group: spec.group,
                    kind: Some(spec.names.kind),
                    version: None,
                    namespaced: Some(spec.scope == "Namespaced"),
                })
            }
            Foundation::ApiService => {
                let Document { spec } =
                    serde_json::from_str::<Document<Service>>(&object.json).ok()?;
                // An APIService without a service names a version that the API server itself serves.
                spec.service.is_some().then_some(Self {
                    group: spec.group,
                    kind: None,
                    version: Some(spec.version),
                    namespaced: None,
                })
            }
        }
    }

    /// Returns true if this definition provides the kind of the given object.
    #[must_use]
    pub fn covers(&self, id: &ObjectRef) -> bool {
        self.group == id.gvk.group
            && self.kind.as_ref().is_none_or(|kind| *kind == id.gvk.kind)
            && self
                .version
                .as_ref()
                .is_none_or(|version| *version == id.gvk.version)
    }
}

/// The kinds of objects that others can need. They need nothing themselves, so there are no cycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foundation {
    Namespace,
    Definition,
    ApiService,
}

impl Foundation {
    pub(crate) fn of(id: &ObjectRef) -> Option<Self> {
        match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
            ("", "Namespace") => Some(Self::Namespace),
            ("apiextensions.k8s.io", "CustomResourceDefinition") => Some(Self::Definition),
            ("apiregistration.k8s.io", "APIService") => Some(Self::ApiService),
            _ => None,
        }
    }
}

/// The annotation of a Job that runs before or after everything else of its app.
pub const PHASE: &str = "muster.dev/phase";

/// When a Job with the annotation [`PHASE`] runs. The Job runs again whenever its app's bundle changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// After what the Job may need (namespaces, definitions, settings) and before everything else of its app.
    /// The rest of the app waits until the Job has completed.
    Before,
    /// After everything else of its app is applied and healthy.
    After,
}

impl Hook {
    /// Reads the annotation; `None` if it has another value or if the object is not a Job.
    #[must_use]
    pub fn of(id: &ObjectRef, annotation: Option<&str>) -> Option<Self> {
        let job = id.gvk.group == "batch" && id.gvk.kind == "Job";
        match annotation.filter(|_| job)? {
            "before" => Some(Self::Before),
            "after" => Some(Self::After),
            _ => None,
        }
    }
}

/// One object to be ordered.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// The object's reference, with its actual namespace.
    pub id: &'a ObjectRef,
    /// The app that the object belongs to.
    pub app: &'a AppName,
    /// The kinds that the object defines.
    pub defines: Option<&'a Definition>,
    /// When the object runs, if it is a Job with the annotation [`PHASE`].
    pub hook: Option<Hook>,
}

/// For each app, the apps that are applied before it.
pub type After<'a> = BTreeMap<&'a AppName, &'a [AppName]>;

/// An order of items. Items are identified by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// The stages, in the order in which they are applied. The items of one stage may be sent concurrently.
    /// [`wave`](crate::prune::wave) decides the order of deletion.
    pub stages: Vec<Vec<usize>>,
    /// For each item, the items that it needs to exist. All of them are in earlier stages.
    pub needs: Vec<Vec<usize>>,
    /// For each item, the items that must be complete or healthy before it is sent: the Jobs that run before
    /// the rest of its app, or, for a Job that runs after the rest of its app, everything else of the app. Such
    /// a Job may be in an earlier stage than an object that it waits for, if that object needs an APIService
    /// of a later app.
    pub gates: Vec<Vec<usize>>,
    /// For each stage, what its objects affect.
    pub reach: Vec<Reach>,
}

/// What the objects of a stage affect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Namespaces and definitions, which any app may need.
    Foundation,
    /// Only the app's own objects.
    App,
    /// Requests of every client to the API server, as webhooks and aggregated APIs do. Such a stage begins only
    /// when no app has an object in progress and no stage with a smaller reach can begin.
    Everybody,
}

/// When an object of an app is applied, relative to the app's other objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Namespaces and definitions, before every app.
    Foundation,
    /// Objects that workloads depend on, such as ConfigMaps, ServiceAccounts and Services.
    Settings,
    /// Jobs that run before the rest of their app.
    Before,
    /// Objects that run containers.
    Workload,
    /// Objects that act on workloads or that workloads act on: autoscalers, routes, custom resources.
    Consumer,
    /// Webhooks and aggregated APIs, which affect the requests of every client.
    Gate,
    /// Jobs that run after the rest of their app.
    After,
}

impl Phase {
    pub(crate) fn of(id: &ObjectRef) -> Self {
        match Foundation::of(id) {
            Some(Foundation::Namespace | Foundation::Definition) => return Self::Foundation,
            Some(Foundation::ApiService) => return Self::Gate,
            None => {}
        }
        match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
            ("", "Pod" | "ReplicationController") | ("apps" | "batch", _) => Self::Workload,
            ("networking.k8s.io", "Ingress") => Self::Consumer,
            (
                ""
                | "rbac.authorization.k8s.io"
                | "storage.k8s.io"
                | "scheduling.k8s.io"
                | "node.k8s.io"
                | "policy"
                | "networking.k8s.io"
                | "flowcontrol.apiserver.k8s.io"
                | "coordination.k8s.io"
                | "resource.k8s.io",
                _,
            ) => Self::Settings,
            ("admissionregistration.k8s.io", _) => Self::Gate,
            _ => Self::Consumer,
        }
    }
}

/// Orders a set of objects. The result does not depend on the order of the input, provided that no object
/// occurs twice.
#[must_use]
pub fn order(items: &[Item<'_>], after: &After<'_>) -> Order {
    let needs = needs(items);
    let levels = levels(items, after);
    let own: Vec<(usize, Phase)> = items
        .iter()
        .map(|item| {
            let phase = match item.hook {
                Some(Hook::Before) => Phase::Before,
                Some(Hook::After) => Phase::After,
                None => Phase::of(item.id),
            };
            match phase {
                Phase::Foundation => (0, Phase::Foundation),
                phase => (levels.get(item.app).copied().unwrap_or(0), phase),
            }
        })
        .collect();
    // An object that needs something of a later stage moves behind it. Needed objects need nothing themselves,
    // so one pass is enough.
    let place = |index: usize| {
        let late = needs[index]
            .iter()
            .map(|&need| own[need])
            .filter(|need| *need >= own[index]);
        late.max().map_or((own[index], 0), |need| (need, 1))
    };
    let mut stages: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for index in 0..items.len() {
        stages.entry(place(index)).or_default().push(index);
    }
    let gates = gates(items, |index| place(index).0.1);
    let reach = stages.keys().map(|((_, phase), _)| match phase {
        Phase::Foundation => Reach::Foundation,
        Phase::Gate => Reach::Everybody,
        _ => Reach::App,
    });
    let reach = reach.collect();
    let stages = stages.into_values().map(|mut stage| {
        stage.sort_by_key(|&index| (items[index].id, items[index].app));
        stage
    });
    Order {
        stages: stages.collect(),
        needs,
        gates,
        reach,
    }
}

/// Returns, for each item, the items of its app that it waits for.
fn gates(items: &[Item<'_>], phase: impl Fn(usize) -> Phase) -> Vec<Vec<usize>> {
    let mut gates = vec![Vec::new(); items.len()];
    let mut by_app: BTreeMap<&AppName, Vec<usize>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        by_app.entry(item.app).or_default().push(index);
    }
    for members in by_app.values() {
        if members.iter().all(|&index| items[index].hook.is_none()) {
            continue;
        }
        let before: Vec<usize> = members
            .iter()
            .copied()
            .filter(|&index| phase(index) == Phase::Before)
            .collect();
        for &index in members {
            gates[index] = match phase(index) {
                Phase::Foundation | Phase::Settings | Phase::Before => continue,
                Phase::After => members
                    .iter()
                    .copied()
                    .filter(|&other| phase(other) != Phase::After)
                    .collect(),
                Phase::Workload | Phase::Consumer | Phase::Gate => before.clone(),
            };
        }
    }
    gates
}

/// Returns, for each item, the items of the set that it needs to exist.
fn needs(items: &[Item<'_>]) -> Vec<Vec<usize>> {
    let mut namespaces = HashMap::new();
    let mut definitions: HashMap<&str, Vec<(usize, &Definition)>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        match Foundation::of(item.id) {
            Some(Foundation::Namespace) => {
                namespaces.insert(item.id.name.as_str(), index);
            }
            Some(_) => {
                if let Some(defines) = item.defines {
                    definitions
                        .entry(&defines.group)
                        .or_default()
                        .push((index, defines));
                }
            }
            None => {}
        }
    }
    items
        .iter()
        .map(|item| {
            if Foundation::of(item.id).is_some() {
                return Vec::new();
            }
            let namespace = item
                .id
                .namespace
                .as_deref()
                .and_then(|name| namespaces.get(name));
            let defined = definitions
                .get(item.id.gvk.group.as_str())
                .into_iter()
                .flatten();
            namespace
                .copied()
                .into_iter()
                .chain(
                    defined
                        .filter(|(_, d)| d.covers(item.id))
                        .map(|(index, _)| *index),
                )
                .collect()
        })
        .collect()
}

/// Returns the level of each app: an app's level is higher than the levels of all apps that it depends on. Apps
/// in a dependency cycle share the level after all resolvable apps. The hub refuses such cycles, but an agent
/// must not hang on one.
fn levels<'a>(items: &[Item<'a>], after: &After<'_>) -> HashMap<&'a AppName, usize> {
    let mut open: Vec<&AppName> = items.iter().map(|item| item.app).collect();
    open.sort_unstable();
    open.dedup();
    let mut levels = HashMap::new();
    for level in 0.. {
        let waits = |app: &AppName| {
            let before = after.get(app).copied().unwrap_or_default();
            before
                .iter()
                .any(|before| before != app && open.binary_search(&before).is_ok())
        };
        let (waiting, clear): (Vec<_>, Vec<_>) = open.iter().copied().partition(|app| waits(app));
        let circle = clear.is_empty();
        levels.extend(
            if circle { &waiting } else { &clear }
                .iter()
                .map(|app| (*app, level)),
        );
        if circle || waiting.is_empty() {
            break;
        }
        open = waiting;
    }
    levels
}

#[cfg(test)]
mod tests;
