//! Builds the request for one object, sends it and handles the answer.

use std::{
    sync::{
        PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use muster_model::{
    bundle::{Gvk, ObjectRef},
    ids::Role,
};
use muster_plan::{
    fields::managers,
    health::{Assessment, Health},
    ignore::{REPLICAS, ignored, settle},
    immutable::{Cause, unchangeable},
    ownership::{Conflict, Verdict, explain as explain_conflicts, judge, leave_version},
    people::{Rest, take_over},
    unions::clear,
};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Engine, LISTED_WITHIN, Turn, body, desired::DesiredObject, drift::LEFT_ALONE};
use crate::{
    annotations::{DISABLED, RECONCILE},
    cluster::{LiveMeta, RequestError, asked_again, explain, retried},
    inventory::Identity,
    kinds::Kind,
    object_tracker::Seen,
    observed::ObjectState,
    watches::Watched,
};

/// The number of attempts for an object that is refused right after its definition changed. The API
/// server starts to use a new schema a moment after it has accepted the definition.
const SCHEMA_ATTEMPTS: u32 = 6;
const SCHEMA_PAUSE: Duration = Duration::from_millis(150);
/// The number of attempts to clear the fields that the API server refuses. It may name other fields
/// each time.
const CLEARINGS: usize = 3;
/// The number of attempts to change field ownership while others change the object at the same
/// time.
const OWNERS_ATTEMPTS: u32 = 4;

/// The message of an object with `if-not-present` that existed before Muster could create it.
pub(super) const WAS_PRESENT: &str =
    "left alone: it existed before, and muster.dev/if-not-present is set";

/// The result of one object's request.
pub(super) enum Ended {
    /// The API server accepted the object.
    Applied(LiveMeta),
    /// The object already exists, and it should only be created if it is missing.
    Present,
    /// The object was not applied.
    Not(ObjectState),
}

impl From<ObjectState> for Ended {
    fn from(state: ObjectState) -> Self {
        Self::Not(state)
    }
}

/// One object that is being sent.
pub(super) struct Sending<'a> {
    pub(super) object: &'a DesiredObject,
    pub(super) kind: &'a Kind,
    pub(super) path: String,
    /// True if the object's definition was sent in the same run.
    new_schema: bool,
    /// Set once the object is known not to have existed before this request.
    absent: AtomicBool,
    pub(super) cancel: &'a CancellationToken,
}

impl Engine {
    pub(super) async fn send_one(
        &self,
        object: &DesiredObject,
        kind: &Kind,
        new_schema: bool,
        drifted: bool,
        cancel: &CancellationToken,
    ) -> Turn {
        let sending = Sending {
            object,
            kind,
            path: kind.path(&object.id),
            new_schema,
            absent: AtomicBool::new(false),
            cancel,
        };
        let left_alone = match drifted {
            true => Ok(false),
            false => self.is_left_alone(&sending).await,
        };
        match left_alone {
            Ok(true) => {
                let why = LEFT_ALONE.to_owned();
                self.tracker
                    .set_state(&object.key, ObjectState::LeftAlone(why));
                return Turn::Good(false);
            }
            Ok(false) => {}
            Err(RequestError::NotSent) => return Turn::None,
            Err(error) => {
                let state = self.refused(&sending, &error);
                self.tracker.set_state(&object.key, state);
                return Turn::Bad;
            }
        }
        let state = match self.bring(&sending, drifted).await {
            Ok(Ended::Applied(live)) => match self.accepted(&sending, live).await {
                Ok(()) => return Turn::Good(true),
                Err(state) => state,
            },
            Ok(Ended::Present) => {
                let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
                present.insert(object.key.clone());
                drop(present);
                // The object belongs to its creator and is never pruned.
                self.inventory.forget(&object.key);
                self.tracker
                    .set_state(&object.key, ObjectState::LeftAlone(WAS_PRESENT.to_owned()));
                return Turn::Good(false);
            }
            Ok(Ended::Not(state)) => state,
            Err(RequestError::NotSent) => return Turn::None,
            Err(error) => {
                if !error.is_transient() {
                    self.rescue(&sending).await;
                }
                self.refused(&sending, &error)
            }
        };
        self.tracker.set_state(&object.key, state);
        Turn::Bad
    }

