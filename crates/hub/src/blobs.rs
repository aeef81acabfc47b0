//! The fleet's compressed bundles by hash: all of them in the store, the recently used ones also in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use muster_model::ids::ContentHash;
use muster_store::{Store, StoreError};

/// The most bytes of bundles in memory. After a commit many agents request the same new bundles at once.
const MEMORY_BYTES: usize = 32 * 1024 * 1024;
/// The compression level of zstd. Each bundle is compressed once and sent to many agents.
const LEVEL: i32 = 3;

/// The fleet's compressed bundles, with a cache in memory.
pub(crate) struct Blobs {
    store: Arc<dyn Store>,
    memory: Mutex<(HashMap<ContentHash, Bytes>, usize)>,
}

/// Returns the key of a bundle in the store.
pub(crate) fn key(hash: ContentHash) -> String {
    format!("{}{hash}", crate::store_schema::BLOB)
}

/// Compresses an encoded bundle.
pub(crate) fn compress(bytes: &[u8]) -> std::io::Result<Bytes> {
    zstd::encode_all(bytes, LEVEL).map(Bytes::from)
}

/// Decompresses what [`compress`] returned.
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

    /// Returns a compressed bundle, if the store still has it.
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

    /// Caches a bundle in memory.
    pub(crate) fn remember(&self, hash: ContentHash, bytes: Bytes) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, size) = &mut *memory;
        if *size + bytes.len() > MEMORY_BYTES {
            // Bundles in use are cached again when they are next read from the store.
            map.clear();
            *size = 0;
        }
        *size += bytes.len();
        if let Some(before) = map.insert(hash, bytes) {
            *size -= before.len();
        }
    }
}
