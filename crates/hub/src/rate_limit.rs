//! The rate limit of an agent's stream.

use std::time::{Duration, Instant};

/// The number of messages that a stream may send in a burst.
const BURST: f64 = 400.0;
/// The number of messages that a stream may send each second after that.
const A_SECOND: f64 = 50.0;
/// The number of bytes that count as one more message.
const BYTES: f64 = 65_536.0;

/// A token bucket over messages and their bytes.
#[derive(Debug)]
pub(crate) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        Self {
            left: BURST,
            at: Instant::now(),
        }
    }

    /// Takes the tokens of a message of this size. Returns true if the message is within the limit.
    #[must_use]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let filled = now.duration_since(self.at).as_secs_f64() * A_SECOND;
        self.at = now;
        self.left = (self.left + filled).min(BURST) - 1.0 - bytes as f64 / BYTES;
        self.left >= 0.0
    }

    /// Returns true if the stream has exceeded its limit.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.left < 0.0
    }

    /// Returns the time until a whole burst is allowed again, if nothing more is sent.
    #[must_use]
    pub(crate) fn until_full(&self) -> Duration {
        self.until(BURST)
    }

    /// Returns the time during which nothing more should be read. HTTP/2's flow control then slows the sender down.
    #[must_use]
    pub(crate) fn wait(&self) -> Duration {
        self.until(0.0)
    }

    /// Returns the time until this many tokens are left, if none is taken meanwhile.
    fn until(&self, tokens: f64) -> Duration {
        let missing = (tokens - self.left) / A_SECOND - self.at.elapsed().as_secs_f64();
        Duration::try_from_secs_f64(missing).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
