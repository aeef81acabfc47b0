//! How much one stream may say.

use std::time::{Duration, Instant};

/// Messages that a stream may send at once, and then each second.
const BURST: f64 = 400.0;
const A_SECOND: f64 = 50.0;
/// So many bytes count as another message.
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

    /// Whether a message of this size may still pass.
    #[must_use]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let filled = now.duration_since(self.at).as_secs_f64() * A_SECOND;
        self.at = now;
        self.left = (self.left + filled).min(BURST) - 1.0 - bytes as f64 / BYTES;
        self.left >= 0.0
    }

    /// Whether more was said than may be.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.left < 0.0
    }

    /// How long nothing more is read: HTTP/2's flow control then slows whoever speaks.
    #[must_use]
    pub(crate) fn wait(&self) -> Duration {
        let missing = -self.left / A_SECOND - self.at.elapsed().as_secs_f64();
        Duration::try_from_secs_f64(missing).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_does_not() {
        let mut bucket = Bucket::new();
        let passed = (0..10_000).take_while(|_| bucket.take(100)).count();
        assert!((300..=500).contains(&passed), "{passed}");
        let mut bucket = Bucket::new();
        let large = (0..10_000).take_while(|_| bucket.take(4 << 20)).count();
        assert!((4..=8).contains(&large), "{large}");
    }
}
