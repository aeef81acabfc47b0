//! Exponential back-off with jitter for retries.

use std::time::Duration;

use rand::{Rng, RngExt};

/// An exponential back-off with full jitter. Each delay is drawn evenly between the base and a ceiling that doubles
/// with every failure, up to a cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Creates a back-off with delays from `base` up to `cap`. The first delay is between `base` and twice `base`.
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Self {
        let cap = cap.max(base);
        Self {
            base,
            cap,
            ceiling: base,
        }
    }

    /// Returns the delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        self.draw(&mut rand::rng())
    }

    /// Resets the delays to the start. Call this once the operation has worked for some time.
    pub fn reset(&mut self) {
        self.ceiling = self.base;
    }

    fn draw(&mut self, rng: &mut impl Rng) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap);
        rng.random_range(self.base..=self.ceiling)
    }
}

#[cfg(test)]
mod tests;
