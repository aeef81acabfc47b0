//! The end of a run: what is in the inventory and not wanted goes, in reverse order.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use muster_model::bundle::Gvk;
use muster_plan::{
    order::Item,
    prune::{Owned, prune},
};
use tokio_util::sync::CancellationToken;

use super::{Engine, Leftovers};
use crate::{
    board::Leftover,
    cluster::{Deleted, RequestError, explain, retried},
    inventory::{Entry, Identity},
    kinds::{Kind, Kinds},
};

/// What became of one object that should go.
enum Gone {
    /// It is gone, or was never ours.
    Yes,
    /// It is deleted as soon as these finalizers are done.
    Terminating(Vec<String>),
    /// It is still there, for this reason.
    No(String),
    /// It is not there, but a request that left before the agent was killed may still create it.
    NotSure,
}

impl Engine {
    /// Deletes what is not wanted. True where something is still there that another try may end.
    pub(super) async fn prune(&mut self, wanted: &[Item<'_>], cancel: &CancellationToken) -> bool {
        let entries = self.inventory.entries();
        let owned: Vec<_> = entries
            .iter()
            .map(|(_, entry)| Owned {
                item: Item {
                    id: &entry.id,
                    app: &entry.app,
                    defines: entry.defines.as_ref(),
                },
                uid: entry.uid.as_deref(),
            })
            .collect();
        let plan = prune(&owned, wanted, &self.config.namespace);
        for index in plan.handed_over {
            self.inventory.forget(&entries[index].0);
        }
        let mut leftovers = Leftovers::new();
        let mut leave = |(key, entry): &(Identity, Arc<Entry>), message: String| {
            let (id, app) = (entry.id.clone(), entry.app.clone());
            leftovers.insert(key.clone(), Leftover { id, app, message });
        };
        for (index, held) in plan.held {
            leave(&entries[index], held.to_string());
        }
        let mut unfinished = false;
        for stage in plan.delete {
            let kinds = self
                .kinds_of(stage.iter().map(|&index| &*entries[index].1))
                .await;
            let this = &*self;
            let deletes = stage.into_iter().zip(kinds).map(|(index, kind)| {
                let (key, entry) = &entries[index];
                async move { (index, this.delete(key, entry, kind, cancel).await) }
            });
            let deletes = stream::iter(deletes).buffer_unordered(self.config.concurrency);
            for (index, result) in deletes.collect::<Vec<_>>().await {
                let key = &entries[index].0;
                self.terminating.remove(key);
                match result {
                    Some(Gone::Yes) => self.inventory.forget(key),
                    Some(Gone::Terminating(finalizers)) => {
                        unfinished = true;
                        self.terminating.insert(key.clone());
                        leave(&entries[index], terminating(&finalizers));
                    }
                    Some(Gone::No(message)) => {
                        unfinished = true;
                        leave(&entries[index], message);
                    }
                    Some(Gone::NotSure) | None => unfinished = true,
                }
            }
        }
        if !cancel.is_cancelled() {
            self.board.leave(leftovers);
        }
        unfinished
    }

    /// The kinds of these objects: `Ok(None)` where the API server says that there is none, so that
    /// there is no object either.
    async fn kinds_of(
        &mut self,
        entries: impl Iterator<Item = &Entry>,
    ) -> Vec<Result<Option<Arc<Kind>>, String>> {
        let entries: Vec<_> = entries.collect();
        let unknown = |kinds: &Kinds, gvk: &Gvk| kinds.any_version(gvk).is_none();
        let mut failure = None;
        if entries
            .iter()
            .any(|entry| unknown(&self.kinds, &entry.id.gvk))
        {
            failure = self.kinds.refresh(&self.cluster).await.err();
        }
        let mut kinds = Vec::with_capacity(entries.len());
        for entry in entries {
            let gvk = &entry.id.gvk;
            // Discovery leaves out what does not answer; only a clear no is a no.
            let asked = if !unknown(&self.kinds, gvk) {
                Ok(true)
            } else if let Some(error) = &failure {
                Err(explain(error))
            } else {
                let asked = self
                    .kinds
                    .refresh_version(&self.cluster, &gvk.group, &gvk.version);
                asked.await.map_err(|error| explain(&error))
            };
            kinds.push(asked.map(|_| self.kinds.any_version(gvk)));
        }
        kinds
    }

    /// `None` where it was not tried.
    async fn delete(
        &self,
        key: &Identity,
        entry: &Entry,
        kind: Result<Option<Arc<Kind>>, String>,
        cancel: &CancellationToken,
    ) -> Option<Gone> {
        if cancel.is_cancelled() {
            return None;
        }
        let kind = match kind {
            Ok(Some(kind)) => kind,
            Ok(None) => return Some(Gone::Yes),
            Err(why) => return Some(Gone::No(why)),
        };
        let path = kind.path(&entry.id);
        let result = match (&entry.uid, &entry.applied) {
            (Some(uid), Some(_)) if !self.terminating.contains(key) => {
                self.delete_live(&path, uid, cancel).await
            }
            _ => self.look_and_delete(&path, key, entry, cancel).await,
        };
        Some(result.unwrap_or_else(|error| {
            if error.is_no_path() {
                self.vanish(&kind.gvk);
            }
            Gone::No(explain(&error))
        }))
    }

    async fn delete_live(
        &self,
        path: &str,
        uid: &str,
        cancel: &CancellationToken,
    ) -> Result<Gone, RequestError> {
        let deleted = retried(cancel, || self.cluster.delete(path, uid)).await?;
        Ok(match deleted {
            // With another UID, somebody deleted ours and put another there: that one is theirs.
            Deleted::Gone | Deleted::Other => Gone::Yes,
            Deleted::Terminating(finalizers) => Gone::Terminating(finalizers),
        })
    }

    /// Deletes an object that has to be looked at first: a request about it had left when the last
    /// run ended, and what came of that is seen at the object alone; or it was terminating.
    async fn look_and_delete(
        &self,
        path: &str,
        key: &Identity,
        entry: &Entry,
        cancel: &CancellationToken,
    ) -> Result<Gone, RequestError> {
        let live = retried(cancel, || self.cluster.metadata(path)).await?;
        let Some(live) = live else {
            let appears = entry.applied.is_none() && self.inventory.may_appear(key);
            return Ok(if appears { Gone::NotSure } else { Gone::Yes });
        };
        let same = entry.uid.as_ref() == Some(&live.uid);
        let begun = entry.applied.is_none() && live.is_ours();
        match (same || begun, live.deletion_timestamp) {
            (false, _) => Ok(Gone::Yes),
            (true, Some(_)) => Ok(Gone::Terminating(live.finalizers)),
            (true, None) => self.delete_live(path, &live.uid, cancel).await,
        }
    }
}

fn terminating(finalizers: &[String]) -> String {
    if finalizers.is_empty() {
        return "it is being deleted".to_owned();
    }
    format!("it is being deleted, waiting for {}", finalizers.join(", "))
}