    /// Returns true if a person has set `reconcile: disabled` on the live object. The watch of its
    /// kind knows that; the object itself is read if the watch has listed nothing for a while.
    async fn is_left_alone(&self, sending: &Sending<'_>) -> Result<bool, RequestError> {
        let Sending { object, cancel, .. } = sending;
        let entry = self.inventory.get(&object.key);
        if object.urgent || entry.is_none_or(|entry| entry.uid.is_none()) {
            return Ok(false);
        }
        let watched = Watched::of(&object.id, self.config.namespaces.is_limited());
        let listed = self.observer().listed(&watched);
        if let Some(mut listed) = listed {
            let listed = listed.wait_for(|listed| *listed);
            let listed = tokio::time::timeout(LISTED_WITHIN, listed);
            match cancel.run_until_cancelled(listed).await {
                Some(Ok(Ok(_))) => return Ok(self.tracker.is_left_alone(&object.key)),
                // The watch takes long or is restarted.
                Some(_) => {}
                None => return Err(RequestError::NotSent),
            }
        }
        let live = retried(cancel, || self.cluster.metadata(&sending.path)).await?;
        let Some(live) = live.filter(|live| live.annotation(RECONCILE) == Some(DISABLED)) else {
            return Ok(false);
        };
        // The assessment is valid until the watch reports the object.
        let assessment = Assessment {
            health: Health::Unknown,
            message: Some("the API server does not list objects of its kind".to_owned()),
        };
        let seen = Seen {
            version: live.resource_version.filter(|_| live.generation.is_none()),
            uid: live.uid,
            generation: live.generation,
            assessment,
            has_pods: false,
            left_alone: true,
            silent_until: None,
        };
        self.tracker.record_seen(&object.key, Some(seen));
        Ok(true)
    }

