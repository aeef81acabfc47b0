//! Backups are complete, and a restored store can be recognised.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_store::{
    RESTORED_KEY, SqliteStore, Store, StoreError, Txn, backup, backup_to, restore, restore_from,
};

use super::{
    all,
    file::{damage, fill},
    store,
};

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_busy_store_is_consistent() {
    let (dir, store) = store();
    fill(&store).await;
    let store = Arc::new(store);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let n = {
                    n += 1;
                    n.to_string()
                };
                let txn = Txn::new().put("pair/1", n.clone()).put("zpair/2", n);
                store.commit(txn).await.unwrap();
            }
        }
    });
    for n in 0..5 {
        let before = store.revision().await.unwrap();
        let to = dir.path().join(format!("{n}.backup"));
        store.backup(&to).await.unwrap();
        assert_eq!(
            fs::metadata(&to).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let copy = SqliteStore::open(&to).unwrap();
        assert!(copy.revision().await.unwrap() >= before);
        assert_eq!(copy.incarnation(), store.incarnation());
        let value = async |key| copy.get(key).await.unwrap().map(|found| found.value);
        assert_eq!(value("pair/1").await, value("zpair/2").await);
        assert_eq!(copy.keys("key/").await.unwrap().len(), 500);
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

#[tokio::test]
async fn a_backup_overwrites_nothing_and_leaves_nothing_behind() {
    let (dir, store) = store();
    let (from, to) = (dir.path().join("hub.db"), dir.path().join("backup"));
    store.backup(&to).await.unwrap();
    let before = fs::read(&to).unwrap();
    for to in [&to, &from] {
        let error = store.backup(to).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Exists { path } if path == to),
            "{error:?}"
        );
    }
    assert_eq!(fs::read(&to).unwrap(), before);
    store
        .backup(dir.path().join("missing/backup"))
        .await
        .unwrap_err();
    drop(store);
    assert_eq!(names(dir.path()), ["backup", "hub.db", "hub.db.lock"]);
    // A store that is not in use can be backed up too. SQLite then leaves an empty WAL beside it.
    backup(&from, &dir.path().join("second")).unwrap();
    damage(&from);
    let error = backup(&from, &dir.path().join("third")).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    let mut names = names(dir.path());
    names.retain(|name| !name.starts_with("hub.db"));
    assert_eq!(names, ["backup", "second"]);
}

#[tokio::test]
async fn a_restored_store_is_recognisable_and_the_old_one_is_kept() {
    let (dir, store) = store();
    let (path, saved) = (dir.path().join("hub.db"), dir.path().join("backup"));
    store.commit(Txn::new().put("key", "saved")).await.unwrap();
    store.backup(&saved).await.unwrap();
    store.commit(Txn::new().put("key", "later")).await.unwrap();
    let name = store.incarnation().to_owned();

    let error = restore(&saved, &path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    drop(store);

    let restored = restore(&saved, &path).unwrap();
    assert_ne!(restored.incarnation, name);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.incarnation(), restored.incarnation);
    assert_eq!(store.get("key").await.unwrap().unwrap().value, "saved");
    let marker = store.get(RESTORED_KEY).await.unwrap().unwrap();
    assert_eq!(marker.revision, store.revision().await.unwrap());
    let time = std::str::from_utf8(&marker.value).unwrap();
    assert!(
        time.starts_with("20") && time.ends_with('Z') && time.len() == 20,
        "{time}"
    );

    let old = SqliteStore::open(restored.kept.unwrap()).unwrap();
    assert_eq!(old.incarnation(), name);
    assert_eq!(old.get("key").await.unwrap().unwrap().value, "later");
    assert_eq!(old.get(RESTORED_KEY).await.unwrap(), None);
}

#[tokio::test]
async fn a_damaged_store_is_replaced_and_a_damaged_backup_is_not_used() {
    let (dir, store) = store();
    let (path, saved) = (dir.path().join("hub.db"), dir.path().join("backup"));
    fill(&store).await;
    store.backup(&saved).await.unwrap();
    drop(store);
    damage(&path);
    restore(&saved, &path).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.keys("key/").await.unwrap().len(), 500);
    drop(store);

    damage(&saved);
    let before = fs::read(&path).unwrap();
    let error = restore(&saved, &path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    fs::write(&saved, "not a store").unwrap();
    let error = restore(&saved, &path).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error:?}");
    restore(&dir.path().join("missing"), &path).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// The WAL that a killed hub leaves must not be applied to the restored file.
#[tokio::test]
async fn a_log_left_by_a_killed_hub_goes_with_the_old_store() {
    let (dir, store) = store();
    let (path, saved) = (dir.path().join("hub.db"), dir.path().join("backup"));
    fill(&store).await;
    store.backup(&saved).await.unwrap();
    store
        .commit(Txn::new().put("key/1", "in the log"))
        .await
        .unwrap();
    // A killed process leaves the files without a last checkpoint.
    let killed = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("hub.db{suffix}");
        fs::copy(dir.path().join(&name), killed.path().join(&name)).unwrap();
    }
    let path_there = killed.path().join(path.file_name().unwrap());
    backup(&path_there, &killed.path().join("backup")).unwrap();
    let kept = restore(&saved, &path_there).unwrap().kept.unwrap();
    let restored = SqliteStore::open(&path_there).unwrap();
    assert_eq!(all(&restored).await.len(), 501);
    assert_eq!(
        restored.get("key/1").await.unwrap().unwrap().value.len(),
        500
    );
    let kept = SqliteStore::open(kept).unwrap();
    assert_eq!(
        kept.get("key/1").await.unwrap().unwrap().value,
        "in the log"
    );
}

#[tokio::test]
async fn a_backup_goes_through_a_pipe_and_a_cut_one_is_not_used() {
    let (dir, store) = store();
    let path = dir.path().join("hub.db");
    fill(&store).await;
    let mut bytes = Vec::new();
    backup_to(&path, &mut bytes).unwrap();
    let error = restore_from(&mut bytes.as_slice(), &path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    store
        .commit(Txn::new().put("key/1", "later"))
        .await
        .unwrap();
    drop(store);

    let before = fs::read(&path).unwrap();
    for cut in [0, 7, bytes.len() / 2] {
        let error = restore_from(&mut &bytes[..cut], &path).unwrap_err();
        let told = matches!(
            error,
            StoreError::NotAStore { .. } | StoreError::Damaged { .. }
        );
        assert!(told, "{cut}: {error:?}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    restore_from(&mut bytes.as_slice(), &path).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.get("key/1").await.unwrap().unwrap().value.len(), 500);
    drop(store);
    let left = names(dir.path());
    assert!(
        left.iter().all(|name| name.starts_with("hub.db")),
        "{left:?}"
    );
}
