//! The end of a run: objects that are in the inventory and no longer desired are deleted, in
//! reverse order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use muster_model::{
    agent_records,
    bundle::Gvk,
    ids::{AppName, ContentHash},
};
use muster_plan::{
    order::{After, Item},
    prune::{Desired, Leaving, Mark, Owned, PRUNE, Spent, is_custom, is_permanent, prune, wave},
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Engine, Leftovers, PATIENCE, Recheck, replaced::Replacements};
use crate::{
    PendingApproval, StoredGeneration,
    cluster::{Deleted, LiveMeta, RequestError, asked_again, explain, retried},
    inventory::{Entry, Identity, InventoryError},
    kinds::{Kind, Kinds},
    observed::{Leftover, LeftoverState},
    requests::Dependents,
};

/// The field manager of the Kubernetes controller that aggregates ClusterRoles.
const AGGREGATOR: &str = "clusterrole-aggregation-controller";
/// The number of times that an aggregated ClusterRole is checked again after it was deleted. Its
/// controller may have been about to write it, which recreates it.
const ECHOES: u32 = 5;
const ECHO_PAUSE: Duration = Duration::from_millis(200);
/// The most waves of deletions in one run. Each wave waits until the one before is gone.
const MOST_WAVES: usize = 32;

/// What was found about an object that is no longer desired.
#[derive(Debug, Clone)]
pub(super) struct Found {
    uid: String,
    mark: Mark,
    /// The same as in [`Owned`].
    precious: bool,
    /// The same as in [`Leaving`].
    aggregates: bool,
    /// The finalizers that the object waits for, if it is being deleted.
    terminating: Option<Vec<String>>,
    /// The deletion timestamp that the API server set.
    since: Option<String>,
}

/// The result of checking one object that is no longer desired.
enum Look {
    /// The object exists.
    There(Found),
    /// The object is gone, or was never Muster's.
    Gone,
    /// The check failed, for this reason.
    Unclear(String),
    /// The result is unknown, because a request that has not ended may still create the object.
    NotSure,
}

/// One object whose deletion is decided and that still exists.
struct Going {
    key: Identity,
    entry: Arc<Entry>,
    found: Found,
    /// Why the object is not deleted yet: its deletion was refused, or not answered yet.
    refused: Option<String>,
}

/// The result of a delete request.
enum Ended {
    Gone,
    Terminating(Vec<String>),
    Refused(String),
    NotSent,
}

impl Engine {
    /// Removes the fields that Git defined on a Namespace that stays because Kubernetes never
    /// deletes it.
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

