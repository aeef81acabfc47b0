//! The agent's record of what it has applied, stored in its cluster.
//!
//! It is a write-ahead record: an object is recorded, without the hash of its content, before the
//! request that creates or changes it is sent. A crash of the agent therefore never orphans an
//! object, and the agent never treats content as applied after a later request has replaced it.
//! The record is stored in [`PIECES`] ConfigMaps. Objects are distributed over them by identity, so
//! that a change rewrites little.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::{ByteString, List, api::core::v1::ConfigMap};
use kube::Client;
use muster_model::{
    bundle::{BundleHeader, ObjectRef},
    ids::{AppName, ContentHash},
};
use muster_plan::order::Definition;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    NamespaceAccess,
    cluster::{Cluster, LONGEST_REQUEST, LiveMeta, RequestError, SERVER_TIMEOUT, own_metadata},
    managed_fields::FieldsDigest,
};

/// The number of ConfigMaps. With 10,000 objects each of them has about 60 KB.
const PIECES: usize = 16;
const PIECE_LABEL: &str = "muster.dev/inventory";
const JSON: &str = "application/json";
const DATA_KEY: &str = "objects.json.zst";
/// The annotation that holds the ID of the process that wrote a piece last. After a conflict, it
/// shows whether the other write came from another process, or from this process with its answer
/// lost.
const WRITER_ANNOTATION: &str = "muster.dev/writer";

/// The annotation that holds the recent deletions without approval. Only the first piece has it.
const PRUNED_ANNOTATION: &str = "muster.dev/pruned";
/// How long a deletion counts against the limits on deletions without approval, in seconds.
const PRUNED_FOR: u64 = 3600;
/// The most rows of that annotation. There is one row for each app and minute.
const PRUNED_ROWS: usize = 500;

/// The number of attempts for a write. A retry covers a lost answer, a missing namespace and a busy server.
const WRITE_ATTEMPTS: u32 = 4;
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// Why the inventory can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// A request failed.
    #[error("the inventory in ConfigMap {name} can't be reached")]
    Request {
        /// The name of the ConfigMap.
        name: String,
        /// The error of the request.
        #[source]
        source: RequestError,
    },
    /// A ConfigMap does not hold what this agent wrote.
    #[error(
        "the inventory in ConfigMap {name} is damaged; restore it from a backup of the cluster"
    )]
    Damaged {
        /// The name of the ConfigMap.
        name: String,
        /// The error of the decoder.
        #[source]
        source: io::Error,
    },
    /// Another process writes the inventory too.
    #[error("another agent writes the inventory in ConfigMap {name}; only one may run")]
    Superseded {
        /// The name of the ConfigMap.
        name: String,
    },
}

/// An object's group, kind, namespace and name as one key, without its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity(Arc<str>);

impl Identity {
    pub(crate) fn of(id: &ObjectRef) -> Self {
        let (group, kind, namespace, name) = id.identity();
        // No part can contain a slash.
        Self(format!("{group}/{kind}/{}/{name}", namespace.unwrap_or_default()).into())
    }

    /// Returns the key of an app's claim to an object that it does not get. It never equals the key
    /// of an object.
    pub(crate) fn claimed_by(&self, app: &AppName, at: usize) -> Self {
        Self(format!("{}/{app}/{at}", self.0).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn piece(&self) -> usize {
        usize::from(ContentHash::of(self.0.as_bytes()).0[0]) % PIECES
    }
}

/// The record of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: ObjectRef,
    pub(crate) app: AppName,
    /// The apps that the object's app depends on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<AppName>,
    /// The UID that the API server returned; `None` before the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
    /// The digest of the applied content; `None` from before a request is sent until its answer is
    /// recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) applied: Option<ContentHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) defines: Option<Definition>,
    /// The digest of the fields that Muster owned after the apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owned: Option<FieldsDigest>,
    /// True if it has been decided to delete the object.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) going: bool,
    /// True if it is a Job that has completed. Its later cleanup is no drift.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) finished: bool,
    /// The message of a failed Job that Kubernetes deletes by itself (`ttlSecondsAfterFinished`).
    /// Such a Job is not run again when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    /// The digest of the content that the API server refused when the object was recreated. A
    /// recreation with this content is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<ContentHash>,
}

impl Entry {
    fn end(&mut self, end: Option<End>) {
        match end {
            Some(End::Completed) => self.finished = true,
            Some(End::Failed(why)) => self.failed = Some(why),
            None => {}
        }
    }
}

/// The end of a Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The Job has completed.
    Completed,
    /// The Job has failed with this message, and Kubernetes deletes it by itself.
    Failed(String),
}

