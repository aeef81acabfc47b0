//! The wanted objects, each with the namespace that it is really in.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use muster_model::{
    bundle::{Bundle, BundleHeader, Object, ObjectRef},
    ids::{AppName, ContentHash, Role},
    policy::{Conflicts, Drift},
};
use muster_plan::{
    immutable::RECREATE,
    order::{Definition, Hook, Item, PHASE},
};
use serde::Deserialize;

use crate::{
    StoredBundle, StoredGeneration,
    annotations::{CONFLICTS, DISABLED, IF_NOT_PRESENT, RECONCILE},
    inventory::{Identity, Inventory},
    kinds::{Kind, Kinds, Lookup},
};

/// Changes whenever [`super::body`] would make another request of the same object.
const BODY_VERSION: &[u8] = b"3";

/// What an object's annotations say about how it is applied.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    pub(super) left_alone: bool,
    pub(super) if_not_present: bool,
    pub(super) conflicts: Option<Conflicts>,
    pub(super) recreate: Option<String>,
    pub(super) hook: Option<Hook>,
}

impl Marks {
    pub(super) fn of(object: &Object) -> Self {
        #[derive(Deserialize)]
        struct Document {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            annotations: Option<HashMap<String, serde_json::Value>>,
        }
        if !object.json.contains("\"muster.dev/") {
            return Self::default();
        }
        let document = serde_json::from_str::<Document>(&object.json).ok();
        let annotations = document.and_then(|document| document.metadata.annotations);
        let annotations = annotations.unwrap_or_default();
        let text = |key: &str| annotations.get(key).and_then(|value| value.as_str());
        Self {
            left_alone: text(RECONCILE) == Some(DISABLED),
            if_not_present: text(IF_NOT_PRESENT).is_some_and(|v| v == "enabled" || v == "true"),
            conflicts: match text(CONFLICTS) {
                Some("take") => Some(Conflicts::Take),
                Some(_) => Some(Conflicts::Fail),
                None => None,
            },
            recreate: text(RECREATE).map(str::to_owned),
            hook: Hook::of(&object.id, text(PHASE)),
        }
    }
}

/// What is read of a bundle once.
pub(super) struct Prepared {
    hash: String,
    pub(super) objects: Vec<PreparedObject>,
}

pub(super) struct PreparedObject {
    /// Hash of everything that the request is made of.
    pub(super) digest: ContentHash,
    pub(super) defines: Option<Definition>,
    marks: Marks,
    /// What an autoscaler scales: kind and name.
    scales: Option<(String, String)>,
}

impl Prepared {
    pub(super) fn of(bundle: &StoredBundle) -> Self {
        let (hash, bundle) = (bundle.hash(), bundle.bundle());
        let header = &bundle.header;
        let prepare = |object: &Object| {
            let marks = Marks::of(object);
            let mut content = Vec::from(object.hash().0);
            if marks.hook.is_some() {
                // It runs again when anything of its app changes.
                content.extend_from_slice(&hash.0);
            }
            for part in [
                BODY_VERSION,
                header.app.as_str().as_bytes(),
                header.namespace.as_bytes(),
            ] {
                content.push(0);
                content.extend_from_slice(part);
            }
            PreparedObject {
                digest: ContentHash::of(&content),
                defines: Definition::of(object),
                marks,
                scales: scales(object),
            }
        };
        Self {
            hash: hash.to_string(),
            objects: bundle.objects.iter().map(prepare).collect(),
        }
    }
}

/// What a HorizontalPodAutoscaler scales.
fn scales(object: &Object) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Document {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        scale_target_ref: Target,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: String,
        name: String,
    }
    let gvk = &object.id.gvk;
    if gvk.group != "autoscaling" || gvk.kind != "HorizontalPodAutoscaler" {
        return None;
    }
    let document: Document = serde_json::from_str(&object.json).ok()?;
    let Target { kind, name } = document.spec.scale_target_ref;
    Some((kind, name))
}

/// One wanted object. It owns what it needs, since its request may outlive the run that sends it.
pub(super) struct DesiredObject {
    /// Index of its bundle in the generation.
    pub(super) bundle: usize,
    content: Arc<Bundle>,
    prepared: Arc<Prepared>,
    /// Its place in the bundle.
    at: usize,
    /// With the namespace that it is really in.
    pub(super) id: Arc<ObjectRef>,
    pub(super) key: Identity,
    /// Its kind in exactly its version, where that is served.
    pub(super) kind: Option<Arc<Kind>>,
    /// An autoscaler of the generation scales it.
    pub(super) scaled: bool,
}

impl DesiredObject {
    pub(super) fn header(&self) -> &BundleHeader {
        &self.content.header
    }

    pub(super) fn app(&self) -> &AppName {
        &self.content.header.app
    }

    /// The object as the bundle has it.
    pub(super) fn object(&self) -> &Object {
        &self.content.objects[self.at]
    }

    fn prepared(&self) -> &PreparedObject {
        &self.prepared.objects[self.at]
    }

    pub(super) fn digest(&self) -> ContentHash {
        self.prepared().digest
    }

    pub(super) fn defines(&self) -> Option<&Definition> {
        self.prepared().defines.as_ref()
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.prepared().marks
    }

    /// The bundle for which it runs, where it is a Job that runs once for each.
    pub(super) fn hook_bundle(&self) -> Option<&str> {
        self.marks().hook.map(|_| self.prepared.hash.as_str())
    }

