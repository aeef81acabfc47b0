//! Follows a remote. One loop refreshes the mirror and publishes the state of the repository. A timer, a
//! poke or a change of a local repository's references wakes it. Wake-ups carry no data: every round reads
//! the current state (level-triggered).

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

/// The pause after a file change. A push writes several files, which count as one change.
const SETTLE: Duration = Duration::from_millis(2);
/// The shortest time between attempts after a failure, even if there are pokes.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The settings for following a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchConfig {
    /// The time between two polls of the remote if there are no pokes.
    pub interval: Duration,
}

impl WatchConfig {
    /// Returns the default settings: 5 s for a local repository, whose changes are normally seen immediately, and
    /// 30 s over a network.
    #[must_use]
    pub fn for_remote(config: &RemoteConfig) -> Self {
        let local = config.url.local_path().is_some();
        Self {
            interval: Duration::from_secs(if local { 5 } else { 30 }),
        }
    }
}

/// A handle to the running loop. The loop ends when the handle is dropped or the token given to
/// [`Watcher::spawn`] fires.
#[derive(Debug)]
pub struct Watcher {
    views: watch::Receiver<RepoView>,
    poke: Arc<Notify>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to follow the mirror's remote. The mirror's last good snapshot is published immediately. This must
    /// be called within a tokio runtime.
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

    /// Returns a channel with the state of the repository, updated at every change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<RepoView> {
        self.views.clone()
    }

    /// Polls the remote now, because a webhook or a person says that there is a new commit. A remote over a
    /// network, or one that fails, is polled at most once a second.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// Ends the loop, and returns when another process can open the mirror's directory.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task that follows the Git remote failed");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns the pause after this many failures in a row. `jitter` is between 0 and 1.
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
                // This must happen before the reference is read, so that no later change is missed.
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
                    tracing::error!(%error, "the task that refreshes the Git mirror failed");
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
                    // Polling a local directory is cheap.
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
                        tracing::error!(%error, "the task that tidies the Git mirror failed");
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
            // Pokes must not make the hub poll a remote host more often: the webhook's callers decide how often they
            // call it.
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
                            "the fleet repository can't be read"
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

/// Watches the references of a local repository for changes.
struct Eyes {
    path: Option<PathBuf>,
    changed: Arc<Notify>,
    watching: Option<(RecommendedWatcher, HashSet<Inode>)>,
    /// True once the warning that the repository can't be watched has been logged.
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

    /// Watches the directories that exist now. Directories are compared by inode, because a repository may be
    /// removed and recreated under the same name.
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

/// Returns true if the event is a change of a reference. Reads are ignored, because the loop's own reads would
/// otherwise wake it forever. Lock files are ignored, because they are renamed when they are complete.
fn is_change(event: &Event) -> bool {
    let written = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    let lock = |path: &PathBuf| path.extension().is_some_and(|end| end == "lock");
    written && (event.paths.is_empty() || !event.paths.iter().all(lock))
}

#[cfg(test)]
mod tests;
