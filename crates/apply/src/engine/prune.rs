//! The end of a run: what is in the inventory and not wanted goes, in reverse order.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use muster_model::{bundle::Gvk, ids::AppName};
use muster_plan::{
    order::Item,
    prune::{Mark, Owned, PRUNE, Wanted as Want, prune},
};
use tokio_util::sync::CancellationToken;

use super::{Doubt, Engine, Leftovers};
use crate::{
    Hold, Kept,
    board::Leftover,
    cluster::{Deleted, RequestError, explain, retried},
    inventory::{Entry, Identity, InventoryError},
    kinds::{Kind, Kinds},
    requests::Dependents,
};

/// What was found of an object that is not wanted.
#[derive(Debug, Clone)]
pub(super) struct Found {
    uid: String,
    mark: Mark,
}

/// What became of one object that should go, or may.
enum Look {
    /// It is there.
    There(Found),
    /// It is gone, or was never ours.
    Gone,
    /// It is deleted as soon as these finalizers are done.
    Terminating(Vec<String>),
    /// It can't be told, for this reason.
    Unclear(String),
    /// It is not there, but a request that left before the agent was killed may still create it.
    NotSure,
}

impl Engine {
    /// Deletes what is not wanted, as far as that needs nobody's approval. True where something is still
    /// there that another try may end.
    pub(super) async fn prune(
        &self,
        kept: &Kept,
        wanted: &[Item<'_>],
        doubt: &Doubt,
        cancel: &CancellationToken,
    ) -> Result<bool, InventoryError> {
        self.marks().retain(|key, _| !doubt.drifted.contains(key));
        let identities: HashSet<_> = wanted.iter().map(|item| item.id.identity()).collect();
        let (wanted_entries, unwanted): (Vec<_>, Vec<_>) = self
            .inventory
            .entries()
            .into_iter()
            .partition(|(_, entry)| identities.contains(&entry.id.identity()));
        let mut leftovers = Leftovers::new();
        let (there, mut unfinished) = self.look_at(unwanted, &mut leftovers, cancel).await;
        if cancel.is_cancelled() {
            return Ok(true);
        }

        let owned = |(_, entry): &'_ (Identity, Arc<Entry>)| (entry.clone(), None);
        let entries: Vec<(Arc<Entry>, Option<&Found>)> = wanted_entries
            .iter()
            .map(owned)
            .chain(
                there
                    .iter()
                    .map(|(_, entry, found)| (entry.clone(), Some(found))),
            )
            .collect();
        let owned: Vec<Owned<'_>> = entries
            .iter()
            .map(|(entry, found)| of(entry, *found))
            .collect();
        let headers = || {
            kept.bundles
                .iter()
                .map(|bundle| (bundle, &bundle.bundle().header))
        };
        let emptied: BTreeSet<&AppName> = headers()
            .filter(|(bundle, _)| bundle.bundle().objects.is_empty())
            .map(|(_, header)| &header.app)
            .collect();
        let formerly: BTreeMap<&AppName, &AppName> = headers()
            .filter_map(|(_, header)| Some((header.formerly.as_ref()?, &header.app)))
            .collect();
        let want = Want {
            items: wanted,
            emptied: &emptied,
            formerly: &formerly,
        };
        let plan = prune(&owned, want, &self.config.namespace, &kept.prune);

        let first = wanted_entries.len();
        let at = |index: usize| &there[index - first];
        for index in plan.handed_over {
            self.inventory.forget(&at(index).0);
        }
        for index in plan.released {
            let (key, entry, _) = at(index);
            tracing::info!(app = %entry.app, object = %entry.id, "no longer wanted and left, as {PRUNE} on it says");
            self.inventory.forget(key);
        }
        for (index, held) in plan.held {
            let (key, entry, _) = at(index);
            leave(&mut leftovers, key, entry, held.to_string());
        }
        let holds = plan.sets.iter().map(|set| Hold {
            app: set.app.clone(),
            set: set.set,
            reason: set.reason.clone(),
            objects: set
                .members
                .iter()
                .map(|&index| at(index).1.id.clone())
                .collect(),
        });
        self.board.hold(holds.collect());
        for (key, entry) in plan.sets.iter().flat_map(|set| {
            set.members
                .iter()
                .map(|&index| (&at(index).0, &at(index).1))
        }) {
            leave(&mut leftovers, key, entry, HELD.to_owned());
        }

        for &index in plan.delete.iter().flatten() {
            self.inventory.goes(&at(index).0);
        }
        self.inventory.flush(cancel).await?;
        for stage in plan.delete {
            let entries = stage.iter().map(|&index| &*at(index).1);
            let kinds = self.kinds_of(entries).await;
            let (this, there) = (self, &there);
            let deletes = stage
                .into_iter()
                .zip(kinds)
                .map(|(index, kind)| async move {
                    let (_, entry, found) = &there[index - first];
                    (index, this.delete(entry, &found.uid, kind, cancel).await)
                });
            let deletes = stream::iter(deletes).buffer_unordered(self.config.concurrency);
            for (index, result) in deletes.collect::<Vec<_>>().await {
                let (key, entry, _) = at(index);
                match result {
                    Look::Gone => self.inventory.forget(key),
                    Look::Terminating(finalizers) => {
                        unfinished = true;
                        leave(&mut leftovers, key, entry, terminating(&finalizers));
                    }
                    Look::Unclear(message) => {
                        unfinished = true;
                        leave(&mut leftovers, key, entry, message);
                    }
                    Look::There(_) | Look::NotSure => unfinished = true,
                }
            }
        }
        if !cancel.is_cancelled() {
            self.board.leave(leftovers);
        }
        Ok(unfinished)
    }

    /// Looks at objects that are not wanted. What was found in this generation is not asked again. The
    /// answer is what is there, and whether something has to be looked at again.
    async fn look_at(
        &self,
        unwanted: Vec<(Identity, Arc<Entry>)>,
        leftovers: &mut Leftovers,
        cancel: &CancellationToken,
    ) -> (Vec<(Identity, Arc<Entry>, Found)>, bool) {
        let mut within = Vec::with_capacity(unwanted.len());
        for (key, entry) in unwanted {
            match self.config.out_of_reach(&entry.id) {
                Some(why) => leave(leftovers, &key, &entry, why),
                None => within.push((key, entry)),
            }
        }
        let kinds = self
            .kinds_of(within.iter().map(|(_, entry)| &**entry))
            .await;
        let this = self;
        let looks = within
            .into_iter()
            .zip(kinds)
            .map(|((key, entry), kind)| async move {
                let look = this.look_at_one(&key, &entry, kind, cancel).await;
                (key, entry, look)
            });
        let looks = stream::iter(looks).buffer_unordered(self.config.concurrency);
        let (mut there, mut unfinished) = (Vec::new(), false);
        for (key, entry, look) in looks.collect::<Vec<_>>().await {
            match look {
                Look::There(found) => {
                    self.marks().insert(key.clone(), found.clone());
                    there.push((key, entry, found));
                }
                Look::Gone => self.inventory.forget(&key),
                Look::Terminating(finalizers) => {
                    unfinished = true;
                    leave(leftovers, &key, &entry, terminating(&finalizers));
                }
                Look::Unclear(message) => {
                    unfinished = true;
                    leave(leftovers, &key, &entry, message);
                }
                Look::NotSure => unfinished = true,
            }
        }
        // An order of its own would make the same set another one.
        there.sort_by(|a, b| a.0.cmp(&b.0));
        (there, unfinished)
    }

    async fn look_at_one(
        &self,
        key: &Identity,
        entry: &Entry,
        kind: Result<Option<Arc<Kind>>, String>,
        cancel: &CancellationToken,
    ) -> Look {
        // A request about it that ends later could create it again.
        if cancel.is_cancelled() || self.under_way.has(key) {
            return Look::NotSure;
        }
        let found = self.marks().get(key).cloned();
        if let Some(found) = found {
            return Look::There(found);
        }
        let kind = match kind {
            Ok(Some(kind)) => kind,
            Ok(None) => return Look::Gone,
            Err(why) => return Look::Unclear(why),
        };
        let path = kind.path(&entry.id);
        let live = match retried(cancel, || self.cluster.metadata(&path)).await {
            Ok(Some(live)) => live,
            Ok(None) if entry.applied.is_none() && self.inventory.may_appear(key) => {
                return Look::NotSure;
            }
            Ok(None) => return Look::Gone,
            Err(error) => return self.unclear(&kind, &error),
        };
        let same = entry.uid.as_ref() == Some(&live.uid);
        // A request about it had left when the last run ended; what came of that is seen at the object
        // alone.
        let begun = entry.applied.is_none() && live.is_ours();
        if !same && !begun {
            // Somebody deleted ours and put another there: that one is theirs.
            return Look::Gone;
        }
        if live.deletion_timestamp.is_some() {
            return Look::Terminating(live.finalizers);
        }
        Look::There(Found {
            mark: Mark::of(live.annotation(PRUNE)),
            uid: live.uid,
        })
    }

    fn unclear(&self, kind: &Kind, error: &RequestError) -> Look {
        if error.is_no_path() {
            self.vanish(&kind.gvk);
        }
        Look::Unclear(explain(error))
    }

    /// The kinds of these objects: `Ok(None)` where the API server says that there is none, so that
    /// there is no object either.
    async fn kinds_of(
        &self,
        entries: impl Iterator<Item = &Entry>,
    ) -> Vec<Result<Option<Arc<Kind>>, String>> {
        let entries: Vec<_> = entries.collect();
        let unknown = |kinds: &Kinds, gvk: &Gvk| kinds.any_version(gvk).is_none();
        let mut failure = None;
        if entries
            .iter()
            .any(|entry| unknown(&self.kinds(), &entry.id.gvk))
        {
            failure = self.refresh_kinds().await.err();
        }
        let mut kinds = Vec::with_capacity(entries.len());
        for entry in entries {
            let gvk = &entry.id.gvk;
            // Discovery leaves out what does not answer; only a clear no is a no.
            let asked = if !unknown(&self.kinds(), gvk) {
                Ok(true)
            } else if let Some(error) = &failure {
                Err(explain(error))
            } else {
                let asked = self.refresh_version(&gvk.group, &gvk.version);
                asked.await.map_err(|error| explain(&error))
            };
            kinds.push(asked.map(|_| self.kinds().any_version(gvk)));
        }
        kinds
    }

    async fn delete(
        &self,
        entry: &Entry,
        uid: &str,
        kind: Result<Option<Arc<Kind>>, String>,
        cancel: &CancellationToken,
    ) -> Look {
        if cancel.is_cancelled() {
            return Look::NotSure;
        }
        let kind = match kind {
            Ok(Some(kind)) => kind,
            Ok(None) => return Look::Gone,
            Err(why) => return Look::Unclear(why),
        };
        let path = kind.path(&entry.id);
        let deleted = retried(cancel, || self.cluster.delete(&path, uid, Dependents::Go)).await;
        match deleted {
            Ok(Deleted::Gone | Deleted::Other) => Look::Gone,
            Ok(Deleted::Terminating(finalizers)) => Look::Terminating(finalizers),
            Err(error) => self.unclear(&kind, &error),
        }
    }
}

/// What is said of each object of a set that waits for an approval.
const HELD: &str = "no longer wanted; waits for an approval";

fn of<'a>(entry: &'a Entry, found: Option<&'a Found>) -> Owned<'a> {
    Owned {
        item: Item {
            id: &entry.id,
            app: &entry.app,
            defines: entry.defines.as_ref(),
            hook: None,
        },
        uid: found.map_or(entry.uid.as_deref(), |found| Some(&found.uid)),
        going: entry.going,
        mark: found.map_or(Mark::None, |found| found.mark),
    }
}

fn leave(leftovers: &mut Leftovers, key: &Identity, entry: &Entry, message: String) {
    let (id, app) = (entry.id.clone(), entry.app.clone());
    leftovers.insert(key.clone(), Leftover { id, app, message });
}

fn terminating(finalizers: &[String]) -> String {
    if finalizers.is_empty() {
        return "it is being deleted".to_owned();
    }
    format!("it is being deleted, waiting for {}", finalizers.join(", "))
}
