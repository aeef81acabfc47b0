//! An orderly end: the first SIGTERM or SIGINT asks every task to finish, the second ends the process.

use std::{
    future::Future,
    io, process,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The end of this process, as its tasks see it. Clones are of the same end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    /// The vital task that ended before its time.
    ended: Arc<OnceLock<&'static str>>,
}

/// Some tasks had not ended when the time for it was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{tasks} tasks had not ended after {after:?}")]
pub struct Unfinished {
    /// How many.
    pub tasks: usize,
    /// How long was waited.
    pub after: Duration,
}

impl Shutdown {
    /// An end that only [`begin`](Self::begin) begins.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An end that SIGTERM and SIGINT begin. The second of them exits at once, with the status that
    /// shells expect: 128 and the signal's number.
    ///
    /// # Errors
    /// When the system refuses to hand over the signals.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                loop {
                    let kind = tokio::select! {
                        _ = terminate.recv() => SignalKind::terminate(),
                        _ = interrupt.recv() => SignalKind::interrupt(),
                    };
                    if shutdown.has_begun() {
                        process::exit(128 + kind.as_raw_value());
                    }
                    tracing::info!("shutting down; signal again to exit at once");
                    shutdown.begin();
                }
            }
        });
        Ok(shutdown)
    }

    /// Begins the end.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Whether the end has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the end to begin. Cancel-safe.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// The end as a token, for what takes one.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that the end waits for. The task itself watches for [`begun`](Self::begun).
    pub fn spawn<T>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Starts a task without which this process is of no use. Where it ends before the end has begun, as by a
    /// panic, it takes the process with it: nothing is worse than one that seems to be well.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.clone();
        let running = tokio::spawn(task);
        self.tasks.spawn(async move {
            let ended = running.await;
            if !shutdown.has_begun() {
                let panicked = ended.is_err_and(|error| error.is_panic());
                tracing::error!(
                    task = name,
                    panicked,
                    "a task ended before its time, and this process ends with it"
                );
                let _ = shutdown.ended.set(name);
                shutdown.begin();
            }
        });
    }

    /// The vital task that ended before its time, where that is why all ends.
    #[must_use]
    pub fn ended(&self) -> Option<&'static str> {
        self.ended.get().copied()
    }

    /// Begins the end if it has not begun, and waits at most `patience` for the tasks.
    ///
    /// # Errors
    /// When tasks are left; they go on until the runtime is dropped.
    pub async fn finish(&self, patience: Duration) -> Result<(), Unfinished> {
        self.begin();
        self.tasks.close();
        tokio::time::timeout(patience, self.tasks.wait())
            .await
            .map_err(|_| Unfinished {
                tasks: self.tasks.len(),
                after: patience,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_tasks_that_end() {
        let shutdown = Shutdown::new();
        let task = shutdown.spawn({
            let shutdown = shutdown.clone();
            async move {
                shutdown.begun().await;
                7
            }
        });
        assert!(!shutdown.has_begun());
        assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_vital_task_takes_the_process_with_it() {
        let shutdown = Shutdown::new();
        shutdown.spawn_vital("good", {
            let shutdown = shutdown.clone();
            async move { shutdown.begun().await }
        });
        shutdown.spawn_vital("bad", async { panic!("as a mistake would") });
        shutdown.begun().await;
        assert_eq!(shutdown.ended(), Some("bad"));
        assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
        // One that ends with all others is no reason for anything.
        let shutdown = Shutdown::new();
        shutdown.spawn_vital("good", {
            let shutdown = shutdown.clone();
            async move { shutdown.begun().await }
        });
        assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
        assert_eq!(shutdown.ended(), None);
    }

    #[tokio::test]
    async fn counts_tasks_that_do_not() {
        let shutdown = Shutdown::new();
        for _ in 0..2 {
            shutdown.spawn(std::future::pending::<()>());
        }
        let after = Duration::from_millis(10);
        assert_eq!(
            shutdown.finish(after).await,
            Err(Unfinished { tasks: 2, after })
        );
    }
}