    /// Changes the live object to its desired state, in as few requests as possible.
    async fn bring(&self, sending: &Sending<'_>, drifted: bool) -> Result<Ended, RequestError> {
        let Sending {
            object, kind, path, ..
        } = sending;
        let mut text = match body::text(object, kind) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("the object can't be read: {error}");
                return Ok(ObjectState::Failed(message).into());
            }
        };
        if self.inventory.is_unsure(&object.key) {
            // The object may already be Muster's, from a request whose answer was lost. Changes
            // that were made since then are drift.
            let live = retried(sending.cancel, || self.cluster.metadata(path)).await?;
            // If it does not exist yet, a request of a killed process may still create it. It is
            // then Muster's own, not one to adopt.
            sending.absent.store(live.is_none(), Ordering::Relaxed);
            if let Some(live) = live.filter(LiveMeta::is_ours) {
                if object.marks().if_not_present {
                    return Ok(Ended::Applied(live));
                }
                self.inventory.found(&object.key, &live.uid);
            }
        }
        let known = self
            .inventory
            .get(&object.key)
            .is_some_and(|entry| entry.uid.is_some());
        if object.marks().if_not_present && !known {
            return self.create_where_missing(sending, &tree(&text)).await;
        }
        if let Some(bundle) = object.hook_bundle()
            && known
        {
            let live = retried(sending.cancel, || self.cluster.metadata(path)).await?;
            if live.is_some_and(|live| live.annotation(body::BUNDLE) != Some(bundle)) {
                return self
                    .recreate(sending, &tree(&text), "the bundle of its app changed")
                    .await;
            }
        }
        let fenced = object.header().role == Role::Fenced;
        let pointers = self.ignored(object, false);
        if known && !fenced && !pointers.is_empty() {
            let live = retried(sending.cancel, || self.cluster.get(path)).await?;
            if let Some(live) = live {
                let mut body = tree(&text);
                settle(&mut body, &live, &pointers);
                text = body.to_string().into();
            }
        }
        let mut answer = self.apply(sending, text.clone(), fenced).await;
        if let Err(error) = &answer
            && let Some(dead) = dead_version(error)
        {
            self.leave_version(sending, &dead).await?;
            answer = self.apply(sending, text.clone(), fenced).await;
        }
        let answer = match answer {
            Err(error) if error.code() == 409 && conflicts(&error).next().is_some() => {
                match self
                    .contested(sending, tree(&text), &error, known, drifted)
                    .await?
                {
                    Contest::Answer(answer) => answer,
                    Contest::Left(state) => return Ok(state.into()),
                }
            }
            answer => answer,
        };
        match answer {
            Err(error) if error.code() == 422 => {
                let causes: Vec<Cause<'_>> = error
                    .causes()
                    .map(|(_, message, field)| Cause { message, field })
                    .collect();
                match unchangeable(&causes) {
                    Some(why) => self.recreate(sending, &tree(&text), &why).await,
                    None => Ok(Ended::Applied(self.clear(sending, &text, error).await?)),
                }
            }
            answer => Ok(Ended::Applied(answer?)),
        }
    }

    /// Applies the object after a refusal. Before that, Muster becomes the owner of refused fields
    /// that Git does not have, so that the apply removes them.
    async fn clear(
        &self,
        sending: &Sending<'_>,
        body: &Bytes,
        refused: RequestError,
    ) -> Result<LiveMeta, RequestError> {
        let desired = tree(body);
        let mut error = refused;
        for _ in 0..CLEARINGS {
            let causes: Vec<Cause<'_>> = error
                .causes()
                .map(|(_, message, field)| Cause { message, field })
                .collect();
            let cleared = self
                .change_owners(sending, |live, ignored| {
                    Some((clear(&desired, live, &causes, ignored)?, ()))
                })
                .await?;
            if cleared.is_none() {
                break;
            }
            match self.apply(sending, body.clone(), false).await {
                Err(next) if next.code() == 422 => error = next,
                answer => return answer,
            }
        }
        Err(error)
    }

    /// Moves the entries of `metadata.managedFields` from an API version that is no longer served
    /// to a served one.
    async fn leave_version(&self, sending: &Sending<'_>, dead: &str) -> Result<(), RequestError> {
        let to = sending.object.id.gvk.api_version();
        let changed = self.change_owners(sending, |live, _| {
            Some((leave_version(live, dead, &to)?, ()))
        });
        changed.await.map(drop)
    }

    /// Changes the field ownership of the live object with a JSON patch. `decide` makes the patch
    /// from the live object and its ignored fields. If the object has changed since, the test in
    /// the patch fails, and the patch is made again. Returns `None` if the object does not exist or
    /// nothing has to change.
    async fn change_owners<T>(
        &self,
        sending: &Sending<'_>,
        decide: impl Fn(&Value, &[&str]) -> Option<(Value, T)>,
    ) -> Result<Option<Changed<T>>, RequestError> {
        let Sending {
            object,
            path,
            cancel,
            ..
        } = sending;
        let mut attempt = 1;
        loop {
            let Some(before) = retried(cancel, || self.cluster.get(path)).await? else {
                return Ok(None);
            };
            let scaled = self.is_scaled(object, &before).await?;
            let Some((patch, why)) = decide(&before, &self.ignored(object, scaled)) else {
                return Ok(None);
            };
            match self.cluster.patch(path, &patch).await {
                Err(error) if matches!(error.code(), 409 | 422) && attempt < OWNERS_ATTEMPTS => {
                    attempt += 1;
                }
                answer => {
                    let live = answer?;
                    return Ok(Some(Changed { before, live, why }));
                }
            }
        }
    }

    async fn create_where_missing(
        &self,
        sending: &Sending<'_>,
        body: &Value,
    ) -> Result<Ended, RequestError> {
        let Sending {
            object,
            kind,
            path,
            cancel,
            ..
        } = sending;
        // An object that exists because the answer to an earlier request was lost is Muster's.
        let ended = |live: LiveMeta| {
            if live.is_ours() {
                Ended::Applied(live)
            } else {
                Ended::Present
            }
        };
        if let Some(live) = retried(cancel, || self.cluster.metadata(path)).await? {
            return Ok(ended(live));
        }
        let collection = kind.collection(&object.id);
        let asked = || {
            self.inventory.leaves(&object.key);
            self.cluster.create(&collection, body, false)
        };
        match retried(cancel, asked).await {
            Err(error) if error.already_exists() => {
                let live = retried(cancel, || self.cluster.metadata(path)).await?;
                Ok(live.map_or(Ended::Present, ended))
            }
            answer => Ok(Ended::Applied(answer?)),
        }
    }

    /// Applies the object. It is sent again after a refusal if its definition was sent in the same
    /// run, because the API server possibly does not use the new schema yet.
    pub(super) async fn apply(
        &self,
        sending: &Sending<'_>,
        body: Bytes,
        force: bool,
    ) -> Result<LiveMeta, RequestError> {
        let cancel = sending.cancel;
        let mut attempt = 0;
        loop {
            let asked = || {
                // The API server may carry out an attempt for a while after the agent has given it
                // up.
                self.inventory.leaves(&sending.object.key);
                self.cluster.apply(&sending.path, body.clone(), force)
            };
            let answer = asked_again(cancel, asked).await;
            attempt += 1;
            let refused = answer.as_ref().is_err_and(|error| !error.is_transient());
            if !(refused && sending.new_schema && attempt < SCHEMA_ATTEMPTS) {
                return answer;
            }
            let pause = tokio::time::sleep(SCHEMA_PAUSE);
            if cancel.run_until_cancelled(pause).await.is_none() {
                return answer;
            }
        }
    }

    /// Resolves a conflict: other managers own fields that the app defines with other values.
    async fn contested(
        &self,
        sending: &Sending<'_>,
        mut body: Value,
        error: &RequestError,
        known: bool,
        drifted: bool,
    ) -> Result<Contest, RequestError> {
        let Sending {
            object,
            path,
            cancel,
            ..
        } = sending;
        let Some(live) = retried(cancel, || self.cluster.get(path)).await? else {
            // The object was deleted after the conflict.
            let answer = self.apply(sending, body.to_string().into(), true).await;
            return Ok(Contest::Answer(answer));
        };
        let mut state: Vec<Conflict> = conflicts(error).collect();
        let scaled = self.is_scaled(object, &live).await?;
        if settle(&mut body, &live, &self.ignored(object, scaled)) {
            match self.apply(sending, body.to_string().into(), false).await {
                Err(error) if error.code() == 409 => state = conflicts(&error).collect(),
                answer => return Ok(Contest::Answer(answer)),
            }
        }
        let policy = &object.header().policy;
        let verdict = if drifted {
            // Every field was Muster's when the object was applied, so every conflict is drift.
            Verdict::Take
        } else {
            let conflicts = object.marks().conflicts.unwrap_or(policy.conflicts);
            judge(&live, state, conflicts, policy.drift, known)
        };
        Ok(match verdict {
            Verdict::Take => {
                Contest::Answer(self.apply(sending, body.to_string().into(), true).await)
            }
            Verdict::Leave(conflicts) => {
                Contest::Left(ObjectState::Failed(explain_conflicts(&conflicts)))
            }
        })
    }

    pub(super) fn ignored<'a>(&self, object: &'a DesiredObject, scaled: bool) -> Vec<&'a str> {
        ignored(
            &object.id,
            &object.header().policy.ignore,
            scaled || object.scaled,
        )
    }

    /// Returns the body for an object that exists, without the fields that others may set.
    pub(super) async fn effective(
        &self,
        object: &DesiredObject,
        kind: &Kind,
        live: &Value,
    ) -> Result<Value, RequestError> {
        let mut body = body::of(object, kind).unwrap_or_default();
        let scaled = self.is_scaled(object, live).await?;
        settle(&mut body, live, &self.ignored(object, scaled));
        Ok(body)
    }

    /// Returns true if a HorizontalPodAutoscaler of the cluster scales the object. The autoscalers
    /// are listed only if somebody has scaled the object.
    pub(super) async fn is_scaled(
        &self,
        object: &DesiredObject,
        live: &Value,
    ) -> Result<bool, RequestError> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Value>,
        }
        let Some(namespace) = object.id.namespace.as_deref().filter(|_| !object.scaled) else {
            return Ok(object.scaled);
        };
        let touched = managers(live).any(|manager| manager.subresource == "scale");
        if !touched || live.pointer(REPLICAS).is_none() {
            return Ok(false);
        }
        let path = format!(
            "/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers?limit=500"
        );
        let list: List = self.cluster.read(&path, "application/json").await?;
        Ok(list.items.iter().any(|scaler| {
            let target = &scaler["spec"]["scaleTargetRef"];
            target["kind"] == object.id.gvk.kind && target["name"] == object.id.name
        }))
    }

    /// Takes over the fields that people's tools own on an accepted object, and records the object
    /// in the inventory.
    async fn accepted(&self, sending: &Sending<'_>, live: LiveMeta) -> Result<(), ObjectState> {
        let object = sending.object;
        let entry = self.inventory.get(&object.key);
        let is_new = sending.absent.load(Ordering::Relaxed);
        let rest = if !is_new && entry.is_none_or(|entry| entry.uid.is_none()) {
            Rest::Adopt
        } else if object.only_reports_drift() {
            Rest::Leave
        } else {
            Rest::Take
        };
        let mut live = live;
        if live.people().is_some() && !object.marks().if_not_present {
            live = match self.take_over(sending, live, rest).await {
                Ok(live) => live,
                Err(error) => {
                    let state = self.refused(sending, &error);
                    return Err(
                        state.about("the fields of people's tools on it can't be taken over")
                    );
                }
            };
        }
        self.inventory
            .applied(&object.key, &live.uid, object.digest(), live.owned());
        self.tracker
            .applied(&object.key, &live.uid, live.generation);
        if rest == Rest::Leave && live.people().is_some() {
            // The fields that people have added are reported as drift.
            self.tracker.drift(object.key.clone());
        } else {
            self.tracker.tolerate(&object.key, live.people());
        }
        if live.deletion_timestamp.is_none() {
            return Ok(());
        }
        let why = "it is being deleted, and is created again afterwards";
        Err(ObjectState::Waiting(why.to_owned()))
    }

    /// Takes over the fields that people's tools own on an object that was just applied, or leaves
    /// them, as `rest` says.
    async fn take_over(
        &self,
        sending: &Sending<'_>,
        applied: LiveMeta,
        rest: Rest,
    ) -> Result<LiveMeta, RequestError> {
        let Sending { object, kind, .. } = sending;
        let taken = self.change_owners(sending, |live, ignored| {
            let taken = take_over(&object.id, live, ignored, rest)?;
            Some((taken.patch, (taken.apply, taken.unknown)))
        });
        let Some(Changed { before, live, why }) = taken.await? else {
            return Ok(applied);
        };
        let (apply, unknown) = why;
        if unknown {
            self.tell_loss_of_owners(object, &live.uid);
        }
        if !apply {
            return Ok(live);
        }
        let body = self.effective(object, kind, &before).await?;
        self.apply(sending, body.to_string().into(), false).await
    }

    /// Returns the state that an error puts an object into.
    fn refused(&self, sending: &Sending<'_>, error: &RequestError) -> ObjectState {
        let Sending { object, kind, .. } = sending;
        if !error.is_transient() {
            self.inventory.refused(&object.key);
        }
        if error.namespace_terminating() {
            ObjectState::Waiting("its namespace is being deleted".to_owned())
        } else if error.namespace_missing() && !self.brings_namespace(object) {
            let namespace = object.id.namespace.as_deref().unwrap_or_default();
            ObjectState::Failed(format!(
                "the namespace {namespace} does not exist, and no app brings it to this cluster: add the \
                 Namespace to an app, or create it"
            ))
        } else if error.is_not_found() {
            ObjectState::Waiting(error.to_string())
        } else if error.is_no_path() {
            self.vanish(&kind.gvk);
            ObjectState::Waiting(self.kinds().why_unknown(&kind.gvk))
        } else {
            ObjectState::Failed(refusal(&kind.gvk, error))
        }
    }
}

