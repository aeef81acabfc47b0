//! The back-off of each object, and the objects that have a request under way.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use muster_model::ids::ContentHash;
use muster_plan::retry::{Failing, Fight, Pauses};
use tokio_util::task::TaskTracker;

use crate::inventory::Identity;

/// The back-off state of all objects that are not as desired.
#[derive(Default)]
struct Times {
    /// Objects whose request failed, each with the digest of the refused content.
    failing: HashMap<Identity, (ContentHash, Failing)>,
    fights: HashMap<Identity, Fight>,
}

/// The back-off of one cluster's objects. No method blocks or sleeps.
pub(super) struct Schedule {
    failures: Pauses,
    fights: Pauses,
    times: Mutex<Times>,
}

/// The state of an object that somebody else keeps changing or deleting.
pub(super) struct Undone {
    /// True if the drift is not corrected for a while.
    pub(super) rests: bool,
    /// The number of times that the object was found changed, and in how much time; `None` if that
    /// is not worth reporting.
    pub(super) extent: Option<(u32, Duration)>,
}

impl Schedule {
    pub(super) fn new(failures: Pauses, longest_fight: Duration) -> Self {
        let fights = Pauses {
            first: failures.first,
            longest: longest_fight,
        };
        Self {
            failures,
            fights,
            times: Mutex::default(),
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        // Nothing panics while it holds the lock.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all objects for which `desired` returns false.
    pub(super) fn retain(&self, desired: impl Fn(&Identity) -> bool) {
        let mut times = self.times();
        times.failing.retain(|key, _| desired(key));
        times.fights.retain(|key, _| desired(key));
    }

    /// Records that the object's request failed.
    pub(super) fn failed(&self, key: &Identity, content: ContentHash) {
        let mut times = self.times();
        let before = times.failing.get(key).filter(|(of, _)| *of == content);
        let jitter = rand::random_range(0.8..1.2);
        let before = before.map(|(_, failing)| *failing);
        let failing = Failing::again(before, Instant::now(), self.failures, jitter);
        times.failing.insert(key.clone(), (content, failing));
    }

    /// Records that the object is as desired.
    pub(super) fn succeeded(&self, key: &Identity) {
        let mut times = self.times();
        times.failing.remove(key);
        if let Some(fight) = times.fights.get_mut(key).filter(|fight| fight.is_undone()) {
            fight.corrected(Instant::now());
        }
    }

    /// Returns true if this content failed before.
    pub(super) fn is_failing(&self, key: &Identity, content: ContentHash) -> bool {
        let times = self.times();
        times.failing.get(key).is_some_and(|(of, _)| *of == content)
    }

    /// Returns true if this content failed and its back-off is not over.
    pub(super) fn must_wait(&self, key: &Identity, content: ContentHash) -> bool {
        let times = self.times();
        let failing = times.failing.get(key).filter(|(of, _)| *of == content);
        failing.is_some_and(|(_, failing)| failing.due() > Instant::now())
    }

    /// Shortens an object's back-off, because something has happened that may let it succeed.
    pub(super) fn hasten(&self, key: &Identity) {
        if let Some((_, failing)) = self.times().failing.get_mut(key) {
            failing.hasten();
        }
    }

    /// Shortens the back-off of all objects, because a new generation may let any of them succeed.
    /// Objects for which `concerns` returns true are tried again immediately.
    pub(super) fn retry_all(&self, concerns: impl Fn(&Identity) -> bool) {
        let now = Instant::now();
        for (key, (_, failing)) in &mut self.times().failing {
            if concerns(key) {
                failing.now();
            } else {
                failing.soon(now);
            }
        }
    }

    /// Records that the object has drifted.
    pub(super) fn undone(&self, key: &Identity) -> Undone {
        let now = Instant::now();
        let mut times = self.times();
        let fight = Fight::undone(times.fights.get(key).copied(), now, self.fights);
        times.fights.insert(key.clone(), fight);
        let due = fight.due(self.fights);
        Undone {
            rests: due > now,
            extent: fight.is_serious().then(|| fight.extent(now)),
        }
    }

    /// Returns the objects that are due in a run that starts now.
    pub(super) fn begin(&self) -> Due {
        let now = Instant::now();
        let mut times = self.times();
        let failing = times.failing.iter();
        let failing = failing
            .filter(|(_, (_, failing))| failing.due() <= now)
            .map(|(key, (_, failing))| (key.clone(), *failing))
            .collect();
        let (mut undone, mut over) = (Vec::new(), Vec::new());
        for (key, fight) in &times.fights {
            if fight.next(self.fights) > now {
                continue;
            }
            if fight.is_undone() {
                undone.push((key.clone(), *fight));
            } else {
                over.push(key.clone());
            }
        }
        for key in &over {
            times.fights.remove(key);
        }
        Due {
            failing,
            undone,
            over,
        }
    }

    /// Ends the run. An object that was due but was not sent loses its back-off, because it
    /// waits for something else that wakes the engine. An object that is `under_way` keeps its
    /// back-off.
    pub(super) fn end(&self, due: Due, under_way: impl Fn(&Identity) -> bool) {
        let mut times = self.times();
        for (key, before) in due.failing {
            let same = |(_, failing): &(ContentHash, Failing)| *failing == before;
            if !under_way(&key) && times.failing.get(&key).is_some_and(same) {
                times.failing.remove(&key);
            }
        }
        for (key, before) in due.undone {
            // An object whose correction failed is tried again after its back-off. Any other object
            // here was not sent in this run. It counts as corrected, because it would stay due
            // otherwise.
            if !under_way(&key)
                && !times.failing.contains_key(&key)
                && let Some(fight) = times.fights.get_mut(&key)
                && *fight == before
            {
                fight.corrected(Instant::now());
            }
        }
    }

    /// Returns the time of the next work that is due without an outside event. Objects that are
    /// `under_way` are left out.
    pub(super) fn next(&self, under_way: impl Fn(&Identity) -> bool) -> Option<Instant> {
        let times = self.times();
        let failing = times.failing.iter();
        let failing = failing.map(|(key, (_, failing))| (key, failing.due()));
        let fights = times.fights.iter();
        let fights = fights.filter(|(key, _)| !times.failing.contains_key(*key));
        let fights = fights.map(|(key, fight)| (key, fight.next(self.fights)));
        failing
            .chain(fights)
            .filter(|(key, _)| !under_way(key))
            .map(|(_, at)| at)
            .min()
    }
}

/// The objects that are due in a run.
pub(super) struct Due {
    failing: Vec<(Identity, Failing)>,
    /// Objects that somebody else has changed and that are due for a correction.
    pub(super) undone: Vec<(Identity, Fight)>,
    /// Objects that nobody has changed again for long enough, so that their pauses are dropped.
    pub(super) over: Vec<Identity>,
}

/// The objects that have a request under way, which may outlive the run that sent it. An object
/// never has two requests at the same time.
#[derive(Default)]
pub(super) struct UnderWay {
    objects: Mutex<HashSet<Identity>>,
    pub(super) tasks: TaskTracker,
}

impl UnderWay {
    fn objects(&self) -> MutexGuard<'_, HashSet<Identity>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.objects().len()
    }

    pub(super) fn has(&self, key: &Identity) -> bool {
        self.objects().contains(key)
    }

    /// Reserves an object until the returned value is dropped. Returns `None` if the object is
    /// already reserved.
    pub(super) fn take(self: &Arc<Self>, key: &Identity) -> Option<Taken> {
        self.objects().insert(key.clone()).then(|| Taken {
            under_way: self.clone(),
            key: key.clone(),
        })
    }
}

/// The reservation of an object. Nobody else may send it.
pub(super) struct Taken {
    under_way: Arc<UnderWay>,
    key: Identity,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.under_way.objects().remove(&self.key);
    }
}
