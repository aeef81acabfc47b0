//! Measures the processor time of each app, and refuses further work for an app that exceeds its budget.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use muster_model::{
    ids::AppName,
    overseer::Overseer,
    problem::{Problem, Scope},
};
use rustix::time::{ClockId, clock_gettime};

use crate::wire::Job;

thread_local! {
    /// The processor time of this thread when it started its current piece of work.
    static BEGAN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A callback that reports which app is about to be processed, or `None` when its piece of work ends.
pub(crate) type Begun<'a> = &'a (dyn Fn(Option<&AppName>) + Sync);

/// The [`Overseer`] of one job.
pub(crate) struct Watch<'a> {
    job: &'a Job,
    stopped: &'a AtomicBool,
    begun: Begun<'a>,
    slow: AtomicBool,
    spent: Mutex<HashMap<AppName, Duration>>,
    under_way: Mutex<HashMap<ThreadId, (AppName, Instant)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Returns a problem that concerns an app as a whole.
pub(crate) fn problem(app: &AppName, message: impl Into<String>) -> Problem {
    let file = format!("apps/{app}/app.yaml");
    Problem::new(Scope::App(app.clone()), &file, message)
}

/// Returns the problem of an app that takes too long.
pub(crate) fn too_slow(app: &AppName, budget: Duration) -> Problem {
    let message = format!(
        "reading and rendering this app takes over {:.1} s of processor time",
        budget.as_secs_f64()
    );
    problem(app, message)
        .help("look for nested loops, and for filters over long lists in a loop; or split the app")
}

impl<'a> Watch<'a> {
    pub(crate) fn new(job: &'a Job, stopped: &'a AtomicBool, begun: Begun<'a>) -> Self {
        Self {
            job,
            stopped,
            begun,
            slow: AtomicBool::new(false),
            spent: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    pub(crate) fn budget(&self) -> Duration {
        Duration::from_millis(self.job.budget)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Returns true if work on an app was cancelled because it took too long.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Returns the app whose current piece of work started first, and the wall-clock time since then.
    pub(crate) fn longest(&self) -> Option<(AppName, Duration)> {
        let under_way = lock(&self.under_way);
        let pieces = under_way.values();
        let (app, since) = pieces.min_by_key(|(_, since)| *since)?;
        Some((app.clone(), since.elapsed()))
    }
}

impl Overseer for Watch<'_> {
    fn begin(&self, app: &AppName) -> Result<(), Box<Problem>> {
        if let Some(problem) = self.job.refused.get(app) {
            return Err(Box::new(problem.clone()));
        }
        if self.is_stopped() {
            return Err(Box::new(problem(app, "a newer commit arrived")));
        }
        if lock(&self.spent)
            .get(app)
            .is_some_and(|spent| *spent > self.budget())
        {
            self.slow.store(true, Ordering::Relaxed);
            return Err(Box::new(too_slow(app, self.budget())));
        }
        if self.job.careful {
            (self.begun)(Some(app));
        }
        lock(&self.under_way).insert(thread::current().id(), (app.clone(), Instant::now()));
        BEGAN.set(processor_time());
        Ok(())
    }

    fn end(&self, app: &AppName) {
        let took = processor_time().saturating_sub(BEGAN.get());
        lock(&self.under_way).remove(&thread::current().id());
        *lock(&self.spent).entry(app.clone()).or_default() += took;
        if self.job.careful {
            (self.begun)(None);
        }
    }
}
