//! When one object is tried again. An object whose request failed is retried with exponential back-off. An object
//! whose changes are repeatedly undone is corrected with pauses that double until that stops.
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

/// The shortest time between two attempts, except after a commit.
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

    /// Schedules the next attempt now. Called when a person has changed the object or approved the request.
    pub fn now(&mut self) {
        self.due = self.last;
    }
}

/// How many times an object is corrected immediately, before there are pauses. A person may change it several
/// times in a row.
const AT_ONCE: u32 = 3;
/// How long an object must stay unchanged until a fight is over, as a multiple of the first pause. This is the
/// minimum.
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

    /// Returns true if the fight should be reported, because the object was changed more often than it is
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSES: Pauses = Pauses {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(300),
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_fails_is_tried_with_back_off_and_hastened_no_sooner_than_the_first_pause() {
        let start = Instant::now();
        let mut failing = Failing::again(None, start, PAUSES, 1.0);
        assert_eq!(failing.due(), start + seconds(1));
        for pause in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            failing = Failing::again(Some(failing), start, PAUSES, 1.0);
            assert_eq!(failing.due(), start + seconds(pause));
        }
        failing.hasten();
        assert_eq!(failing.due(), start + seconds(1));
        failing.soon(start);
        assert_eq!(failing.due(), start + AFTER_COMMIT);
        failing.soon(start + seconds(1));
        assert_eq!(failing.due(), start + AFTER_COMMIT);
        failing.now();
        assert_eq!(failing.due(), start);
    }

    #[test]
    fn a_fight_is_corrected_at_once_three_times_and_then_with_pauses_that_double() {
        let mut now = Instant::now();
        let mut fight = Fight::undone(None, now, PAUSES);
        let mut waited = Vec::new();
        for _ in 0..14 {
            assert_eq!(Fight::undone(Some(fight), now, PAUSES), fight);
            waited.push(fight.due(PAUSES).duration_since(now).as_secs());
            now = fight.due(PAUSES);
            fight.corrected(now);
            fight = Fight::undone(Some(fight), now, PAUSES);
        }
        assert_eq!(
            waited,
            [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        );
        assert!(fight.is_serious());
    }

    #[test]
    fn a_fight_is_over_when_nobody_undoes_it_for_long_enough() {
        let start = Instant::now();
        let mut fight = Fight::undone(None, start, PAUSES);
        fight.corrected(start);
        let again = Fight::undone(Some(fight), start + seconds(59), PAUSES);
        assert_eq!(again.times, 2);
        let later = Fight::undone(Some(fight), start + seconds(60), PAUSES);
        assert_eq!((later.times, later.since), (1, start + seconds(60)));
    }

    proptest! {
        #[test]
        fn pauses_never_shrink_and_never_pass_the_longest(times in 1..200_u32) {
            let start = Instant::now();
            let at = |times| Fight { times, since: start, corrected: start, undone: true };
            prop_assert!(at(times).due(PAUSES) <= at(times + 1).due(PAUSES));
            prop_assert!(at(times).due(PAUSES) <= start + PAUSES.longest);
            prop_assert!(at(times).calm_at(PAUSES) > at(times).due(PAUSES));
        }
    }
}
