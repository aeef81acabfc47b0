//! The generation in force, stored in the cluster itself.
//!
//! Bundles are compressed into Secrets that are named by their content and never change. One more
//! Secret, the pointer, says which of them make up the generation. A generation is in force once
//! the pointer is replaced: after a crash at any moment, either the old or the new generation is
//! complete.

use std::{collections::BTreeSet, io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use muster_model::{
    bundle::{Bundle, BundleError},
    fleet_record::SealedRecord,
    ids::{AppName, ClusterName, ContentHash, Generation, Role},
    policy::PruneOrders,
};
use muster_plan::delivery::Term;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, RequestError, bounded, own_metadata},
    compression,
};

const POINTER: &str = muster_model::agent_records::GENERATION;
const POINTER_KEY: &str = "generation.json";
const PIECE_LABEL: &str = "muster.dev/bundle";
const PIECE_KEY: &str = "bundle.zst";
/// The most bytes in one Secret. Kubernetes allows 1 MiB.
const PIECE_BYTES: usize = 900 * 1024;
const CONCURRENCY: usize = 8;
/// The number of bundles that are read at the same time. Each may be large.
const AHEAD: usize = 4;

/// A bundle in two forms: decoded, to be applied, and compressed, to be stored.
#[derive(Debug, Clone)]
pub struct StoredBundle {
    hash: ContentHash,
    bundle: Arc<Bundle>,
    packed: Bytes,
    packed_hash: ContentHash,
}

