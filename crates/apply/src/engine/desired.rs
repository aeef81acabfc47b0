//! The desired objects, each with its real namespace.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use muster_model::{
    bundle::{Bundle, BundleHeader, Object, ObjectRef},
    ids::{AppName, ContentHash},
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

/// The version of the request body. It changes whenever [`super::body`] would make another request
/// from the same object.
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

/// The parts of a bundle that are parsed only once.
pub(super) struct Prepared {
    hash: String,
    pub(super) objects: Vec<PreparedObject>,
}

pub(super) struct PreparedObject {
    /// The hash of everything that the request consists of.
    pub(super) digest: ContentHash,
    pub(super) defines: Option<Definition>,
    marks: Marks,
    /// The kind and the name of the object that an autoscaler scales.
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
                // A hook runs again when anything in its app changes.
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

/// Returns the kind and the name of the object that a HorizontalPodAutoscaler scales.
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

/// One desired object. It owns all its data, because its request may outlive the run that sends it.
pub(super) struct DesiredObject {
    /// The index of its bundle in the generation.
    pub(super) bundle: usize,
    content: Arc<Bundle>,
    prepared: Arc<Prepared>,
    /// Its index in the bundle.
    at: usize,
    /// Its reference with its real namespace.
    pub(super) id: Arc<ObjectRef>,
    pub(super) key: Identity,
    /// Its kind in exactly its version, if that is served.
    pub(super) kind: Option<Arc<Kind>>,
    /// True if an autoscaler of the generation scales it.
    pub(super) scaled: bool,
    /// True if its app is fenced, or its app's writer is being moved. Then it waits for no other app and no Job of phase
    /// `before`, and nobody can stop its changes.
    pub(super) urgent: bool,
}

impl DesiredObject {
    pub(super) fn header(&self) -> &BundleHeader {
        &self.content.header
    }

    pub(super) fn app(&self) -> &AppName {
        &self.content.header.app
    }

    /// Returns the object as the bundle defines it.
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

    /// Returns the hash of the bundle if the object is a Job that runs once for each bundle.
    pub(super) fn hook_bundle(&self) -> Option<&str> {
        self.marks().hook.map(|_| self.prepared.hash.as_str())
    }

    /// Returns true if drift is reported but not corrected. Drift of an urgent object is always
    /// corrected.
    pub(super) fn only_reports_drift(&self) -> bool {
        let header = self.header();
        header.policy.drift == Drift::Report && !self.urgent
    }

    /// Returns the apps that have to be applied and healthy first.
    pub(super) fn after(&self) -> &[AppName] {
        match self.urgent {
            true => &[],
            false => &self.header().after,
        }
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

/// An app's claim to an object that another app owns.
pub(super) struct Claim {
    /// The index of the claiming app's bundle in the generation.
    pub(super) bundle: usize,
    pub(super) id: Arc<ObjectRef>,
    pub(super) key: Identity,
    /// The reason why the object is not applied for this app.
    pub(super) refusal: String,
}

/// Returns every desired object once, and the claims that are refused. If several apps define the
/// same object, the app that already owns it keeps it, so that no commit of one app takes over what
/// another one runs. If no app owns it, the first by name gets it. `prepared` has one element for
/// each bundle of `stored`, in the same order.
pub(super) fn desired(
    stored: &StoredGeneration,
    prepared: &[Arc<Prepared>],
    kinds: &Kinds,
    inventory: &Inventory,
    urgent: &BTreeSet<AppName>,
) -> (Vec<DesiredObject>, Vec<Claim>) {
    let definitions: Vec<&Definition> = prepared
        .iter()
        .flat_map(|prepared| &prepared.objects)
        .filter_map(|object| object.defines.as_ref())
        .collect();
    let mut place: HashMap<Identity, usize> = HashMap::with_capacity(stored.bundles.len());
    let mut all: Vec<DesiredObject> = Vec::new();
    let mut second: Vec<DesiredObject> = Vec::new();
    for (index, (bundle, prepared)) in stored.bundles.iter().zip(prepared).enumerate() {
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
                urgent: urgent.contains(&bundle.header.app),
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

/// Returns the rank of an app's claim to an object; the lowest wins. 0: the app owns the object. 1:
/// the app that it replaces (`formerly`) owns the object. 2: neither does.
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
        format!("{id} is in this app twice; remove one of the two")
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

/// Returns an object's reference with its real namespace.
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
        // The kind is not served now. If the object was applied while the kind was served, the
        // inventory knows its scope. A wrong guess would prune the object.
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
