//! The generation in force, kept in the cluster itself.
//!
//! Bundles are compressed into Secrets that are named by their content and never change; one more
//! Secret, the pointer, says which of them make the generation. Only its replacement counts: whenever
//! the agent dies, the old or the new generation is there as a whole.

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
    ids::{AppName, ContentHash, Generation, Role},
    policy::PruneOrders,
};
use muster_plan::delivery::Term;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, RequestError, bounded, own_metadata},
    compression,
};

const POINTER: &str = muster_model::records::GENERATION;
const POINTER_KEY: &str = "generation.json";
const PIECE_LABEL: &str = "muster.dev/bundle";
const PIECE_KEY: &str = "bundle.zst";
/// A Secret holds at most 1 MiB.
const PIECE_BYTES: usize = 900 * 1024;
const CONCURRENCY: usize = 8;
/// Bundles that are read at the same time: each may be large.
const AHEAD: usize = 4;

/// A bundle, ready to be applied and ready to be kept.
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
    /// They are no bundle.
    #[error("what the hub sent is no bundle")]
    Decode(#[source] BundleError),
    /// They can't be compressed.
    #[error("the bundle can't be compressed")]
    Pack(#[source] io::Error),
}

impl StoredBundle {
    /// From the bytes that [`Bundle::encode`] made.
    ///
    /// # Errors
    /// [`StoredBundleError`] where they are something else.
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

    /// Hash of the encoded bytes.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}

/// A generation as the agent keeps it.
#[derive(Debug, Clone)]
pub struct StoredGeneration {
    /// Its number.
    pub generation: Generation,
    /// Its content hash, as the hub gave it.
    pub hash: ContentHash,
    /// The term of the hub that sent it.
    pub term: Term,
    /// The incarnation of that hub's store.
    pub incarnation: String,
    /// The enrolment under which it came: another hub's terms say nothing about this one's.
    pub enrolment: String,
    /// What it says about deleting.
    pub prune: PruneOrders,
    /// The bundles, in the hub's order.
    pub bundles: Vec<StoredBundle>,
}

/// What the pointer says about a generation: everything but the bundles' content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pointer {
    /// Its number.
    pub generation: Generation,
    /// Its content hash.
    pub hash: ContentHash,
    /// The term of the hub that sent it.
    pub term: Term,
    /// The incarnation of that hub's store.
    pub incarnation: String,
    /// The enrolment under which it came; empty in records of before.
    #[serde(default)]
    pub enrolment: String,
    /// What it says about deleting.
    #[serde(default)]
    pub prune: PruneOrders,
    bundles: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    app: AppName,
    role: Role,
    hash: ContentHash,
    /// Names the pieces: another version of the agent may compress the same bundle differently.
    packed: ContentHash,
    pieces: usize,
}

impl Pointer {
    /// The whole generation, of its bundles in their order.
    #[must_use]
    pub fn with(self, bundles: Vec<StoredBundle>) -> StoredGeneration {
        StoredGeneration {
            generation: self.generation,
            hash: self.hash,
            term: self.term,
            incarnation: self.incarnation,
            enrolment: self.enrolment,
            prune: self.prune,
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
        (0..self.pieces)
            .map(|piece| format!("{}{}-{piece}", muster_model::records::BUNDLE, self.packed))
    }
}

/// Why the kept generation can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GenerationStoreError {
    /// A request failed.
    #[error("the generation in Secret {name} can't be reached")]
    Request {
        /// Name of the Secret.
        name: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// The pointer can't be read.
    #[error(
        "the record of the generation in force, the Secret {POINTER}, is damaged. What runs is left as it is; \
         delete the Secret, and the agent goes on with what its hub says"
    )]
    DamagedPointer(#[source] io::Error),
    /// The pointer is there, but a bundle of its generation is not: the hub must send it again.
    #[error("bundle {app} of generation {} is missing or damaged", pointer.generation)]
    DamagedBundle {
        /// The app whose bundle is lost.
        app: AppName,
        /// What is known of the generation.
        pointer: Box<Pointer>,
    },
    /// A newer generation is kept, or the same one with other content.
    #[error("generation {offered} is refused: the cluster has generation {} ({})",
        kept.generation, kept.hash.short())]
    Refused {
        /// The one that was to be saved.
        offered: Generation,
        /// The one in force.
        kept: Box<Pointer>,
    },
}

fn failed(name: &str) -> impl FnOnce(RequestError) -> GenerationStoreError + use<'_> {
    |source| GenerationStoreError::Request {
        name: name.to_owned(),
        source,
    }
}

/// Where the generation is kept.
pub struct GenerationStore {
    cluster: Cluster,
    namespace: String,
    api: Api<Secret>,
    /// The pointer with the version of its Secret, once it was read.
    pointer: Option<Option<(Pointer, String)>>,
    /// Names of the pieces that exist, once they were listed.
    pieces: Option<BTreeSet<String>>,
}

impl GenerationStore {
    /// In this namespace, which is created when it is missing.
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

