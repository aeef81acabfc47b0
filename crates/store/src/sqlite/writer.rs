//! The single writer thread. It carries out all queued transactions in one SQLite transaction, so that many commits
//! share the cost of one `fsync`.

use std::{path::Path, sync::Weak};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::file;
use crate::{CommitError, Expected, StoreError, Txn, watch::Watchers};

/// The largest number of transactions in a batch.
const MOST_TXNS: usize = 512;
/// A batch of at least this many bytes takes no further transaction, so that a batch takes well below a second.
const MOST_BYTES: usize = 16 << 20;

/// A transaction, and the channel for its result.
pub(super) struct Request {
    pub(super) txn: Txn,
    pub(super) reply: oneshot::Sender<Result<u64, CommitError>>,
}

/// Carries out requests until the store is closed.
pub(super) fn run(
    path: &Path,
    mut conn: Connection,
    mut requests: mpsc::Receiver<Request>,
    watchers: &Weak<Watchers>,
) {
    while let Some(first) = requests.blocking_recv() {
        let mut bytes = size(&first.txn);
        let mut batch = vec![first];
        while batch.len() < MOST_TXNS
            && bytes < MOST_BYTES
            && let Ok(next) = requests.try_recv()
        {
            bytes += size(&next.txn);
            batch.push(next);
        }
        for (request, outcome) in carry_out(path, &mut conn, batch) {
            if outcome.is_ok()
                && let Some(watchers) = watchers.upgrade()
            {
                watchers.tell(&request.txn.writes);
            }
            // The caller may no longer wait for the result. The transaction is carried out all the same.
            let _ = request.reply.send(outcome);
        }
    }
}

fn size(txn: &Txn) -> usize {
    txn.writes
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, |v| v.len()))
        .sum()
}

/// Carries out the batch in one SQLite transaction. If that fails, carries out each transaction separately, so that one
/// that does not fit on the disk does not make the others fail.
fn carry_out(
    path: &Path,
    conn: &mut Connection,
    batch: Vec<Request>,
) -> Vec<(Request, Result<u64, CommitError>)> {
    match write(conn, &batch) {
        Ok(outcomes) => batch.into_iter().zip(outcomes).collect(),
        Err(_) if batch.len() > 1 => batch
            .into_iter()
            .flat_map(|one| carry_out(path, conn, vec![one]))
            .collect(),
        Err(source) => {
            let mut source = Some(source);
            let mut failed = || {
                let source = source.take().unwrap_or(rusqlite::Error::InvalidQuery);
                Err(StoreError::engine("write", path, source).into())
            };
            batch
                .into_iter()
                .map(|request| (request, failed()))
                .collect()
        }
    }
}

/// Carries out a batch in one SQLite transaction. After an error, nothing was written. The conditions of a transaction
/// are checked before its first write, so nothing has to be undone after a conflict.
fn write(
    conn: &mut Connection,
    batch: &[Request],
) -> rusqlite::Result<Vec<Result<u64, CommitError>>> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = file::revision(&tx)?;
    let mut revision = before;
    let mut outcomes = Vec::with_capacity(batch.len());
    for Request { txn, .. } in batch {
        outcomes.push(match conflict(&tx, txn)? {
            Some(key) => Err(CommitError::Conflict { key }),
            None => {
                if put_and_delete(&tx, txn, revision + 1)? {
                    revision += 1;
                }
                Ok(revision)
            }
        });
    }
    if revision > before {
        tx.prepare_cached("UPDATE store SET revision = ?1")?
            .execute([revision.cast_signed()])?;
        tx.commit()?;
    }
    Ok(outcomes)
}

/// Returns the key of the first condition that does not hold.
fn conflict(conn: &Connection, txn: &Txn) -> rusqlite::Result<Option<String>> {
    let mut find = conn.prepare_cached("SELECT revision FROM kv WHERE key = ?1")?;
    for condition in &txn.conditions {
        let found = find
            .query_row([&condition.key], |row| super::revision(row, 0))
            .optional()?;
        if Expected::unchanged(found) != condition.expected {
            return Ok(Some(condition.key.clone()));
        }
    }
    Ok(None)
}

/// Carries out the writes of a transaction. Returns true if anything changed.
fn put_and_delete(conn: &Connection, txn: &Txn, revision: u64) -> rusqlite::Result<bool> {
    let mut put = conn.prepare_cached(
        "INSERT INTO kv (key, revision, value) VALUES (?1, ?2, ?3)
         ON CONFLICT (key) DO UPDATE SET revision = ?2, value = ?3",
    )?;
    let mut delete = conn.prepare_cached("DELETE FROM kv WHERE key = ?1")?;
    let mut changed = 0;
    for (key, value) in &txn.writes {
        changed += match value {
            Some(value) => put.execute((key, revision.cast_signed(), value.as_ref()))?,
            None => delete.execute([key])?,
        };
    }
    Ok(changed > 0)
}

#[cfg(test)]
mod tests {
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
}
