//! When one object is tried again: what failed, with exponential back-off; what somebody else keeps
//! undoing, with pauses that double while that goes on.
//!
//! Each object has its own times, so that one that fails costs the others nothing.

use std::time::{Duration, Instant};

/// The pauses between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The first pause.
    pub first: Duration,
    /// The longest pause; it doubles until then.
    pub longest: Duration,
}

impl Pauses {
    /// The pause after so many attempts, which are counted from one.
    fn after(self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// The least time between two attempts, whatever happens, but for a commit.
pub const SOONEST: Duration = Duration::from_secs(1);

/// So long after a commit what failed in other apps is tried again: what the commit changes goes first.
pub const AFTER_COMMIT: Duration = Duration::from_millis(300);

/// An object whose request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    attempts: u32,
    last: Instant,
    due: Instant,
}

impl Failing {
    /// It failed at `now`. `jitter` stretches the pause, so that objects that failed together are not
    /// tried together: 1.0 leaves it as it is.
    #[must_use]
    pub fn again(before: Option<Self>, now: Instant, pauses: Pauses, jitter: f64) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        Self {
            attempts,
            last: now,
            due: now + pauses.after(attempts).mul_f64(jitter),
        }
    }

    /// When it is tried again.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Something has happened that may let it succeed: it is tried again at once, but never sooner than
    /// [`SOONEST`] after the last attempt.
    pub fn hasten(&mut self) {
        self.due = self.due.min(self.last + SOONEST);
    }

    /// A person has changed something, at `now`, that may let it succeed: it is tried again
    /// [`AFTER_COMMIT`].
    pub fn soon(&mut self, now: Instant) {
        self.due = self.due.min(now + AFTER_COMMIT);
    }

    /// A person has changed or allowed it: it is tried again now.
    pub fn now(&mut self) {
        self.due = self.last;
    }
}

/// So often an object is corrected at once, before there are pauses: a person may change it several
/// times.
const AT_ONCE: u32 = 3;
/// For so many first pauses, at least, nobody must undo it until a fight is over.
const CALM: u32 = 60;

/// An object of which somebody undoes what Muster applies, or which somebody deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fight {
    /// How often it was undone.
    times: u32,
    since: Instant,
    /// When it was last corrected; before the first correction, when it was undone.
    corrected: Instant,
    /// It is undone, and not corrected yet.
    undone: bool,
}

impl Fight {
    /// It was found undone at `now`. Found so again before it was corrected, it counts once.
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

    /// It was corrected at `now`.
    pub fn corrected(&mut self, now: Instant) {
        self.corrected = now;
        self.undone = false;
    }

    /// When it is corrected next.
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

    /// When it is over, unless it is undone before.
    #[must_use]
    pub fn calm_at(&self, pauses: Pauses) -> Instant {
        self.corrected + (self.pause(pauses) * 2).max(pauses.first * CALM)
    }

    /// When something is to be done about it next.
    #[must_use]
    pub fn next(&self, pauses: Pauses) -> Instant {
        if self.undone {
            self.due(pauses)
        } else {
            self.calm_at(pauses)
        }
    }

    /// Whether it is undone and waits to be corrected.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        self.undone
    }

    /// Whether people should know of it: it has been undone more often than is corrected at once.
    #[must_use]
    pub fn is_serious(&self) -> bool {
        self.times > AT_ONCE
    }

    /// How often it was undone, and over how long.
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
