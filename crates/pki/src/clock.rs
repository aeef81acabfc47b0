//! The wall clock by which certificates and tokens are judged. It stands here, and nowhere else is the
//! system's asked for that, so that tests of whole processes can put it wrong.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime},
};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// How far back the time of a certificate starts, for machines whose clocks are behind the hub's.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// In seconds.
static OFFSET: AtomicI64 = AtomicI64::new(0);

/// The time now.
#[must_use]
pub fn now() -> SystemTime {
    let offset = OFFSET.load(Ordering::Relaxed);
    let by = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 {
        SystemTime::now() - by
    } else {
        SystemTime::now() + by
    }
}

/// Puts this process's clock off by so many seconds. Only tests want that.
pub fn put_off(seconds: i64) {
    OFFSET.store(seconds, Ordering::Relaxed);
}

/// The same clock for TLS.
#[derive(Debug)]
pub(crate) struct TlsClock;

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
