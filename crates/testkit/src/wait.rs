//! Waits for a state: polls until it is reached or the time is over, and reports what was seen last.

use std::time::{Duration, Instant};

use anyhow::anyhow;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Calls `check` until it returns `Ok`, for at most `timeout`.
///
/// An `Err` of `check` means "not yet, because …". The last one becomes the error message when the time is over. To
/// give up early, let `check` return a `Result` in its `Ok`: `Ok(Err(…))` ends the wait.
///
/// # Errors
/// Fails if the time is over. The error contains `what` and the last error of `check`.
pub async fn eventually<T>(
    what: &str,
    timeout: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut seen = anyhow!("the first check did not finish in that time");
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, check()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => seen = error,
            // A check that hangs returns no error. Keep the error of the check before it.
            Err(_) => {}
        }
        if start.elapsed() + pause >= timeout {
            return Err(seen.context(format!("waited {timeout:.0?} for {what}; last seen")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
