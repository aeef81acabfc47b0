//! Tests of which files the store accepts, and why it refuses others.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use muster_store::{SqliteStore, Store, StoreError, Txn};
use rusqlite::Connection;

use super::{all, store};

#[tokio::test]
async fn only_the_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/of/hub.db");
    let store = SqliteStore::open(&path).unwrap();
    store.commit(Txn::new().put("key", "secret")).await.unwrap();
    let modes: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            (entry.file_name().into_string().unwrap(), mode)
        })
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
        .collect();
    let names = ["hub.db", "hub.db-shm", "hub.db-wal", "hub.db.lock"];
    assert_eq!(modes, names.map(|name| (name.to_owned(), 0o600)));
    let folder = fs::metadata(path.parent().unwrap())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(folder, 0o700);
}

#[tokio::test]
async fn survives_a_restart_under_its_name() {
    let (dir, first) = store();
    first.commit(Txn::new().put("key", "value")).await.unwrap();
    let (name, content) = (first.incarnation().to_owned(), all(&first).await);
    drop(first);
    let again = SqliteStore::open(dir.path().join("hub.db")).unwrap();
    assert_eq!(
        (again.incarnation(), all(&again).await),
        (name.as_str(), content)
    );
    assert_ne!(store().1.incarnation(), name);
}

#[test]
fn a_second_hub_is_refused_until_the_first_is_gone() {
    let (dir, store) = store();
    let path = dir.path().join("hub.db");
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { .. }), "{error:?}");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    drop(store);
    SqliteStore::open(&path).unwrap();
}

#[test]
fn a_lock_file_that_a_dead_process_left_is_no_lock() {
    let (dir, _store) = store();
    let path = dir.path().join("other.db");
    fs::write(dir.path().join("other.db.lock"), "").unwrap();
    SqliteStore::open(path).unwrap();
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let refused = || match SqliteStore::open(&path) {
        Err(StoreError::NotAStore { path: named }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    };

    fs::write(&path, "apiVersion: v1\nkind: List\n".repeat(400)).unwrap();
    let before = fs::read(&path).unwrap();
    refused();
    assert_eq!(fs::read(&path).unwrap(), before);

    fs::remove_file(&path).unwrap();
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE songs (title TEXT)")
        .unwrap();
    drop(conn);
    let before = fs::read(&path).unwrap();
    refused();
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_format_is_refused() {
    let (dir, store) = store();
    drop(store);
    let path = dir.path().join("hub.db");
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 99,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_a_way_out() {
    let (dir, store) = store();
    fill(&store).await;
    drop(store);
    let path = dir.path().join("hub.db");
    damage(&path);
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("muster hub restore"), "{error}");

    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5000)
        .unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

pub(crate) async fn fill(store: &SqliteStore) {
    let txn = (0..500).fold(Txn::new(), |txn, n| {
        txn.put(format!("key/{n}"), vec![b'x'; 500])
    });
    store.commit(txn).await.unwrap();
}

/// Overwrites some pages in the middle of the file.
pub(crate) fn damage(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2 / 4096 * 4096;
    file.write_all_at(&[0xAA; 3 * 4096], middle).unwrap();
}

/// A child process that the hub has started must not hold the hub's lock.
#[test]
fn children_of_the_hub_do_not_hold_the_lock() {
    let (dir, store) = store();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    drop(store);
    let again = SqliteStore::open(dir.path().join("hub.db"));
    drop(child.stdin.take());
    child.wait().unwrap();
    again.unwrap();
}
