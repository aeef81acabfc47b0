//! When one object is tried again. An object whose request failed is retried with exponential back-off. An object
//! that someone else repeatedly changes is corrected with pauses that double until the changes stop.
//!
//! Each object has its own times, so a failing object does not delay the others.

use std::time::{Duration, Instant};

/// The pauses between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The first pause.
    pub first: Duration,
    /// The longest pause. The pause doubles until it reaches this.
    pub longest: Duration,
}

impl Pauses {
    /// Returns the pause after the given number of attempts, counted from one.
    fn after(self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// The shortest time between two attempts if an event hastens the second one ([`Failing::hasten`]).
pub const SOONEST: Duration = Duration::from_secs(1);

/// How long after a commit the failed objects of other apps are tried again. The objects that the commit changes
/// are sent first.
pub const AFTER_COMMIT: Duration = Duration::from_millis(300);

/// An object whose request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    attempts: u32,
    last: Instant,
    due: Instant,
}

impl Failing {
    /// Records a failure at `now`. The pause is multiplied by `jitter`, so that objects that failed together are
    /// not tried again together.
    #[must_use]
    pub fn again(before: Option<Self>, now: Instant, pauses: Pauses, jitter: f64) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        Self {
            attempts,
            last: now,
            due: now + pauses.after(attempts).mul_f64(jitter),
        }
    }

    /// Returns when the object is tried again.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Schedules the next attempt immediately, but at least [`SOONEST`] after the last one. Called after an event
    /// that may let the request succeed.
    pub fn hasten(&mut self) {
        self.due = self.due.min(self.last + SOONEST);
    }

    /// Schedules the next attempt at most [`AFTER_COMMIT`] after `now`. Called after a commit that may let the request
    /// succeed.
    pub fn soon(&mut self, now: Instant) {
        self.due = self.due.min(now + AFTER_COMMIT);
    }

    /// Schedules the next attempt now. Called after a commit that changes the object's app, and after an approval.
    pub fn now(&mut self) {
        self.due = self.last;
    }
}

/// How many times an object is corrected immediately, before there are pauses. A person may change it several
/// times in a row.
const AT_ONCE: u32 = 3;
/// The minimum time for which an object must stay unchanged until a fight is over, as a multiple of the first pause.
const CALM: u32 = 60;

/// An object whose applied fields are repeatedly changed, or that is repeatedly deleted, by someone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fight {
    /// How many times the object was changed.
    times: u32,
    since: Instant,
    /// When the object was last corrected; before the first correction, when it was first found changed.
    corrected: Instant,
    /// True if the object is changed and not corrected yet.
    undone: bool,
}

impl Fight {
    /// Records that the object was found changed at `now`. Finding it again before it was corrected does not count.
    #[must_use]
    pub fn undone(before: Option<Self>, now: Instant, pauses: Pauses) -> Self {
        match before {
            Some(before) if before.undone => before,
            Some(before) if now < before.calm_at(pauses) => Self {
                times: before.times.saturating_add(1),
                undone: true,
                ..before
            },
            _ => Self {
                times: 1,
                since: now,
                corrected: now,
                undone: true,
            },
        }
    }

    /// Records that the object was corrected at `now`.
    pub fn corrected(&mut self, now: Instant) {
        self.corrected = now;
        self.undone = false;
    }

    /// Returns when the object is corrected next.
    #[must_use]
    pub fn due(&self, pauses: Pauses) -> Instant {
        self.corrected + self.pause(pauses)
    }

    fn pause(&self, pauses: Pauses) -> Duration {
        match self.times.checked_sub(AT_ONCE) {
            None | Some(0) => Duration::ZERO,
            Some(attempts) => pauses.after(attempts),
        }
    }

    /// Returns when the fight is over, unless the object is changed again before.
    #[must_use]
    pub fn calm_at(&self, pauses: Pauses) -> Instant {
        self.corrected + (self.pause(pauses) * 2).max(pauses.first * CALM)
    }

    /// Returns when the fight has to be handled next.
    #[must_use]
    pub fn next(&self, pauses: Pauses) -> Instant {
        if self.undone {
            self.due(pauses)
        } else {
            self.calm_at(pauses)
        }
    }

    /// Returns true if the object is changed and not corrected yet.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        self.undone
    }

    /// Returns true if the fight should be reported, because the object was changed so often that it is no longer
    /// corrected immediately.
    #[must_use]
    pub fn is_serious(&self) -> bool {
        self.times > AT_ONCE
    }

    /// Returns how many times the object was changed, and over what time.
    #[must_use]
    pub fn extent(&self, now: Instant) -> (u32, Duration) {
        (self.times, now.saturating_duration_since(self.since))
    }
}

#[cfg(test)]
mod tests;