    /// Deletes objects that are no longer desired, if the deletion is approved or needs no approval, and
    /// their replacements are healthy. Returns true if something is left that another attempt may finish.
    pub(super) async fn prune(
        self: &Arc<Self>,
        stored: &StoredGeneration,
        (desired, urgent): (&[Item<'_>], &BTreeSet<AppName>),
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
            stored
                .bundles
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
        let desired_objects = Desired {
            items: desired,
            emptied: &emptied,
            formerly: &formerly,
            apps: &apps,
            unfinished: &replacements.waits_for(),
            urgent,
            spent: &spent,
        };
        let plan = prune(
            &owned,
            desired_objects,
            &self.config.namespace,
            &stored.prune,
        );

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
                let why = format!(
                    "the fields from Git can't be removed from it: {}",
                    explain(&error)
                );
                keep_leftover(&mut leftovers, key, entry, LeftoverState::Refused, why);
                unfinished = true;
                continue;
            }
            tracing::info!(
                app = %entry.app, object = %entry.id,
                "no longer in Git and not deleted: its {PRUNE} says so, or Kubernetes never deletes it"
            );
            self.inventory.forget(key);
        }
        for (index, not_deleted) in plan.not_deleted {
            let (key, entry, _) = at(index);
            keep_leftover(
                &mut leftovers,
                key,
                entry,
                LeftoverState::Waiting,
                not_deleted.to_string(),
            );
        }
        let pending_approvals = plan.sets.iter().map(|set| PendingApproval {
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
        self.tracker
            .set_pending_approvals(pending_approvals.collect());
        for (key, entry) in plan.sets.iter().flat_map(|set| {
            set.members
                .iter()
                .map(|&index| (&at(index).0, &at(index).1))
        }) {
            let why = PENDING_APPROVAL.to_owned();
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
        unfinished |= self.delete_all(stored, going, &mut leftovers, cancel).await;
        if !cancel.is_cancelled() {
            self.tracker.set_leftovers(leftovers);
        }
        Ok(unfinished)
    }

    /// Deletes objects in waves. An object that has to go after others waits until those are gone,
    /// which may take until a later run. Returns true if something still exists.
    async fn delete_all(
        self: &Arc<Self>,
        stored: &StoredGeneration,
        mut going: Vec<Going>,
        leftovers: &mut Leftovers,
        cancel: &CancellationToken,
    ) -> bool {
        let headers = stored.bundles.iter().map(|bundle| &bundle.bundle().header);
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
                        || "it will be deleted in a moment".to_owned(),
                        |id| format!("it will be deleted once {id} is gone"),
                    );
                    (LeftoverState::Waiting, why)
                }
            };
            keep_leftover(leftovers, &object.key, &object.entry, state, why);
        }
        echoes || !going.is_empty()
    }

    /// Sends deletions and waits a moment for their results. A deletion that takes longer wakes the
    /// engine when it ends.
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

    /// Records that a deletion was refused. Its back-off says when it is tried again.
    fn refuse(&self, key: &Identity, why: &str) {
        self.schedule.failed(key, deletion());
        self.refusals().insert(key.clone(), why.to_owned());
    }

    fn take_back(&self, key: &Identity) {
        self.schedule.succeeded(key);
        self.refusals().remove(key);
    }

    /// Returns why the deletion of an object is not sent now, or `None` if it can be sent.
    fn refusal_of(&self, key: &Identity) -> Option<String> {
        if self.under_way.has(key) {
            return Some(UNANSWERED.to_owned());
        }
        let waits = self.schedule.must_wait(key, deletion());
        let known = || self.refusals().get(key).cloned();
        waits.then(|| known().unwrap_or_default())
    }

    /// Deletes aggregated ClusterRoles that their controller has recreated. Returns true if the
    /// result is unknown.
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

    /// Checks objects that are no longer desired. What was found in this generation is not read
    /// again. Returns the objects that exist, and true if something has to be checked again.
    async fn look_at(
        &self,
        unwanted: Vec<(Identity, Arc<Entry>)>,
        leftovers: &mut Leftovers,
        cancel: &CancellationToken,
    ) -> (Vec<(Identity, Arc<Entry>, Found)>, bool) {
        let mut within = Vec::with_capacity(unwanted.len());
        for (key, entry) in unwanted {
            if agent_records::is_record(&entry.id, &self.config.namespace) {
                // This is one of the agent's own records. An earlier release of the agent put it into the
                // inventory as an object of an app.
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
        // The objects are sorted, because another order would change the identity of the set that a
        // person approves.
        there.sort_by(|a, b| a.0.cmp(&b.0));
        self.protect_owners(&mut there, cancel).await;
        // A cancelled check has found out nothing that may be remembered.
        for (key, _, found) in there.iter().filter(|_| !cancel.is_cancelled()) {
            if found.terminating.is_none() {
                self.marks().insert(key.clone(), found.clone());
            }
        }
        (there, unfinished)
    }

    /// Finds out which custom resources own other objects, which would be deleted with them. If
    /// that can't be found out for a custom resource, it counts as an owner.
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
                        "the owners of objects in the namespace can't be listed"
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
        // An apply request that ends later could create the object again.
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
        // A request was sent and its answer was not recorded before the last run ended. Only the
        // live object shows the result.
        let begun = entry.applied.is_none() && live.is_ours();
        let echo = entry.going && is_echo(&live);
        if !same && !begun && !echo {
            // Somebody deleted Muster's object and created another one of this name, which is not
            // Muster's.
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

    /// Returns the kinds of these objects. `Ok(None)` means that the API server does not serve the
    /// kind, so the object can't exist.
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
            // Discovery leaves out APIs that do not answer. Only a clear answer counts.
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

/// Returns the digest under which a failed deletion is recorded in the schedule.
fn deletion() -> ContentHash {
    ContentHash::of(b"deletion")
}

/// The message of a deletion that hangs.
const UNANSWERED: &str = "the API server has not answered yet";

fn leaving(object: &Going) -> Leaving<'_> {
    Leaving {
        item: of(&object.entry, Some(&object.found)).item,
        deletable: object.found.terminating.is_none() && object.refused.is_none(),
        aggregates: object.found.aggregates,
    }
}

/// Returns true if a ClusterRole holds nothing but what its controller wrote.
fn is_echo(live: &LiveMeta) -> bool {
    live.owned().is_none()
        && live.app().is_none()
        && live.others().iter().all(|manager| manager == AGGREGATOR)
        && !live.others().is_empty()
}

/// The message of each object of a set that is pending approval.
const PENDING_APPROVAL: &str = "no longer in Git; pending approval";

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

/// The time after which a deletion counts as stuck.
const HANGS_AFTER: Duration = Duration::from_secs(600);

/// Returns how long ago a time was, or zero if it can't be parsed.
fn age(since: Option<&str>) -> Duration {
    let since = since.and_then(|since| since.parse::<Timestamp>().ok());
    let age = since.map(|since| Timestamp::now().duration_since(since));
    age.and_then(|age| Duration::try_from(age).ok())
        .unwrap_or_default()
}

/// Returns the state and the message of an object that has been terminating for `age`.
fn terminating(finalizers: &[String], age: Duration) -> (LeftoverState, String) {
    let names = finalizers.join(", ");
    let waits = age < HANGS_AFTER;
    let message = match (waits, finalizers) {
        (true, []) => "it is being deleted".to_owned(),
        (true, _) => format!("it is being deleted, waiting for {names}"),
        (false, []) => {
            "stuck: its deletion has not finished for more than 10 min; check what is left in it"
                .to_owned()
        }
        (false, _) => format!(
            "stuck: its deletion has waited for more than 10 min for the finalizer {names}; is the \
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
mod tests;
