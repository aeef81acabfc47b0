//! The wanted objects, each with the namespace that it is really in.

use std::{collections::HashSet, sync::Arc};

use muster_model::{
    bundle::{Bundle, Object, ObjectRef},
    ids::{AppName, ContentHash},
};
use muster_plan::order::{After, Definition, Item};

use crate::{
    Kept,
    inventory::{Identity, Inventory},
    kinds::{Kind, Kinds, Lookup},
};

/// Changes whenever [`super::body`] would make another request of the same object.
const BODY_VERSION: &[u8] = b"1";

/// What is read of a bundle once.
pub(super) struct Prepared {
    pub(super) objects: Vec<PreparedObject>,
}

pub(super) struct PreparedObject {
    /// Hash of everything that the request is made of.
    digest: ContentHash,
    pub(super) defines: Option<Definition>,
}

impl Prepared {
    pub(super) fn of(bundle: &Bundle) -> Self {
        let header = &bundle.header;
        let prepare = |object: &Object| {
            let mut content = Vec::from(object.hash().0);
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
            }
        };
        Self {
            objects: bundle.objects.iter().map(prepare).collect(),
        }
    }
}

/// One wanted object.
pub(super) struct Wanted<'a> {
    /// Index of its bundle.
    pub(super) bundle: usize,
    pub(super) app: &'a AppName,
    pub(super) object: &'a Object,
    /// With the namespace that it is really in.
    pub(super) id: Arc<ObjectRef>,
    pub(super) key: Identity,
    pub(super) digest: ContentHash,
    pub(super) defines: Option<&'a Definition>,
    /// Its kind in exactly its version, where that is served.
    pub(super) kind: Option<Arc<Kind>>,
}

impl Wanted<'_> {
    pub(super) fn item(&self) -> Item<'_> {
        Item {
            id: &self.id,
            app: self.app,
            defines: self.defines,
        }
    }
}

/// Every wanted object once, with the apps' order. Where two apps have the same object, the first
/// has it. `prepared` belongs to the bundles of `kept`, one to one.
pub(super) fn wanted<'a>(
    kept: &'a Kept,
    prepared: &'a [Arc<Prepared>],
    kinds: &Kinds,
    inventory: &Inventory,
) -> (Vec<Wanted<'a>>, After<'a>) {
    let definitions: Vec<&Definition> = prepared
        .iter()
        .flat_map(|prepared| &prepared.objects)
        .filter_map(|object| object.defines.as_ref())
        .collect();
    let mut taken = HashSet::new();
    let mut all = Vec::new();
    for (index, (bundle, prepared)) in kept.bundles.iter().zip(prepared).enumerate() {
        let bundle = bundle.bundle().as_ref();
        let app = &bundle.header.app;
        for (object, prepared) in bundle.objects.iter().zip(&prepared.objects) {
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
            if !taken.insert(key.clone()) {
                tracing::debug!(%app, object = %id, "another app has this object and keeps it");
                continue;
            }
            all.push(Wanted {
                bundle: index,
                app,
                object,
                id: Arc::new(id),
                key,
                digest: prepared.digest,
                defines: prepared.defines.as_ref(),
                kind,
            });
        }
    }
    let after = kept.bundles.iter().map(|bundle| &bundle.bundle().header);
    (
        all,
        after
            .map(|header| (&header.app, header.after.as_slice()))
            .collect(),
    )
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
