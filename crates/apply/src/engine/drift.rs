//! Decides which objects need no request and which have to be sent, and checks objects for drift.
//! The watches say which objects to check; the API server says what differs.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};
use muster_plan::{
    drift::Difference,
    fields::managers,
    people::{added, last_tool, without_fields},
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Engine, PATIENCE, Recheck, Turn, desired::DesiredObject, schedule::Due, send::WAS_PRESENT,
};
use crate::{
    cluster::{RequestError, explain, retried},
    inventory::{Entry, Identity},
    kinds::Kind,
    observed::{DriftEvent, ObjectState},
};

/// The number of attempts to compute the difference of an object that others change at the same
/// time.
const LOOKS: u32 = 4;

/// The result of checking an object that has drifted.
pub(super) struct Finding {
    /// True if it is still the same live object, with other content.
    there: bool,
    /// A description of the difference for people. It is empty if only the ownership of fields has
    /// changed.
    difference: String,
    /// The field manager that changed the object last, if known.
    who: Option<String>,
    /// True if the drift is reported but not corrected.
    left: bool,
}

impl Finding {
    fn of_content(difference: String, left: bool) -> Self {
        Self {
            there: true,
            difference,
            who: None,
            left,
        }
    }
}

/// The difference between an object and its desired state.
#[derive(Default)]
struct Drift {
    /// A description for people.
    difference: String,
    /// True if people have added fields.
    added: bool,
    who: Option<String>,
}

/// The objects that have drifted, by index.
#[derive(Default)]
pub(super) struct Drifted(BTreeMap<usize, Finding>);

impl Drifted {
    /// Returns true if only the content of the live object has to be corrected.
    pub(super) fn is_there(&self, index: usize) -> bool {
        self.0.get(&index).is_some_and(|finding| finding.there)
    }

    /// Returns the objects that are corrected.
    pub(super) fn resent(&self) -> HashSet<usize> {
        let resent = self.0.iter().filter(|(_, finding)| !finding.left);
        resent.map(|(index, _)| *index).collect()
    }
}

impl Engine {
    /// Decides for each object whether it has to be sent. It is not sent if the inventory knows its
    /// UID, exactly this content was applied, and no watch has reported a change since. It is not
    /// sent either while its back-off lasts.
    pub(super) async fn first_turns(
        self: &Arc<Self>,
        desired: &[Arc<DesiredObject>],
        recheck: &Recheck,
        due: &Due,
        cancel: &CancellationToken,
    ) -> (Vec<Turn>, Drifted) {
        let mut turns = vec![Turn::None; desired.len()];
        for key in &due.over {
            self.tracker.set_fight(key, None);
            self.tracker.resume_drift(key);
        }
        for (key, _) in &due.undone {
            self.tracker.resume_drift(key);
        }
        let mut doubted: HashSet<Identity> = std::mem::take(&mut *self.postponed());
        doubted.extend(due.undone.iter().map(|(key, _)| key.clone()));
        doubted.extend(recheck.drifted.iter().cloned());
        let mut drifted = Drifted::default();
        let mut looks = Vec::new();
        for (index, object) in desired.iter().enumerate() {
            if let Some(why) = self.config.out_of_reach(&object.id) {
                self.tracker
                    .set_state(&object.key, ObjectState::Failed(why));
                turns[index] = Turn::OutOfReach;
                continue;
            }
            if self.under_way.has(&object.key) {
                turns[index] = Turn::UnderWay;
                if doubted.contains(&object.key) {
                    self.postponed().insert(object.key.clone());
                }
                continue;
            }
            let digest = object.digest();
            let once = object.marks().if_not_present;
            self.inventory.stays(&object.key, &object.header().after);
            let entry = self.inventory.get(&object.key);
            match entry.filter(|entry| entry.uid.is_some()) {
                Some(entry) if once || entry.applied == Some(digest) => {
                    turns[index] = Turn::Good(false);
                    if recheck.everything && !once {
                        turns[index] = Turn::None;
                        let finding = Finding::of_content(String::new(), false);
                        drifted.0.insert(index, finding);
                    } else if doubted.contains(&object.key) {
                        if recheck.drifted.contains(&object.key) {
                            self.schedule.hasten(&object.key);
                        }
                        if self.schedule.must_wait(&object.key, digest) {
                            turns[index] = Turn::Bad;
                            self.postponed().insert(object.key.clone());
                        } else {
                            looks.extend(object.kind.clone().map(|kind| (index, kind, entry)));
                        }
                    }
                }
                _ => {
                    if doubted.contains(&object.key) {
                        self.schedule.hasten(&object.key);
                    }
                    if self.schedule.must_wait(&object.key, digest) {
                        turns[index] = Turn::Bad;
                    } else if !self.schedule.is_failing(&object.key, digest) {
                        self.tracker.clear_result(&object.key);
                    }
                }
            }
        }
        let alone = self.leave_alone(desired, &mut turns);
        looks.retain(|(index, ..)| !alone.contains(index));
        self.look_at_all(desired, looks, cancel).await;
        let mut findings = self.findings();
        for (index, object) in desired.iter().enumerate() {
            if turns[index] == Turn::Good(false)
                && !alone.contains(&index)
                && let Some(finding) = findings.remove(&object.key)
            {
                if finding.left || self.is_corrected(object, &finding) {
                    if !finding.left {
                        turns[index] = Turn::None;
                    }
                    drifted.0.insert(index, finding);
                } else {
                    turns[index] = Turn::Bad;
                }
            }
        }
        // Findings about other objects are no longer needed.
        findings.clear();
        drop(findings);
        (turns, drifted)
    }

