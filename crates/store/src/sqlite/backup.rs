//! Backups and their return.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tempfile::NamedTempFile;

use super::file;
use crate::StoreError;

/// The key that a restored store has: when it was restored, in UTC (RFC 3339). The hub that finds it
/// asks a person before anything moves, and deletes it then.
pub const RESTORED_KEY: &str = "meta/restored";

/// What [`restore`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The restored store's new name.
    pub incarnation: String,
    /// Where the store that stood there before was kept.
    pub kept: Option<PathBuf>,
}

/// Writes a consistent, checked copy of the store `from` to the new file `to`. The store may be in
/// use, by this or another process, and goes on working. Blocks until the copy is on disk.
///
/// # Errors
/// When `from` is no store, damaged or of a newer version, when `to` exists, and when the file system
/// refuses.
pub fn backup(from: &Path, to: &Path) -> Result<(), StoreError> {
    let exists = || StoreError::Exists {
        path: to.to_owned(),
    };
    if to.exists() {
        return Err(exists());
    }
    let copy = copy(from, to)?;
    file::check(copy.path(), &file::open_to_read(copy.path())?)?;
    sync(copy.as_file(), copy.path())?;
    copy.persist_noclobber(to)
        .map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => exists(),
            _ => StoreError::file("write the backup", to, e.error),
        })?;
    sync_folder(to)
}

/// Writes a consistent, checked copy of the store `from` as bytes, as [`backup`] writes a file. It is
/// made beside `from` first, so that what is written is whole.
///
/// # Errors
/// As [`backup`], and when the bytes can't be written.
pub fn backup_to(from: &Path, to: &mut impl io::Write) -> Result<(), StoreError> {
    let copy = copy(from, from)?;
    file::check(copy.path(), &file::open_to_read(copy.path())?)?;
    File::open(copy.path())
        .and_then(|mut copy| io::copy(&mut copy, to))
        .and_then(|_| to.flush())
        .map_err(|source| StoreError::file("write out the copy of", from, source))
}

/// Puts a copy of the store or backup `from` in the place of the store `to`. The copy gets an
/// incarnation of its own and [`RESTORED_KEY`], so that nobody takes it for the store that it was; what
/// stood at `to` is kept beside it. At any moment `to` is the old store or the new one, whole. Blocks
/// until the change is on disk.
///
/// # Errors
/// When `from` is no store, damaged or of a newer version, when a process uses `to`, and when the file
/// system refuses. What stood at `to` then still does.
pub fn restore(from: &Path, to: &Path) -> Result<Restored, StoreError> {
    let _lock = file::Lock::take(to)?;
    put(from, to)
}

/// As [`restore`], for a backup that arrives as bytes. They wait in a file beside `to`.
///
/// # Errors
/// As [`restore`], and when the bytes can't be read.
pub fn restore_from(from: &mut impl io::Read, to: &Path) -> Result<Restored, StoreError> {
    let _lock = file::Lock::take(to)?;
    let mut arrived = temporary(to)?;
    io::copy(from, arrived.as_file_mut())
        .map_err(|source| StoreError::file("write what arrives to", arrived.path(), source))?;
    put(arrived.path(), to)
}

/// Puts a copy of `from` at `to`, whose lock the caller holds.
fn put(from: &Path, to: &Path) -> Result<Restored, StoreError> {
    let copy = copy(from, to)?;
    let conn = file::open_to_change(copy.path())?;
    let incarnation = mark(&conn).map_err(|e| StoreError::engine("mark", copy.path(), e))?;
    let now: String = conn
        .query_row("SELECT strftime('%Y%m%dT%H%M%fZ')", [], |row| row.get(0))
        .map_err(|e| StoreError::engine("mark", copy.path(), e))?;
    drop(conn);
    sync(copy.as_file(), copy.path())?;

    let kept = to
        .exists()
        .then(|| file::beside(to, &format!(".before-restore-{now}")));
    if let Some(kept) = &kept {
        keep(to, kept)?;
    }
    copy.persist(to)
        .map_err(|e| StoreError::file("put the restored store at", to, e.error))?;
    sync_folder(to)?;
    Ok(Restored { incarnation, kept })
}

/// A whole copy of `from` as a temporary file in the folder of `beside`.
fn copy(from: &Path, beside: &Path) -> Result<NamedTempFile, StoreError> {
    File::open(from).map_err(|source| StoreError::file("open", from, source))?;
    let source = file::open_to_read(from)?;
    file::check(from, &source)?;
    let copy = temporary(beside)?;
    let name = copy.path().to_str().ok_or_else(|| {
        StoreError::file(
            "write to a path that is no UTF-8",
            beside,
            io::ErrorKind::InvalidInput.into(),
        )
    })?;
    source
        .execute("VACUUM INTO ?1", [name])
        .map_err(|source| StoreError::engine("copy the store to", copy.path(), source))?;
    Ok(copy)
}

/// An empty temporary file in the folder of `beside`.
fn temporary(beside: &Path) -> Result<NamedTempFile, StoreError> {
    let folder = folder(beside);
    tempfile::Builder::new()
        .prefix(".muster-store-")
        .tempfile_in(folder)
        .map_err(|source| StoreError::file("create a file in", folder, source))
}

/// Makes the copy a store of its own, and returns its new name.
fn mark(conn: &Connection) -> rusqlite::Result<String> {
    let tx = conn.unchecked_transaction()?;
    tx.execute(
        "UPDATE store SET incarnation = lower(hex(randomblob(16))), revision = revision + 1",
        [],
    )?;
    tx.execute(
        "INSERT OR REPLACE INTO kv (key, revision, value)
         SELECT ?1, revision, CAST(strftime('%Y-%m-%dT%H:%M:%SZ') AS BLOB) FROM store",
        [RESTORED_KEY],
    )?;
    let incarnation = tx.query_row("SELECT incarnation FROM store", [], |row| row.get(0))?;
    tx.commit()?;
    Ok(incarnation)
}

/// Keeps the store `to` under the name `kept` as well, and leaves no log at `to`: it would be taken for
/// the log of the file that comes there, and destroy it.
fn keep(to: &Path, kept: &Path) -> Result<(), StoreError> {
    // A whole store takes in its log here. A damaged one can't; its log is kept beside it below.
    if let Ok(conn) = file::open_to_change(to) {
        let _ = conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }
    let failed = |source| StoreError::file("keep the old store as", kept, source);
    // Not every file system has hard links.
    fs::hard_link(to, kept)
        .or_else(|_| fs::copy(to, kept).map(drop))
        .map_err(failed)?;
    for suffix in ["-wal", "-shm"] {
        match fs::rename(file::beside(to, suffix), file::beside(kept, suffix)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
            _ => {}
        }
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn sync(file: &File, path: &Path) -> Result<(), StoreError> {
    file.sync_all()
        .map_err(|source| StoreError::file("sync", path, source))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let folder = folder(path);
    let opened = File::open(folder).map_err(|source| StoreError::file("open", folder, source))?;
    sync(&opened, folder)
}
