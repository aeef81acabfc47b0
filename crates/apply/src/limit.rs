//! The limit on concurrent requests. It grows while a higher limit makes the API server answer more
//! requests a second, and shrinks as soon as the server refuses requests.
//!
//! No existing crate fits. `tower`'s limits are fixed. `governor` counts requests a second, while
//! an API server's priority and fairness counts concurrent requests. `congestion-limiter` shrinks
//! once for each refused request, although a burst of refusals is one signal, and does not know
//! `Retry-After`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// The first limit. Any API server accepts that many requests from one client: it is about a tenth
/// of what a server works on at a time by default (`--max-requests-inflight` and
/// `--max-mutating-requests-inflight`, 600 together).
const FIRST: usize = 64;
/// The number of answers in one measurement, as a multiple of the limit.
const ANSWERS: usize = 4;
/// The factor by which a try raises the limit.
const GROWTH: f64 = 1.5;
/// The factor by which a try must raise the number of answers a second. Otherwise the limit is
/// lowered again.
const GAIN: f64 = 1.1;
/// The number of measurements before a higher limit is tried again.
const PATIENCE: u32 = 32;
/// The longest pause. A longer `Retry-After` is shortened to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an answer, or a missing one, says about the server's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The server has handled the request, whether it accepted it or not.
    Answered,
    /// The server has too many requests. Holds its `Retry-After`, if it sent one.
    TooMany(Option<Duration>),
    /// The request took too long.
    TooSlow,
    /// The result says nothing about load, as when a connection breaks.
    None,
}

/// The algorithm: a limit that follows [`Sign`]s. It does not read the clock.
///
/// Until the first refusal the limit grows while that raises the number of answers a second, and
/// goes back one step when it no longer does. A refusal halves the limit. The limit then grows by
/// one at a time up to just below its value at the refusal. Higher values are tried only rarely.
#[derive(Debug, Clone, PartialEq)]
struct Pace {
    limit: usize,
    /// The upper bound of the limit.
    most: usize,
    /// The value up to which the limit grows by one at a time. A try raises it; a try without
    /// enough gain, or a refusal, lowers it.
    useful: usize,
    /// The number of times that the limit was halved. A refusal is ignored if its request was sent
    /// before the last halving.
    halvings: u64,
    /// The limit and the answers a second before the current try; `None` if `limit` is not a try.
    tried_from: Option<(usize, f64)>,
    /// The number of measurements since the last try.
    settled: u32,
    window: Window,
}

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq)]
struct Window {
    began: Option<Instant>,
    answers: usize,
    /// How many of the answered requests had waited for their turn. The measurement counts only if
    /// most of them had, because otherwise the limit was not reached.
    waited: usize,
}

impl Pace {
    fn new(most: usize) -> Self {
        let most = most.max(1);
        Self {
            limit: FIRST.min(most),
            most,
            useful: FIRST.min(most),
            halvings: 0,
            tried_from: None,
            settled: PATIENCE,
            window: Window::default(),
        }
    }

    /// Records an answer. `waited` says that its request had waited for its turn.
    fn answered(&mut self, now: Instant, waited: bool) {
        let window = &mut self.window;
        let began = *window.began.get_or_insert(now);
        window.answers += 1;
        window.waited += usize::from(waited);
        if window.answers < self.limit * ANSWERS {
            return;
        }
        let seconds = now.saturating_duration_since(began).as_secs_f64();
        let (answers, waited) = (window.answers, window.waited);
        self.window = Window {
            began: Some(now),
            ..Window::default()
        };
        if waited * 2 < answers {
            return;
        }
        self.measured(answers as f64 / seconds.max(1e-6));
    }

    /// Adjusts the limit after a measurement of `rate` answers a second.
    fn measured(&mut self, rate: f64) {
        match self.tried_from.take() {
            Some((before, rate_before)) if rate < rate_before * GAIN => {
                self.useful = before;
                self.limit = before;
                self.settled = 0;
                return;
            }
            Some(_) => {}
            None if self.limit < self.useful => {
                self.limit += 1;
                return;
            }
            None if self.settled < PATIENCE => {
                self.settled += 1;
                return;
            }
            None => {}
        }
        let more = ((self.limit as f64 * GROWTH).ceil() as usize).min(self.most);
        if more > self.limit {
            self.tried_from = Some((self.limit, rate));
            self.limit = more;
            self.useful = more;
        }
    }

