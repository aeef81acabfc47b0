//! The single writer thread. It carries out all queued transactions in one SQLite transaction, so that many commits
//! share the cost of one `fsync`.

use std::{path::Path, sync::Weak};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::file;
use crate::{CommitError, Expected, StoreError, Txn, watch::Watchers};

/// The largest number of transactions in a batch.
const MOST_TXNS: usize = 512;
/// The number of bytes from which a batch is full. It is small enough to be written in well below a second.
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
mod tests;
