//! Tests of the store with real files: its guarantees about transactions, about its file, and after being killed.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

mod backup;
mod file;
mod killed;
mod model;

use muster_store::{SqliteStore, Store, Versioned};
use tempfile::TempDir;

fn store() -> (TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("hub.db")).unwrap();
    (dir, store)
}

async fn all(store: &SqliteStore) -> Vec<(String, Versioned)> {
    store.range("").await.unwrap()
}
