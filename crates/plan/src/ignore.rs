//! Ignored fields, which other managers may set. If another manager owns such a field, the field is removed from the
//! applied object; otherwise it is sent with its live value. So Muster neither overwrites nor removes it.

use muster_model::{bundle::ObjectRef, policy::IgnoreRule};
use serde_json::Value;

use crate::fields::{counterpart, element, field, is_leaf, managers};

/// The fields that are ignored in every fleet, because CA injectors write them.
const BUILT_IN: [(&str, &str, &str); 4] = [
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "/webhooks/*/clientConfig/caBundle",
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "/webhooks/*/clientConfig/caBundle",
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "/spec/conversion/webhook/clientConfig/caBundle",
    ),
    ("apiregistration.k8s.io", "APIService", "/spec/caBundle"),
];

/// The field that an autoscaler sets on the objects that it scales.
pub const REPLICAS: &str = "/spec/replicas";

/// Returns the JSON pointers of the fields that are ignored in one object. `scaled` is true if an autoscaler scales
/// the object.
#[must_use]
pub fn ignored<'a>(id: &ObjectRef, rules: &'a [IgnoreRule], scaled: bool) -> Vec<&'a str> {
    let is = |desired: &Option<String>, is: &str| desired.as_deref().is_none_or(|w| w == is);
    let built_in = BUILT_IN
        .iter()
        .filter(|(group, kind, _)| *group == id.gvk.group && *kind == id.gvk.kind)
        .map(|(_, _, pointer)| *pointer);
    let own = rules
        .iter()
        .filter(|rule| {
            is(&rule.group, &id.gvk.group)
                && is(&rule.kind, &id.gvk.kind)
                && is(&rule.name, &id.name)
        })
        .flat_map(|rule| rule.fields.iter().map(String::as_str));
    built_in
        .chain(scaled.then_some(REPLICAS))
        .chain(own)
        .collect()
}

/// Removes the ignored fields from the desired object if another manager owns them, and sets them to their live
/// values otherwise. Returns true if that changed anything.
pub fn settle(desired: &mut Value, live: &Value, pointers: &[&str]) -> bool {
    let others: Vec<&Value> = managers(live)
        .filter(|manager| !manager.is_own())
        .map(|manager| manager.fields)
        .collect();
    let mut changed = false;
    for pointer in pointers {
        let tokens: Vec<String> = pointer
            .split('/')
            .skip(1)
            .map(|token| token.replace("~1", "/").replace("~0", "~"))
            .collect();
        let here = Place {
            live: Some(live),
            others: others.clone(),
            owned: false,
        };
        changed |= visit(desired, &here, &tokens) != Verdict::Stays;
    }
    changed
}

/// A place in the live object, with the field trees of its other managers at that place.
struct Place<'a> {
    live: Option<&'a Value>,
    others: Vec<&'a Value>,
    /// True if another manager owns everything from this place down as a whole.
    owned: bool,
}

/// What happens to the visited place.
#[derive(PartialEq, Eq)]
enum Verdict {
    Stays,
    /// The value, or something below it, was changed.
    Changed,
    Goes,
}

fn visit(desired: &mut Value, here: &Place<'_>, tokens: &[String]) -> Verdict {
    let Some((token, rest)) = tokens.split_first() else {
        if here.owned || !here.others.is_empty() {
            return Verdict::Goes;
        }
        return match here.live {
            Some(live) if live != desired => {
                *desired = live.clone();
                Verdict::Changed
            }
            _ => Verdict::Stays,
        };
    };
    let owned = here.owned || here.others.iter().any(|tree| is_leaf(tree));
    let mut changed = false;
    match desired {
        Value::Object(map) => {
            let names: Vec<String> = match token.as_str() {
                "*" => map.keys().cloned().collect(),
                name => vec![name.to_owned()],
            };
            for name in names {
                let Some(child) = map.get_mut(&name) else {
                    continue;
                };
                let below = Place {
                    live: here.live.and_then(|live| live.get(&name)),
                    others: here
                        .others
                        .iter()
                        .filter_map(|tree| field(tree, &name))
                        .collect(),
                    owned,
                };
                match visit(child, &below, rest) {
                    Verdict::Stays => {}
                    Verdict::Changed => changed = true,
                    Verdict::Goes => {
                        map.remove(&name);
                        changed = true;
                    }
                }
            }
        }
        Value::Array(list) => {
            let mut index = 0;
            let only: Option<usize> = token.parse().ok();
            list.retain_mut(|child| {
                let at = index;
                index += 1;
                if token != "*" && only != Some(at) {
                    return true;
                }
                let live = here
                    .live
                    .and_then(|l| counterpart(&here.others, child, at, l));
                let below = Place {
                    live,
                    others: here
                        .others
                        .iter()
                        .filter_map(|tree| element(tree, at, child))
                        .collect(),
                    owned,
                };
                let verdict = visit(child, &below, rest);
                changed |= verdict != Verdict::Stays;
                verdict != Verdict::Goes
            });
        }
        _ => {}
    }
    if changed {
        Verdict::Changed
    } else {
        Verdict::Stays
    }
}

#[cfg(test)]
mod tests;