/// Why bytes can't become a [`StoredBundle`].
#[derive(Debug, thiserror::Error)]
pub enum StoredBundleError {
    /// The bytes are not a bundle.
    #[error("what the hub sent is not a bundle")]
    Decode(#[source] BundleError),
    /// The bytes can't be compressed.
    #[error("the bundle can't be compressed")]
    Pack(#[source] io::Error),
}

impl StoredBundle {
    /// Creates a bundle from the bytes that [`Bundle::encode`] made.
    ///
    /// # Errors
    /// [`StoredBundleError`] if the bytes are something else.
    pub fn from_encoded(encoded: &[u8]) -> Result<Self, StoredBundleError> {
        let packed = compression::pack(encoded).map_err(StoredBundleError::Pack)?;
        Self::new(encoded, packed)
    }

    fn new(encoded: &[u8], packed: Vec<u8>) -> Result<Self, StoredBundleError> {
        Ok(Self {
            packed_hash: ContentHash::of(&packed),
            hash: ContentHash::of(encoded),
            bundle: Arc::new(Bundle::decode(encoded).map_err(StoredBundleError::Decode)?),
            packed: packed.into(),
        })
    }

    /// Returns the hash of the encoded bytes.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Returns the bundle.
    #[must_use]
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}

/// A generation as the agent stores it.
#[derive(Debug, Clone)]
pub struct StoredGeneration {
    /// The number of the generation.
    pub generation: Generation,
    /// The content hash of the generation, as the hub computed it.
    pub hash: ContentHash,
    /// The term of the hub that sent the generation.
    pub term: Term,
    /// The incarnation of that hub's store.
    pub incarnation: String,
    /// The enrolment under which the generation was received. Terms of different hubs can't be
    /// compared.
    pub enrolment: String,
    /// The generation's orders about deletions.
    pub prune: PruneOrders,
    /// The fleet record; `None` if the hub sent none.
    pub record: Option<SealedRecord>,
    /// The bundles, in the hub's order.
    pub bundles: Vec<StoredBundle>,
}

impl StoredGeneration {
    /// Returns the apps that are fenced here, and those that a move makes the primary here. Their objects wait for
    /// nothing. `own` is the name of this cluster.
    #[must_use]
    pub fn urgent(&self, own: Option<&ClusterName>) -> BTreeSet<AppName> {
        let record = self.record.as_ref().and_then(|record| record.read().ok());
        let record = record.unwrap_or_default();
        // A bundle may be older than the record, and then its role is not what the record says.
        let is_urgent = |app: &AppName| {
            let writer = record.writers.get(app);
            writer.is_some_and(|w| w.is_urgent() && own.is_some() && w.primary() == own)
        };
        let headers = self.bundles.iter().map(|bundle| &bundle.bundle().header);
        let urgent = headers.filter(|header| match header.role {
            Role::Fenced => true,
            Role::Primary => is_urgent(&header.app),
            Role::Standby | Role::Active => false,
        });
        urgent.map(|header| header.app.clone()).collect()
    }
}

/// The pointer to a generation: everything except the bundles' content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pointer {
    /// The number of the generation.
    pub generation: Generation,
    /// The content hash of the generation.
    pub hash: ContentHash,
    /// The term of the hub that sent the generation.
    pub term: Term,
    /// The incarnation of that hub's store.
    pub incarnation: String,
    /// The enrolment under which the generation was received. It is empty in records of earlier
    /// releases.
    #[serde(default)]
    pub enrolment: String,
    /// The generation's orders about deletions.
    #[serde(default)]
    pub prune: PruneOrders,
    /// The fleet record. Hubs of earlier releases sent none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<SealedRecord>,
    bundles: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    app: AppName,
    role: Role,
    hash: ContentHash,
    /// The hash that names the pieces. Another version of the agent may compress the same bundle
    /// differently.
    packed: ContentHash,
    pieces: usize,
}

impl Pointer {
    /// Returns the whole generation, with its bundles in their order.
    #[must_use]
    pub fn with(self, bundles: Vec<StoredBundle>) -> StoredGeneration {
        StoredGeneration {
            generation: self.generation,
            hash: self.hash,
            term: self.term,
            incarnation: self.incarnation,
            enrolment: self.enrolment,
            prune: self.prune,
            record: self.record,
            bundles,
        }
    }
}

impl Listed {
    fn of(bundle: &StoredBundle) -> Self {
        Self {
            app: bundle.bundle.header.app.clone(),
            role: bundle.bundle.header.role,
            hash: bundle.hash,
            packed: bundle.packed_hash,
            pieces: bundle.packed.len().div_ceil(PIECE_BYTES).max(1),
        }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        (0..self.pieces).map(|piece| {
            format!(
                "{}{}-{piece}",
                muster_model::agent_records::BUNDLE,
                self.packed
            )
        })
    }
}

/// Why the stored generation can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GenerationStoreError {
    /// A request failed.
    #[error("the agent stores generations in {object}, which can't be reached")]
    Request {
        /// The object that can't be reached, such as `Secret NAME`.
        object: String,
        /// The error of the request.
        #[source]
        source: RequestError,
    },
    /// The pointer can't be read.
    #[error(
        "the record of the generation in force, the Secret {POINTER}, is damaged. Running objects are left unchanged; \
         delete the Secret, and the agent continues with what its hub sends"
    )]
    DamagedPointer(#[source] io::Error),
    /// The pointer is intact, but a bundle of its generation is missing or damaged. The hub must
    /// send the bundle again.
    #[error("bundle {app} of generation {} is missing or damaged", pointer.generation)]
    DamagedBundle {
        /// The app whose bundle is missing or damaged.
        app: AppName,
        /// The pointer to the generation.
        pointer: Box<Pointer>,
    },
    /// A newer generation is stored, or the same one with other content.
    #[error("generation {offered} is refused: the cluster has generation {} ({})",
        stored.generation, stored.hash.short())]
    Refused {
        /// The generation that was to be stored.
        offered: Generation,
        /// The generation in force.
        stored: Box<Pointer>,
    },
}

/// Returns the error for a Secret that can't be reached.
fn failed(secret: &str) -> impl FnOnce(RequestError) -> GenerationStoreError + use<'_> {
    unreachable("Secret", secret)
}

/// Returns the error for an object that can't be reached.
fn unreachable<'a>(
    kind: &'a str,
    name: &'a str,
) -> impl FnOnce(RequestError) -> GenerationStoreError + use<'a> {
    move |source| GenerationStoreError::Request {
        object: format!("{kind} {name}"),
        source,
    }
}

/// The store of the generation in the cluster.
pub struct GenerationStore {
    cluster: Cluster,
    namespace: String,
    api: Api<Secret>,
    /// The pointer with the version of its Secret; the outer `None` until it is read.
    pointer: Option<Option<(Pointer, String)>>,
    /// The names of the existing pieces; `None` until they are listed.
    pieces: Option<BTreeSet<String>>,
}

