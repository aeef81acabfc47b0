//! Finds objects that two apps of one cluster both contain. Two entries whose namespaces differ are the same object if
//! their kind is cluster-scoped. The scopes of built-in kinds are known. The scopes of other kinds come from the
//! fleet's CustomResourceDefinitions and from the agents' reports.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use muster_model::{
    bundle::{Conflict, Object},
    scopes::{Scopes, is_namespaced},
};
use serde_json::Value as Json;

use super::{Part, RenderedBundle};

/// The identity of an object in a cluster, as a hash. Two entries with the same identity are the same object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// The hash with the object's namespace, or without it if the kind is known to be cluster-scoped.
    known: u64,
    /// If the scope of the kind is not known: the hash of the kind, and the hash of the object without its namespace.
    open: Option<(u64, u64)>,
}

impl Identity {
    pub(super) fn of(object: &Object, app_namespace: &str) -> Self {
        let (group, kind, namespace, name) = object.id.identity();
        let namespaced = [group, kind, namespace.unwrap_or(app_namespace), name];
        let bare = [group, kind, "", name];
        match is_namespaced(group, kind) {
            Some(true) => Self {
                known: hash_of(&namespaced),
                open: None,
            },
            Some(false) => Self {
                known: hash_of(&bare),
                open: None,
            },
            None => Self {
                known: hash_of(&namespaced),
                open: Some((kind_key(&format!("{kind}.{group}")), hash_of(&bare))),
            },
        }
    }

    /// Returns the hash, given the kinds that are cluster-scoped besides the built-in ones.
    pub(super) fn settled(self, cluster_scoped: &HashSet<u64>) -> u64 {
        match self.open {
            Some((kind, bare)) if cluster_scoped.contains(&kind) => bare,
            _ => self.known,
        }
    }
}

fn hash_of(parts: &[&str]) -> u64 {
    let hash = blake3::hash(parts.join("\0").as_bytes());
    let mut short = [0; 8];
    short.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(short)
}

/// Returns the hash of a kind that is written as `KIND.GROUP`.
fn kind_key(kind: &str) -> u64 {
    hash_of(&[kind])
}

/// Returns the cluster-scoped kind that an object defines, as `KIND.GROUP`.
pub(super) fn cluster_scoped_kind(object: &Object) -> Option<String> {
    let gvk = &object.id.gvk;
    if gvk.group != "apiextensions.k8s.io" || gvk.kind != "CustomResourceDefinition" {
        return None;
    }
    let definition: Json = serde_json::from_str(&object.json).ok()?;
    let text = |pointer: &str| definition.pointer(pointer).and_then(Json::as_str);
    let (kind, group) = (text("/spec/names/kind")?, text("/spec/group")?);
    (text("/spec/scope") == Some("Cluster")).then(|| format!("{kind}.{group}"))
}

impl RenderedBundle {
    /// Returns true if the bundle contains the object of a conflict. `scopes` is as in [`conflicts`].
    #[must_use]
    pub fn holds(&self, conflict: &Conflict, scopes: &Scopes) -> bool {
        let cluster_scoped = kind_keys(scopes);
        let mut identities = self.parts.iter().flat_map(|part| &part.identities);
        identities.any(|identity| identity.settled(&cluster_scoped) == conflict.identity)
    }
}

/// Returns the cluster-scoped kinds that the CustomResourceDefinitions of these bundles define.
#[must_use]
pub fn scopes<'a>(bundles: impl Iterator<Item = &'a Arc<RenderedBundle>>) -> Scopes {
    let mut scopes = Scopes::default();
    for bundle in bundles {
        scopes.extend(bundle.parts.iter().flat_map(|part| &part.defines));
    }
    scopes
}

pub(super) fn kind_keys(scopes: &Scopes) -> HashSet<u64> {
    scopes.iter().map(kind_key).collect()
}

/// Finds every object that two bundles of one cluster both contain. `scopes` holds the kinds that are cluster-scoped
/// besides the built-in ones.
#[must_use]
pub fn conflicts<'a>(
    bundles: impl Iterator<Item = &'a Arc<RenderedBundle>>,
    scopes: &Scopes,
) -> Vec<Conflict> {
    let cluster_scoped = kind_keys(scopes);
    let mut owners: HashMap<u64, (&RenderedBundle, &Part)> = HashMap::new();
    let mut found = Vec::new();
    for bundle in bundles {
        for part in &bundle.parts {
            for (index, identity) in part.identities.iter().enumerate() {
                let identity = identity.settled(&cluster_scoped);
                let (other, other_part) = *owners.entry(identity).or_insert((bundle, part));
                if other.app != bundle.app {
                    found.push(Conflict {
                        object: part.name(index),
                        identity,
                        claims: [
                            (other.app.clone(), Arc::clone(&other_part.file)),
                            (bundle.app.clone(), Arc::clone(&part.file)),
                        ],
                        owner: None,
                    });
                }
            }
        }
    }
    found
}