#[derive(Default)]
struct Piece {
    resource_version: Option<String>,
    dirty: bool,
}

/// The number of an app's objects whose deletion was decided without approval within one minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pruned {
    /// The time in minutes since 1970.
    minute: u64,
    app: AppName,
    count: usize,
}

/// Returns the current time in minutes since 1970.
fn minute() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() / 60)
}

#[derive(Default)]
struct State {
    pruned: Vec<Pruned>,
    entries: HashMap<Identity, Arc<Entry>>,
    /// When the last request about an object was sent; `None` if none was sent or the API server
    /// refused it.
    begun: HashMap<Identity, Option<Instant>>,
    /// The UID and the end of Jobs that ended early: the answer to the request that created the Job
    /// was not recorded yet.
    ended: HashMap<Identity, (String, End)>,
    /// When the record was read. A request of the previous process may still have been under way
    /// then.
    read_at: Option<Instant>,
    pieces: [Piece; PIECES],
}

/// Reads the inventory in a cluster without changing anything. Returns the first object in it that
/// an agent with this deny-list would leave alone from now on, and the reason. An agent that is
/// limited to namespaces has less access on purpose, so nothing is returned for it.
///
/// # Errors
/// [`InventoryError`] if this build can't use the inventory.
pub async fn check_inventory(
    client: Client,
    namespace: &str,
    reach: &NamespaceAccess,
) -> Result<Option<(String, String)>, InventoryError> {
    let cluster = Cluster::new(client, 1);
    let inventory = Inventory::new(cluster, namespace);
    inventory.reload().await?;
    if reach.is_limited() {
        return Ok(None);
    }
    let mut denied: Vec<(String, String)> = inventory
        .entries()
        .iter()
        .filter_map(|(_, entry)| Some((entry.id.to_string(), reach.forbids(&entry.id)?)))
        .collect();
    denied.sort();
    Ok(denied.into_iter().next())
}

/// The record, in memory and in the cluster.
pub(crate) struct Inventory {
    cluster: Cluster,
    namespace: String,
    writer: String,
    state: Mutex<State>,
}

fn piece_name(index: usize) -> String {
    format!("{}{index}", muster_model::agent_records::INVENTORY)
}

