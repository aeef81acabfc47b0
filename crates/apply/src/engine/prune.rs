//! The end of a run: what is in the inventory and not wanted goes, in reverse order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use muster_model::{
    bundle::Gvk,
    ids::{AppName, ContentHash},
    records,
};
use muster_plan::{
    order::{After, Item},
    prune::{
        Leaving, Mark, Owned, PRUNE, Spent, Wanted as Want, is_custom, is_permanent, prune, wave,
    },
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Engine, Leftovers, PATIENCE, Recheck, replaced::Replacements};
use crate::{
    Hold, StoredGeneration,
    cluster::{Deleted, LiveMeta, RequestError, asked_again, explain, retried},
    inventory::{Entry, Identity, InventoryError},
    kinds::{Kind, Kinds},
    observed::{Leftover, LeftoverState},
    requests::Dependents,
};

/// The manager of what Kubernetes' controller makes of aggregated ClusterRoles.
const AGGREGATOR: &str = "clusterrole-aggregation-controller";
/// A ClusterRole that a controller put together is looked at again so often after it was deleted: the
/// controller may just have been about to write it.
const ECHOES: u32 = 5;
const ECHO_PAUSE: Duration = Duration::from_millis(200);
/// Deletions that are behind others begin one after the other in one run, so many at most.
const MOST_WAVES: usize = 32;

/// What was found of an object that is not wanted.
#[derive(Debug, Clone)]
pub(super) struct Found {
    uid: String,
    mark: Mark,
    /// As in [`Owned`].
    precious: bool,
    /// As in [`Leaving`].
    aggregates: bool,
    /// It is being deleted and waits for these finalizers.
    terminating: Option<Vec<String>>,
    /// Since when it is, as the API server says.
    since: Option<String>,
}

/// What became of one object that should go, or may.
enum Look {
    /// It is there.
    There(Found),
    /// It is gone, or was never ours.
    Gone,
    /// It can't be told, for this reason.
    Unclear(String),
    /// It is not there, but a request that left before the agent was killed may still create it.
    NotSure,
}

/// One object whose deletion is decided and that is still there.
struct Going {
    key: Identity,
    entry: Arc<Entry>,
    found: Found,
    /// It was deleted, and that was refused or not answered, as this says.
    refused: Option<String>,
}

/// What a request to delete came to.
enum Ended {
    Gone,
    Terminating(Vec<String>),
    Refused(String),
    NotSent,
}

impl Engine {
    /// Removes what Git had on a Namespace that stays because Kubernetes never lets it go.
    async fn give_up(&self, entry: &Entry) -> Result<(), RequestError> {
        let id = &entry.id;
        let kinds = self.kinds();
        let Some(kind) = kinds
            .any_version(&id.gvk)
            .filter(|_| id.gvk.kind == "Namespace")
        else {
            return Ok(());
        };
        let nothing = json!({
            "apiVersion": id.gvk.api_version(),
            "kind": id.gvk.kind,
            "metadata": {"name": id.name},
        });
        let body = nothing.to_string().into();
        self.cluster.apply(&kind.path(id), body, false).await?;
        Ok(())
    }