    /// Returns true if a drifted object is corrected now. If somebody else changes or deletes it
    /// again and again, people are informed, and the pauses between corrections grow.
    fn is_corrected(&self, object: &DesiredObject, finding: &Finding) -> bool {
        let undone = self.schedule.undone(&object.key);
        if let Some((times, within)) = undone.extent {
            let within = rounded(within);
            let who = finding.who.as_deref().unwrap_or("somebody else");
            let message = if finding.there {
                let Finding { difference, .. } = finding;
                format!(
                    "{who} has undone this {times} times within {within}: {difference}; it is reverted \
                     with pauses that grow to {}. Remove the fields from Git, name them in `ignore`, \
                     or stop what changes them",
                    rounded(self.config.longest_fight)
                )
            } else {
                format!(
                    "{who} has deleted this {times} times within {within}; it is created again with \
                     pauses that grow to {}{}",
                    rounded(self.config.longest_fight),
                    deletion_hint(object)
                )
            };
            self.tracker.set_fight(&object.key, Some(message));
        }
        if undone.rests {
            self.tracker.pause_drift(&object.key);
        }
        !undone.rests
    }

    /// Checks several objects for drift at a time, and waits a moment for the results. A check that
    /// takes longer wakes the engine when it ends.
    async fn look_at_all(
        self: &Arc<Self>,
        desired: &[Arc<DesiredObject>],
        looks: Vec<(usize, Arc<Kind>, Arc<Entry>)>,
        cancel: &CancellationToken,
    ) {
        let (done, mut ended) = mpsc::unbounded_channel();
        let mut open = 0_usize;
        for (index, kind, entry) in looks {
            let object = desired[index].clone();
            let Some(taken) = self.under_way.take(&object.key) else {
                continue;
            };
            let (engine, done, cancel) = (self.clone(), done.clone(), cancel.clone());
            open += 1;
            self.under_way.tasks.spawn(async move {
                let look = engine.look(&object, &kind, &entry, &cancel);
                match look.await {
                    Ok(Some(finding)) => {
                        engine.findings().insert(object.key.clone(), finding);
                    }
                    Ok(None) => {
                        engine.schedule.succeeded(&object.key);
                        engine.tracker.is_as_applied(&object.key);
                    }
                    Err(_) => {
                        engine.postponed().insert(object.key.clone());
                    }
                }
                drop(taken);
                if done.send(()).is_err() {
                    engine.tracker.wake();
                }
            });
        }
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        while open > 0 {
            tokio::select! {
                _ = ended.recv() => open -= 1,
                () = &mut patience => break,
                () = cancel.cancelled() => break,
            }
        }
        ended.close();
    }

