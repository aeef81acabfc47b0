//! Compressed bundles by hash: in the store, and in memory while they are in demand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use muster_model::ids::ContentHash;
use muster_store::{Store, StoreError};

/// What is kept in memory, in bytes. A commit's new bundles are asked for by many agents at once.
const MEMORY_BYTES: usize = 32 * 1024 * 1024;
/// zstd's level: bundles are compressed once and sent to many.
const LEVEL: i32 = 3;

/// The fleet's bundles.
pub(crate) struct Blobs {
    store: Arc<dyn Store>,
    memory: Mutex<(HashMap<ContentHash, Bytes>, usize)>,
}

/// The key of a bundle in the store.
pub(crate) fn key(hash: ContentHash) -> String {
    format!("{}{hash}", crate::store_schema::BLOB)
}

/// Compresses an encoded bundle.
pub(crate) fn compress(bytes: &[u8]) -> std::io::Result<Bytes> {
    zstd::encode_all(bytes, LEVEL).map(Bytes::from)
}

/// The reverse of [`compress`].
pub(crate) fn decompress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::decode_all(bytes)
}

impl Blobs {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            memory: Mutex::default(),
        }
    }

    /// A compressed bundle, if it is still known.
    pub(crate) async fn get(&self, hash: ContentHash) -> Result<Option<Bytes>, StoreError> {
        let kept = self
            .memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .get(&hash)
            .cloned();
        if kept.is_some() {
            return Ok(kept);
        }
        let read = self
            .store
            .get(&key(hash))
            .await?
            .map(|versioned| versioned.value);
        if let Some(bytes) = &read {
            self.remember(hash, bytes.clone());
        }
        Ok(read)
    }

    /// Keeps a bundle at hand.
    pub(crate) fn remember(&self, hash: ContentHash, bytes: Bytes) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, size) = &mut *memory;
        if *size + bytes.len() > MEMORY_BYTES {
            // What is in demand comes back from the store.
            map.clear();
            *size = 0;
        }
        *size += bytes.len();
        if let Some(before) = map.insert(hash, bytes) {
            *size -= before.len();
        }
    }
}
