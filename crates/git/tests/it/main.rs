//! Tests of mirrors of real repositories over every transport, including failures.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

use std::path::Path;

use muster_git::{Auth, Error, Mirror, Reference, Refreshed, RemoteConfig};
use muster_model::tree::{Entry, Snapshot};
use muster_testkit::scratch::Scratch;

mod content;
mod damage;
mod history;
mod transports;
mod watching;

/// Returns a temporary directory for a mirror.
fn scratch() -> Scratch {
    Scratch::temporary("mirror").unwrap()
}

/// Returns a configuration for the default branch at this address.
fn config(url: &str) -> RemoteConfig {
    RemoteConfig::new(url.parse().unwrap())
}

/// Returns a configuration for the default branch of a local repository.
fn local(path: &Path) -> RemoteConfig {
    config(path.to_str().unwrap())
}

fn on(reference: Reference, config: RemoteConfig) -> RemoteConfig {
    RemoteConfig {
        reference,
        ..config
    }
}

fn with(auth: Auth, config: RemoteConfig) -> RemoteConfig {
    RemoteConfig { auth, ..config }
}

/// Refreshes a new mirror once.
fn once(config: RemoteConfig) -> Result<Refreshed, Error> {
    let dir = scratch();
    Mirror::open(dir.path(), config)?.refresh()
}

/// Returns the text of a file in a snapshot.
fn text(snapshot: &Snapshot, path: &str) -> Option<String> {
    match snapshot.tree.entries.get(path)? {
        Entry::File { bytes, .. } => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}
