//! The embedded engine: one SQLite file in WAL mode, so that readers and the single writer never wait for each
//! other.

mod backup;
mod file;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{mpsc, oneshot};

pub use backup::{RESTORED_KEY, Restored, backup, backup_to, restore, restore_from};

use crate::{CommitError, Store, StoreError, Txn, Versioned, Watch, watch::Watchers};

/// The number of commits that can be queued for the writer. Further callers wait for room in the queue.
const QUEUE: usize = 1024;

/// A store in one SQLite file.
///
/// Commits are sent to one thread, which carries out all queued commits in one SQLite transaction with one `fsync`.
/// Reads use separate connections.
#[derive(Debug)]
pub struct SqliteStore {
    reads: Arc<Reads>,
    incarnation: String,
    // Both are `Some` until the store is dropped.
    commits: Option<mpsc::Sender<writer::Request>>,
    writer: Option<JoinHandle<()>>,
}

/// The state that readers share. It lives until the last read is done, and holds the lock until then.
#[derive(Debug)]
struct Reads {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    watchers: Arc<Watchers>,
    _lock: file::Lock,
}

impl SqliteStore {
    /// Opens the store in the file `path`. Creates the file (readable by its owner only) and its parent folders if they
    /// do not exist. Blocks while the file is checked.
    ///
    /// # Errors
    /// If another process has the store open, if the file is damaged, not a store, or of a newer version, or if the
    /// file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let lock = file::Lock::take(path)?;
        let writer = file::open(path)?;
        let incarnation = file::incarnation(path, &writer)?;
        let watchers = Arc::new(Watchers::default());
        let (commits, requests) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let (path, watchers) = (path.to_owned(), Arc::downgrade(&watchers));
                move || writer::run(&path, writer, requests, &watchers)
            })
            .map_err(|source| StoreError::file("start the writer of", path, source))?;
        let idle = Mutex::default();
        Ok(Self {
            reads: Arc::new(Reads {
                path: path.to_owned(),
                idle,
                watchers,
                _lock: lock,
            }),
            incarnation,
            commits: Some(commits),
            writer: Some(writer),
        })
    }

    /// Writes a consistent copy of the store to the new file `to`. The store stays in use meanwhile.
    ///
    /// # Errors
    /// If `to` exists, if the store is damaged, or if the file system fails.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<(), StoreError> {
        let (reads, to) = (self.reads.clone(), to.as_ref().to_owned());
        blocking(move || backup(&reads.path, &to)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reads = self.reads.clone();
        blocking(move || reads.read(read)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(StoreError::Closed))
}

impl Reads {
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let known = self.idle().pop();
        let conn = known.map_or_else(|| file::open_to_read(&self.path), Ok)?;
        let value = read(&conn).map_err(|e| StoreError::engine("read", &self.path, e))?;
        self.idle().push(conn);
        Ok(value)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer must close the file before the lock is released. The last connection to close also
        // checkpoints the WAL into the file.
        self.reads.idle().clear();
        self.commits.take();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let key = key.to_owned();
        self.read(move |conn| {
            conn.prepare_cached("SELECT revision, value FROM kv WHERE key = ?1")?
                .query_row([&key], |row| versioned(row, 0))
                .optional()
        })
        .await
    }

    async fn range(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |conn| {
            let sql = "SELECT key, revision, value FROM kv WHERE key >= ?1 ORDER BY key";
            with_prefix(conn, sql, &prefix, |row| versioned(row, 1))
        })
        .await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |conn| {
            let sql = "SELECT key, revision FROM kv WHERE key >= ?1 ORDER BY key";
            with_prefix(conn, sql, &prefix, |row| revision(row, 1))
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<u64, CommitError> {
        let closed = || CommitError::Store(StoreError::Closed);
        let (reply, answer) = oneshot::channel();
        let commits = self.commits.as_ref().ok_or_else(closed)?;
        commits
            .send(writer::Request { txn, reply })
            .await
            .map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.reads.watchers.watch(prefix)
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.read(file::revision).await
    }

    fn incarnation(&self) -> &str {
        &self.incarnation
    }
}

/// Returns the rows of `sql` whose key starts with `prefix`. `sql` must select rows from `prefix` on, ordered by the
/// first column, which must be the key.
fn with_prefix<T>(
    conn: &Connection,
    sql: &str,
    prefix: &str,
    value: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<(String, T)>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([prefix])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        if !key.starts_with(prefix) {
            break;
        }
        found.push((key, value(row)?));
    }
    Ok(found)
}

fn versioned(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Versioned> {
    let value: Vec<u8> = row.get(at + 1)?;
    Ok(Versioned {
        value: Bytes::from(value),
        revision: revision(row, at)?,
    })
}

fn revision(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(i64::cast_unsigned)
}