    /// Records a refusal of a request that was sent after `halvings` halvings.
    fn refused(&mut self, halvings: u64) {
        if halvings < self.halvings {
            return;
        }
        self.halvings += 1;
        self.useful = (self.limit - 1).max(1);
        self.limit = (self.limit / 2).max(1);
        self.tried_from = None;
        self.settled = 0;
        self.window = Window::default();
    }
}

#[derive(Debug)]
struct State {
    pace: Pace,
    under_way: usize,
    /// The number of slow requests that are under way and no longer count in `under_way`, so that
    /// others can be sent.
    aside: usize,
    /// The time of the last answer to a request that had not made room for others.
    answered: Option<Instant>,
    /// The time until which the server asked clients to send nothing.
    quiet_until: Option<Instant>,
}

impl State {
    fn pause(&mut self, now: Instant, pause: Duration) {
        let until = now + pause.min(LONGEST_PAUSE);
        self.quiet_until = self.quiet_until.max(Some(until));
    }

    /// Starts a request and returns the number of halvings so far. Returns `Err` with the time
    /// until which nothing is sent, or with `None` if all turns are taken.
    fn admit(&mut self, now: Instant) -> Result<u64, Option<Instant>> {
        if let Some(until) = self.quiet_until.filter(|until| *until > now) {
            return Err(Some(until));
        }
        if self.under_way >= self.pace.limit {
            return Err(None);
        }
        self.under_way += 1;
        Ok(self.pace.halvings)
    }
}

/// Gives requests their turns. All clones share one limit.
#[derive(Debug, Clone)]
pub(crate) struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Limiter {
    /// Creates a limiter that allows at least one and at most `most` requests at a time.
    pub(crate) fn new(most: usize) -> Self {
        let state = State {
            pace: Pace::new(most),
            under_way: 0,
            aside: 0,
            answered: None,
            quiet_until: None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let mut waited = false;
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let admitted = self.state().admit(Instant::now());
            match admitted {
                Ok(halvings) => {
                    return Turn {
                        limiter: self,
                        halvings,
                        waited,
                        aside: None,
                    };
                }
                Err(Some(until)) => sleep_until(until).await,
                Err(None) => {
                    waited = true;
                    changed.await;
                }
            }
        }
    }
}

/// The right to send one request. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    limiter: &'a Limiter,
    halvings: u64,
    waited: bool,
    /// When the request made room for another one.
    aside: Option<Instant>,
}

/// The most requests that may be under way after they have made room for others.
const ASIDE: usize = 64;

impl Turn<'_> {
    /// Makes room for another request, because this one takes long. If too many requests have done
    /// so, this one keeps its place.
    pub(crate) fn step_aside(&mut self) {
        let mut state = self.limiter.state();
        if state.aside < ASIDE && self.aside.is_none() {
            state.aside += 1;
            state.under_way -= 1;
            self.aside = Some(Instant::now());
            drop(state);
            self.limiter.0.changed.notify_one();
        }
    }

    /// Ends the turn with the result of the request.
    pub(crate) fn end(self, sign: Sign) {
        let now = Instant::now();
        let mut state = self.limiter.state();
        let sign = match (sign, self.aside) {
            (Sign::Answered, None) => {
                state.answered = Some(now);
                sign
            }
            // The duration of a slow request says nothing about the limit. Its timeout says nothing
            // either if others were answered meanwhile.
            (Sign::Answered, Some(_)) => Sign::None,
            (Sign::TooSlow, Some(aside)) if state.answered > Some(aside) => Sign::None,
            (sign, _) => sign,
        };
        match sign {
            Sign::Answered => state.pace.answered(now, self.waited),
            Sign::TooMany(pause) => {
                state.pace.refused(self.halvings);
                if let Some(pause) = pause {
                    state.pause(now, pause);
                }
            }
            Sign::TooSlow => state.pace.refused(self.halvings),
            Sign::None => {}
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let free = {
            let mut state = self.limiter.state();
            match self.aside {
                Some(_) => state.aside -= 1,
                None => state.under_way -= 1,
            }
            state.pace.limit.saturating_sub(state.under_way)
        };
        // Several turns are free right after the limit has grown.
        match free {
            0 => {}
            1 => self.limiter.0.changed.notify_one(),
            _ => self.limiter.0.changed.notify_waiters(),
        }
    }
}

#[cfg(test)]
mod tests;
