//! Backing up and restoring the store.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tempfile::NamedTempFile;

use super::file;
use crate::StoreError;

/// The key that marks a restored store. Its value is the time of the restore, in UTC (RFC 3339). A hub that finds it
/// marks all clusters as unconfirmed and removes the key.
pub const RESTORED_KEY: &str = "meta/restored";

/// The result of [`restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The new incarnation of the restored store.
    pub incarnation: String,
    /// The path under which the previous store was kept, if one existed.
    pub kept: Option<PathBuf>,
}

/// Writes a consistent, checked copy of the store `from` to the new file `to`. The store may be in use by this or
/// another process, and stays usable. Blocks until the copy is on disk.
///
/// # Errors
/// If `from` is not a store, is damaged or of a newer version, if `to` exists, or if the file system fails.
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

/// Like [`backup`], but writes the copy to `to` as bytes. The copy is first made beside `from`, so that only a complete
/// copy is written.
///
/// # Errors
/// As for [`backup`], and if the bytes can't be written.
pub fn backup_to(from: &Path, to: &mut impl io::Write) -> Result<(), StoreError> {
    let copy = copy(from, from)?;
    file::check(copy.path(), &file::open_to_read(copy.path())?)?;
    File::open(copy.path())
        .and_then(|mut copy| io::copy(&mut copy, to))
        .and_then(|_| to.flush())
        .map_err(|source| StoreError::file("write out the copy of", from, source))
}

/// Replaces the store `to` with a copy of the store or backup `from`. The copy gets a new incarnation and
/// [`RESTORED_KEY`], so that it can't be mistaken for the original. The previous file at `to` is kept beside it. At any
/// moment `to` is either the complete old store or the complete new one. Blocks until the change is on disk.
///
/// # Errors
/// If `from` is not a store, is damaged or of a newer version, if a process uses `to`, or if the file system fails.
/// `to` then still holds the previous store.
pub fn restore(from: &Path, to: &Path) -> Result<Restored, StoreError> {
    let _lock = file::Lock::take(to)?;
    put(from, to)
}

/// Like [`restore`], but reads the backup as bytes. They are first written to a temporary file beside `to`.
///
/// # Errors
/// As for [`restore`], and if the bytes can't be read.
pub fn restore_from(from: &mut impl io::Read, to: &Path) -> Result<Restored, StoreError> {
    let _lock = file::Lock::take(to)?;
    let mut arrived = temporary(to)?;
    io::copy(from, arrived.as_file_mut()).map_err(|source| {
        StoreError::file("write the received backup to", arrived.path(), source)
    })?;
    put(arrived.path(), to)
}

/// Replaces `to` with a copy of `from`. The caller holds the lock of `to`.
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

/// Makes a complete copy of `from` in a temporary file in the folder of `beside`.
fn copy(from: &Path, beside: &Path) -> Result<NamedTempFile, StoreError> {
    File::open(from).map_err(|source| StoreError::file("open", from, source))?;
    let source = file::open_to_read(from)?;
    file::check(from, &source)?;
    let copy = temporary(beside)?;
    let name = copy.path().to_str().ok_or_else(|| {
        StoreError::file(
            "write to a path that is not UTF-8",
            beside,
            io::ErrorKind::InvalidInput.into(),
        )
    })?;
    source
        .execute("VACUUM INTO ?1", [name])
        .map_err(|source| StoreError::engine("copy the store to", copy.path(), source))?;
    Ok(copy)
}

/// Creates an empty temporary file in the folder of `beside`.
fn temporary(beside: &Path) -> Result<NamedTempFile, StoreError> {
    let folder = folder(beside);
    tempfile::Builder::new()
        .prefix(".muster-store-")
        .tempfile_in(folder)
        .map_err(|source| StoreError::file("create a file in", folder, source))
}

/// Marks the copy as restored, and returns its new incarnation.
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

/// Gives the store `to` the second name `kept`, and moves its WAL there. If the WAL stayed beside `to`, SQLite would
/// apply it to the restored file and corrupt that file.
fn keep(to: &Path, kept: &Path) -> Result<(), StoreError> {
    // An intact store checkpoints its WAL here. A damaged one can't, so its WAL is moved together with it below.
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
