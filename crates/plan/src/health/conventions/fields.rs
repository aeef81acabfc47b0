//! Fields of a status: words, flags, errors and numbers, about the whole object and about its parts.

use serde_json::{Map, Value};

use super::{
    super::{
        integer, text,
        words::{Tone, ends_with, is_one_of, parts, starts_with, tone},
    },
    DEPTH,
    evidence::{Evidence, Said, set},
};

impl<'a> Evidence<'a> {
    pub(super) fn fields(&mut self, status: &'a Map<String, Value>) {
        for (field, value) in status {
            match value {
                Value::String(word) => self.text(field, word, status),
                Value::Bool(value) => self.flag(field, *value),
                Value::Number(code) => self.code(field, code.as_i64(), status),
                _ if is_past(field) || field == "conditions" => {}
                _ if is_error(field) => self.error(value),
                _ => self.part(field, value, DEPTH),
            }
        }
        self.pairs(status, |evidence, said| {
            set(&mut evidence.moving_part, said)
        });
    }

    fn text(&mut self, field: &'a str, word: &'a str, of: &'a Map<String, Value>) {
        let said = Said::Word { field, word, of };
        if is_word(field) {
            match self.tone(word) {
                _ if is_one_of(word, &["notfound"]) => set(&mut self.missing, said),
                Some(Tone::Bad) => set(&mut self.bad, said),
                Some(Tone::Moving | Tone::Lacking) => set(&mut self.moving, said),
                Some(Tone::Stopped) => set(&mut self.stopped, said),
                Some(Tone::Good) => self.good = true,
                None if word.is_empty() || is_one_of(word, &["unknown"]) => self.unknown = true,
                None if warns(word) => set(&mut self.bad, said),
                None => set(&mut self.unclear, said),
            }
        } else if ends_like_a_word(field) && !is_past(field) {
            self.word_of_part(word, said);
        } else if is_one_of(word, &["true", "false"]) {
            self.flag(field, is_one_of(word, &["true"]));
        } else if is_error(field) && !word.is_empty() {
            set(&mut self.error, Said::Error(word));
        } else if let Some(count) = fraction(field, word) {
            set(&mut self.moving, count);
        }
    }

    fn flag(&mut self, field: &'a str, value: bool) {
        const VERDICTS: [&str; 7] = [
            "accepted",
            "healthy",
            "pass",
            "passed",
            "succeeded",
            "success",
            "valid",
        ];
        let said = Said::Flag(field, value);
        let is_reached =
            is_one_of(field, &["available", "ready", "synced"]) || starts_with(field, "readyTo");
        if is_one_of(field, &VERDICTS) || is_reached {
            match value {
                true => self.good = true,
                false if is_reached => set(&mut self.moving, said),
                false => set(&mut self.bad, said),
            }
        } else if is_one_of(field, &["created"]) {
            match value {
                true => self.good_part = true,
                false => set(&mut self.moving, said),
            }
        } else if value && tone(field) == Some(Tone::Stopped) {
            set(&mut self.stopped, said);
        }
    }

    /// Records a number in a field that usually holds a word. It is used only if there is a `reason` next to it.
    fn code(&mut self, field: &'a str, code: Option<i64>, of: &'a Map<String, Value>) {
        if let (true, Some(code)) = (is_word(field), code)
            && let Some(Value::String(why)) = of.get("reason").filter(|why| **why != "")
        {
            set(&mut self.bad_part, Said::Code(field, code, why));
        }
    }

    fn error(&mut self, value: &'a Value) {
        let first = match value {
            Value::Array(errors) => errors.first().unwrap_or(&Value::Null),
            error => error,
        };
        let text = first.as_str().unwrap_or_else(|| text(first, "message"));
        if !text.is_empty() {
            set(&mut self.error, Said::Error(text));
        }
    }

    /// Reads a part of the status that has a state of its own.
    fn part(&mut self, name: &'a str, part: &'a Value, depth: usize) {
        let fields = match part {
            Value::Object(fields) => fields,
            Value::Array(parts) => {
                for part in parts.iter().filter(|part| part.is_object()) {
                    self.part(name, part, depth);
                }
                return;
            }
            _ => return,
        };
        for (field, value) in fields {
            match value {
                Value::String(word) if is_word(field) => {
                    let said = Said::Word {
                        field: name,
                        word,
                        of: fields,
                    };
                    let bad = warns(word) || tone(word) == Some(Tone::Bad);
                    if bad && field == "health" {
                        set(&mut self.bad, said);
                    } else if warns(word) {
                        set(&mut self.bad_part, said);
                    } else {
                        self.word_of_part(word, said);
                    }
                }
                Value::String(word) => {
                    if let Some(count) = fraction(field, word) {
                        set(&mut self.moving_part, count);
                    }
                }
                Value::Number(code) => self.code(field, code.as_i64(), fields),
                Value::Array(_) | Value::Object(_) if is_error(field) => self.error(value),
                Value::Object(_) | Value::Array(_)
                    if depth > 1 && !is_past(field) && field != "conditions" =>
                {
                    self.part(field, value, depth - 1);
                }
                _ => {}
            }
        }
        self.pairs(fields, |evidence, said| {
            set(&mut evidence.moving_part, said)
        });
    }

