//! What the evaluation of CEL expressions over objects needs.

use std::collections::HashMap;

use serde_json::Value;

/// The sizes of an object's largest parts, which determine the cost of loops.
#[derive(Debug, Default)]
pub(crate) struct Longest {
    /// The largest number of elements of a list or fields of a map.
    pub(crate) list: usize,
    /// The largest number of bytes of a string.
    pub(crate) text: usize,
}

impl Longest {
    /// Takes the sizes of this value into account.
    pub(crate) fn look(&mut self, value: &Value) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => self.text = self.text.max(text.len()),
            Value::Array(items) => {
                self.list = self.list.max(items.len());
                items.iter().for_each(|item| self.look(item));
            }
            Value::Object(fields) => {
                self.list = self.list.max(fields.len());
                let fields = fields.iter().filter(|(key, _)| *key != "managedFields");
                fields.for_each(|(_, value)| self.look(value));
            }
        }
    }
}

/// Converts a JSON value for use in expressions, without `managedFields`.
pub(crate) fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => cel::Value::Int(number),
            (None, Some(number)) => cel::Value::Float(number),
            (None, None) => cel::Value::Null,
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_cel).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(key, _)| *key != "managedFields");
            fields
                .map(|(key, value)| (key.clone(), to_cel(value)))
                .collect::<HashMap<_, _>>()
                .into()
        }
    }
}
