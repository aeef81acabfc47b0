//! Fields that block a change although Git does not have them.
//!
//! In a union, only one of several fields may be set: `rollingUpdate` is valid with one type of strategy only, a
//! volume has one source, a probe one handler. If Git switches to another member, the defaults that the API server
//! set for the first one stay, because no manager owns them. The API server then rejects the two together.

use serde_json::{Map, Value, json};

use crate::{
    fields::{Manager, element, element_key, field, guarded, managers, union, without},
    immutable::Cause,
    people::{Step, below, is_persons, split, steps},
};

/// Makes Muster the owner of fields that the API server rejects and that Git does not have, so that the next apply
/// removes them. A field that a controller owns is not taken, unless it is in `ignored` (JSON pointers).
///
/// If the API server rejects a field that Git has, Muster instead takes those fields next to it whose values are
/// maps and that Git does not have, because the API server does not say which member of a union has to go.
///
/// Returns a JSON patch (RFC 6902) that is valid only for this version of the object, or `None` if there is no
/// such field.
#[must_use]
pub fn clear(
    desired: &Value,
    live: &Value,
    causes: &[Cause<'_>],
    ignored: &[&str],
) -> Option<Value> {
    let own = managers(live).find(Manager::is_own)?;
    let others = managers(live).filter(|m| !m.is_own() && !is_persons(m.name));
    let place = Place {
        live,
        own: Some(own.fields),
        others: others.map(|manager| manager.fields).collect(),
        ignored: ignored
            .iter()
            .map(|pointer| steps(pointer, false))
            .collect(),
    };
    let paths = causes.iter().filter_map(|cause| parse(cause.field));
    let cleared = paths.filter_map(|path| visit(desired, &place, &path));
    let cleared = cleared.reduce(|all, fields| union(&all, &fields))?;
    let fields = union(own.fields, &cleared);
    let mut patch = Vec::new();
    // Start at the end, so that removing an entry does not change the index of an entry that comes later in the patch.
    let mut all: Vec<Manager<'_>> = managers(live)
        .filter(|m| m.subresource.is_empty())
        .collect();
    all.reverse();
    for manager in all {
        let path = format!("/metadata/managedFields/{}", manager.index);
        let left = if manager.is_own() {
            Some(fields.clone())
        } else {
            without(manager.fields, &cleared)
        };
        match left {
            None => patch.push(json!({"op": "remove", "path": path})),
            Some(left) if left == *manager.fields => {}
            Some(left) => patch
                .push(json!({"op": "replace", "path": format!("{path}/fieldsV1"), "value": left})),
        }
    }
    guarded(live, patch)
}

/// A step into an object.
#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Name(String),
    Index(usize),
}

/// Parses a field as the API server names it, such as `spec.ports[0].nodePort`. Returns `None` for fields that must
/// not be removed: top-level fields, and fields that an app does not control.
fn parse(field: &str) -> Option<Vec<Segment>> {
    let mut path = Vec::new();
    for part in field.split('.') {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        path.push(Segment::Name(name.to_owned()));
        while let Some(inside) = rest.strip_prefix('[') {
            let (key, after) = inside.split_once(']')?;
            path.push(match key.parse() {
                Ok(index) => Segment::Index(index),
                Err(_) => Segment::Name(key.to_owned()),
            });
            rest = after;
        }
    }
    let top = match path.first() {
        Some(Segment::Name(name)) => name.as_str(),
        _ => return None,
    };
    let fixed = matches!(top, "" | "apiVersion" | "kind" | "metadata" | "status");
    (path.len() > 1 && !fixed).then_some(path)
}

/// A place in the live object, with the fields that Muster and others own there and the fields ignored there.
struct Place<'a> {
    live: &'a Value,
    own: Option<&'a Value>,
    others: Vec<&'a Value>,
    ignored: Vec<Vec<Step>>,
}

impl<'a> Place<'a> {
    fn child(&self, name: &str) -> Option<Self> {
        Some(Self {
            live: self.live.get(name)?,
            own: self.own.and_then(|tree| field(tree, name)),
            others: self
                .others
                .iter()
                .filter_map(|tree| field(tree, name))
                .collect(),
            ignored: below(&self.ignored, name),
        })
    }

    fn element(&self, index: usize) -> Option<Self> {
        let value: &'a Value = self.live.get(index)?;
        let others = self.others.iter();
        Some(Self {
            live: value,
            own: self.own.and_then(|tree| element(tree, index, value)),
            others: others
                .filter_map(|tree| element(tree, index, value))
                .collect(),
            ignored: below(&self.ignored, &index.to_string()),
        })
    }

    /// Returns the fields below a name; `None` if another manager owns one that is not ignored.
    fn free(&self, name: &str) -> Option<Value> {
        let there = self.child(name)?;
        let counts = |tree: &&Value| {
            split(tree, Some(there.live), &there.ignored)
                .taken
                .is_some()
        };
        let free = !there.live.is_null() && !there.others.iter().any(counts);
        free.then(|| json!({format!("f:{name}"): fields_of(there.live)}))
    }
}

/// Returns the tree of all fields of a value.
fn fields_of(value: &Value) -> Value {
    let mut fields = Map::new();
    if let Value::Object(map) = value {
        let below = map
            .iter()
            .map(|(name, value)| (format!("f:{name}"), fields_of(value)));
        fields.extend(below);
    }
    if !fields.is_empty() {
        fields.insert(".".to_owned(), json!({}));
    }
    Value::Object(fields)
}

/// Returns the fields to clear for a rejected path.
fn visit(desired: &Value, here: &Place<'_>, path: &[Segment]) -> Option<Value> {
    match path {
        [] => None,
        [Segment::Index(index), rest @ ..] => {
            let there = here.element(*index)?;
            let list = desired.as_array()?;
            // Other managers may have added elements, so indexes can differ from those in Git.
            let named = there.live.get("name");
            let child = match named {
                Some(_) => list.iter().find(|value| value.get("name") == named),
                None => list.get(*index),
            };
            let key = element_key(here.own?, *index, there.live)?;
            let fields = visit(child?, &there, rest)?;
            Some(json!({key: fields}))
        }
        [Segment::Name(name), rest @ ..] => {
            let map = desired.as_object()?;
            let has = |name: &str| map.get(name).is_some_and(|value| !value.is_null());
            if has(name) && !rest.is_empty() {
                let fields = visit(&map[name], &here.child(name)?, rest)?;
                return Some(json!({format!("f:{name}"): fields}));
            }
            if !has(name) && here.live.get(name).is_some() {
                return here.free(name);
            }
            let siblings = here.live.as_object()?.iter();
            let siblings = siblings.filter(|(name, value)| value.is_object() && !has(name));
            let fields = siblings.filter_map(|(name, _)| here.free(name));
            fields.reduce(|all, fields| union(&all, &fields))
        }
    }
}

#[cfg(test)]
mod tests;
