//! Merges layers of values: fleet < region < cluster < app < app in the region < app in the cluster.
//! Maps are merged deeply, lists are replaced, and `null` removes a key.

use serde_json::Value;

use crate::kinds::Values;

fn lay(lower: &mut Values, upper: &Values) {
    for (key, value) in upper {
        match (lower.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => lay(below, above),
            (_, Value::Object(above)) => {
                // Merge into an empty map, so that no `null` of the upper layer remains as a value.
                let mut clean = Values::new();
                lay(&mut clean, above);
                lower.insert(key.clone(), Value::Object(clean));
            }
            (_, Value::Null) => {
                lower.remove(key);
            }
            (_, value) => {
                lower.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Merges the layers, lowest first.
#[must_use]
pub fn layer<'a>(layers: impl IntoIterator<Item = &'a Values>) -> Values {
    let mut result = Values::new();
    for upper in layers {
        lay(&mut result, upper);
    }
    result
}

#[cfg(test)]
mod tests;