impl GenerationStore {
    /// Creates a store in this namespace. The namespace is created when it is missing.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            cluster: Cluster::new(client, CONCURRENCY),
            namespace: namespace.to_owned(),
            pointer: None,
            pieces: None,
        }
    }

    /// Returns the stored generation without its bundles, or `None` if the cluster never had a
    /// generation.
    ///
    /// # Errors
    /// [`GenerationStoreError`] if the pointer can't be read.
    pub async fn open(&mut self) -> Result<Option<Pointer>, GenerationStoreError> {
        self.read_pointer().await?;
        self.list_pieces().await?;
        let pointer = self.pointer.as_ref().and_then(Option::as_ref);
        Ok(pointer.map(|(pointer, _)| pointer.clone()))
    }

    /// Returns a reader for the bundles of a generation.
    #[must_use]
    pub fn reader(&self) -> GenerationReader {
        GenerationReader(self.api.clone())
    }

    /// Returns the whole stored generation, or `None` if the cluster never had one.
    ///
    /// # Errors
    /// [`GenerationStoreError`]. With [`GenerationStoreError::DamagedBundle`] the number of the
    /// generation in force is still known.
    pub async fn load(&mut self) -> Result<Option<StoredGeneration>, GenerationStoreError> {
        let Some(pointer) = self.open().await? else {
            return Ok(None);
        };
        let bundles = self.reader().bundles(&pointer).try_collect().await?;
        Ok(Some(pointer.with(bundles)))
    }

    /// Records a newer term for the stored generation, which stays the same. Returns false if no
    /// generation is stored.
    ///
    /// # Errors
    /// [`GenerationStoreError`]. It is then unknown whether the term was recorded.
    pub async fn note_term(
        &mut self,
        term: Term,
        incarnation: &str,
        enrolment: &str,
    ) -> Result<bool, GenerationStoreError> {
        self.note(|stored| {
            // A fleet record of an earlier enrolment may be another fleet's. It is dropped,
            // because it would otherwise count as a record of this enrolment.
            let is_own = stored.enrolment.is_empty() || stored.enrolment == enrolment;
            Pointer {
                term,
                incarnation: incarnation.to_owned(),
                enrolment: enrolment.to_owned(),
                record: stored.record.clone().filter(|_| is_own),
                ..stored.clone()
            }
        })
        .await
    }

    /// Records a fleet record that came without a new generation. Returns false if no generation is
    /// stored.
    ///
    /// # Errors
    /// [`GenerationStoreError`]. It is then unknown whether the record was stored.
    pub async fn note_record(
        &mut self,
        record: SealedRecord,
        enrolment: &str,
    ) -> Result<bool, GenerationStoreError> {
        self.note(|stored| Pointer {
            enrolment: enrolment.to_owned(),
            record: Some(record.clone()),
            ..stored.clone()
        })
        .await
    }

    /// Changes the pointer of the stored generation.
    async fn note(
        &mut self,
        change: impl Fn(&Pointer) -> Pointer,
    ) -> Result<bool, GenerationStoreError> {
        for last in [false, true] {
            if self.pointer.is_none() {
                self.read_pointer().await?;
            }
            let Some(Some((stored, version))) = &self.pointer else {
                return Ok(false);
            };
            let noted = change(stored);
            let version = Some(version.clone());
            match self.write(noted, version).await? {
                Ok(()) => return Ok(true),
                Err(error) if last => return Err(failed(POINTER)(error)),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    async fn read_pointer(&mut self) -> Result<(), GenerationStoreError> {
        let secret = bounded(self.api.get_opt(POINTER))
            .await
            .map_err(failed(POINTER))?;
        self.pointer = Some(match secret {
            None => None,
            Some(secret) => {
                let data = secret
                    .data
                    .unwrap_or_default()
                    .remove(POINTER_KEY)
                    .unwrap_or_default();
                let pointer = serde_json::from_slice(&data.0)
                    .map_err(|error| GenerationStoreError::DamagedPointer(error.into()))?;
                Some((
                    pointer,
                    secret.metadata.resource_version.unwrap_or_default(),
                ))
            }
        });
        Ok(())
    }

    async fn list_pieces(&mut self) -> Result<(), GenerationStoreError> {
        let params = ListParams::default().labels(PIECE_LABEL);
        let list = bounded(self.api.list_metadata(&params)).await;
        let list = list.map_err(failed("muster-bundle-*"))?;
        self.pieces = Some(
            list.into_iter()
                .filter_map(|piece| piece.metadata.name)
                .collect(),
        );
        Ok(())
    }

    /// Puts a generation in force. When this returns without an error, [`Self::load`] returns the
    /// generation. The pieces of the previous one stay until [`Self::sweep`].
    ///
    /// # Errors
    /// [`GenerationStoreError`]. The old generation is then still in force, or possibly the new one
    /// if an answer was lost.
    pub async fn save(&mut self, stored: &StoredGeneration) -> Result<(), GenerationStoreError> {
        if self.pieces.is_none() {
            self.list_pieces().await?;
        }
        if self.pointer.is_none() {
            self.read_pointer().await?;
        }
        self.check(stored)?;
        let present = self.pieces.get_or_insert_default();
        let missing: Vec<(String, Secret)> = stored
            .bundles
            .iter()
            .flat_map(|bundle| {
                let chunks = bundle.packed.chunks(PIECE_BYTES);
                Listed::of(bundle)
                    .names()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .zip(chunks)
            })
            .filter(|(name, _)| !present.contains(name))
            .map(|(name, chunk)| {
                let secret = piece(&name, chunk);
                (name, secret)
            })
            .collect();
        let created: Vec<_> = stream::iter(missing)
            .map(|(name, secret)| self.create(secret, name))
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        self.pieces.get_or_insert_default().extend(created);
        self.swap(stored).await
    }

    /// Refuses a generation that is older than the stored one, or that has the same number and other content.
    fn check(&self, stored: &StoredGeneration) -> Result<(), GenerationStoreError> {
        let Some(Some((pointer, _))) = &self.pointer else {
            return Ok(());
        };
        let newer = stored.generation > pointer.generation;
        let same = stored.generation == pointer.generation && stored.hash == pointer.hash;
        if newer || same {
            return Ok(());
        }
        Err(GenerationStoreError::Refused {
            offered: stored.generation,
            stored: Box::new(pointer.clone()),
        })
    }

    /// Creates a Secret, and its namespace if that is missing. If the Secret already exists,
    /// nothing needs to be written, because its name is the hash of its content.
    async fn create(&self, secret: Secret, name: String) -> Result<String, GenerationStoreError> {
        let options = PostParams::default();
        let mut answer = bounded(self.api.create(&options, &secret)).await;
        if answer.as_ref().is_err_and(RequestError::is_not_found) {
            self.cluster
                .ensure_namespace(&self.namespace)
                .await
                .map_err(unreachable("Namespace", &self.namespace))?;
            answer = bounded(self.api.create(&options, &secret)).await;
        }
        match answer {
            Err(error) if !error.already_exists() => Err(failed(&name)(error)),
            _ => Ok(name),
        }
    }

    /// Replaces the pointer, unless somebody else replaced it.
    async fn swap(&mut self, stored: &StoredGeneration) -> Result<(), GenerationStoreError> {
        let pointer = Pointer {
            generation: stored.generation,
            hash: stored.hash,
            term: stored.term,
            incarnation: stored.incarnation.clone(),
            enrolment: stored.enrolment.clone(),
            prune: stored.prune.clone(),
            record: stored.record.clone(),
            bundles: stored.bundles.iter().map(Listed::of).collect(),
        };
        // The second attempt is for a lost answer, or for another process that wrote first. Before
        // it, this generation is compared with the stored one again.
        for last in [false, true] {
            let version = match &self.pointer {
                Some(Some((known, _))) if *known == pointer => return Ok(()),
                Some(Some((_, version))) => Some(version.clone()),
                _ => None,
            };
            match self.write(pointer.clone(), version).await? {
                Ok(()) => return Ok(()),
                Err(error) if last => return Err(failed(POINTER)(error)),
                Err(error) => {
                    if error.is_not_found() {
                        let ensured = self.cluster.ensure_namespace(&self.namespace).await;
                        ensured.map_err(unreachable("Namespace", &self.namespace))?;
                    }
                    self.read_pointer().await?;
                    self.check(stored)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the pointer over this version of it. After an error the stored pointer is unknown.
    async fn write(
        &mut self,
        pointer: Pointer,
        version: Option<String>,
    ) -> Result<Result<(), RequestError>, GenerationStoreError> {
        let json = serde_json::to_vec(&pointer)
            .map_err(|error| GenerationStoreError::DamagedPointer(error.into()))?;
        let mut secret = secret(POINTER, POINTER_KEY, json);
        secret.metadata.resource_version.clone_from(&version);
        let options = PostParams::default();
        let answer = match version {
            Some(_) => bounded(self.api.replace(POINTER, &options, &secret)).await,
            None => bounded(self.api.create(&options, &secret)).await,
        };
        self.pointer = None;
        let written = match answer {
            Ok(written) => written,
            Err(error) => return Ok(Err(error)),
        };
        let version = written.metadata.resource_version.unwrap_or_default();
        self.pointer = Some(Some((pointer, version)));
        Ok(Ok(()))
    }

    /// Deletes the pieces of generations that are no longer in force.
    ///
    /// # Errors
    /// [`GenerationStoreError`]. The next sweep deletes what is left.
    pub async fn sweep(&mut self) -> Result<(), GenerationStoreError> {
        let (Some(pieces), Some(Some((pointer, _)))) = (&self.pieces, &self.pointer) else {
            return Ok(());
        };
        let used: BTreeSet<String> = pointer.bundles.iter().flat_map(Listed::names).collect();
        let garbage: Vec<String> = pieces.difference(&used).cloned().collect();
        let deleted: Vec<String> = stream::iter(garbage)
            .map(|name| async {
                match bounded(self.api.delete(&name, &DeleteParams::default())).await {
                    Err(error) if !error.is_not_found() => Err(failed(&name)(error)),
                    _ => Ok(name),
                }
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        let pieces = self.pieces.get_or_insert_default();
        for name in deleted {
            pieces.remove(&name);
        }
        Ok(())
    }
}

/// A reader of stored bundles.
pub struct GenerationReader(Api<Secret>);

impl GenerationReader {
    /// Returns the bundles of a generation in order. A few are read ahead.
    ///
    /// # Errors
    /// [`GenerationStoreError`] for a bundle that can't be read.
    pub fn bundles<'a>(
        &'a self,
        pointer: &'a Pointer,
    ) -> impl Stream<Item = Result<StoredBundle, GenerationStoreError>> + 'a {
        stream::iter(&pointer.bundles)
            .map(|listed| self.bundle(listed, pointer))
            .buffered(AHEAD)
    }

    async fn bundle(
        &self,
        listed: &Listed,
        pointer: &Pointer,
    ) -> Result<StoredBundle, GenerationStoreError> {
        let damaged = || GenerationStoreError::DamagedBundle {
            app: listed.app.clone(),
            pointer: Box::new(pointer.clone()),
        };
        let mut packed = Vec::new();
        for name in listed.names() {
            let secret = bounded(self.0.get_opt(&name))
                .await
                .map_err(failed(&name))?;
            let data = secret.and_then(|secret| secret.data?.remove(PIECE_KEY));
            packed.extend_from_slice(&data.ok_or_else(damaged)?.0);
        }
        let encoded = compression::unpack(&packed).map_err(|_| damaged())?;
        if ContentHash::of(&encoded) != listed.hash {
            return Err(damaged());
        }
        StoredBundle::new(&encoded, packed).map_err(|_| damaged())
    }
}

fn secret(name: &str, key: &str, data: Vec<u8>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..own_metadata()
        },
        data: Some([(key.to_owned(), ByteString(data))].into()),
        ..Secret::default()
    }
}

fn piece(name: &str, chunk: &[u8]) -> Secret {
    let mut piece = secret(name, PIECE_KEY, chunk.to_vec());
    piece
        .metadata
        .labels
        .get_or_insert_default()
        .insert(PIECE_LABEL.to_owned(), String::new());
    Secret {
        immutable: Some(true),
        ..piece
    }
}
