//! Fields that people's tools own on Muster's objects: fields that Git never had, and fields that Git also has.
//!
//! Server-side apply removes a field only if no other manager owns it. A field that kubectl added to an object would
//! therefore stay forever, and so would every field that is removed from Git while kubectl also owns it. So the
//! fields of people's tools are taken over, and the next apply removes those that Git does not have. Controllers'
//! fields are not taken over. [`is_persons`] and `THEIRS` define the difference.

use std::collections::BTreeMap;

use muster_model::bundle::ObjectRef;
use serde_json::{Map, Value, json};

use crate::{
    fields::{Manager, element, guarded, managers, union, without},
    ownership::is_predecessor,
};

/// Field managers, besides kubectl, of tools with which people change objects by hand: k9s, Lens, the Kubernetes
/// dashboard, and everything in a browser. kubectl is matched by prefix, because it adds its command to the name
/// (`kubectl-edit`, `kubectl-set`).
const TOOLS: [&str; 4] = ["k9s", "node-fetch", "dashboard", "Mozilla"];

/// The field manager of the fields that an object had before Muster and that Git never had. Nobody meant them as a
/// change to the desired state, so they stay.
const BEFORE: &str = "before-muster";

/// The field manager that the API server uses for the time before an object had managers. Its entry lists all
/// fields that the object had, including those that controllers wrote.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The annotation in which kubectl's client-side apply stores the last applied object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Fields that people set on an object without meaning to change the desired state, as JSON pointers. A name that
/// ends in `*` matches every name with that prefix.
const THEIRS: [&str; 3] = [
    // Muster's own annotations on the live object.
    "/metadata/annotations/muster.dev~1*",
    // Set by `kubectl rollout restart`. Removing it would restart everything once more.
    "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt",
    "/status",
];

/// Returns true if a field manager is a person's tool, or a tool that applied whole objects before Muster.
#[must_use]
pub fn is_persons(name: &str) -> bool {
    name.starts_with("kubectl") || TOOLS.contains(&name) || is_predecessor(name)
}

/// What happens to fields that people's tools own and that Git does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The fields stay under a separate manager, because Muster has just adopted the object.
    Adopt,
    /// The fields stay with their tools, because drift is only reported.
    Leave,
    /// Muster takes the fields over, so that the next apply removes them.
    Take,
}

/// A change of the ownership of fields.
#[derive(Debug, PartialEq)]
pub struct TakeOver {
    /// A JSON patch (RFC 6902) that is valid only for this version of the object.
    pub patch: Value,
    /// True if Muster now owns fields that Git does not have, so that it has to apply the object again.
    pub apply: bool,
    /// True if the ownership of fields was lost, so that fields which were removed from Git in the meantime can't be
    /// distinguished from others.
    pub unknown: bool,
}

/// Returns the fields that people's tools added to a live object of Muster's; `None` if there are none. Fields that
/// Muster also owns, ignored fields (JSON pointers), and fields that people may set are not included.
#[must_use]
pub fn added(id: &ObjectRef, live: &Value, ignored: &[&str]) -> Option<Value> {
    let nobody = Value::Null;
    let own = managers(live).find(Manager::is_own);
    let own = own.map_or(&nobody, |own| own.fields);
    let theirs = theirs(id, ignored);
    let of_people = managers(live).filter(|m| is_of_people(m) && m.name != BEFORE_FIRST_APPLY);
    of_people
        .filter_map(|manager| without(manager.fields, own))
        .filter_map(|fields| split(&pruned(fields)?, Some(live), &theirs).taken)
        .reduce(|all, fields| union(&all, &fields))
}

/// Returns the name of the person's tool that last changed the object.
#[must_use]
pub fn last_tool(live: &Value) -> Option<&str> {
    let tools = managers(live).filter(is_of_people);
    tools.max_by_key(|tool| tool.time).map(|tool| tool.name)
}

