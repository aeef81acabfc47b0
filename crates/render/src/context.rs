//! The values that templates see, in a form that records which of them a template reads. A rendering that read only
//! `values.replicas` and `region.name` has the same result for every cluster where these two are the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, Serde, Value};
use serde_json::Value as Json;

/// A 128-bit digest of a value. Equal values have equal digests.
pub(crate) type Digest = u128;

fn digest(bytes: &[u8]) -> Digest {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    u128::from_le_bytes(short)
}

/// A layer of values, converted once for use in templates.
#[derive(Debug)]
pub(crate) struct Layer {
    entries: BTreeMap<Arc<str>, Item>,
    digest: Digest,
}

#[derive(Debug)]
enum Item {
    /// A `null`, which removes the values of lower layers.
    Removal,
    /// A scalar or a list.
    Leaf(Value, Digest),
    /// A nested map.
    Map(Arc<Layer>),
}

impl Layer {
    pub(crate) fn new(map: &serde_json::Map<String, Json>) -> Arc<Self> {
        let entries: BTreeMap<Arc<str>, Item> = map
            .iter()
            .map(|(key, value)| {
                let item = match value {
                    Json::Null => Item::Removal,
                    Json::Object(map) => Item::Map(Self::new(map)),
                    leaf => {
                        let text = leaf.to_string();
                        Item::Leaf(Value::from(Serde(leaf)), digest(text.as_bytes()))
                    }
                };
                (Arc::from(key.as_str()), item)
            })
            .collect();
        let mut hasher = blake3::Hasher::new();
        for (key, item) in &entries {
            let (kind, content) = match item {
                Item::Removal => (0, 0),
                Item::Leaf(_, digest) => (1, *digest),
                Item::Map(layer) => (2, layer.digest),
            };
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(key.as_bytes());
            hasher.update(&[kind]);
            hasher.update(&u128::to_le_bytes(content));
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Arc::new(Self {
            entries,
            digest: u128::from_le_bytes(short),
        })
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
}

/// Layers that act as one map, topmost first.
#[derive(Debug, Clone)]
pub(crate) struct Overlay(Vec<Arc<Layer>>);

/// Looks up a key in layers, topmost first. Returns the value if it is a leaf. Otherwise fills `maps` with the maps
/// that overlay each other under the key; it stays empty if the key is absent.
fn leaf<'a>(
    layers: &[&'a Arc<Layer>],
    key: &str,
    maps: &mut Vec<&'a Arc<Layer>>,
) -> Option<(&'a Value, Digest)> {
    maps.clear();
    for layer in layers {
        match layer.entries.get(key) {
            None => {}
            Some(Item::Map(map)) => maps.push(map),
            // A scalar, a list or a removal hides the layers below it, and is itself hidden by maps above
            // it.
            Some(Item::Leaf(value, digest)) if maps.is_empty() => return Some((value, *digest)),
            Some(Item::Leaf(..) | Item::Removal) => break,
        }
    }
    None
}

enum Seen<'a> {
    Absent,
    Leaf(&'a Value, Digest),
    Map(Overlay),
}

impl Overlay {
    pub(crate) fn new(layers: impl IntoIterator<Item = Arc<Layer>>) -> Self {
        Self(
            layers
                .into_iter()
                .filter(|layer| !layer.entries.is_empty())
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Seen<'_> {
        let mut maps = Vec::new();
        let layers: Vec<&Arc<Layer>> = self.0.iter().collect();
        match leaf(&layers, key, &mut maps) {
            Some((value, digest)) => Seen::Leaf(value, digest),
            None if maps.is_empty() => Seen::Absent,
            None => Seen::Map(Self(maps.into_iter().cloned().collect())),
        }
    }

    fn keys(&self) -> Vec<Arc<str>> {
        let keys: BTreeSet<&Arc<str>> = self
            .0
            .iter()
            .flat_map(|layer| layer.entries.keys())
            .collect();
        let there = |key: &&Arc<str>| !matches!(self.get(key), Seen::Absent);
        keys.into_iter().filter(there).cloned().collect()
    }

    /// Returns the digest of what a template would read, without recording a read. This runs for every template in
    /// every cluster at every commit, so it borrows the layers. [`Overlay::get`] would create a new overlay.
    fn observe(&self, read: &Read) -> Digest {
        let Some((last, parents)) = read.path.split_last() else {
            return self.keys_digest();
        };
        let mut layers: Vec<&Arc<Layer>> = self.0.iter().collect();
        let mut below = Vec::with_capacity(layers.len());
        for key in parents {
            if leaf(&layers, key, &mut below).is_some() || below.is_empty() {
                return ABSENT;
            }
            std::mem::swap(&mut layers, &mut below);
        }
        match (leaf(&layers, last, &mut below), read.what) {
            (Some((_, digest)), _) => digest,
            (None, _) if below.is_empty() => ABSENT,
            (None, What::Value) => MAP,
            (None, What::Keys) => Self(below.into_iter().cloned().collect()).keys_digest(),
        }
    }

    fn keys_digest(&self) -> Digest {
        let mut text = String::new();
        for key in self.keys() {
            text.push_str(&key);
            text.push('\0');
        }
        digest(text.as_bytes())
    }
}

const ABSENT: Digest = 0;
const MAP: Digest = 1;

impl Seen<'_> {
    fn digest(&self) -> Digest {
        match self {
            Seen::Absent => ABSENT,
            Seen::Leaf(_, digest) => *digest,
            Seen::Map(_) => MAP,
        }
    }
}

/// The kind of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum What {
    /// The value at the path: a leaf, the fact that it is a map, or nothing.
    Value,
    /// The keys of the map at the path.
    Keys,
}

/// One read that a rendering made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    path: Arc<[Arc<str>]>,
    what: What,
}

