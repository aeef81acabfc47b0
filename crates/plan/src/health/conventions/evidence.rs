//! What an object says of itself, and what that comes to.

use serde_json::{Map, Value};

use super::super::{Assessment, Condition, Health, NOT_SEEN, SILENT};

/// What was said, and where.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    Condition(Condition<'a>),
    /// A word in a field of the status, or of a part of it.
    Word {
        field: &'a str,
        word: &'a str,
        of: &'a Map<String, Value>,
    },
    /// A number in the place of a word.
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

/// A text, or a list of them.
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

/// All that an object says of itself, the first of each kind.
#[derive(Debug, Default)]
pub(super) struct Evidence<'a> {
    /// Its kind is done one day.
    pub(super) runs_to_an_end: bool,
    /// It is scaled to nothing.
    pub(super) none_wanted: bool,
    pub(super) bad: Option<Said<'a>>,
    /// What it is about is not there.
    pub(super) missing: Option<Said<'a>>,
    pub(super) stopped: Option<Said<'a>>,
    pub(super) moving: Option<Said<'a>>,
    /// It is where it should be.
    pub(super) good: bool,
    /// It got somewhere on the way there.
    pub(super) stage: Option<Condition<'a>>,
    /// An error's text, which may be an old one.
    pub(super) error: Option<Said<'a>>,
    /// The same of its parts, which counts where nothing is said of the whole.
    pub(super) bad_part: Option<Said<'a>>,
    pub(super) stopped_part: Option<Said<'a>>,
    pub(super) moving_part: Option<Said<'a>>,
    pub(super) good_part: bool,
    /// A condition whose name says nothing, and that is not true.
    pub(super) not_true: Option<Condition<'a>>,
    /// One that is.
    pub(super) is_true: bool,
    /// A word that is not understood.
    pub(super) unclear: Option<Said<'a>>,
    /// A word that says that nothing is known.
    pub(super) unknown: bool,
    /// Something was said, but of an older generation.
    pub(super) outdated: bool,
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
            return Assessment::progressing(format!("it is {}, but not further yet", stage.kind));
        }
        if self.good_part {
            return Assessment::HEALTHY;
        }
        if self.unknown {
            return Assessment::new(Health::Unknown, "its controller does not know its state");
        }
        if let Some(said) = self.unclear {
            return Assessment::progressing(said.message());
        }
        if status.is_empty() {
            return Assessment::progressing(SILENT);
        }
        let conditions = status.get("conditions").and_then(Value::as_array);
        if self.is_true || conditions.is_some() {
            return Assessment::progressing("its controller has not said yet that it is ready");
        }
        Assessment::HEALTHY
    }
}

pub(super) fn set<'a>(place: &mut Option<Said<'a>>, said: Said<'a>) {
    place.get_or_insert(said);
}
