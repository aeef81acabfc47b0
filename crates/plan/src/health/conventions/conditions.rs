//! Conditions: which way their types point, and what their reasons and messages mean.

use serde_json::{Map, Value};

use super::{
    super::{
        Condition, conditions_of,
        words::{Tone, ends_with, is_one_of, parts, starts_with, tone},
    },
    evidence::{Evidence, Said, set},
};

/// How much of a message is read for what it means, in bytes.
const BEGINNING: usize = 160;

impl<'a> Evidence<'a> {
    pub(super) fn conditions(&mut self, status: &'a Map<String, Value>, generation: Option<i64>) {
        for condition in status.get("conditions").into_iter().flat_map(conditions_of) {
            self.current(condition, generation);
        }
        // Of each parent, listener, ancestor or whatever else there are several of.
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

    /// A condition that should be true and isn't.
    fn lacking(&mut self, condition: Condition<'a>, reason: Option<Tone>) {
        let said = Said::Condition(condition);
        let kind = condition.kind;
        // What nobody knows yet is bad only where something failed.
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
            // The reason only repeats that it isn't; the message of a condition on the whole may say why.
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

/// What a message means, going by its beginning.
fn meaning(message: &str) -> Option<Tone> {
    let end = (0..=BEGINNING.min(message.len()))
        .rev()
        .find(|end| message.is_char_boundary(*end))?;
    tone(&message[..end])
}

/// Whether a part of a word says that something failed.
fn fails(part: &str) -> bool {
    ["cannot", "err", "fail", "unable"]
        .iter()
        .any(|begin| starts_with(part, begin))
}

/// Which way a condition points where it is true.
fn polarity(kind: &str) -> Option<Tone> {
    // Those of the controllers for AWS, for errors that will be tried again and that won't.
    match parts(kind).last() {
        Some("Recoverable" | "Terminal") => Some(Tone::Bad),
        _ => tone(kind),
    }
}

/// Conditions that say that something was done or is possible, whatever it is: `Adopted`, `Reachable`.
fn is_achieved(kind: &str) -> bool {
    ends_with(kind, "ed") || ends_with(kind, "able")
}

/// Conditions that are true long before all is done.
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

/// Conditions that may well be false where all is well.
fn is_optional(kind: &str) -> bool {
    is_one_of(kind, &["Active", "Running", "Enabled"])
}

/// Conditions that are false only where somebody refused something.
fn is_refused(kind: &str) -> bool {
    is_one_of(
        kind,
        &["Accepted", "Admitted", "Valid", "Synced", "ResolvedRefs"],
    )
}