/// All values that templates see for one app in one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Context(Overlay);

impl Context {
    /// Creates a context from the layers of `values`, lowest last, and from plain maps of facts.
    pub(crate) fn new(values: Overlay, facts: &[Arc<Layer>]) -> Self {
        // `values` is a key of the root, so each of its layers is nested under that key.
        let under = |layer: &Arc<Layer>| {
            let entries = BTreeMap::from([(Arc::from("values"), Item::Map(Arc::clone(layer)))]);
            Arc::new(Layer {
                entries,
                digest: layer.digest,
            })
        };
        let mut layers: Vec<Arc<Layer>> = values.0.iter().map(under).collect();
        if layers.is_empty() {
            layers.push(under(&Arc::new(Layer {
                entries: BTreeMap::new(),
                digest: 0,
            })));
        }
        layers.extend(facts.iter().cloned());
        Self(Overlay(layers))
    }

    pub(crate) fn observe(&self, read: &Read) -> Digest {
        self.0.observe(read)
    }

    /// Returns a value for a template, and the record of what the template reads from it.
    pub(crate) fn recorded(&self) -> (Value, Reads) {
        let reads = Reads::default();
        let root = Tracked::new(Arc::new([]), self.0.clone(), reads.clone());
        (Value::from_object(root), reads)
    }

    /// Returns the keys of the map at a path, and records them as read.
    pub(crate) fn keys_at(&self, path: &[&str], reads: &Reads) -> Vec<Arc<str>> {
        let read = Read {
            path: path.iter().copied().map(Arc::from).collect(),
            what: What::Keys,
        };
        reads.add(&read.path, What::Keys, self.observe(&read));
        let mut overlay = self.0.clone();
        for part in path {
            match overlay.get(part) {
                Seen::Map(next) => overlay = next,
                Seen::Absent | Seen::Leaf(..) => return Vec::new(),
            }
        }
        overlay.keys()
    }
}

/// The reads of a rendering in the order in which they first happened, each with the digest of its result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads(Arc<Mutex<IndexMap<Read, Digest>>>);

impl Reads {
    fn add(&self, path: &Arc<[Arc<str>]>, what: What, found: Digest) {
        let read = Read {
            path: Arc::clone(path),
            what,
        };
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.entry(read).or_insert(found);
    }

    pub(crate) fn take(&self) -> IndexMap<Read, Digest> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Tracked {
    path: Arc<[Arc<str>]>,
    overlay: Overlay,
    reads: Reads,
    /// The values that were already read from this map. Templates read the same few values again and again, and only
    /// the first read is recorded.
    found: Mutex<Vec<(Arc<str>, Option<Value>)>>,
}

impl Tracked {
    fn new(path: Arc<[Arc<str>]>, overlay: Overlay, reads: Reads) -> Self {
        Self {
            path,
            overlay,
            reads,
            found: Mutex::default(),
        }
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracked({})", self.path.join("."))
    }
}

impl Object for Tracked {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = found.iter().find(|(known, _)| **known == *key) {
            return value.clone();
        }
        let key: Arc<str> = Arc::from(key);
        let path: Arc<[Arc<str>]> = self.path.iter().chain([&key]).cloned().collect();
        let seen = self.overlay.get(&key);
        self.reads.add(&path, What::Value, seen.digest());
        let value = match seen {
            Seen::Absent => None,
            Seen::Leaf(value, _) => Some(value.clone()),
            Seen::Map(overlay) => {
                let map = Self::new(path, overlay, self.reads.clone());
                Some(Value::from_object(map))
            }
        };
        found.push((key, value.clone()));
        value
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.reads
            .add(&self.path, What::Keys, self.overlay.keys_digest());
        Enumerator::Values(self.overlay.keys().iter().map(Value::from).collect())
    }
}

#[cfg(test)]
mod tests;