    /// Deletes what is not wanted, as far as that needs nobody's approval and what replaces it is there.
    /// True where something is still there that another try may end.
    pub(super) async fn prune(
        self: &Arc<Self>,
        kept: &StoredGeneration,
        desired: &[Item<'_>],
        replacements: &Replacements,
        recheck: &Recheck,
        cancel: &CancellationToken,
    ) -> Result<bool, InventoryError> {
        self.marks().retain(|key, _| !recheck.drifted.contains(key));
        let identities: HashSet<_> = desired.iter().map(|item| item.id.identity()).collect();
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
        let apps: BTreeSet<&AppName> = headers().map(|(_, header)| &header.app).collect();
        let spent = Spent {
            apps: self.inventory.pruned_lately(),
            ceiling: self.config.prune_ceiling,
        };
        let want = Want {
            items: desired,
            emptied: &emptied,
            formerly: &formerly,
            apps: &apps,
            unfinished: &replacements.waits_for(),
            spent: &spent,
        };
        let plan = prune(&owned, want, &self.config.namespace, &kept.prune);

        let first = wanted_entries.len();
        let at = |index: usize| &there[index - first];
        for index in plan.handed_over {
            self.inventory.forget(&at(index).0);
        }
        for index in plan.released {
            let (key, entry, found) = at(index);
            if found.mark != Mark::Keep
                && let Err(error) = self.give_up(entry).await
            {
                let why = format!("what Git had on it can't be removed: {}", explain(&error));
                keep_leftover(&mut leftovers, key, entry, LeftoverState::Refused, why);
                unfinished = true;
                continue;
            }
            tracing::info!(
                app = %entry.app, object = %entry.id,
                "no longer wanted and left: {PRUNE} on it says so, or Kubernetes never lets it go"
            );
            self.inventory.forget(key);
        }
        for (index, held) in plan.held {
            let (key, entry, _) = at(index);
            keep_leftover(
                &mut leftovers,
                key,
                entry,
                LeftoverState::Waiting,
                held.to_string(),
            );
        }
        let holds = plan.sets.iter().map(|set| Hold {
            app: set.app.clone(),
            set: set.set,
            recreate: false,
            reason: set.reason.clone(),
            objects: set
                .members
                .iter()
                .map(|&index| at(index).1.id.clone())
                .collect(),
        });
        self.tracker.set_pending_approvals(holds.collect());
        for (key, entry) in plan.sets.iter().flat_map(|set| {
            set.members
                .iter()
                .map(|&index| (&at(index).0, &at(index).1))
        }) {
            let why = HELD.to_owned();
            keep_leftover(&mut leftovers, key, entry, LeftoverState::Approval, why);
        }

        let going: Vec<Going> = plan
            .delete
            .iter()
            .map(|&index| {
                let (key, entry, found) = at(index).clone();
                Going {
                    refused: self.refusal_of(&key),
                    key,
                    entry,
                    found,
                }
            })
            .collect();
        self.inventory.pruned(&plan.unasked);
        for object in &going {
            self.inventory.goes(&object.key);
        }
        self.inventory.flush(cancel).await?;
        unfinished |= self.delete_all(kept, going, &mut leftovers, cancel).await;
        if !cancel.is_cancelled() {
            self.tracker.set_leftovers(leftovers);
        }
        Ok(unfinished)
    }

    /// Deletes objects wave by wave: what is behind others waits until those are gone, maybe for a later
    /// run. True where something is still there.
    async fn delete_all(
        self: &Arc<Self>,
        kept: &StoredGeneration,
        mut going: Vec<Going>,
        leftovers: &mut Leftovers,
        cancel: &CancellationToken,
    ) -> bool {
        let headers = kept.bundles.iter().map(|bundle| &bundle.bundle().header);
        let mut after: BTreeMap<AppName, Vec<AppName>> = going
            .iter()
            .map(|object| (object.entry.app.clone(), object.entry.after.clone()))
            .collect();
        after.extend(headers.map(|header| (header.app.clone(), header.after.clone())));
        let after: After<'_> = after.iter().map(|(app, list)| (app, &list[..])).collect();
        let mut echoes = Vec::new();
        for _ in 0..MOST_WAVES {
            let leaving: Vec<Leaving<'_>> = going.iter().map(leaving).collect();
            let next = wave(&leaving, &after);
            if next.delete.is_empty() || cancel.is_cancelled() {
                break;
            }
            let ended = self.delete(&going, &next.delete, cancel).await;
            let mut gone = HashSet::new();
            for (index, ended) in ended {
                match ended {
                    Ended::Gone => {
                        gone.insert(index);
                    }
                    Ended::Terminating(finalizers) => {
                        going[index].found.terminating = Some(finalizers);
                    }
                    Ended::Refused(why) => going[index].refused = Some(why),
                    Ended::NotSent => return true,
                }
            }
            let mut index = 0;
            going.retain(|object| {
                let is_gone = gone.contains(&index);
                index += 1;
                if is_gone && object.found.aggregates {
                    echoes.push((object.key.clone(), object.entry.clone()));
                } else if is_gone {
                    self.inventory.forget(&object.key);
                }
                !is_gone
            });
        }
        let echoes = self.end_echoes(echoes, cancel).await;
        let leaving: Vec<Leaving<'_>> = going.iter().map(leaving).collect();
        let behind: HashMap<usize, usize> = wave(&leaving, &after).behind.into_iter().collect();
        for (index, object) in going.iter().enumerate() {
            let (state, why) = match (&object.found.terminating, &object.refused) {
                (Some(finalizers), _) => {
                    terminating(finalizers, age(object.found.since.as_deref()))
                }
                (None, Some(why)) => {
                    let why = format!("it can't be deleted: {why}");
                    (LeftoverState::Refused, why)
                }
                (None, None) => {
                    let other = behind.get(&index).map(|&other| &going[other].entry.id);
                    let why = other.map_or_else(
                        || "it is deleted in a moment".to_owned(),
                        |id| format!("it is deleted once {id} is gone"),
                    );
                    (LeftoverState::Waiting, why)
                }
            };
            keep_leftover(leftovers, &object.key, &object.entry, state, why);
        }
        echoes || !going.is_empty()
    }

    /// Sends deletions, and waits a moment for what they come to. One that takes longer wakes the engine
    /// when it ends.
    async fn delete(
        self: &Arc<Self>,
        going: &[Going],
        which: &[usize],
        cancel: &CancellationToken,
    ) -> Vec<(usize, Ended)> {
        let entries = which.iter().map(|&index| &*going[index].entry);
        let kinds = self.kinds_of(entries).await;
        let (done, mut answers) = mpsc::unbounded_channel();
        let mut ended = Vec::new();
        let mut open = HashSet::new();
        for (&index, kind) in which.iter().zip(kinds) {
            let kind = match kind {
                Ok(Some(kind)) => kind,
                Ok(None) => {
                    ended.push((index, Ended::Gone));
                    continue;
                }
                Err(why) => {
                    ended.push((index, Ended::Refused(why)));
                    continue;
                }
            };
            let Some(taken) = self.under_way.take(&going[index].key) else {
                continue;
            };
            open.insert(index);
            let (engine, done, cancel) = (self.clone(), done.clone(), cancel.clone());
            let key = going[index].key.clone();
            let (path, uid) = (
                kind.path(&going[index].entry.id),
                going[index].found.uid.clone(),
            );
            self.under_way.tasks.spawn(async move {
                let asked = || engine.cluster.delete(&path, &uid, Dependents::Go);
                let ended = match asked_again(&cancel, asked).await {
                    Ok(Deleted::Gone | Deleted::Other) => Ended::Gone,
                    Ok(Deleted::Terminating(finalizers)) => Ended::Terminating(finalizers),
                    Err(RequestError::NotSent) => Ended::NotSent,
                    Err(error) => Ended::Refused(engine.unclear(&kind, &error)),
                };
                match &ended {
                    Ended::Refused(why) => engine.refuse(&key, why),
                    Ended::Gone | Ended::Terminating(_) => engine.take_back(&key),
                    Ended::NotSent => {}
                }
                drop(taken);
                if done.send((index, ended)).is_err() {
                    engine.tracker.wake();
                }
            });
        }
        let patience = tokio::time::sleep(PATIENCE * 4);
        tokio::pin!(patience);
        while !open.is_empty() {
            tokio::select! {
                answer = answers.recv() => if let Some((index, answer)) = answer {
                    open.remove(&index);
                    ended.push((index, answer));
                },
                () = &mut patience => break,
                () = cancel.cancelled() => break,
            }
        }
        answers.close();
        while let Ok((index, answer)) = answers.try_recv() {
            open.remove(&index);
            ended.push((index, answer));
        }
        let late = open.into_iter();
        ended.extend(late.map(|index| (index, Ended::Refused(UNANSWERED.to_owned()))));
        ended
    }

    /// Remembers that a deletion was refused; it has its own time to be tried again.
    fn refuse(&self, key: &Identity, why: &str) {
        self.schedule.failed(key, deletion());
        self.refusals().insert(key.clone(), why.to_owned());
    }

    fn take_back(&self, key: &Identity) {
        self.schedule.succeeded(key);
        self.refusals().remove(key);
    }

    /// Why an object is not deleted again yet.
    fn refusal_of(&self, key: &Identity) -> Option<String> {
        if self.under_way.has(key) {
            return Some(UNANSWERED.to_owned());
        }
        let waits = self.schedule.must_wait(key, deletion());
        let known = || self.refusals().get(key).cloned();
        waits.then(|| known().unwrap_or_default())
    }

    /// Deletes what a controller made again of ClusterRoles that it puts together. True where that can't
    /// be told.
    async fn end_echoes(
        &self,
        echoes: Vec<(Identity, Arc<Entry>)>,
        cancel: &CancellationToken,
    ) -> bool {
        if echoes.is_empty() {
            return false;
        }
        let kinds = self
            .kinds_of(echoes.iter().map(|(_, entry)| &**entry))
            .await;
        for _ in 0..ECHOES {
            let pause = tokio::time::sleep(ECHO_PAUSE);
            if cancel.run_until_cancelled(pause).await.is_none() {
                return true;
            }
            for ((_, entry), kind) in echoes.iter().zip(&kinds) {
                let Ok(Some(kind)) = kind else {
                    continue;
                };
                let path = kind.path(&entry.id);
                match retried(cancel, || self.cluster.metadata(&path)).await {
                    Ok(Some(live)) if is_echo(&live) => {
                        let asked = || self.cluster.delete(&path, &live.uid, Dependents::Go);
                        if retried(cancel, asked).await.is_err() {
                            return true;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return true,
                }
            }
        }
        for (key, _) in &echoes {
            self.inventory.forget(key);
        }
        false
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
            if records::is_record(&entry.id, &self.config.namespace) {
                // An agent of an earlier release took it for an app's.
                self.inventory.forget(&key);
                continue;
            }
            match self.config.out_of_reach(&entry.id) {
                Some(why) => keep_leftover(leftovers, &key, &entry, LeftoverState::Refused, why),
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
                Look::There(found) => there.push((key, entry, found)),
                Look::Gone => {
                    self.take_back(&key);
                    self.inventory.forget(&key);
                }
                Look::Unclear(message) => {
                    unfinished = true;
                    keep_leftover(leftovers, &key, &entry, LeftoverState::Refused, message);
                }
                Look::NotSure => {
                    unfinished = true;
                    let why = "a request about it has not ended".to_owned();
                    keep_leftover(leftovers, &key, &entry, LeftoverState::Waiting, why);
                }
            }
        }
        // An order of its own would make the same set another one.
        there.sort_by(|a, b| a.0.cmp(&b.0));
        self.protect_owners(&mut there, cancel).await;
        for (key, _, found) in &there {
            if found.terminating.is_none() {
                self.marks().insert(key.clone(), found.clone());
            }
        }
        (there, unfinished)
    }

    /// Finds out which custom resources own others, and would take them with them. One of which that
    /// can't be told counts as one that does.
    async fn protect_owners(
        &self,
        there: &mut [(Identity, Arc<Entry>, Found)],
        cancel: &CancellationToken,
    ) {
        let mut owners: HashMap<String, Option<HashSet<String>>> = HashMap::new();
        for (key, entry, found) in there {
            let Some(namespace) = entry.id.namespace.as_ref() else {
                continue;
            };
            let decided = entry.going || found.precious || found.terminating.is_some();
            if decided || !is_custom(&entry.id) || self.marks().contains_key(key) {
                continue;
            }
            if !owners.contains_key(namespace) {
                let asked = self.owners_in(namespace, cancel).await;
                if let Err(error) = &asked {
                    tracing::debug!(
                        namespace,
                        error = explain(error),
                        "it can't be told which objects own others"
                    );
                }
                owners.insert(namespace.clone(), asked.ok());
            }
            let known = owners.get(namespace).and_then(Option::as_ref);
            found.precious = known.is_none_or(|all| all.contains(&found.uid));
        }
    }

    async fn look_at_one(
        &self,
        key: &Identity,
        entry: &Entry,
        kind: Result<Option<Arc<Kind>>, String>,
        cancel: &CancellationToken,
    ) -> Look {
        // A request to apply it that ends later could create it again.
        if cancel.is_cancelled() || (self.under_way.has(key) && !entry.going) {
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
            Err(error) => return Look::Unclear(self.unclear(&kind, &error)),
        };
        let same = entry.uid.as_ref() == Some(&live.uid);
        // A request about it had left when the last run ended; what came of that is seen at the object
        // alone.
        let begun = entry.applied.is_none() && live.is_ours();
        let echo = entry.going && is_echo(&live);
        if !same && !begun && !echo {
            // Somebody deleted ours and put another there: that one is theirs.
            return Look::Gone;
        }
        let mut aggregates = false;
        if kind.gvk.kind == "ClusterRole" && kind.gvk.group == "rbac.authorization.k8s.io" {
            aggregates = match retried(cancel, || self.cluster.get(&path)).await {
                Ok(role) => role.is_some_and(|role| !role["aggregationRule"].is_null()),
                Err(error) => return Look::Unclear(self.unclear(&kind, &error)),
            };
        }
        let custom = is_custom(&entry.id);
        Look::There(Found {
            mark: if is_permanent(&entry.id, |label| live.label(label)) {
                Mark::Keep
            } else {
                Mark::of(live.annotation(PRUNE))
            },
            precious: custom && (entry.id.namespace.is_none() || !live.finalizers.is_empty()),
            aggregates,
            since: live.deletion_timestamp.clone(),
            terminating: live.deletion_timestamp.map(|_| live.finalizers),
            uid: live.uid,
        })
    }

    fn unclear(&self, kind: &Kind, error: &RequestError) -> String {
        if error.is_no_path() {
            self.vanish(&kind.gvk);
        }
        explain(error)
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
}

/// What a deletion is called among the contents that failed.
fn deletion() -> ContentHash {
    ContentHash::of(b"deletion")
}

/// What is said of a deletion that hangs.
const UNANSWERED: &str = "the API server has not answered yet";

fn leaving(object: &Going) -> Leaving<'_> {
    Leaving {
        item: of(&object.entry, Some(&object.found)).item,
        deletable: object.found.terminating.is_none() && object.refused.is_none(),
        aggregates: object.found.aggregates,
    }
}

/// Whether a ClusterRole is nothing but what a controller wrote.
fn is_echo(live: &LiveMeta) -> bool {
    live.owned().is_none()
        && live.app().is_none()
        && live.others().iter().all(|manager| manager == AGGREGATOR)
        && !live.others().is_empty()
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
        precious: found.is_some_and(|found| found.precious),
    }
}

fn keep_leftover(
    leftovers: &mut Leftovers,
    key: &Identity,
    entry: &Entry,
    state: LeftoverState,
    message: String,
) {
    let leftover = Leftover {
        id: entry.id.clone(),
        app: entry.app.clone(),
        state,
        message,
    };
    leftovers.insert(key.clone(), leftover);
}

/// After so long a deletion counts as one that hangs.
const HANGS_AFTER: Duration = Duration::from_secs(600);

/// How long ago something was; nothing where that can't be told.
fn age(since: Option<&str>) -> Duration {
    let since = since.and_then(|since| since.parse::<Timestamp>().ok());
    let age = since.map(|since| Timestamp::now().duration_since(since));
    age.and_then(|age| Duration::try_from(age).ok())
        .unwrap_or_default()
}

/// What is said of an object that is being deleted for so long.
fn terminating(finalizers: &[String], age: Duration) -> (LeftoverState, String) {
    let names = finalizers.join(", ");
    let waits = age < HANGS_AFTER;
    let message = match (waits, finalizers) {
        (true, []) => "it is being deleted".to_owned(),
        (true, _) => format!("it is being deleted, waiting for {names}"),
        (false, []) => {
            "it has been deleted for more than 10 min and is still there; see what is left in it"
                .to_owned()
        }
        (false, _) => format!(
            "it has been deleted for more than 10 min and hangs on the finalizer {names}; is the \
             controller running that removes it?"
        ),
    };
    let state = if waits {
        LeftoverState::Deleting
    } else {
        LeftoverState::Refused
    };
    (state, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_that_takes_too_long_hangs_on_its_finalizers() {
        let finalizers = ["x.example/finish".to_owned()];
        let (state, message) = terminating(&finalizers, Duration::from_secs(599));
        assert_eq!(state, LeftoverState::Deleting);
        assert_eq!(message, "it is being deleted, waiting for x.example/finish");
        let (state, message) = terminating(&finalizers, HANGS_AFTER);
        assert_eq!(state, LeftoverState::Refused);
        assert!(message.contains("hangs on the finalizer x.example/finish"));
        assert_eq!(age(Some("not a time")), Duration::ZERO);
        assert!(age(Some("2024-01-01T00:00:00Z")) > HANGS_AFTER);
    }
}
