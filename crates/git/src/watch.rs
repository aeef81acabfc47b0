//! Follows a remote: one loop, woken by a timer, a poke or a change of a local repository's
//! references, that refreshes the mirror and publishes what is known. A wake-up carries nothing;
//! every round reads the state and acts on it.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    local::{Below, reference_places},
    mirror::{Change, Mirror, Refreshed},
    remote::RemoteConfig,
    view::{Problem, RepoState, RepoView, Tip},
};

/// A push writes several files; they are one change.
const SETTLE: Duration = Duration::from_millis(2);
/// After a failure nothing, not even a poke, leads to attempts faster than this.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after failures.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How a remote is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchConfig {
    /// The time between two looks at a remote that nobody pokes about.
    pub interval: Duration,
}

impl WatchConfig {
    /// 5 s for a local repository, whose changes are seen at once anyway; 30 s over a network.
    #[must_use]
    pub fn for_remote(config: &RemoteConfig) -> Self {
        let local = config.url.local_path().is_some();
        Self {
            interval: Duration::from_secs(if local { 5 } else { 30 }),
        }
    }
}

/// The running loop. It ends when this is dropped, or the token that it was given fires.
#[derive(Debug)]
pub struct Watcher {
    views: watch::Receiver<RepoView>,
    poke: Arc<Notify>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to follow the mirror's remote. The mirror's last good snapshot is published at once.
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn spawn(mirror: Mirror, config: WatchConfig, stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        let poke = Arc::new(Notify::new());
        let last = mirror.last().cloned();
        let tip = last.as_ref().map(|snapshot| Tip {
            commit: snapshot.commit,
            since: SystemTime::now(),
            forced_from: None,
        });
        let state = RepoState {
            remote: mirror.config().url.to_string(),
            reference: mirror.config().reference.to_string(),
            last_attempt: None,
            asked: false,
            tip,
            problem: None,
        };
        let (sender, views) = watch::channel(RepoView {
            state,
            snapshot: last,
        });
        let follower = Follower {
            config,
            views: sender,
            poke: poke.clone(),
            stop: stop.clone(),
        };
        let task = tokio::spawn(follower.run(mirror));
        Self {
            views,
            poke,
            stop,
            task: Some(task),
        }
    }

    /// What is known, now and at every change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<RepoView> {
        self.views.clone()
    }

    /// Has the remote looked at now: a webhook or a person says that there is something new. Another host,
    /// and one that fails, is asked at most once a second.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// Ends the loop, and returns when the mirror's directory is free for others.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the loop that follows the Git remote ended badly");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The wait after this many failures in a row; `jitter` is between 0 and 1.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = MIN_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(6));
    let longest = doubled.min(MAX_RETRY);
    MIN_RETRY.max(longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
}

struct Follower {
    config: WatchConfig,
    views: watch::Sender<RepoView>,
    poke: Arc<Notify>,
    stop: CancellationToken,
}

