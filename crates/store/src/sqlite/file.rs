//! The file of the store: its lock, mode, format and integrity check.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use crate::StoreError;

/// The SQLite application ID that marks a file as a Muster store: "mstr".
const APPLICATION_ID: i32 = 0x6d73_7472;

/// The migrations. Each entry converts a file from the format of its index to the next one. New formats are only
/// appended.
///
/// `kv` has a rowid: a b-tree ordered by key would have to move values of 100 KB around. The revision column comes
/// before the value column, so that listing keys does not read values.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE kv (key TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
    CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        revision INTEGER NOT NULL,
        incarnation TEXT NOT NULL
    ) STRICT;
    INSERT INTO store VALUES (1, 0, lower(hex(randomblob(16))));
"];

const FORMAT: i32 = MIGRATIONS.len() as i32;

const OWNER_ONLY: u32 = 0o600;

/// How long a statement waits for a lock that another tool may hold, such as a SQLite shell.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock of the store at one path. While it is held, no other process can use the store.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock of the store `path`. Creates the folder of the store if it does not exist.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| StoreError::file("create the folder", parent, source))?;
        }
        let lock = beside(path, ".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(OWNER_ONLY)
            .open(&lock)
            .map_err(|source| StoreError::file("open the lock file", &lock, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
                path: path.to_owned(),
                lock,
            }),
            Err(TryLockError::Error(source)) => Err(StoreError::file("lock", &lock, source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is just being started may share it.
        let _ = self.0.unlock();
    }
}

/// Returns the path of a file that belongs to `path`: the same name followed by `suffix`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens the store for its writer: creates it if it does not exist, migrates an older format, and checks the content's
/// integrity. The caller holds the lock.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    // SQLite creates the files beside this one with the same mode.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(OWNER_ONLY)
        .open(path)
        .and_then(|_| fs::set_permissions(path, Permissions::from_mode(OWNER_ONLY)))
        .map_err(|source| StoreError::file("open", path, source))?;
    let conn = open_to_change(path)?;
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(|source| StoreError::engine("open", path, source))?;
    Ok(conn)
}

/// Opens an existing file for writing, and migrates it to the current format.
pub(super) fn open_to_change(path: &Path) -> Result<Connection, StoreError> {
    let engine = |source| StoreError::engine("open", path, source);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let format = if is_empty(&conn).map_err(engine)? {
        0
    } else {
        check(path, &conn)?
    };
    migrate(&mut conn, format).map_err(engine)?;
    Ok(conn)
}

/// Opens an existing store for reading. Other processes may have it open.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Checks that the file is an undamaged store of a known format, and returns the format.
pub(super) fn check(path: &Path, conn: &Connection) -> Result<i32, StoreError> {
    let engine = |source| StoreError::engine("check", path, source);
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let format = pragma("user_version").map_err(engine)?;
    if pragma("application_id").map_err(engine)? != APPLICATION_ID || format < 1 {
        return Err(StoreError::NotAStore {
            path: path.to_owned(),
        });
    }
    if format > FORMAT {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    let found: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(engine)?;
    if found != "ok" {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: found,
        });
    }
    Ok(format)
}

/// Returns the store's incarnation.
pub(super) fn incarnation(path: &Path, conn: &Connection) -> Result<String, StoreError> {
    conn.query_row("SELECT incarnation FROM store", [], |row| row.get(0))
        .map_err(|source| StoreError::engine("read", path, source))
}

/// Returns the store's revision.
pub(super) fn revision(conn: &Connection) -> rusqlite::Result<u64> {
    conn.prepare_cached("SELECT revision FROM store")?
        .query_row([], |row| super::revision(row, 0))
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, StoreError> {
    let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
        .and_then(|conn| conn.busy_timeout(PATIENCE).map(|()| conn))
        .map_err(|source| StoreError::engine("open", path, source))
}

/// Returns true if the file is still empty: it was just created, or its creator crashed right after that.
fn is_empty(conn: &Connection) -> rusqlite::Result<bool> {
    let format: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let objects: i64 =
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(format == 0 && objects == 0)
}

fn migrate(conn: &mut Connection, from: i32) -> rusqlite::Result<()> {
    let missing = MIGRATIONS
        .iter()
        .skip(usize::try_from(from).unwrap_or_default());
    if missing.len() == 0 {
        return Ok(());
    }
    let tx = conn.transaction()?;
    for migration in missing {
        tx.execute_batch(migration)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", FORMAT)?;
    tx.commit()
}
