//! `muster status --wait`: returns when the newest commit runs everywhere and is healthy, or when only another commit
//! or a person can solve the remaining problems.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_proto::v1;

use super::{
    document::{Document, Filter},
    live::passes,
    report,
};
use crate::{admin::said, client::Client};

/// The interval between requests to the hub.
const EVERY: Duration = Duration::from_millis(500);

/// Tracks whether the hub has read the repository since the wait began. The hub reports the time at which the last read
/// ended, in whole seconds, but not when it began. The first read that ends after the start may have begun before it;
/// only the second has certainly begun after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    after: i64,
    readings: u8,
}

impl Freshness {
    /// Starts at this time of the hub's clock.
    pub(crate) fn since(now: i64) -> Self {
        Self {
            after: now,
            readings: 0,
        }
    }

    /// Records when the repository was last read. Returns true once a read has certainly begun after the start.
    pub(crate) fn saw(&mut self, last_read: i64) -> bool {
        if last_read > self.after {
            self.after = last_read;
            self.readings = self.readings.saturating_add(1);
        }
        self.readings >= 2
    }
}

/// Shows progress on standard error: one line that changes on a terminal, otherwise a line for each change.
struct Progress {
    bar: Option<ProgressBar>,
    said: String,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let said = String::new();
        Self { bar, said }
    }

    fn say(&mut self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        } else if text != self.said {
            anstream::eprintln!("{text}");
            self.said = text;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns the reason why waiting longer does not help, if there is one.
fn only_a_person_can_help(document: &Document) -> Option<&'static str> {
    if document.waits_for_a_commit() {
        return Some(
            "the newest commit has problems, and everything else in it is applied; fix them and push",
        );
    }
    document.waits_for_a_person().then_some(
        "the newest commit is applied everywhere, but the hub has a problem that does not end by itself",
    )
}

/// Waits until the newest commit is in sync, only another commit or a person can help, or the time is up. Returns the
/// last status.
pub(crate) async fn wait(
    mut client: Client,
    filter: &Filter,
    patience: Duration,
    first: Document,
) -> anyhow::Result<Document> {
    let deadline = Instant::now() + patience;
    let mut progress = Progress::new();
    let mut freshness = Freshness::since(first.now.map_or(0, |now| now.as_second()));
    let mut last = first;
    let mut fresh = false;
    while Instant::now() < deadline {
        let seen = read(&mut client, filter, !fresh);
        match tokio::time::timeout_at(deadline.into(), seen).await {
            Ok(Ok(document)) => {
                let read = document.repo.last_read.map_or(0, |time| time.as_second());
                fresh = freshness.saw(read);
                last = document;
                if fresh && last.synced {
                    return Ok(last);
                }
                if fresh && let Some(why) = only_a_person_can_help(&last) {
                    drop(progress);
                    anstream::eprintln!("{why}");
                    return Ok(last);
                }
                progress.say(report::summary(&last));
            }
            Ok(Err(status)) if passes(&status) => {
                progress.say("the hub is unreachable; retrying".to_owned());
            }
            Ok(Err(status)) => return Err(said(status)),
            Err(_over) => break,
        }
        tokio::time::sleep(EVERY).await;
    }
    drop(progress);
    anstream::eprintln!("timed out after {patience:?}: not in sync at the newest commit");
    // The fleet may be in sync at an older commit, but the wait was for the newest one.
    last.synced = false;
    Ok(last)
}

/// Gets the status. With `refresh`, first makes the hub read the repository.
async fn read(
    client: &mut Client,
    filter: &Filter,
    refresh: bool,
) -> Result<Document, tonic::Status> {
    if refresh {
        client.refresh(v1::RefreshRequest {}).await?;
    }
    let status = client.get_status(filter.request()).await?;
    Ok(Document::of(status.into_inner(), filter))
}
