//! Recreates an object that can't be changed: it is deleted and created again. That is done only
//! after the API server has accepted the new object in a dry run, and with a copy of the old one
//! that can be restored.

use std::{collections::HashSet, sync::PoisonError, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use muster_model::{agent_records, bundle::ObjectRef, ids::ContentHash};
use muster_plan::immutable::{Refusal, may_recreate};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    Engine,
    desired::DesiredObject,
    send::{Ended, Sending, refusal},
};
use crate::{
    cluster::{Deleted, LiveMeta, RequestError, bounded, explain, own_metadata, retried},
    inventory::Identity,
    observed::ObjectState,
    requests::Dependents,
};

const SAVED_LABEL: &str = "muster.dev/recreating";
const SAVED_KEY: &str = "object.json";
/// The longest time that one run waits until an object is deleted.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const FIRST_LOOK: Duration = Duration::from_millis(25);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// The metadata fields that the API server sets and that a new object must not have.
const GIVEN: [&str; 7] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

impl Engine {
    /// Replaces the live object by `body`.
    pub(super) async fn recreate(
        &self,
        sending: &Sending<'_>,
        body: &Value,
        why: &str,
    ) -> Result<Ended, RequestError> {
        let Sending {
            object,
            path,
            cancel,
            ..
        } = sending;
        let failed = |what: String| Ok(ObjectState::Failed(format!("{why}; {what}")).into());
        let live = retried(cancel, || self.cluster.get(path)).await?;
        let entry = self.inventory.get(&object.key);
        if entry
            .as_ref()
            .is_some_and(|entry| entry.refused == Some(object.digest()))
        {
            return failed(
                "it was recreated, the new object was refused, and the old one was restored; change the \
                 app to try again"
                    .to_owned(),
            );
        }
        // An object that is already being deleted is lost anyway, so recreating it needs no
        // approval.
        let stays = |live: &&Value| live["metadata"]["deletionTimestamp"].is_null();
        if let Some(live) = live.as_ref().filter(stays) {
            let uid = live["metadata"]["uid"].as_str();
            let applied = uid.is_some() && entry.as_ref().is_some_and(|e| e.uid.as_deref() == uid);
            let git = object.marks().recreate.as_deref();
            match may_recreate(&object.id, live, git, applied) {
                Ok(()) => {}
                Err(Refusal::Forbidden(reason)) => return failed(reason),
                Err(Refusal::Asks(reason)) => {
                    let set = recreation(object, uid, &reason);
                    if !self.is_approved(set) {
                        let why = format!("{why}; {reason}");
                        return Ok(ObjectState::Approval { set, why }.into());
                    }
                }
            }
        }
        if let Err(error) = self.prove(sending, body).await {
            if error.is_transient() {
                return Err(error);
            }
            let reason = refusal(&object.id.gvk, &error);
            return failed(format!("a new object would be refused: {reason}"));
        }
        let mut old_uid = None;
        if let Some(live) = live {
            self.save(&object.key, &live).await?;
            let uid = live["metadata"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if stays(&&live) {
                self.tell_recreation(object, &uid, why);
            }
            let dependents = dependents(&object.id, &live, body);
            old_uid = Some(uid.clone());
            let gone = retried(cancel, || self.cluster.delete(path, &uid, dependents)).await?;
            if gone != Deleted::Gone && !self.is_gone(sending, &uid).await? {
                let what = format!(
                    "{why}; the old object is being deleted; the new one is created afterwards"
                );
                return Ok(ObjectState::Waiting(what).into());
            }
        }
        match self.apply(sending, body.to_string().into(), true).await {
            Ok(live) => {
                self.forget_saved(&object.key).await;
                if let Some(old) = old_uid {
                    let note = format!(
                        "{why}; the object with the UID {old} was deleted and this one created"
                    );
                    let uid = Some(live.uid.clone());
                    self.publish(object, uid, "Recreated", "Recreate", &note);
                }
                Ok(Ended::Applied(live))
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.inventory
                    .recreation_refused(&object.key, object.digest());
                let reason = refusal(&object.id.gvk, &error);
                failed(match self.put_back(sending).await {
                    Ok(true) => format!(
                        "the new object was refused, and the old one was restored: {reason}"
                    ),
                    Ok(false) => format!("the new object was refused: {reason}"),
                    Err(back) => format!(
                        "the new object was refused: {reason}; the old one can't be restored: {}",
                        explain(&back)
                    ),
                })
            }
        }
    }

    /// Asks the API server in a dry run whether it would accept the object under another name. The
    /// answer is a strong hint but no proof: checks that depend on the name or on other objects may
    /// differ.
    async fn prove(&self, sending: &Sending<'_>, body: &Value) -> Result<(), RequestError> {
        let Sending { object, kind, .. } = sending;
        // The names of these kinds must match their content, so they can't be tested under another name.
        if matches!(
            object.id.gvk.kind.as_str(),
            "CustomResourceDefinition" | "APIService"
        ) {
            return Ok(());
        }
        let mut proof = body.clone();
        let mut name = object.id.name.clone();
        name.truncate(name.floor_char_boundary(50));
        let name = name.trim_end_matches(['-', '.']);
        proof["metadata"]["name"] = format!("{name}-muster-proof").into();
        if object.id.gvk.kind == "Service"
            && let Some(spec) = proof["spec"].as_object_mut()
        {
            // The old Service still uses these values.
            spec.retain(|field, value| !field.starts_with("clusterIP") || value == "None");
            for port in spec
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            }
        }
        let collection = kind.collection(&object.id);
        let asked = || self.cluster.create(&collection, &proof, true);
        match retried(sending.cancel, asked).await {
            Err(error) if !error.already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for at most [`GONE_WITHIN`] until the object with this UID is gone. A newer generation
    /// ends the wait.
    async fn is_gone(&self, sending: &Sending<'_>, uid: &str) -> Result<bool, RequestError> {
        let end = Instant::now() + GONE_WITHIN;
        let mut pause = FIRST_LOOK;
        loop {
            let live = retried(sending.cancel, || self.cluster.metadata(&sending.path)).await?;
            if live.is_none_or(|live| live.uid != uid) {
                return Ok(true);
            }
            let slept = sending
                .cancel
                .run_until_cancelled(tokio::time::sleep(pause))
                .await;
            if slept.is_none() || Instant::now() > end {
                return Ok(false);
            }
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }

    fn saves(&self) -> Api<Secret> {
        Api::namespaced(self.cluster.client.clone(), &self.config.namespace)
    }

    /// Stores a copy of the object in the agent's namespace. An existing copy is not replaced: it
    /// is older, and it is the last one that was known to be good.
    async fn save(&self, key: &Identity, live: &Value) -> Result<(), RequestError> {
        let mut copy = live.clone();
        if copy["kind"] == "Job" && copy["spec"]["manualSelector"] != true {
            // The API server generated these values for the old Job's UID and generates them again.
            let spec = copy.get_mut("spec").and_then(Value::as_object_mut);
            spec.map(|spec| spec.remove("selector"));
            let labels = copy.pointer_mut("/spec/template/metadata/labels");
            if let Some(labels) = labels.and_then(Value::as_object_mut) {
                labels.retain(|name, _| {
                    let name = name.strip_prefix("batch.kubernetes.io/").unwrap_or(name);
                    !matches!(name, "controller-uid" | "job-name")
                });
            }
        }
        if let Some(object) = copy.as_object_mut() {
            object.remove("status");
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|field, _| !GIVEN.contains(&field.as_str()));
            }
        }
        let name = saved_name(key);
        let mut metadata = own_metadata();
        metadata
            .labels
            .get_or_insert_default()
            .insert(SAVED_LABEL.to_owned(), String::new());
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..metadata
            },
            data: Some(
                [(
                    SAVED_KEY.to_owned(),
                    ByteString(copy.to_string().into_bytes()),
                )]
                .into(),
            ),
            ..Secret::default()
        };
        match bounded(self.saves().create(&PostParams::default(), &secret)).await {
            Err(error) if !error.already_exists() => return Err(error),
            _ => {}
        }
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.get_or_insert_default().insert(name);
        Ok(())
    }

    /// Creates the old object again from its copy. Returns false if there is no copy.
    async fn put_back(&self, sending: &Sending<'_>) -> Result<bool, RequestError> {
        let object = sending.object;
        let name = saved_name(&object.key);
        let Some(secret) = bounded(self.saves().get_opt(&name)).await? else {
            return Ok(false);
        };
        let data = secret
            .data
            .unwrap_or_default()
            .remove(SAVED_KEY)
            .unwrap_or_default();
        let copy: Map<String, Value> = serde_json::from_slice(&data.0).unwrap_or_default();
        let collection = sending.kind.collection(&object.id);
        let copy = Value::Object(copy);
        let back = retried(sending.cancel, || {
            self.cluster.create(&collection, &copy, false)
        })
        .await;
        match back {
            Ok(LiveMeta { uid, .. }) => self.inventory.found(&object.key, &uid),
            Err(error) if error.already_exists() => {}
            Err(error) => return Err(error),
        }
        self.forget_saved(&object.key).await;
        Ok(true)
    }

    async fn forget_saved(&self, key: &Identity) {
        let name = saved_name(key);
        let deleted = bounded(self.saves().delete(&name, &DeleteParams::default())).await;
        match deleted {
            Err(error) if !error.is_not_found() => {
                tracing::debug!(
                    error = explain(&error),
                    name,
                    "a copy of an object can't be deleted yet"
                );
            }
            _ => {
                let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
                saved.get_or_insert_default().remove(&name);
            }
        }
    }

    /// Lists the copies that an earlier process left. Does so only once.
    pub(super) async fn load_saved(&self) -> Result<(), RequestError> {
        let saved = || self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved().is_some() {
            return Ok(());
        }
        let params = ListParams::default().labels(SAVED_LABEL);
        let list = bounded(self.saves().list_metadata(&params)).await?;
        let names = list.into_iter().filter_map(|secret| secret.metadata.name);
        *saved() = Some(names.collect());
        Ok(())
    }

    fn is_saved(&self, key: &Identity) -> bool {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved
            .as_ref()
            .is_some_and(|saved| saved.contains(&saved_name(key)))
    }

    /// Restores the old object after a refusal. An agent that was killed between the deletion and
    /// the creation may have left it deleted.
    pub(super) async fn rescue(&self, sending: &Sending<'_>) {
        let key = &sending.object.key;
        if !self.is_saved(key) {
            return;
        }
        self.inventory
            .recreation_refused(key, sending.object.digest());
        if let Err(error) = self.put_back(sending).await {
            tracing::warn!(object = %sending.object.id, error = explain(&error), "the old object can't be restored yet");
        }
    }

    /// Deletes the copies of objects that are as desired.
    pub(super) async fn tidy_saved(&self, applied: impl Iterator<Item = &Identity>) {
        let none = {
            let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
            saved.as_ref().is_none_or(HashSet::is_empty)
        };
        if none {
            return;
        }
        for key in applied {
            if self.is_saved(key) {
                self.forget_saved(key).await;
            }
        }
    }
}

/// Returns the hash that a person approves. It names this live object, the content that it gets,
/// and the loss that the person was shown.
fn recreation(object: &DesiredObject, uid: Option<&str>, loss: &str) -> ContentHash {
    let digest = object.digest().to_string();
    let parts = [
        "recreate",
        object.key.as_str(),
        uid.unwrap_or_default(),
        &digest,
        loss,
    ];
    ContentHash::of(parts.join("\0").as_bytes())
}

/// Returns what happens to an object's dependents. The pods of a StatefulSet with an unchanged
/// selector stay, because the new StatefulSet takes them over.
fn dependents(id: &ObjectRef, live: &Value, body: &Value) -> Dependents {
    let same = live["spec"]["selector"] == body["spec"]["selector"];
    if id.gvk.group == "apps" && id.gvk.kind == "StatefulSet" && same {
        Dependents::Stay
    } else {
        Dependents::Go
    }
}

fn saved_name(key: &Identity) -> String {
    let hash = ContentHash::of(key.as_str().as_bytes());
    format!("{}{hash}", agent_records::RECREATING)
}
