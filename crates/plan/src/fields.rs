//! The ownership of a live object's fields, from `metadata.managedFields` (KEP-555). It consists of trees whose keys
//! are `f:NAME`, `k:{KEYS}`, `v:VALUE` and `i:INDEX`. The key `.` is the element itself, and an empty object is a
//! leaf.

use serde_json::{Map, Value, json};

/// The field manager of everything that Muster applies.
pub const MANAGER: &str = "muster";

/// One entry of `metadata.managedFields`.
#[derive(Debug, Clone, Copy)]
pub struct Manager<'a> {
    /// The index of the entry in the list.
    pub index: usize,
    /// The manager's name.
    pub name: &'a str,
    /// True if the manager used server-side apply, false if it used an update.
    pub applies: bool,
    /// The subresource through which the manager wrote, such as `status` or `scale`; empty for the object itself.
    pub subresource: &'a str,
    /// When the manager last changed its fields, in RFC 3339 format. Times from one API server can be compared as
    /// strings.
    pub time: &'a str,
    /// The tree of the fields that the manager owns.
    pub fields: &'a Value,
}

impl Manager<'_> {
    /// Returns true if this is Muster's own entry.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.name == MANAGER && self.applies && self.subresource.is_empty()
    }
}

/// Returns the field managers of a live object.
pub fn managers(object: &Value) -> impl Iterator<Item = Manager<'_>> {
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter()
        .flatten()
        .enumerate()
        .map(|(index, entry)| Manager {
            index,
            name: entry["manager"].as_str().unwrap_or_default(),
            applies: entry["operation"] == "Apply",
            subresource: entry["subresource"].as_str().unwrap_or_default(),
            time: entry["time"].as_str().unwrap_or_default(),
            fields: &entry["fieldsV1"],
        })
}

/// Returns the fields of `all` that are not in `taken`; `None` if none is left.
#[must_use]
pub fn without(all: &Value, taken: &Value) -> Option<Value> {
    let (Some(all), Some(taken)) = (all.as_object(), taken.as_object()) else {
        return Some(all.clone());
    };
    let mut left = Map::new();
    for (key, fields) in all {
        let rest = match taken.get(key) {
            None => Some(fields.clone()),
            // The field is a leaf of `all`, and `taken` has it, too.
            Some(_) if fields.as_object().is_some_and(Map::is_empty) => None,
            Some(taken) => without(fields, taken),
        };
        if let Some(rest) = rest {
            left.insert(key.clone(), rest);
        }
    }
    (!left.is_empty()).then_some(Value::Object(left))
}

/// Returns the fields that are in at least one of two trees. A field that is a leaf in one tree and a map in the
/// other becomes that map with the additional key `.`, which is the field itself.
#[must_use]
pub(crate) fn union(a: &Value, b: &Value) -> Value {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a.clone();
    };
    if a.is_empty() && b.is_empty() {
        return Value::Object(Map::new());
    }
    let itself = || (".".to_owned(), Value::Object(Map::new()));
    let mut all = a.clone();
    for (key, fields) in b {
        let both = match all.get(key) {
            Some(known) => union(known, fields),
            None => fields.clone(),
        };
        all.insert(key.clone(), both);
    }
    if a.is_empty() || b.is_empty() {
        all.extend([itself()]);
    }
    Value::Object(all)
}

/// Returns a JSON patch (RFC 6902) of these steps that is valid only for this version of the object: it fails if the
/// object has been changed since. Returns `None` if there are no steps.
pub(crate) fn guarded(live: &Value, mut steps: Vec<Value>) -> Option<Value> {
    if steps.is_empty() {
        return None;
    }
    let version = &live["metadata"]["resourceVersion"];
    let test = json!({"op": "test", "path": "/metadata/resourceVersion", "value": version});
    steps.insert(0, test);
    Some(steps.into())
}

/// Returns the child of a tree for one field of a map.
pub(crate) fn field<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    tree.get(format!("f:{name}"))
}

/// Returns the child of a tree for one element of a list.
pub(crate) fn element<'a>(tree: &'a Value, index: usize, value: &Value) -> Option<&'a Value> {
    tree.get(element_key(tree, index, value)?)
}

/// Returns the key in a tree for one element of a list.
pub(crate) fn element_key<'a>(tree: &'a Value, index: usize, value: &Value) -> Option<&'a str> {
    let mut keys_of = tree.as_object()?.keys();
    let key = keys_of.find(|key| {
        let Some((form, rest)) = key.split_once(':') else {
            return false;
        };
        match form {
            "k" => {
                keys(rest).is_some_and(|keys| keys.iter().all(|(name, key)| value[name] == *key))
            }
            "v" => serde_json::from_str::<Value>(rest).is_ok_and(|own| own == *value),
            "i" => rest.parse() == Ok(index),
            _ => false,
        }
    });
    key.map(String::as_str)
}

/// Returns the element of `list` that corresponds to `value`: the element with the same keys, if the trees name
/// keys, or else with the same name, or else at the same index.
pub(crate) fn counterpart<'a>(
    trees: &[&Value],
    value: &Value,
    index: usize,
    list: &'a Value,
) -> Option<&'a Value> {
    let list = list.as_array()?;
    let keyed = trees
        .iter()
        .filter_map(|tree| tree.as_object())
        .flat_map(Map::keys)
        .find_map(|key| keys(key.strip_prefix("k:")?));
    match (keyed, value["name"].is_string()) {
        (Some(keys), _) => list
            .iter()
            .find(|other| keys.keys().all(|name| other[name] == value[name])),
        (None, true) => list.iter().find(|other| other["name"] == value["name"]),
        (None, false) => list.get(index),
    }
}

fn keys(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// Returns true if a tree is a leaf, so that everything below it is owned as a whole.
pub(crate) fn is_leaf(tree: &Value) -> bool {
    tree.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests;