impl Inventory {
    /// Creates an inventory that has not been read yet.
    pub(crate) fn new(cluster: Cluster, namespace: &str) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            writer: format!("{:016x}", rand::random::<u64>()),
            state: Mutex::default(),
        }
    }

    /// Reads the inventory from the cluster. Changes in memory that were not written are dropped.
    pub(crate) async fn reload(&self) -> Result<(), InventoryError> {
        let path = format!("{}?labelSelector={PIECE_LABEL}", self.collection());
        let list = self.cluster.read::<List<ConfigMap>>(&path, JSON).await;
        let list = list.map_err(|source| InventoryError::Request {
            name: "muster-inventory-*".to_owned(),
            source,
        })?;
        let mut state = State {
            read_at: Some(Instant::now()),
            ..State::default()
        };
        for map in list.items {
            let name = map.metadata.name.unwrap_or_default();
            let Some(index) = (0..PIECES).find(|index| piece_name(*index) == name) else {
                // Somebody has set the label on another object.
                continue;
            };
            if index == 0 {
                let annotations = map.metadata.annotations.unwrap_or_default();
                let pruned = annotations.get(PRUNED_ANNOTATION);
                let pruned = pruned.and_then(|text| serde_json::from_str(text).ok());
                state.pruned = pruned.unwrap_or_default();
            }
            let data = map.binary_data.and_then(|mut data| data.remove(DATA_KEY));
            let entries = read(data).map_err(|source| InventoryError::Damaged { name, source })?;
            state.entries.extend(
                entries
                    .into_iter()
                    .map(|e| (Identity::of(&e.id), Arc::new(e))),
            );
            state.pieces[index].resource_version = map.metadata.resource_version;
        }
        *self.state() = state;
        Ok(())
    }

    /// Returns the path of the ConfigMaps.
    fn collection(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Identity) -> Option<Arc<Entry>> {
        self.state().entries.get(key).cloned()
    }

    pub(crate) fn entries(&self) -> Vec<(Identity, Arc<Entry>)> {
        self.state()
            .entries
            .iter()
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect()
    }

    /// Records that a request about this object is about to be sent.
    pub(crate) fn begin(
        &self,
        key: &Identity,
        id: &ObjectRef,
        header: &BundleHeader,
        defines: Option<&Definition>,
    ) {
        let mut state = self.state();
        let known = state.entries.get(key);
        let entry = Entry {
            id: id.clone(),
            app: header.app.clone(),
            after: header.after.clone(),
            uid: known.and_then(|entry| entry.uid.clone()),
            applied: None,
            defines: defines.cloned(),
            owned: None,
            going: false,
            finished: false,
            failed: None,
            refused: known.and_then(|entry| entry.refused),
        };
        let new = known.is_none();
        if known.is_none_or(|known| **known != entry) {
            state.put(key, entry);
        }
        if new {
            state.begun.insert(key.clone(), None);
        }
    }

    /// Records in memory that the request about this object is sent now.
    pub(crate) fn leaves(&self, key: &Identity) {
        self.state().begun.insert(key.clone(), Some(Instant::now()));
    }

    /// Records in memory that the API server has refused the request about this object.
    pub(crate) fn refused(&self, key: &Identity) {
        self.state().begun.insert(key.clone(), None);
    }

    /// Returns true if an earlier request can still create this object. The request may be one of
    /// this process or, after a crash, of the previous one.
    pub(crate) fn may_appear(&self, key: &Identity) -> bool {
        let state = self.state();
        let begun = state.begun.get(key).copied().unwrap_or(state.read_at);
        begun.is_some_and(|begun| begun.elapsed() < LONGEST_REQUEST)
    }

    /// Returns true if an earlier request about this object was sent, by this process or the
    /// previous one, and its answer was never recorded.
    pub(crate) fn is_unsure(&self, key: &Identity) -> bool {
        let state = self.state();
        let answered = state.entries.get(key).is_none_or(|e| e.uid.is_some());
        !answered && state.begun.get(key) != Some(&None)
    }

    /// Records the API server's answer.
    pub(crate) fn applied(
        &self,
        key: &Identity,
        uid: &str,
        hash: ContentHash,
        owned: Option<FieldsDigest>,
    ) {
        let ended = self.state().ended.remove(key);
        let ended = ended.filter(|(of, _)| of == uid).map(|(_, end)| end);
        self.change(key, |entry| {
            entry.uid = Some(uid.to_owned());
            entry.applied = Some(hash);
            entry.owned = owned;
            entry.refused = None;
            entry.end(ended);
        });
    }

    /// Records the UID of the live object, before its content is as desired.
    pub(crate) fn found(&self, key: &Identity, uid: &str) {
        self.change(key, |entry| entry.uid = Some(uid.to_owned()));
    }

    /// Records how many objects are about to be deleted without approval.
    pub(crate) fn pruned(&self, unasked: &BTreeMap<AppName, usize>) {
        if unasked.is_empty() {
            return;
        }
        let now = minute();
        let mut state = self.state();
        state.forget_pruned(now);
        for (app, count) in unasked {
            let same = state
                .pruned
                .iter_mut()
                .find(|row| row.minute == now && row.app == *app);
            match same {
                Some(row) => row.count += count,
                None => state.pruned.push(Pruned {
                    minute: now,
                    app: app.clone(),
                    count: *count,
                }),
            }
        }
        // Above the limit, the oldest row is added to the next one.
        while state.pruned.len() > PRUNED_ROWS {
            let oldest = state.pruned.remove(0);
            if let Some(next) = state.pruned.first_mut() {
                next.count += oldest.count;
            }
        }
        state.pieces[0].dirty = true;
    }

    /// Returns how many objects of each app were deleted without approval within the last hour.
    pub(crate) fn pruned_lately(&self) -> BTreeMap<AppName, usize> {
        let mut state = self.state();
        state.forget_pruned(minute());
        let mut apps: BTreeMap<AppName, usize> = BTreeMap::new();
        for row in &state.pruned {
            *apps.entry(row.app.clone()).or_default() += row.count;
        }
        apps
    }

    /// Records that the object's deletion is decided.
    pub(crate) fn goes(&self, key: &Identity) {
        self.change(key, |entry| entry.going = true);
    }

    /// Records that the object is desired, and what its app depends on. An earlier decision to
    /// delete it is dropped.
    pub(crate) fn stays(&self, key: &Identity, after: &[AppName]) {
        let known = self.get(key);
        if known.is_some_and(|entry| entry.going || entry.after != after) {
            self.change(key, |entry| {
                entry.going = false;
                entry.after = after.to_vec();
            });
        }
    }

    /// Records how the Job with this UID has ended. Returns true if that is new.
    pub(crate) fn ends(&self, key: &Identity, uid: &str, end: End) -> bool {
        let entry = self.get(key);
        let settled =
            |entry: &Arc<Entry>| entry.applied.is_some() && entry.uid.as_deref() == Some(uid);
        if entry.as_ref().is_some_and(settled) {
            return self.change(key, |entry| entry.end(Some(end)));
        }
        if entry.is_some_and(|entry| entry.applied.is_none()) {
            let mut state = self.state();
            state.ended.insert(key.clone(), (uid.to_owned(), end));
        }
        false
    }

    /// Records that recreating the object with this content was refused.
    pub(crate) fn recreation_refused(&self, key: &Identity, hash: ContentHash) {
        self.change(key, |entry| entry.refused = Some(hash));
    }

    fn change(&self, key: &Identity, change: impl FnOnce(&mut Entry)) -> bool {
        let mut state = self.state();
        let Some(known) = state.entries.get(key) else {
            return false;
        };
        let mut entry = Entry::clone(known);
        change(&mut entry);
        let changed = **known != entry;
        if changed {
            state.put(key, entry);
        }
        changed
    }

    /// Drops an object that is gone or no longer Muster's.
    pub(crate) fn forget(&self, key: &Identity) {
        let mut state = self.state();
        state.begun.remove(key);
        state.ended.remove(key);
        if state.entries.remove(key).is_some() {
            state.touch(key);
        }
    }

    /// Writes all changed pieces concurrently. No request is sent if nothing has changed. After a
    /// cancellation, the writes no longer wait for the limit on concurrent requests.
    pub(crate) async fn flush(&self, cancel: &CancellationToken) -> Result<(), InventoryError> {
        let changed: Vec<(usize, Option<String>, Vec<Arc<Entry>>)> = {
            let mut state = self.state();
            let mut by_piece: BTreeMap<usize, Vec<Arc<Entry>>> = (0..PIECES)
                .filter(|i| state.pieces[*i].dirty)
                .map(|i| (i, vec![]))
                .collect();
            if by_piece.is_empty() {
                return Ok(());
            }
            for (key, entry) in &state.entries {
                if let Some(piece) = by_piece.get_mut(&key.piece()) {
                    piece.push(entry.clone());
                }
            }
            let with_version = by_piece.into_iter().map(|(index, mut entries)| {
                entries.sort_by(|a, b| a.id.cmp(&b.id));
                let piece = &mut state.pieces[index];
                piece.dirty = false;
                (index, piece.resource_version.clone(), entries)
            });
            with_version.collect()
        };
        let results: Vec<(usize, Result<Option<String>, InventoryError>)> = stream::iter(changed)
            .map(|(index, version, entries)| async move {
                (index, self.write(index, version, &entries, cancel).await)
            })
            .buffer_unordered(PIECES)
            .collect()
            .await;
        let mut state = self.state();
        let mut failure = None;
        for (index, result) in results {
            match result {
                Ok(version) => state.pieces[index].resource_version = version,
                Err(error) => {
                    state.pieces[index].dirty = true;
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Writes one piece over its known version and returns the new version.
    async fn write(
        &self,
        index: usize,
        mut version: Option<String>,
        entries: &[Arc<Entry>],
        cancel: &CancellationToken,
    ) -> Result<Option<String>, InventoryError> {
        let name = piece_name(index);
        let data = serde_json::to_vec(entries).map_err(io::Error::from);
        let data = data
            .and_then(|json| crate::compression::pack(&json))
            .map_err(|source| InventoryError::Damaged {
                name: name.clone(),
                source,
            })?;
        let mut metadata = own_metadata();
        metadata.name = Some(name.clone());
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(PIECE_LABEL.to_owned(), index.to_string());
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(WRITER_ANNOTATION.to_owned(), self.writer.clone());
        if index == 0 {
            let pruned = serde_json::to_string(&self.state().pruned);
            annotations.insert(PRUNED_ANNOTATION.to_owned(), pruned.unwrap_or_default());
        }
        let mut map = ConfigMap {
            metadata,
            binary_data: Some(BTreeMap::from([(DATA_KEY.to_owned(), ByteString(data))])),
            ..ConfigMap::default()
        };
        let request = |source| InventoryError::Request {
            name: name.clone(),
            source,
        };
        let path = format!("{}/{name}", self.collection());
        let mut attempts = 0;
        loop {
            attempts += 1;
            map.metadata.resource_version.clone_from(&version);
            match self.send(&path, &map, cancel).await {
                Ok(written) => return Ok(written.resource_version),
                Err(error) if attempts == WRITE_ATTEMPTS => return Err(request(error)),
                Err(error) if error.is_not_found() && version.is_none() => {
                    let ensured = self.cluster.ensure_namespace(&self.namespace).await;
                    ensured.map_err(request)?;
                }
                // Somebody deleted the piece. The state in memory is complete.
                Err(error) if error.is_not_found() => version = None,
                Err(error) if error.is_conflict() => {
                    let live = self.cluster.metadata(&path).await.map_err(request)?;
                    match live {
                        Some(live) if live.annotation(WRITER_ANNOTATION) != Some(&self.writer) => {
                            return Err(InventoryError::Superseded { name });
                        }
                        live => version = live.and_then(|live| live.resource_version),
                    }
                }
                Err(error) if error.is_transient() => tokio::time::sleep(WRITE_PAUSE).await,
                Err(error) => return Err(request(error)),
            }
        }
    }

    /// Creates a piece, or replaces the version that its metadata names.
    async fn send(
        &self,
        path: &str,
        map: &ConfigMap,
        cancel: &CancellationToken,
    ) -> Result<LiveMeta, RequestError> {
        let (method, path) = match map.metadata.resource_version {
            Some(_) => (Method::PUT, path.to_owned()),
            None => (Method::POST, self.collection()),
        };
        let body = serde_json::to_vec(map).map_err(|error| RequestError::NoAnswer(error.into()))?;
        let uri = format!("{path}?{SERVER_TIMEOUT}");
        self.cluster.record(method, &uri, body.into(), cancel).await
    }
}

impl State {
    /// Drops rows that are older than an hour. Rows that lie in the future, because the clock was
    /// set back, still count.
    fn forget_pruned(&mut self, now: u64) {
        self.pruned
            .retain(|row| now.saturating_sub(row.minute) * 60 < PRUNED_FOR);
    }

    fn put(&mut self, key: &Identity, entry: Entry) {
        self.entries.insert(key.clone(), Arc::new(entry));
        self.touch(key);
    }

    fn touch(&mut self, key: &Identity) {
        self.pieces[key.piece()].dirty = true;
    }
}

fn read(data: Option<ByteString>) -> io::Result<Vec<Entry>> {
    let Some(ByteString(packed)) = data else {
        return Ok(Vec::new());
    };
    Ok(serde_json::from_slice(&crate::compression::unpack(
        &packed,
    )?)?)
}