/// Makes Muster the only owner of the fields that it shares with people's tools, and treats the other fields of
/// people's tools as `rest` says. Returns `None` if nothing has to change.
#[must_use]
pub fn take_over(id: &ObjectRef, live: &Value, ignored: &[&str], rest: Rest) -> Option<TakeOver> {
    let own = managers(live).find(Manager::is_own)?;
    let theirs = theirs(id, ignored);
    let entries = live["metadata"]["managedFields"].as_array()?;
    let last_applied = live["metadata"]["annotations"][LAST_APPLIED].is_string();
    let mut own_fields = own.fields.clone();
    let (mut apply, mut unknown) = (false, false);
    let mut kept: Vec<Value> = Vec::new();
    let mut own_at = 0;
    // The fields from before Muster, by the API version in which they are written.
    let mut before: BTreeMap<String, Value> = BTreeMap::new();
    for (manager, entry) in managers(live).zip(entries) {
        if manager.is_own() {
            own_at = kept.len();
        }
        if !is_of_people(&manager) {
            kept.push(entry.clone());
            continue;
        }
        let Some(mut left) = without(manager.fields, own.fields).and_then(pruned) else {
            continue;
        };
        if rest == Rest::Adopt || manager.name == BEFORE_FIRST_APPLY {
            unknown |= rest != Rest::Adopt;
            if last_applied {
                let annotations = left.pointer_mut("/f:metadata/f:annotations");
                if let Some(Value::Object(annotations)) = annotations {
                    annotations.remove(&format!("f:{LAST_APPLIED}"));
                }
            }
            if let Some(left) = pruned(left) {
                let version = entry["apiVersion"].as_str().unwrap_or_default().to_owned();
                let all = match before.get(&version) {
                    Some(all) => union(all, &left),
                    None => left,
                };
                before.insert(version, all);
            }
            continue;
        }
        if rest == Rest::Take {
            let Split { taken, stays } = split(&left, Some(live), &theirs);
            if let Some(taken) = taken {
                own_fields = union(&own_fields, &taken);
                apply = true;
            }
            let Some(stays) = stays else { continue };
            left = stays;
        }
        let mut entry = entry.clone();
        entry["fieldsV1"] = left;
        kept.push(entry);
    }
    for entry in &mut kept {
        let version = entry["apiVersion"].as_str().unwrap_or_default();
        if entry["manager"] == BEFORE
            && let Some(more) = before.remove(version)
        {
            entry["fieldsV1"] = union(&entry["fieldsV1"], &more);
        }
    }
    kept.extend(before.into_iter().map(|(version, fields)| {
        json!({
            "manager": BEFORE,
            "operation": "Update",
            "apiVersion": version,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        })
    }));
    kept[own_at]["fieldsV1"] = own_fields;
    let mut steps = Vec::new();
    if kept != *entries {
        let path = "/metadata/managedFields";
        steps.push(json!({"op": "replace", "path": path, "value": kept}));
    }
    if last_applied && rest == Rest::Adopt {
        let escaped = LAST_APPLIED.replace('/', "~1");
        steps.push(json!({"op": "remove", "path": format!("/metadata/annotations/{escaped}")}));
    }
    Some(TakeOver {
        patch: guarded(live, steps)?,
        apply,
        unknown,
    })
}

/// Returns a copy of an object without these fields.
#[must_use]
pub fn without_fields(object: &Value, fields: &Value) -> Value {
    let mut object = object.clone();
    remove(&mut object, fields);
    object
}

fn is_of_people(manager: &Manager<'_>) -> bool {
    manager.subresource.is_empty() && is_persons(manager.name)
}

/// One step of a JSON pointer.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Any,
    Prefix(String),
    Name(String),
}

impl Step {
    pub(crate) fn fits(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Name(own) => own == name,
        }
    }
}

/// Returns the fields that people may set on an object of this kind, and the ignored fields.
fn theirs(id: &ObjectRef, ignored: &[&str]) -> Vec<Vec<Step>> {
    let node = id.gvk.group.is_empty() && id.gvk.kind == "Node";
    // Set by `kubectl cordon`, `drain` and `taint`.
    let node = node.then_some("/spec");
    let built_in = THEIRS.iter().copied().chain(node);
    let built_in = built_in.map(|pointer| steps(pointer, true));
    built_in
        .chain(ignored.iter().map(|pointer| steps(pointer, false)))
        .collect()
}

/// Splits a pointer into steps. With `prefixes`, a name that ends in `*` matches every name with that prefix.
pub(crate) fn steps(pointer: &str, prefixes: bool) -> Vec<Step> {
    let tokens = pointer.split('/').skip(1);
    let step = |token: &str| {
        let name = token.replace("~1", "/").replace("~0", "~");
        match name.strip_suffix('*') {
            Some("") => Step::Any,
            Some(prefix) if prefixes => Step::Prefix(prefix.to_owned()),
            _ => Step::Name(name),
        }
    };
    tokens.map(step).collect()
}