impl Engine {
    /// Returns true if Muster manages the Namespace of this object.
    fn brings_namespace(&self, object: &DesiredObject) -> bool {
        let namespace = ObjectRef {
            gvk: Gvk::from_api_version("v1", "Namespace"),
            namespace: None,
            name: object.id.namespace.clone().unwrap_or_default(),
        };
        let entry = self.inventory.get(&Identity::of(&namespace));
        entry.is_some_and(|entry| !entry.going)
    }
}

/// Parses a request's body.
fn tree(text: &Bytes) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

/// A live object whose field ownership was changed.
struct Changed<T> {
    before: Value,
    live: LiveMeta,
    /// The value that was decided together with the change.
    why: T,
}

/// The result of a conflict.
enum Contest {
    Answer(Result<LiveMeta, RequestError>),
    Left(ObjectState),
}

/// Returns the group and version that the API server no longer serves, although managers still own
/// fields in it. The API server gives no machine-readable reason, so its message is searched.
fn dead_version(error: &RequestError) -> Option<String> {
    const WORDS: &str = "request to convert CR to an invalid group/version: ";
    let text = error.to_string();
    let at = text.find(WORDS)? + WORDS.len();
    text[at..].split_whitespace().next().map(str::to_owned)
}

fn conflicts(error: &RequestError) -> impl Iterator<Item = Conflict> {
    error
        .causes()
        .filter_map(|(reason, message, field)| Conflict::of_cause(reason, message, field))
}

/// The most bytes of a refusal that are shown. The validation errors of a large object can be much
/// longer.
const LONGEST_REFUSAL: usize = 1000;

/// Returns the API server's message, short enough to be shown and without the value of a Secret.
pub(super) fn refusal(gvk: &Gvk, error: &RequestError) -> String {
    let mut text = explain(error);
    // The message shows a value whose type is wrong.
    if gvk.group.is_empty()
        && gvk.kind == "Secret"
        && let Some(at) = text.find(", got ")
    {
        text.truncate(at);
        text.push_str(", got another type");
    }
    if text.len() > LONGEST_REFUSAL {
        text.truncate(text.floor_char_boundary(LONGEST_REFUSAL));
        text.push('…');
    }
    text
}
