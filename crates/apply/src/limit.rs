//! How many requests are under way at the same time: as many as the API server gains by, fewer as soon
//! as it says that they are too many.
//!
//! No crate on the registries fits: `tower`'s limits are fixed, `governor` counts requests a second
//! (an API server's own measure, in its priority and fairness, is requests at a time), and
//! `congestion-limiter` shrinks once for each refused request, where a burst of refusals is one sign,
//! and knows no `Retry-After`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Where it starts: what any API server takes from one client, a tenth of what it works on at a time by
/// default (`--max-requests-inflight` and `--max-mutating-requests-inflight`, 600 in all).
const FIRST: usize = 64;
/// Answers of one measurement, for each request of the limit.
const ANSWERS: usize = 4;
/// By what share a try of more requests is more, and by what share of answers a second it must gain.
const GROWTH: f64 = 1.5;
const GAIN: f64 = 1.1;
/// Measurements until it is tried again whether more would be faster now.
const PATIENCE: u32 = 32;
/// The longest pause that is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an answer, or its absence, says about load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The server has dealt with it, whatever it thinks of it.
    Answered,
    /// It is too much, for as long as the server said.
    TooMany(Option<Duration>),
    /// It took too long.
    TooSlow,
    /// Nothing can be said, as when a connection breaks.
    None,
}

/// The decision: a limit that follows [`Sign`]s. It knows no clock.
///
/// Until the first refusal it climbs as long as that makes for more answers a second, and stays a step
/// below where it no longer does. A refusal halves it; from there it grows by one, to just below where
/// it was refused, and only rarely tries more.
#[derive(Debug, Clone, PartialEq)]
struct Pace {
    limit: usize,
    /// Never more than this.
    most: usize,
    /// More than this was of no use, or refused, when it was last tried.
    useful: usize,
    /// How often it was halved: a refusal of a request that left before the last halving is no news.
    halvings: u64,
    /// Whether `limit` is a try, and from which limit and answers a second it was made.
    tried_from: Option<(usize, f64)>,
    /// Measurements since the last try.
    settled: u32,
    window: Window,
}

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq)]
struct Window {
    began: Option<Instant>,
    answers: usize,
    /// How many of them had to wait for their turn: only then the limit is what is measured.
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

    /// An answer came to a request that may have `waited` for its turn.
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

    /// So many answers a second is what the limit allows.
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

    /// A request was too much that left after so many halvings.
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
    /// Requests that have made room for others.
    aside: usize,
    /// When a request was answered that made room for nobody.
    answered: Option<Instant>,
    /// The server asked that nothing is sent before.
    quiet_until: Option<Instant>,
}

impl State {
    fn pause(&mut self, now: Instant, pause: Duration) {
        let until = now + pause.min(LONGEST_PAUSE);
        self.quiet_until = self.quiet_until.max(Some(until));
    }

    /// `Err` with the time until which nothing is sent, or `None` where all turns are taken.
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

/// Gives requests their turn. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Limiter {
    /// Never more than `most` requests at a time, and never less than one.
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

/// The right to send one request; it ends with this.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    limiter: &'a Limiter,
    halvings: u64,
    waited: bool,
    /// Since when it has made room for another.
    aside: Option<Instant>,
}

/// So many requests may be under way that have made room for others.
const ASIDE: usize = 64;

impl Turn<'_> {
    /// Makes room for another request, since this one takes long. Where too many do, it keeps its
    /// place.
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

    /// What came of the request.
    pub(crate) fn end(self, sign: Sign) {
        let now = Instant::now();
        let mut state = self.limiter.state();
        let sign = match (sign, self.aside) {
            (Sign::Answered, None) => {
                state.answered = Some(now);
                sign
            }
            // How long a slow one took says nothing about how many requests are too many, nor that it
            // took too long, where others were answered meanwhile.
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
        // More than one is free right after the limit has grown.
        match free {
            0 => {}
            1 => self.limiter.0.changed.notify_one(),
            _ => self.limiter.0.changed.notify_waiters(),
        }
    }
}

#[cfg(test)]
mod tests;
