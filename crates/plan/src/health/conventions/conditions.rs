//! Interprets conditions: whether it is good or bad that a condition of some type is true, and what reasons and
//! messages mean.

use serde_json::{Map, Value};

use super::{
    super::{
        Condition, conditions_of,
        words::{Tone, ends_with, is_one_of, parts, starts_with, tone},
    },
    evidence::{Evidence, Said, set},
};

/// How many bytes of a message are searched for known words.
const BEGINNING: usize = 160;

impl<'a> Evidence<'a> {
    pub(super) fn conditions(&mut self, status: &'a Map<String, Value>, generation: Option<i64>) {
        for condition in status.get("conditions").into_iter().flat_map(conditions_of) {
            self.current(condition, generation);
        }
        // Lists of parts, such as parents, listeners or ancestors, have conditions of their own.
        let lists = status.values().filter_map(Value::as_array);
        for condition in lists
            .flatten()
            .filter_map(|part| part.get("conditions"))
            .flat_map(conditions_of)
        {
            self.current(condition, generation);
        }
    }

    fn current(&mut self, condition: Condition<'a>, generation: Option<i64>) {
        match (condition.observed, generation) {
            (Some(observed), Some(generation)) if observed < generation => self.outdated = true,
            _ => {
                self.current = true;
                self.condition(condition);
            }
        }
    }

    fn condition(&mut self, condition: Condition<'a>) {
        let said = Said::Condition(condition);
        let reason = tone(condition.reason);
        let (is_true, is_false) = (condition.is_true(), condition.is_false());
        match polarity(condition.kind) {
            Some(Tone::Lacking) if is_true && reason == Some(Tone::Moving) => {
                set(&mut self.moving, said)
            }
            Some(Tone::Bad | Tone::Lacking) if is_true => set(&mut self.bad, said),
            Some(Tone::Bad | Tone::Lacking) => self.good_part = true,
            Some(Tone::Moving) if is_true && reason == Some(Tone::Good) => self.good = true,
            Some(Tone::Moving) if is_true => set(&mut self.moving, said),
            Some(Tone::Moving) => match reason {
                Some(Tone::Bad) => set(&mut self.bad, said),
                Some(Tone::Stopped) => set(&mut self.stopped, said),
                _ if is_false => self.good_part = true,
                _ if meaning(condition.message) == Some(Tone::Moving) => {
                    set(&mut self.moving, said)
                }
                _ => {}
            },
            Some(Tone::Stopped) if is_true => set(&mut self.stopped, said),
            Some(Tone::Stopped) => {}
            Some(Tone::Good) if is_true && is_stage(condition.kind) => {
                self.stage.get_or_insert(condition);
            }
            Some(Tone::Good) if is_true => self.good = true,
            Some(Tone::Good) => self.lacking(condition, reason),
            None if is_true && is_achieved(condition.kind) => self.good_part = true,
            None if is_true => self.is_true = true,
            None if is_false && reason == Some(Tone::Bad) => set(&mut self.bad, said),
            None => {
                self.not_true.get_or_insert(condition);
            }
        }
    }

    /// Records a condition that should be true but is not.
    fn lacking(&mut self, condition: Condition<'a>, reason: Option<Tone>) {
        let said = Said::Condition(condition);
        let kind = condition.kind;
        // An unknown status is bad only if the reason says that something failed.
        let failed = kind == "Ready" && parts(condition.reason).any(fails);
        if !condition.is_false() && !failed {
            if !is_optional(kind) {
                set(&mut self.moving, said);
            }
            return;
        }
        let message = condition.message;
        let why = match reason {
            _ if parts(message).next().is_some_and(fails) => Some(Tone::Bad),
            Some(Tone::Good) | None => meaning(message),
            // The reason only repeats the status. The message of a condition on the whole object may say why.
            Some(Tone::Lacking) if is_one_of(kind, &["Ready", "Available"]) => {
                reason.max(meaning(message))
            }
            reason => reason,
        };
        match why {
            Some(Tone::Bad) => set(&mut self.bad, said),
            Some(Tone::Stopped) => set(&mut self.stopped, said),
            _ if is_optional(kind) => {}
            _ if self.none_wanted => self.good = true,
            Some(Tone::Moving) => set(&mut self.moving, said),
            _ if condition.is_false() && (ends_with(kind, "Healthy") || is_refused(kind)) => {
                set(&mut self.bad, said);
            }
            Some(Tone::Lacking) => set(&mut self.moving, said),
            None if condition.is_false()
                && kind == "Ready"
                && reason.is_none()
                && !condition.reason.is_empty() =>
            {
                set(&mut self.bad, said);
            }
            _ => set(&mut self.moving, said),
        }
    }
}

/// Returns the tone of the beginning of a message.
fn meaning(message: &str) -> Option<Tone> {
    let end = (0..=BEGINNING.min(message.len()))
        .rev()
        .find(|end| message.is_char_boundary(*end))?;
    tone(&message[..end])
}

/// Returns true if a part of a word says that something failed.
fn fails(part: &str) -> bool {
    ["cannot", "err", "fail", "unable"]
        .iter()
        .any(|begin| starts_with(part, begin))
}

/// Returns the tone that a condition of this type has when it is true.
fn polarity(kind: &str) -> Option<Tone> {
    // AWS controllers (ACK) use these for errors that are retried and errors that are not.
    match parts(kind).last() {
        Some("Recoverable" | "Terminal") => Some(Tone::Bad),
        _ => tone(kind),
    }
}

/// Returns true for conditions that say that something was done or is possible, such as `Adopted` or `Reachable`.
fn is_achieved(kind: &str) -> bool {
    ends_with(kind, "ed") || ends_with(kind, "able")
}

/// Returns true for conditions that become true long before the object is ready.
fn is_stage(kind: &str) -> bool {
    is_one_of(
        kind,
        &[
            "Launched",
            "Registered",
            "Initialized",
            "Scheduled",
            "Running",
        ],
    )
}

/// Returns true for conditions that may be false on a healthy object.
fn is_optional(kind: &str) -> bool {
    is_one_of(kind, &["Active", "Running", "Enabled"])
}

/// Returns true for conditions that are false only if something was rejected.
fn is_refused(kind: &str) -> bool {
    is_one_of(
        kind,
        &["Accepted", "Admitted", "Valid", "Synced", "ResolvedRefs"],
    )
}
