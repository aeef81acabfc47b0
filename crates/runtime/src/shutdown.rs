//! Graceful shutdown: the first SIGTERM or SIGINT asks every task to finish, the second one exits immediately.

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

/// The shutdown of this process, shared by its tasks. Clones share the same state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    /// The name of the vital task that ended before the shutdown began, if one did.
    ended: Arc<OnceLock<&'static str>>,
}

/// The error for tasks that have not finished in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{tasks} tasks had not finished after {after:?}")]
pub struct Unfinished {
    /// The number of unfinished tasks.
    pub tasks: usize,
    /// How long the shutdown waited for them.
    pub after: Duration,
}

impl Shutdown {
    /// Returns a shutdown that begins only when [`begin`](Self::begin) is called.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a shutdown that begins when the process receives SIGTERM or SIGINT. At the second signal the process
    /// exits immediately, with the status that shells expect: 128 plus the signal's number.
    ///
    /// # Errors
    /// If the signal handlers can't be installed.
    ///
    /// # Panics
    /// If it is called outside of a tokio runtime.
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

    /// Begins the shutdown.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Returns true if the shutdown has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the shutdown begins. Cancel-safe.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// Returns a token that is cancelled when the shutdown begins.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that [`finish`](Self::finish) waits for. The task itself must watch [`begun`](Self::begun).
    pub fn spawn<T>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Starts a task without which this process is of no use. If the task ends before the shutdown has begun, for
    /// example by a panic, the shutdown begins. Otherwise the process would seem healthy without doing its work.
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
                    "a vital task ended unexpectedly; shutting down"
                );
                let _ = shutdown.ended.set(name);
                shutdown.begin();
            }
        });
    }

    /// Returns the name of the vital task whose unexpected end began the shutdown, if one did.
    #[must_use]
    pub fn ended(&self) -> Option<&'static str> {
        self.ended.get().copied()
    }

    /// Begins the shutdown if it has not begun, and waits at most `patience` for the tasks.
    ///
    /// # Errors
    /// If tasks have not finished by then. They continue until the runtime is dropped.
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
mod tests;