    /// Marks the objects that are left alone because of an annotation, in Git or on the live
    /// object. Returns their indexes.
    fn leave_alone(&self, desired: &[Arc<DesiredObject>], turns: &mut [Turn]) -> HashSet<usize> {
        let mut alone = HashSet::new();
        let present = self
            .present
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (index, (object, turn)) in desired.iter().zip(turns).enumerate() {
            let why = if object.urgent || *turn == Turn::UnderWay {
                continue;
            } else if object.marks().left_alone || self.tracker.is_left_alone(&object.key) {
                LEFT_ALONE
            } else if object.marks().if_not_present && present.contains(&object.key) {
                WAS_PRESENT
            } else {
                if matches!(turn, Turn::Good(_)) {
                    self.tracker.end_left_alone(&object.key);
                }
                continue;
            };
            *turn = Turn::Good(false);
            alone.insert(index);
            self.tracker
                .set_state(&object.key, ObjectState::LeftAlone(why.to_owned()));
        }
        alone
    }

    /// Checks one object for drift. The watch may be older than the last apply, so the live object
    /// is read. Returns `None` if the object has not drifted.
    async fn look(
        &self,
        object: &DesiredObject,
        kind: &Kind,
        entry: &Arc<Entry>,
        cancel: &CancellationToken,
    ) -> Result<Option<Finding>, RequestError> {
        let path = kind.path(&object.id);
        let report = object.only_reports_drift();
        let missing = |difference: &str| {
            Ok(Some(Finding {
                there: false,
                difference: difference.to_owned(),
                who: None,
                left: report,
            }))
        };
        let live = match retried(cancel, || self.cluster.metadata(&path)).await {
            Ok(Some(live)) => live,
            Ok(None) if entry.finished || entry.failed.is_some() => return Ok(None),
            Ok(None) => return missing("it was deleted"),
            Err(RequestError::NotSent) => return Err(RequestError::NotSent),
            // The request that follows reports the error.
            Err(_) => return Ok(Some(Finding::of_content(String::new(), false))),
        };
        if entry.uid.as_deref() != Some(&live.uid) {
            return missing("another object was put in its place");
        }
        if live.deletion_timestamp.is_some() {
            return missing("it is being deleted");
        }
        let people = live.people();
        let owned = entry.owned.is_none() || live.owned() == entry.owned;
        let labelled = live.app() == Some(object.app().as_str());
        let whole = owned && labelled;
        if object.marks().if_not_present || (whole && people.is_none()) {
            self.tracker.tolerate(&object.key, people);
            return Ok(None);
        }
        let drift = match self.drift(object, kind, &path, whole, cancel).await {
            Ok(drift) => drift,
            Err(error) => Drift {
                difference: format!("the difference can't be computed: {}", explain(&error)),
                ..Drift::default()
            },
        };
        let left = report && !drift.difference.is_empty();
        let as_it_was = whole && !drift.added && drift.difference.is_empty();
        if left || as_it_was {
            self.tracker.tolerate(&object.key, people);
        }
        Ok((!as_it_was).then(|| Finding {
            who: drift.who,
            ..Finding::of_content(drift.difference, left)
        }))
    }

    /// Returns how the live object differs from the result that an apply would have now, and
    /// whether people have added fields. `whole` says that every field that Muster applied is unchanged.
    async fn drift(
        &self,
        object: &DesiredObject,
        kind: &Kind,
        path: &str,
        whole: bool,
        cancel: &CancellationToken,
    ) -> Result<Drift, RequestError> {
        let mut attempt = 1;
        loop {
            let Some(live) = retried(cancel, || self.cluster.get(path)).await? else {
                return Ok(Drift {
                    difference: "it was deleted".to_owned(),
                    ..Drift::default()
                });
            };
            let predicted = if whole {
                live.clone()
            } else {
                let body = self.effective(object, kind, &live).await?;
                retried(cancel, || self.cluster.predict(path, &body)).await?
            };
            // If the versions differ, the prediction also contains a change that somebody made
            // between the two requests.
            let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
            if version(&live) == version(&predicted) || attempt == LOOKS {
                let scaled = self.is_scaled(object, &live).await?;
                // A field that Git defines is never an addition, no matter who changed it.
                let added = added(&object.id, &predicted, &self.ignored(object, scaled));
                let tool = added.as_ref().and_then(|_| last_tool(&live));
                let who = tool.map(str::to_owned).or_else(|| last_writer(&live));
                let predicted = match &added {
                    Some(added) => without_fields(&predicted, added),
                    None => predicted,
                };
                return Ok(Drift {
                    difference: Difference::between(&object.id, &live, &predicted).to_string(),
                    added: added.is_some(),
                    who,
                });
            }
            attempt += 1;
        }
    }