impl Follower {
    async fn run(self, mirror: Mirror) {
        let interrupt = mirror.stop_handle();
        let changed = Arc::new(Notify::new());
        let mut eyes = Eyes::new(mirror.config().url.local_path(), changed.clone());
        let mut mirror = mirror;
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let mut round = spawn_blocking(move || {
                // Before the look at the reference, so that no change falls between.
                eyes.open();
                let result = mirror.refresh();
                (mirror, eyes, result)
            });
            let ended = tokio::select! {
                ended = &mut round => ended,
                () = self.stop.cancelled() => {
                    interrupt.stop();
                    round.await
                }
            };
            let result;
            (mirror, eyes, result) = match ended {
                Ok(parts) => parts,
                Err(error) => {
                    tracing::error!(%error, "a refresh of the Git mirror ended badly");
                    return;
                }
            };
            if self.stop.is_cancelled() {
                return;
            }
            let wait = match &result {
                Ok(_) => {
                    failures = 0;
                    self.config.interval
                }
                Err(_) => {
                    failures += 1;
                    let wait = backoff(failures, rand::random());
                    // A look at a local directory costs nothing.
                    let longest = if eyes.path.is_some() {
                        self.config.interval
                    } else {
                        wait
                    };
                    wait.min(longest.max(MIN_RETRY))
                }
            };
            let moved = matches!(&result, Ok(refreshed) if refreshed.change != Change::None);
            self.publish(result, wait);
            if moved {
                let tidied;
                let tidy = spawn_blocking(move || {
                    let result = mirror.tidy();
                    (mirror, result)
                });
                (mirror, tidied) = match tidy.await {
                    Ok(parts) => parts,
                    Err(error) => {
                        tracing::error!(%error, "tidying the Git mirror ended badly");
                        return;
                    }
                };
                if let Err(error) = tidied {
                    tracing::warn!(error = error.chain(), "the Git mirror was not tidied");
                }
            }
            let timer = tokio::time::sleep(wait);
            tokio::select! {
                () = timer => {}
                () = self.poke.notified() => {}
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
                () = self.stop.cancelled() => return,
            }
            // Nobody has another host asked more often, whatever calls the webhook.
            if failures > 0 || eyes.path.is_none() {
                tokio::select! {
                    () = tokio::time::sleep_until(started + MIN_RETRY) => {}
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    fn publish(&self, result: Result<Refreshed, Error>, wait: Duration) {
        let now = SystemTime::now();
        self.views.send_if_modified(|view| {
            view.state.last_attempt = Some(now);
            match result {
                Ok(refreshed) => {
                    let commit = refreshed.snapshot.commit;
                    let recovered = view.state.problem.take().is_some();
                    let first = !std::mem::replace(&mut view.state.asked, true);
                    let same = view
                        .state
                        .tip
                        .as_ref()
                        .is_some_and(|tip| tip.commit == commit);
                    if !same {
                        let forced_from = match refreshed.change {
                            Change::Forced { old } => Some(old),
                            Change::None | Change::Forward => None,
                        };
                        tracing::info!(
                            remote = view.state.remote,
                            %commit,
                            forced_from = forced_from.map(tracing::field::display),
                            subject = refreshed.snapshot.subject,
                            "the fleet repository has a new commit"
                        );
                        view.state.tip = Some(Tip {
                            commit,
                            since: now,
                            forced_from,
                        });
                        view.snapshot = Some(refreshed.snapshot);
                    }
                    recovered || first || !same
                }
                Err(error) => {
                    let text = error.chain();
                    let before = view.state.problem.take();
                    if before.as_ref().is_none_or(|before| before.text != text) {
                        let remote = &view.state.remote;
                        tracing::warn!(
                            remote,
                            problem = text,
                            "the fleet repository is out of reach"
                        );
                    }
                    let since = before.map_or(now, |before| before.since);
                    view.state.problem = Some(Problem {
                        text,
                        since,
                        retry_at: now + wait,
                    });
                    true
                }
            }
        });
    }
}

/// Sees changes of a local repository's references.
struct Eyes {
    path: Option<PathBuf>,
    changed: Arc<Notify>,
    watching: Option<(RecommendedWatcher, HashSet<Inode>)>,
    /// So that a system without room for watches says so once.
    complained: bool,
}

type Inode = (PathBuf, u64, u64);

impl Eyes {
    fn new(path: Option<&Path>, changed: Arc<Notify>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            changed,
            watching: None,
            complained: false,
        }
    }

    /// Watches the directories that there are now. A repository that was removed and made again is
    /// another one, whatever its name.
    fn open(&mut self) {
        let Some(places) = self.path.as_deref().and_then(reference_places) else {
            self.watching = None;
            return;
        };
        let inodes = places.iter().filter_map(|(path, _)| {
            let meta = fs::metadata(path).ok()?;
            Some((path.clone(), meta.dev(), meta.ino()))
        });
        let inodes: HashSet<Inode> = inodes.collect();
        if self
            .watching
            .as_ref()
            .is_some_and(|(_, watched)| *watched == inodes)
        {
            return;
        }
        match self.watch(&places) {
            Ok(watcher) => self.watching = Some((watcher, inodes)),
            Err(error) => {
                self.watching = None;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%error, "the repository can't be watched; it is polled instead");
                }
            }
        }
    }

    fn watch(&self, places: &[(PathBuf, Below)]) -> notify::Result<RecommendedWatcher> {
        let changed = self.changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                changed.notify_one();
            }
        })?;
        for (path, below) in places {
            let mode = match below {
                Below::Yes => RecursiveMode::Recursive,
                Below::No => RecursiveMode::NonRecursive,
            };
            watcher.watch(path, mode)?;
        }
        Ok(watcher)
    }
}

/// Reading is no change, or our own look would wake us for ever; neither is a lock file, which is
/// renamed when it is done.
fn is_change(event: &Event) -> bool {
    let written = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    let lock = |path: &PathBuf| path.extension().is_some_and(|end| end == "lock");
    written && (event.paths.is_empty() || !event.paths.iter().all(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_minute_and_never_falls_below_a_second() {
        let seconds: Vec<_> = (1..9)
            .map(|failures| backoff(failures, 1.0).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(1, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(u32::MAX, 0.0), Duration::from_secs(30));
    }

    #[test]
    fn only_what_was_written_is_a_change() {
        let event = |kind, path: &str| Event::new(kind).add_path(path.into());
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let write = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(!is_change(&event(read, "/r/HEAD")));
        assert!(is_change(&event(write, "/r/HEAD")));
        assert!(!is_change(&event(write, "/r/refs/heads/main.lock")));
        let renamed = event(EventKind::Any, "/r/main.lock").add_path("/r/main".into());
        assert!(is_change(&renamed));
    }
}
