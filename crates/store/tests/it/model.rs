//! Transactions have the same results as on a map in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_store::{Changes, CommitError, Condition, Expected, Store, Txn, Versioned};
use proptest::prelude::*;

use super::{all, store};

#[derive(Default)]
struct Model {
    revision: u64,
    keys: BTreeMap<String, Versioned>,
}

impl Model {
    fn commit(&mut self, txn: &Txn) -> Result<u64, String> {
        for Condition { key, expected } in &txn.conditions {
            let holds = match (self.keys.get(key), expected) {
                (None, Expected::Absent) => true,
                (Some(found), Expected::Revision(revision)) => found.revision == *revision,
                _ => false,
            };
            if !holds {
                return Err(key.clone());
            }
        }
        let revision = self.revision + 1;
        for (key, value) in &txn.writes {
            let changed = match value {
                Some(value) => {
                    let value = Versioned {
                        value: value.clone(),
                        revision,
                    };
                    self.keys.insert(key.clone(), value);
                    true
                }
                None => self.keys.remove(key).is_some(),
            };
            if changed {
                self.revision = revision;
            }
        }
        Ok(self.revision)
    }
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "a",
            "a/",
            "a/b",
            "a/c",
            "a0",
            "b/é",
            "b/\u{10ffff}",
            "b/\u{10ffff}x"
        ])
        .prop_map(str::to_owned),
        "[ab/%_\\PC]{0,3}",
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let expected = prop_oneof![
        Just(Expected::Absent),
        (0..12_u64).prop_map(Expected::Revision)
    ];
    let condition = (key(), expected).prop_map(|(key, expected)| Condition { key, expected });
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..9000));
    (
        prop::collection::vec(condition, 0..2),
        prop::collection::btree_map(key(), value.prop_map(|v| v.map(Bytes::from)), 0..4),
    )
        .prop_map(|(conditions, writes)| Txn { conditions, writes })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn does_what_a_map_does(txns in prop::collection::vec(txn(), 1..20), prefix in key()) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let (dir, store) = store();
            let mut model = Model::default();
            for txn in txns {
                let expected = model.commit(&txn);
                let got = store.commit(txn).await.map_err(|e| match e {
                    CommitError::Conflict { key } => key,
                    CommitError::Store(e) => panic!("{e}"),
                });
                prop_assert_eq!(got, expected);
            }
            let wanted: Vec<_> = model.keys.into_iter().collect();
            prop_assert_eq!(&all(&store).await, &wanted);
            prop_assert_eq!(store.revision().await.unwrap(), model.revision);
            let under: Vec<_> =
                wanted.iter().filter(|(key, _)| key.starts_with(&prefix)).cloned().collect();
            let keys: Vec<_> =
                under.iter().map(|(key, value)| (key.clone(), value.revision)).collect();
            prop_assert_eq!(store.keys(&prefix).await.unwrap(), keys);
            prop_assert_eq!(store.range(&prefix).await.unwrap(), under);
            let at = wanted.iter().find(|(key, _)| *key == prefix).map(|(_, value)| value.clone());
            prop_assert_eq!(store.get(&prefix).await.unwrap(), at);

            // The file holds the same content.
            drop(store);
            let again = muster_store::SqliteStore::open(dir.path().join("hub.db")).unwrap();
            prop_assert_eq!(&all(&again).await, &wanted);
            prop_assert_eq!(again.revision().await.unwrap(), model.revision);
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_are_not_lost() {
    let (_dir, store) = store();
    let store = std::sync::Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut left = 10;
            while left > 0 {
                let found = store.get("count").await.unwrap();
                let expected = Expected::unchanged(found.as_ref().map(|found| found.revision));
                let count: u64 = found.map_or(0, |found| {
                    std::str::from_utf8(&found.value).unwrap().parse().unwrap()
                });
                let txn = Txn::new()
                    .when("count", expected)
                    .put("count", (count + 1).to_string());
                match store.commit(txn).await {
                    Ok(_) => left -= 1,
                    Err(CommitError::Conflict { key }) => assert_eq!(key, "count"),
                    Err(CommitError::Store(e)) => panic!("{e}"),
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(store.get("count").await.unwrap().unwrap().value, "320");
    assert_eq!(store.revision().await.unwrap(), 320);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_is_committed_and_ends_with_the_store() {
    let (_dir, store) = store();
    let mut watch = store.watch("apps/");
    assert_eq!(watch.changes().await, Some(Changes::All));
    let txn = Txn::new().put("apps/a", "1").put("other", "1");
    store.commit(txn).await.unwrap();
    let refused = Txn::new()
        .when("other", Expected::Absent)
        .put("apps/refused", "1");
    store.commit(refused).await.unwrap_err();
    store.commit(Txn::new().delete("apps/a")).await.unwrap();
    assert_eq!(
        watch.changes().await,
        Some(Changes::Keys(["apps/a".to_owned()].into()))
    );
    drop(store);
    assert_eq!(watch.changes().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_rows_and_concurrent_commits_are_stored_completely() {
    let (_dir, store) = store();
    let rows = (0..2000).fold(Txn::new(), |txn, n| {
        txn.put(format!("wanted/cluster-{n}"), "1")
    });
    store.commit(rows).await.unwrap();
    assert_eq!(store.keys("wanted/").await.unwrap().len(), 2000);
    let commit = |n: usize| store.commit(Txn::new().put(format!("observed/{n}"), vec![0; 200]));
    let revisions =
        futures::future::join_all((0..2000).map(async |n| commit(n).await.unwrap())).await;
    assert_eq!(store.keys("observed/").await.unwrap().len(), 2000);
    assert_eq!(
        revisions.iter().max(),
        Some(&store.revision().await.unwrap())
    );
    let distinct: std::collections::BTreeSet<_> = revisions.iter().collect();
    assert_eq!(
        distinct.len(),
        revisions.len(),
        "each commit has its own revision"
    );
}
