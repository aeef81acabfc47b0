//! Watches of changed keys. Control loops use them to read the state after a change and act on the difference.
//!
//! A watch holds a set of keys, not a log. A key that changed ten times since the last call is returned once, and a
//! watcher that falls far behind has to read everything again. So even the slowest watcher needs only a bounded
//! amount of memory and never delays a commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// The largest number of keys that a watch holds. With more it returns [`Changes::All`] instead.
const MOST_KEYS: usize = 4096;

/// The changes since the last call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These keys were written or deleted. The caller should read their current values.
    Keys(BTreeSet<String>),
    /// Any key may have changed. The caller should read the whole prefix.
    All,
}

/// A watch of the keys under a prefix. Its first result is [`Changes::All`], so that a loop can use the same code to
/// read the state at its start and after each change.
#[derive(Debug)]
pub struct Watch(Arc<Watcher>);

impl Watch {
    /// Waits until something has changed, and returns all changes since the last call, or `None` if the store is
    /// closed. A change is returned only after it is durable. Cancel-safe.
    pub async fn changes(&mut self) -> Option<Changes> {
        loop {
            {
                let mut pending = self.0.lock();
                if pending.closed {
                    return None;
                }
                match mem::replace(&mut pending.changes, Changes::Keys(BTreeSet::new())) {
                    Changes::Keys(keys) if keys.is_empty() => {}
                    changes => return Some(changes),
                }
            }
            self.0.notify.notified().await;
        }
    }
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug)]
struct Pending {
    changes: Changes,
    closed: bool,
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, writes: &BTreeMap<String, Option<Bytes>>) {
        let from = (Bound::Included(self.prefix.as_str()), Bound::Unbounded);
        let mut keys = writes
            .range::<str, _>(from)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(&self.prefix))
            .peekable();
        if keys.peek().is_none() {
            return;
        }
        let mut pending = self.lock();
        if let Changes::Keys(known) = &mut pending.changes {
            known.extend(keys.cloned());
            if known.len() > MOST_KEYS {
                pending.changes = Changes::All;
            }
        }
        drop(pending);
        self.notify.notify_one();
    }
}

/// The watches of one store. Dropping it ends all of them.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Vec<Weak<Watcher>>>);

impl Watchers {
    pub(crate) fn watch(&self, prefix: &str) -> Watch {
        let pending = Pending {
            changes: Changes::All,
            closed: false,
        };
        let watcher = Arc::new(Watcher {
            prefix: prefix.to_owned(),
            pending: Mutex::new(pending),
            notify: Notify::new(),
        });
        self.lock().push(Arc::downgrade(&watcher));
        Watch(watcher)
    }

    pub(crate) fn tell(&self, writes: &BTreeMap<String, Option<Bytes>>) {
        self.lock().retain(|watcher| {
            let watcher = watcher.upgrade();
            if let Some(watcher) = &watcher {
                watcher.tell(writes);
            }
            watcher.is_some()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Watcher>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for watcher in self.lock().iter().filter_map(Weak::upgrade) {
            watcher.lock().closed = true;
            watcher.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
