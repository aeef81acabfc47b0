//! Field-by-field differences between a live object and its desired state, formatted for people.

use std::{collections::BTreeMap, fmt};

use muster_model::bundle::ObjectRef;
use serde_json::{Map, Value};

/// Fields that the API server or controllers write; they are not compared.
const NOT_COMPARED: [&str; 6] = [
    "/metadata/managedFields",
    "/metadata/resourceVersion",
    "/metadata/generation",
    "/metadata/uid",
    "/metadata/creationTimestamp",
    "/status",
];

/// How many changes are shown.
const SHOWN: usize = 8;
/// How many characters of a value are shown.
const LONGEST_VALUE: usize = 80;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path of the field, such as `.spec.containers[name="web"].image`.
    pub path: String,
    /// The live value; `None` if the live object does not have the field.
    pub live: Option<Value>,
    /// The desired value; `None` if the field should not exist.
    pub desired: Option<Value>,
}

/// All fields that differ. The values of a Secret are not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The changed fields, in the order of the object's fields.
    pub changes: Vec<Change>,
    secret: bool,
}

impl Difference {
    /// Compares a live object with the result that the API server would produce for the desired state.
    #[must_use]
    pub fn between(id: &ObjectRef, live: &Value, desired: &Value) -> Self {
        let mut changes = Vec::new();
        compare(&mut String::new(), "", live, desired, &mut changes);
        Self {
            changes,
            secret: id.gvk.group.is_empty() && id.gvk.kind == "Secret",
        }
    }

    /// Returns true if no field differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| match value {
            None => "(none)".to_owned(),
            Some(_) if self.secret => "(hidden)".to_owned(),
            Some(value) => shortened(&value.to_string()),
        };
        for (index, change) in self.changes.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let (live, desired) = (show(&change.live), show(&change.desired));
            write!(
                f,
                "{separator}{} is {live}, should be {desired}",
                change.path
            )?;
        }
        match self.changes.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn compare(path: &mut String, pointer: &str, live: &Value, desired: &Value, to: &mut Vec<Change>) {
    if live == desired || NOT_COMPARED.contains(&pointer) {
        return;
    }
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            maps(path, pointer, live, desired, to);
        }
        (Value::Array(live), Value::Array(desired)) => lists(path, live, desired, to),
        _ => to.push(Change {
            path: path.clone(),
            live: Some(live.clone()),
            desired: Some(desired.clone()),
        }),
    }
}

fn maps(
    path: &mut String,
    pointer: &str,
    live: &Map<String, Value>,
    desired: &Map<String, Value>,
    to: &mut Vec<Change>,
) {
    let mut names: Vec<&String> = live.keys().chain(desired.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        // `NOT_COMPARED` has pointers of at most two levels.
        let pointer = if pointer.len() < "/metadata/".len() {
            format!("{pointer}/{name}")
        } else {
            pointer.to_owned()
        };
        let plain = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let step = if plain {
            format!(".{name}")
        } else {
            format!("[{name:?}]")
        };
        inside(path, &step, &pointer, live.get(name), desired.get(name), to);
    }
}

/// Compares two lists that are not equal. Elements are compared by name if the names are unique in each list, and
/// by index otherwise.
fn lists(path: &mut String, live: &[Value], desired: &[Value], to: &mut Vec<Change>) {
    let (Some(live_by_name), Some(desired_by_name)) = (by_name(live), by_name(desired)) else {
        for index in 0..live.len().max(desired.len()) {
            let step = format!("[{index}]");
            inside(path, &step, "-", live.get(index), desired.get(index), to);
        }
        return;
    };
    if live_by_name == desired_by_name {
        // Only the order differs.
        to.push(Change {
            path: path.clone(),
            live: Some(Value::from(live)),
            desired: Some(Value::from(desired)),
        });
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for name in live.iter().chain(desired).filter_map(name_of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let step = format!("[name={name:?}]");
        let (live, desired) = (live_by_name.get(name), desired_by_name.get(name));
        inside(path, &step, "-", live.copied(), desired.copied(), to);
    }
}

fn name_of(element: &Value) -> Option<&str> {
    element["name"].as_str()
}

/// Returns the elements of a list by their names; `None` if an element has no name, or two have the same.
fn by_name(list: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let mut named = BTreeMap::new();
    for element in list {
        if named.insert(name_of(element)?, element).is_some() {
            return None;
        }
    }
    Some(named)
}

fn inside(
    path: &mut String,
    step: &str,
    pointer: &str,
    live: Option<&Value>,
    desired: Option<&Value>,
    to: &mut Vec<Change>,
) {
    let length = path.len();
    path.push_str(step);
    match (live, desired) {
        (Some(live), Some(desired)) => compare(path, pointer, live, desired, to),
        (None, None) => {}
        _ if NOT_COMPARED.contains(&pointer) => {}
        (live, desired) => to.push(Change {
            path: path.clone(),
            live: live.cloned(),
            desired: desired.cloned(),
        }),
    }
    path.truncate(length);
}

#[cfg(test)]
mod tests;