    /// Reports drift in the status, in the log and as an event.
    pub(super) fn tell_differences(&self, desired: &[Arc<DesiredObject>], drifted: &Drifted) {
        for (index, finding) in drifted.0.iter().filter(|(_, f)| !f.difference.is_empty()) {
            let object = &desired[*index];
            let Finding {
                difference, left, ..
            } = finding;
            if *left {
                let state = ObjectState::Drifted(difference.clone());
                if !self.tracker.set_state(&object.key, state) {
                    continue;
                }
            }
            tracing::info!(app = %object.app(), object = %object.id, difference, corrected = !left, "an object has drifted");
            let action = if *left { "Report" } else { "Correct" };
            let uid = self.inventory.get(&object.key).and_then(|e| e.uid.clone());
            self.publish(object, uid, "Drift", action, difference);
            self.remember(object, difference.clone(), !left, false);
        }
    }

    /// Reports in the status and in the log that an object is recreated.
    pub(super) fn tell_recreation(&self, object: &DesiredObject, uid: &str, why: &str) {
        tracing::warn!(app = %object.app(), object = %object.id, uid, why, "the object is recreated");
        let difference = format!("{why}; the object with the UID {uid} was deleted");
        self.remember(object, difference, true, true);
    }

    /// Reports that the field ownership of an object is lost.
    pub(super) fn tell_loss_of_owners(&self, object: &DesiredObject, uid: &str) {
        const LOST: &str = "somebody has cleared .metadata.managedFields, which record who owns which \
             field; fields that differ from Git are reverted, but a field that was removed from Git meanwhile may \
             still be set: inspect the object";
        tracing::warn!(app = %object.app(), object = %object.id, "{LOST}");
        self.publish(object, Some(uid.to_owned()), "Drift", "Correct", LOST);
        self.remember(object, LOST.to_owned(), true, false);
    }

    /// Stores a drift for the status.
    fn remember(
        &self,
        object: &DesiredObject,
        difference: String,
        corrected: bool,
        recreated: bool,
    ) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let event = DriftEvent {
            at: now.unwrap_or_default().as_secs(),
            id: Clone::clone(&object.id),
            difference,
            corrected,
            recreated,
        };
        self.tracker.drifts(object.app(), event);
    }

    /// Publishes an event on the object. It only informs people, so an error stops nothing.
    pub(super) fn publish(
        &self,
        object: &DesiredObject,
        uid: Option<String>,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        /// The most bytes that the note of an event may have.
        const LONGEST_NOTE: usize = 1000;
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note[..note.floor_char_boundary(LONGEST_NOTE)].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some(object.id.gvk.api_version()),
            kind: Some(object.id.gvk.kind.clone()),
            namespace: object.id.namespace.clone(),
            name: Some(object.id.name.clone()),
            uid,
            ..ObjectReference::default()
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = events.publish(&event, &reference).await {
                tracing::debug!(error = explain(&error), "no event could be published");
            }
        });
    }
}

/// The message of an object that is left alone.
pub(super) const LEFT_ALONE: &str = "left alone: muster.dev/reconcile is disabled on it";

/// Returns the manager, other than Muster, that changed the object last. A status change is not
/// drift.
fn last_writer(live: &Value) -> Option<String> {
    managers(live)
        .filter(|manager| !manager.is_own() && manager.subresource != "status")
        .max_by_key(|manager| manager.time)
        .map(|manager| manager.name.to_owned())
}

/// Returns a hint about why an object may be deleted as soon as it is created, if its own content
/// explains that.
fn deletion_hint(object: &DesiredObject) -> &'static str {
    let json = &object.object().json;
    if json.contains("\"ownerReferences\"") {
        "; the garbage collector deletes an object whose ownerReferences name an owner that does not \
         exist: remove them from Git"
    } else if json.contains("\"kubernetes.io/service-account-token\"") {
        "; a token Secret is deleted while its ServiceAccount does not exist"
    } else {
        ""
    }
}

/// Returns a duration as text for people.
fn rounded(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{} s", seconds.max(1)),
        seconds => format!("{} min", seconds / 60),
    }
}
