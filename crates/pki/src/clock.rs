//! The wall clock for checking certificates and tokens. All code reads the time for that through this
//! module, so that tests of whole processes can set a wrong clock.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime},
};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The time by which a certificate's validity starts before the certificate is issued. Machines whose clocks are behind
/// the hub's can therefore use it immediately.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// The offset from the system's clock, in seconds.
static OFFSET: AtomicI64 = AtomicI64::new(0);

/// Returns the current time.
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

/// Shifts this process's clock by this many seconds. It is for tests only.
pub fn put_off(seconds: i64) {
    OFFSET.store(seconds, Ordering::Relaxed);
}

/// The same clock, as a time provider for TLS.
#[derive(Debug)]
pub(crate) struct TlsClock;

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