    /// Returns the tone of a word, for an object of this kind.
    fn tone(&self, word: &str) -> Option<Tone> {
        match tone(word) {
            Some(Tone::Good) if self.runs_to_an_end && is_one_of(word, &["running", "active"]) => {
                Some(Tone::Moving)
            }
            tone => tone,
        }
    }

    fn word_of_part(&mut self, word: &str, said: Said<'a>) {
        match self.tone(word) {
            Some(Tone::Bad) => set(&mut self.bad_part, said),
            Some(Tone::Moving | Tone::Lacking) => set(&mut self.moving_part, said),
            Some(Tone::Stopped) => set(&mut self.stopped_part, said),
            Some(Tone::Good) => self.good_part = true,
            None => {}
        }
    }

    /// Compares pairs of numbers, such as `members` and `readyMembers`, or `expectedNodes` and `availableNodes`.
    fn pairs(
        &mut self,
        fields: &'a Map<String, Value>,
        mut found: impl FnMut(&mut Self, Said<'a>),
    ) {
        for (field, want) in fields
            .iter()
            .filter_map(|(field, want)| Some((field, want.as_i64()?)))
        {
            let of = ["expected", "desired"]
                .into_iter()
                .find_map(|begin| field.strip_prefix(begin));
            let of = of.unwrap_or(field);
            let have = fields.iter().find_map(|(name, have)| {
                let name = ["ready", "available"]
                    .into_iter()
                    .find_map(|begin| name.strip_prefix(begin))?;
                name.eq_ignore_ascii_case(of).then(|| have.as_i64())?
            });
            let is_pair = have.is_some() || (field.starts_with("expected") && want > 0);
            let have = have.unwrap_or_default();
            if is_pair && have < want {
                found(self, Said::Count { field, have, want });
            }
        }
    }

    pub(super) fn replicas(&mut self, spec: &'a Value, status: &'a Map<String, Value>) {
        let number = |field: &str| status.get(field).and_then(integer);
        let Some(want) = spec["replicas"].as_i64().or_else(|| number("replicas")) else {
            return;
        };
        let partition = spec["updateStrategy"]["rollingUpdate"]["partition"]
            .as_i64()
            .filter(|partition| *partition > 0);
        if let (Some(partition), Some(updated)) = (partition, number("updatedReplicas")) {
            let field = "updatedReplicas";
            let said = Said::Count {
                field,
                have: updated,
                want,
            };
            if updated < want - partition {
                set(&mut self.moving, said);
            } else if updated < want {
                set(&mut self.stopped, said);
            }
            return;
        }
        for field in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
            if let Some(have) = number(field).filter(|have| *have < want) {
                set(&mut self.moving, Said::Count { field, have, want });
            }
        }
    }
}

fn warns(word: &str) -> bool {
    parts(word).any(|part| starts_with(part, "warn"))
}

/// Returns true if a field holds a word about the whole object.
fn is_word(field: &str) -> bool {
    let whole = ["current", "health", "lastObserved", "overall", "printable"];
    is_one_of(
        field,
        &[
            "compliant",
            "health",
            "phase",
            "robustness",
            "state",
            "status",
        ],
    ) || (ends_like_a_word(field) && whole.iter().any(|begin| starts_with(field, begin)))
}

fn ends_like_a_word(field: &str) -> bool {
    ["phase", "state", "status", "health"]
        .iter()
        .any(|end| ends_with(field, end))
}

fn is_error(field: &str) -> bool {
    is_one_of(
        field,
        &[
            "error",
            "errors",
            "errorMessage",
            "errorDescription",
            "failureReason",
            "failureMessage",
        ],
    )
}

/// Reads a count such as `1/3`; `None` if it is complete.
fn fraction<'a>(field: &'a str, text: &str) -> Option<Said<'a>> {
    let (have, want) = text.split_once('/')?;
    let (have, want) = (have.trim().parse().ok()?, want.trim().parse().ok()?);
    (have < want).then_some(Said::Count { field, have, want })
}

/// Returns true if a field is about the past.
fn is_past(field: &str) -> bool {
    (starts_with(field, "last") && !starts_with(field, "lastObserved"))
        || starts_with(field, "previous")
        || ends_with(field, "history")
}