    /// What is kept, without the bundles; `None` in a cluster that never had a generation.
    ///
    /// # Errors
    /// [`GenerationStoreError`] where the pointer can't be read.
    pub async fn open(&mut self) -> Result<Option<Pointer>, GenerationStoreError> {
        self.read_pointer().await?;
        self.list_pieces().await?;
        let pointer = self.pointer.as_ref().and_then(Option::as_ref);
        Ok(pointer.map(|(pointer, _)| pointer.clone()))
    }

    /// What reads the bundles of a generation.
    #[must_use]
    pub fn reader(&self) -> GenerationReader {
        GenerationReader(self.api.clone())
    }

    /// The generation that is kept, whole; `None` in a cluster that never had one.
    ///
    /// # Errors
    /// [`GenerationStoreError`]; with [`GenerationStoreError::DamagedBundle`] the number that was in force is still known.
    pub async fn load(&mut self) -> Result<Option<StoredGeneration>, GenerationStoreError> {
        let Some(pointer) = self.open().await? else {
            return Ok(None);
        };
        let bundles = self.reader().bundles(&pointer).try_collect().await?;
        Ok(Some(pointer.with(bundles)))
    }

    /// Notes a newer term under which nothing else has changed. Whether there is anything that it belongs to.
    ///
    /// # Errors
    /// [`GenerationStoreError`]; whether it is noted is then not known.
    pub async fn note_term(
        &mut self,
        term: Term,
        incarnation: &str,
        enrolment: &str,
    ) -> Result<bool, GenerationStoreError> {
        for last in [false, true] {
            if self.pointer.is_none() {
                self.read_pointer().await?;
            }
            let Some(Some((kept, version))) = &self.pointer else {
                return Ok(false);
            };
            let noted = Pointer {
                term,
                incarnation: incarnation.to_owned(),
                enrolment: enrolment.to_owned(),
                ..kept.clone()
            };
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

    /// Puts a generation in force: when this returns without an error, it is what [`Self::load`]
    /// gives. What it replaces stays until [`Self::sweep`].
    ///
    /// # Errors
    /// [`GenerationStoreError`]; the generation in force is then the old one, or, when an answer was lost,
    /// possibly the new one.
    pub async fn save(&mut self, kept: &StoredGeneration) -> Result<(), GenerationStoreError> {
        if self.pieces.is_none() {
            self.list_pieces().await?;
        }
        if self.pointer.is_none() {
            self.read_pointer().await?;
        }
        self.check(kept)?;
        let present = self.pieces.get_or_insert_default();
        let missing: Vec<(String, Secret)> = kept
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
        self.swap(kept).await
    }

    /// Refuses what is older than what is kept.
    fn check(&self, kept: &StoredGeneration) -> Result<(), GenerationStoreError> {
        let Some(Some((pointer, _))) = &self.pointer else {
            return Ok(());
        };
        let newer = kept.generation > pointer.generation;
        let same = kept.generation == pointer.generation && kept.hash == pointer.hash;
        if newer || same {
            return Ok(());
        }
        Err(GenerationStoreError::Refused {
            offered: kept.generation,
            kept: Box::new(pointer.clone()),
        })
    }

    /// Creates a Secret, and the namespace where that is what is missing. One that exists is as good:
    /// its name is its content.
    async fn create(&self, secret: Secret, name: String) -> Result<String, GenerationStoreError> {
        let options = PostParams::default();
        let mut answer = bounded(self.api.create(&options, &secret)).await;
        if answer.as_ref().is_err_and(RequestError::is_not_found) {
            self.cluster
                .ensure_namespace(&self.namespace)
                .await
                .map_err(failed(&self.namespace))?;
            answer = bounded(self.api.create(&options, &secret)).await;
        }
        match answer {
            Err(error) if !error.already_exists() => Err(failed(&name)(error)),
            _ => Ok(name),
        }
    }

    /// Replaces the pointer, as long as nobody else did.
    async fn swap(&mut self, kept: &StoredGeneration) -> Result<(), GenerationStoreError> {
        let pointer = Pointer {
            generation: kept.generation,
            hash: kept.hash,
            term: kept.term,
            incarnation: kept.incarnation.clone(),
            enrolment: kept.enrolment.clone(),
            prune: kept.prune.clone(),
            bundles: kept.bundles.iter().map(Listed::of).collect(),
        };
        // A second time when an answer was lost or another process was faster; it has to be asked
        // anew whether this generation is still the newest.
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
                        ensured.map_err(failed(&self.namespace))?;
                    }
                    self.read_pointer().await?;
                    self.check(kept)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the pointer over this version of it. After an error it is not known what it says.
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
    /// [`GenerationStoreError`]; what is left is found by the next sweep.
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

/// Reads bundles that are kept.
pub struct GenerationReader(Api<Secret>);

impl GenerationReader {
    /// The bundles of a generation in its order, a few ahead of whoever takes them.
    ///
    /// # Errors
    /// [`GenerationStoreError`] for one that can't be read.
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
