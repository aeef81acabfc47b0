//! The evidence in an object's status, and the assessment that results from it.

use serde_json::{Map, Value};

use super::super::{Assessment, Condition, Health, NOT_SEEN, SILENT};

/// One piece of evidence, with its place in the status.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    Condition(Condition<'a>),
    /// A word in a field of the status, or of a part of it.
    Word {
        field: &'a str,
        word: &'a str,
        of: &'a Map<String, Value>,
    },
    /// A number in a field that usually holds a word, with the reason next to it.
    Code(&'a str, i64, &'a str),
    /// An error's text.
    Error(&'a str),
    /// A field that is true or false.
    Flag(&'a str, bool),
    Count {
        field: &'a str,
        have: i64,
        want: i64,
    },
}

impl Said<'_> {
    fn message(self) -> String {
        match self {
            Self::Condition(condition) => condition.said(),
            Self::Word { field, word, of } => {
                const WHY: [&str; 6] = [
                    "message",
                    "reason",
                    "phaseReason",
                    "error",
                    "errorMessage",
                    "errorDescription",
                ];
                match WHY.into_iter().find_map(|key| lines(of.get(key)?)) {
                    Some(why) => format!("{field} is {word}: {why}"),
                    None => format!("{field} is {word}"),
                }
            }
            Self::Code(field, code, why) => format!("{field} is {code}: {why}"),
            Self::Error(text) => text.to_owned(),
            Self::Flag(field, value) => format!("{field} is {value}"),
            Self::Count { field, have, want } => format!("{field} is {have} of {want}"),
        }
    }
}

/// Reads a string, or joins a list of strings.
fn lines(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => {
            let lines: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
            lines.join("; ")
        }
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// The evidence in an object. For each sort of evidence, only the first piece is stored.
#[derive(Debug, Default)]
pub(super) struct Evidence<'a> {
    /// True if objects of this kind run to completion.
    pub(super) runs_to_an_end: bool,
    /// True if the object is scaled to zero.
    pub(super) none_wanted: bool,
    pub(super) bad: Option<Said<'a>>,
    /// A word that says that the thing which the object describes does not exist.
    pub(super) missing: Option<Said<'a>>,
    pub(super) stopped: Option<Said<'a>>,
    pub(super) moving: Option<Said<'a>>,
    /// True if something says that the whole object is healthy.
    pub(super) good: bool,
    /// A condition that says that an intermediate stage was reached.
    pub(super) stage: Option<Condition<'a>>,
    /// The text of an error, which may be outdated.
    pub(super) error: Option<Said<'a>>,
    /// A failure of a part. It counts only if nothing says that the whole object is healthy or progressing.
    pub(super) bad_part: Option<Said<'a>>,
    /// A part that was stopped on purpose. It counts only if the whole object is progressing.
    pub(super) stopped_part: Option<Said<'a>>,
    pub(super) moving_part: Option<Said<'a>>,
    pub(super) good_part: bool,
    /// A condition with an unknown type that is not true.
    pub(super) not_true: Option<Condition<'a>>,
    /// True if a condition with an unknown type is true.
    pub(super) is_true: bool,
    /// An unknown word.
    pub(super) unclear: Option<Said<'a>>,
    /// True if the state is empty or `unknown`.
    pub(super) unknown: bool,
    /// True if a condition is about an older generation.
    pub(super) outdated: bool,
    /// True if a condition is about the newest generation, or does not name one.
    pub(super) current: bool,
}

impl Evidence<'_> {
    pub(super) fn weigh(self, status: &Map<String, Value>) -> Assessment {
        if let Some(said) = self.bad {
            return Assessment::degraded(said.message());
        }
        if let Some(said) = self.missing {
            return Assessment::new(Health::Missing, said.message());
        }
        if let Some(said) = self.stopped {
            return Assessment::suspended(said.message());
        }
        if self.outdated && !self.current {
            return Assessment::progressing(NOT_SEEN);
        }
        if let Some(said) = self.error.filter(|_| !self.good || self.moving.is_some()) {
            return Assessment::degraded(said.message());
        }
        if let Some(said) = self.stopped_part.filter(|_| self.moving.is_some()) {
            return Assessment::suspended(said.message());
        }
        if let Some(said) = self.moving {
            return Assessment::progressing(said.message());
        }
        if self.good {
            return Assessment::HEALTHY;
        }
        if let Some(said) = self.bad_part {
            return Assessment::degraded(said.message());
        }
        if let Some(said) = self.moving_part {
            return Assessment::progressing(said.message());
        }
        if let Some(condition) = self.not_true {
            return match condition.is_false() {
                true => Assessment::progressing(condition.said()),
                false => Assessment::new(Health::Unknown, condition.said()),
            };
        }
        if let Some(stage) = self.stage {
            return Assessment::progressing(format!("it is {}, but not ready yet", stage.kind));
        }
        if self.good_part {
            return Assessment::HEALTHY;
        }
        if self.unknown {
            return Assessment::new(Health::Unknown, "its controller reports an unknown state");
        }
        if let Some(said) = self.unclear {
            return Assessment::progressing(said.message());
        }
        if status.is_empty() {
            return Assessment::progressing(SILENT);
        }
        let conditions = status.get("conditions").and_then(Value::as_array);
        if self.is_true || conditions.is_some() {
            return Assessment::progressing("its controller has not reported it as ready yet");
        }
        Assessment::HEALTHY
    }
}

pub(super) fn set<'a>(place: &mut Option<Said<'a>>, said: Said<'a>) {
    place.get_or_insert(said);
}
