//! Counts what each app costs, and ends what costs too much.

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
    /// Processor time of this thread when it began its piece of work.
    static BEGAN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Tells its reader what is begun.
pub(crate) type Begun<'a> = &'a (dyn Fn(Option<&AppName>) + Sync);

/// The overseer of one job.
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

/// A problem of an app as a whole.
pub(crate) fn problem(app: &AppName, message: impl Into<String>) -> Problem {
    let file = format!("apps/{app}/app.yaml");
    Problem::new(Scope::App(app.clone()), &file, message)
}

/// What an app is told that takes too long.
pub(crate) fn too_slow(app: &AppName, budget: Duration) -> Problem {
    let message = format!(
        "reading and rendering this app takes over {:.1} s of processor time",
        budget.as_secs_f64()
    );
    problem(app, message).help(
        "look for loops in loops, and for filters over long lists in a loop; or split the app",
    )
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

    /// Whether an app was given up since it took too long.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// The app whose piece of work has been under way for longest, and for how long.
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
            return Err(Box::new(problem(app, "a newer commit came")));
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
