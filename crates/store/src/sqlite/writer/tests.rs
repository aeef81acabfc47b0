use std::sync::Arc;

use super::*;

fn requests(txns: impl IntoIterator<Item = Txn>) -> Vec<Request> {
    txns.into_iter()
        .map(|txn| Request {
            txn,
            reply: oneshot::channel().0,
        })
        .collect()
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let mut conn = file::open(&path).unwrap();
    // SQLite's page limit causes the same error in the same places as a full disk.
    conn.query_row("PRAGMA max_page_count = 40", [], |_| Ok(()))
        .unwrap();

    let big = || Txn::new().put("big/1", "x").put("big/2", vec![0; 1 << 20]);
    let batch = requests([
        Txn::new().put("small/1", "x"),
        big(),
        Txn::new().put("small/2", "x"),
    ]);
    let outcomes: Vec<_> = carry_out(&path, &mut conn, batch)
        .into_iter()
        .map(|(_, outcome)| outcome)
        .collect();
    assert!(
        matches!(
            &outcomes[..],
            [
                Ok(1),
                Err(CommitError::Store(StoreError::Full { .. })),
                Ok(2)
            ]
        ),
        "{outcomes:?}"
    );
    assert_eq!(keys(&conn), ["small/1", "small/2"]);

    conn.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(()))
        .unwrap();
    let outcome = carry_out(&path, &mut conn, requests([big()])).remove(0).1;
    assert!(matches!(outcome, Ok(3)), "{outcome:?}");
    assert_eq!(keys(&conn), ["big/1", "big/2", "small/1", "small/2"]);
}

fn keys(conn: &Connection) -> Vec<String> {
    let mut statement = conn.prepare("SELECT key FROM kv ORDER BY key").unwrap();
    statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn transactions_of_one_batch_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let conn = file::open(&path).unwrap();
    let (send, receive) = mpsc::channel(8);
    let claim = || {
        Txn::new()
            .when("term", Expected::Absent)
            .put("term", "mine")
    };
    let mut answers = Vec::new();
    for txn in [claim(), claim(), Txn::new(), Txn::new().delete("nothing")] {
        let (reply, answer) = oneshot::channel();
        send.blocking_send(Request { txn, reply }).unwrap();
        answers.push(answer);
    }
    drop(send);
    let watchers = Arc::new(Watchers::default());
    run(&path, conn, receive, &Arc::downgrade(&watchers));
    let outcomes: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.blocking_recv().unwrap().map_err(|e| e.to_string()))
        .collect();
    let conflict = CommitError::Conflict {
        key: "term".to_owned(),
    }
    .to_string();
    assert_eq!(outcomes, [Ok(1), Err(conflict), Ok(1), Ok(1)]);
}
