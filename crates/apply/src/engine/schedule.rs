//! When each object has its next turn, and which objects have a request under way.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use muster_model::ids::ContentHash;
use muster_plan::retry::{Failing, Fight, Pauses};
use tokio_util::task::TaskTracker;

use crate::inventory::Identity;

/// The times of all objects that are not as they should be.
#[derive(Default)]
struct Times {
    /// Objects whose request failed, with the content that was refused.
    failing: HashMap<Identity, (ContentHash, Failing)>,
    fights: HashMap<Identity, Fight>,
}

/// The times of one cluster's objects. All methods are cheap and never wait.
pub(super) struct Schedule {
    failures: Pauses,
    fights: Pauses,
    times: Mutex<Times>,
}

/// What is known of an object that somebody keeps undoing.
pub(super) struct Undone {
    /// It is left as it is for a while.
    pub(super) rests: bool,
    /// How often it was undone, and over how long; `None` where that is nothing to tell people about.
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

    /// Forgets all objects but these.
    pub(super) fn retain(&self, desired: impl Fn(&Identity) -> bool) {
        let mut times = self.times();
        times.failing.retain(|key, _| desired(key));
        times.fights.retain(|key, _| desired(key));
    }

    /// Its request failed.
    pub(super) fn failed(&self, key: &Identity, content: ContentHash) {
        let mut times = self.times();
        let before = times.failing.get(key).filter(|(of, _)| *of == content);
        let jitter = rand::random_range(0.8..1.2);
        let before = before.map(|(_, failing)| *failing);
        let failing = Failing::again(before, Instant::now(), self.failures, jitter);
        times.failing.insert(key.clone(), (content, failing));
    }

    /// It is as it should be.
    pub(super) fn succeeded(&self, key: &Identity) {
        let mut times = self.times();
        times.failing.remove(key);
        if let Some(fight) = times.fights.get_mut(key).filter(|fight| fight.is_undone()) {
            fight.corrected(Instant::now());
        }
    }

    /// Whether this content failed before.
    pub(super) fn is_failing(&self, key: &Identity, content: ContentHash) -> bool {
        let times = self.times();
        times.failing.get(key).is_some_and(|(of, _)| *of == content)
    }

    /// Whether this content failed, and it is too early to try again.
    pub(super) fn must_wait(&self, key: &Identity, content: ContentHash) -> bool {
        let times = self.times();
        let failing = times.failing.get(key).filter(|(of, _)| *of == content);
        failing.is_some_and(|(_, failing)| failing.due() > Instant::now())
    }

    /// Something has happened that may let it succeed.
    pub(super) fn hasten(&self, key: &Identity) {
        if let Some((_, failing)) = self.times().failing.get_mut(key) {
            failing.hasten();
        }
    }

    /// A new generation may let anything succeed: what it `concerns` at once.
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

    /// It is not as it was left.
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

    /// What has its turn in a run that begins now.
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

    /// Ends the run. An object that had its turn and was not sent waits for something else, which will
    /// be noticed, and has no time of its own any more; one that is `under_way` has one later.
    pub(super) fn end(&self, due: Due, under_way: impl Fn(&Identity) -> bool) {
        let mut times = self.times();
        for (key, before) in due.failing {
            let same = |(_, failing): &(ContentHash, Failing)| *failing == before;
            if !under_way(&key) && times.failing.get(&key).is_some_and(same) {
                times.failing.remove(&key);
            }
        }
        for (key, before) in due.undone {
            // What could not be corrected is tried again, and nobody has undone it.
            if !under_way(&key)
                && !times.failing.contains_key(&key)
                && let Some(fight) = times.fights.get_mut(&key)
                && *fight == before
            {
                fight.corrected(Instant::now());
            }
        }
    }

    /// When there is something to be done next without a reason from outside, for what is not
    /// `under_way`.
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

/// What has its turn in a run.
pub(super) struct Due {
    failing: Vec<(Identity, Failing)>,
    /// Objects that somebody has undone and that are to be corrected.
    pub(super) undone: Vec<(Identity, Fight)>,
    /// Objects whose fight is over.
    pub(super) over: Vec<Identity>,
}

/// Objects that have a request under way, which may outlive the run that sent it. An object never has
/// two at the same time.
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

    /// Takes an object; it is given back when the answer is dropped. `None` where it is taken.
    pub(super) fn take(self: &Arc<Self>, key: &Identity) -> Option<Taken> {
        self.objects().insert(key.clone()).then(|| Taken {
            under_way: self.clone(),
            key: key.clone(),
        })
    }
}

/// An object that nobody else may send.
pub(super) struct Taken {
    under_way: Arc<UnderWay>,
    key: Identity,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.under_way.objects().remove(&self.key);
    }
}