/// Returns the rest of each pointer that continues below a name.
pub(crate) fn below(pointers: &[Vec<Step>], name: &str) -> Vec<Vec<Step>> {
    let rest = |steps: &Vec<Step>| {
        let (first, rest) = steps.split_first()?;
        first.fits(name).then(|| rest.to_vec())
    };
    pointers.iter().filter_map(rest).collect()
}

/// Fields that are taken over, and fields that stay with their manager.
pub(crate) struct Split {
    pub(crate) taken: Option<Value>,
    pub(crate) stays: Option<Value>,
}

/// Splits fields: those that exist in the live object are taken; those in `theirs`, or that do not exist, stay.
pub(crate) fn split(fields: &Value, live: Option<&Value>, theirs: &[Vec<Step>]) -> Split {
    let all = |taken: bool| Split {
        taken: taken.then(|| fields.clone()),
        stays: (!taken).then(|| fields.clone()),
    };
    let (Some(live), Some(map)) = (live, fields.as_object()) else {
        return all(false);
    };
    if theirs.iter().any(Vec::is_empty) {
        return all(false);
    }
    if map.is_empty() {
        return all(true);
    }
    let (mut taken, mut stays) = (Map::new(), Map::new());
    for (key, fields) in map {
        let parts = if key == "." {
            split(fields, Some(live), &[])
        } else {
            let (name, child) = child(key, live);
            split(fields, child, &below(theirs, &name))
        };
        taken.extend(parts.taken.map(|part| (key.clone(), part)));
        stays.extend(parts.stays.map(|part| (key.clone(), part)));
    }
    // If any part of an element or map stays, the element or map itself stays, too.
    if stays.keys().any(|key| key != ".")
        && let Some(itself) = taken.remove(".")
    {
        stays.insert(".".to_owned(), itself);
    }
    let part = |map: Map<String, Value>| (!map.is_empty()).then_some(Value::Object(map));
    Split {
        taken: part(taken),
        stays: part(stays),
    }
}

/// Returns the name of a child, as in pointers, and the child.
fn child<'a>(key: &str, live: &'a Value) -> (String, Option<&'a Value>) {
    if let Some(name) = key.strip_prefix("f:") {
        return (name.to_owned(), live.get(name));
    }
    let tree = json!({key: {}});
    let list = live.as_array().into_iter().flatten();
    let mut found = list
        .enumerate()
        .filter(|(at, value)| element(&tree, *at, value).is_some());
    match found.next() {
        Some((at, value)) => (at.to_string(), Some(value)),
        None => (String::new(), None),
    }
}

/// Removes every map from a tree if only the map itself is owned, and none of its fields.
fn pruned(tree: Value) -> Option<Value> {
    let Value::Object(map) = tree else {
        return Some(tree);
    };
    if map.is_empty() {
        return Some(Value::Object(map));
    }
    let below = |(key, tree): (String, Value)| {
        let tree = pruned(tree)?;
        // An element of a list can be owned without any of its fields, so it stays. A map without fields is dropped.
        let bare = key.starts_with("f:") && is_bare(&tree);
        (!bare).then_some((key, tree))
    };
    let map: Map<String, Value> = map.into_iter().filter_map(below).collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

/// Returns true if only the map itself is owned, and none of its fields.
fn is_bare(tree: &Value) -> bool {
    tree.as_object()
        .is_some_and(|map| map.len() == 1 && map.contains_key("."))
}

fn remove(object: &mut Value, fields: &Value) {
    let Some(fields) = fields.as_object() else {
        return;
    };
    match object {
        Value::Object(map) => {
            for (key, below) in fields {
                let Some(name) = key.strip_prefix("f:") else {
                    continue;
                };
                let Some(child) = map.get_mut(name) else {
                    continue;
                };
                let whole = below.as_object().is_none_or(Map::is_empty);
                if !whole {
                    remove(child, below);
                }
                let empty = child.as_object().is_some_and(Map::is_empty)
                    || child.as_array().is_some_and(Vec::is_empty);
                if whole || empty {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) => {
            let tree = Value::Object(fields.clone());
            let mut at = 0;
            list.retain_mut(|value| {
                let below = element(&tree, at, value).cloned();
                at += 1;
                let Some(below) = below else { return true };
                let whole = below.as_object().is_none_or(Map::is_empty) || below.get(".").is_some();
                if !whole {
                    remove(value, &below);
                }
                !whole
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