    /// Whether drift is only shown. What a fenced role says always holds.
    pub(super) fn only_reports_drift(&self) -> bool {
        let header = self.header();
        header.policy.drift == Drift::Report && header.role != Role::Fenced
    }

    pub(super) fn item(&self) -> Item<'_> {
        Item {
            id: &self.id,
            app: self.app(),
            defines: self.defines(),
            hook: self.marks().hook,
        }
    }
}

/// An app's claim to an object that another app has.
pub(super) struct Claim {
    /// Index of the claiming app's bundle in the generation.
    pub(super) bundle: usize,
    pub(super) id: Arc<ObjectRef>,
    pub(super) key: Identity,
    /// Why it is not applied for this app.
    pub(super) refusal: String,
}

/// Every wanted object once, and the claims of those that don't get theirs. Where several apps have the
/// same object, whoever had it first keeps it, so that no commit of one app takes what another runs; where
/// none had it, the first by name gets it. `prepared` belongs to the bundles of `kept`, one to one.
pub(super) fn desired(
    kept: &StoredGeneration,
    prepared: &[Arc<Prepared>],
    kinds: &Kinds,
    inventory: &Inventory,
) -> (Vec<DesiredObject>, Vec<Claim>) {
    let definitions: Vec<&Definition> = prepared
        .iter()
        .flat_map(|prepared| &prepared.objects)
        .filter_map(|object| object.defines.as_ref())
        .collect();
    let mut place: HashMap<Identity, usize> = HashMap::with_capacity(kept.bundles.len());
    let mut all: Vec<DesiredObject> = Vec::new();
    let mut second: Vec<DesiredObject> = Vec::new();
    for (index, (bundle, prepared)) in kept.bundles.iter().zip(prepared).enumerate() {
        let bundle = bundle.bundle();
        for (at, object) in bundle.objects.iter().enumerate() {
            let (kind, namespaced) = match kinds.find(&object.id.gvk) {
                Lookup::Served(kind) => (Some(kind.clone()), Some(kind.namespaced)),
                Lookup::OtherVersion(kind) => (None, Some(kind.namespaced)),
                Lookup::Unknown => {
                    let defines = definitions.iter().find(|d| d.covers(&object.id));
                    (None, defines.and_then(|d| d.namespaced))
                }
            };
            let id = placed(&object.id, &bundle.header.namespace, namespaced, inventory);
            let key = Identity::of(&id);
            let claimed = DesiredObject {
                bundle: index,
                content: bundle.clone(),
                prepared: prepared.clone(),
                at,
                id: Arc::new(id),
                key: key.clone(),
                kind,
                scaled: false,
            };
            match place.entry(key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(all.len());
                    all.push(claimed);
                }
                Entry::Occupied(first) => {
                    let first = &mut all[*first.get()];
                    let had = inventory.get(&claimed.key);
                    let had = had.as_ref().map(|entry| &entry.app);
                    if rank(&claimed, had) < rank(first, had) {
                        second.push(std::mem::replace(first, claimed));
                    } else {
                        second.push(claimed);
                    }
                }
            }
        }
    }
    let claims = second.into_iter().map(|claimed| {
        let owner = &all[place[&claimed.key]];
        claim(&claimed, owner.app())
    });
    let claims = claims.collect();
    let scaled: HashSet<(Option<String>, (String, String))> = all
        .iter()
        .filter_map(|desired| {
            Some((
                desired.id.namespace.clone(),
                desired.prepared().scales.clone()?,
            ))
        })
        .collect();
    if !scaled.is_empty() {
        for desired in &mut all {
            let target = (desired.id.gvk.kind.clone(), desired.id.name.clone());
            desired.scaled = scaled.contains(&(desired.id.namespace.clone(), target));
        }
    }
    (all, claims)
}

/// How good an app's claim to an object is, the best first: it had the object, the app whose place it takes
/// had it, or neither.
fn rank(claimed: &DesiredObject, had: Option<&AppName>) -> u8 {
    match had {
        Some(app) if app == claimed.app() => 0,
        Some(app) if claimed.header().formerly.as_ref() == Some(app) => 1,
        _ => 2,
    }
}

fn claim(claimed: &DesiredObject, owner: &AppName) -> Claim {
    let app = claimed.app();
    let id = &claimed.id;
    let refusal = if owner == app {
        format!("{id} stands in this app twice; remove one of the two")
    } else {
        format!(
            "app {owner} has {id}, and an object belongs to one app: remove it from {app}, or from \
             {owner} so that it becomes {app}'s"
        )
    };
    Claim {
        bundle: claimed.bundle,
        id: claimed.id.clone(),
        key: claimed.key.claimed_by(app, claimed.at),
        refusal,
    }
}

/// An object's reference with the namespace that it is really in.
fn placed(
    id: &ObjectRef,
    default: &str,
    namespaced: Option<bool>,
    inventory: &Inventory,
) -> ObjectRef {
    let cluster_wide = ObjectRef {
        namespace: None,
        ..id.clone()
    };
    let cluster_scoped = match namespaced {
        Some(namespaced) => !namespaced,
        // The kind is not served now. If the object was applied when it was, the inventory knows
        // where; guessing wrong would prune it.
        None => inventory.get(&Identity::of(&cluster_wide)).is_some(),
    };
    if cluster_scoped {
        return cluster_wide;
    }
    let namespace = id.namespace.clone().unwrap_or_else(|| default.to_owned());
    ObjectRef {
        namespace: Some(namespace),
        ..cluster_wide
    }
}
