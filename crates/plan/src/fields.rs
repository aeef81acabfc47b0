//! Who owns which fields of a live object, as `metadata.managedFields` says (KEP-555): trees whose keys
//! are `f:NAME`, `k:{KEYS}`, `v:VALUE` and `i:INDEX`, with `.` for the element itself and an empty
//! object for a leaf.

use serde_json::{Map, Value, json};

/// The field manager of everything that Muster applies.
pub const MANAGER: &str = "muster";

/// One entry of `metadata.managedFields`.
#[derive(Debug, Clone, Copy)]
pub struct Manager<'a> {
    /// Its place in the list.
    pub index: usize,
    /// The manager's name.
    pub name: &'a str,
    /// Whether it applies (server-side apply) or updates.
    pub applies: bool,
    /// The subresource through which it wrote, such as `status` or `scale`; empty for the object itself.
    pub subresource: &'a str,
    /// When it last changed its fields, as RFC 3339 text; those of one API server compare as texts.
    pub time: &'a str,
    /// The fields.
    pub fields: &'a Value,
}

impl Manager<'_> {
    /// Whether it is Muster's own entry.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.name == MANAGER && self.applies && self.subresource.is_empty()
    }
}

/// The managers of a live object.
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

/// The fields of `all` that are not among `taken`; `None` where none is left.
#[must_use]
pub fn without(all: &Value, taken: &Value) -> Option<Value> {
    let (Some(all), Some(taken)) = (all.as_object(), taken.as_object()) else {
        return Some(all.clone());
    };
    let mut left = Map::new();
    for (key, fields) in all {
        let rest = match taken.get(key) {
            None => Some(fields.clone()),
            // A leaf in both.
            Some(_) if fields.as_object().is_some_and(Map::is_empty) => None,
            Some(taken) => without(fields, taken),
        };
        if let Some(rest) = rest {
            left.insert(key.clone(), rest);
        }
    }
    (!left.is_empty()).then_some(Value::Object(left))
}

/// The fields that are in one of two trees. What is a leaf in one and a map in the other is both: the
/// map itself, and what is below.
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

/// A JSON patch (RFC 6902) of these steps for this version of the object only: it fails where somebody has
/// changed the object since. `None` where there are no steps.
pub(crate) fn guarded(live: &Value, mut steps: Vec<Value>) -> Option<Value> {
    if steps.is_empty() {
        return None;
    }
    let version = &live["metadata"]["resourceVersion"];
    let test = json!({"op": "test", "path": "/metadata/resourceVersion", "value": version});
    steps.insert(0, test);
    Some(steps.into())
}

/// The child of a tree for one field of a map.
pub(crate) fn field<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    tree.get(format!("f:{name}"))
}

/// The child of a tree for one element of a list.
pub(crate) fn element<'a>(tree: &'a Value, index: usize, value: &Value) -> Option<&'a Value> {
    tree.get(element_key(tree, index, value)?)
}

/// The key of a tree for one element of a list.
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

/// The elements of `list` that have the same keys as `value`, by what the trees call keys.
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

/// Whether a tree says that everything below is owned as one: a leaf.
pub(crate) fn is_leaf(tree: &Value) -> bool {
    tree.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_has_is_taken_away() {
        let helm = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:heritage": {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}, "f:tty": {}},
            }}}},
        });
        let ours = json!({
            "f:metadata": {"f:labels": {"f:app": {}, "f:muster.dev/app": {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}},
            }}}},
        });
        assert_eq!(
            without(&helm, &ours),
            Some(json!({
                "f:metadata": {"f:labels": {".": {}, "f:heritage": {}}},
                "f:spec": {"f:template": {"f:spec": {"f:containers": {
                    "k:{\"name\":\"web\"}": {"f:tty": {}},
                }}}},
            }))
        );
        assert_eq!(without(&ours, &ours), None);
        assert_eq!(without(&ours, &json!({})), Some(ours));
    }

    #[test]
    fn elements_are_found_by_key_value_or_index() {
        let tree = json!({
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {"f:a": {}},
            "v:\"blue\"": {},
            "i:3": {"f:b": {}},
        });
        let port = json!({"containerPort": 80, "protocol": "TCP", "name": "http"});
        assert_eq!(element(&tree, 0, &port), Some(&json!({"f:a": {}})));
        assert_eq!(element(&tree, 0, &json!("blue")), Some(&json!({})));
        assert_eq!(element(&tree, 3, &json!("red")), Some(&json!({"f:b": {}})));
        assert_eq!(element(&tree, 2, &json!("red")), None);
    }
}
