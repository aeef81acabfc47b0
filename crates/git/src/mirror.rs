//! The verified copy of one reference of a remote, in the hub's state directory.
//!
//! `repo.git` is a bare repository. Its reference `refs/muster/tip` is moved last, after every file of the
//! commit has been read. A mirror that is found damaged during a refresh is rebuilt in `rebuild.git` next to it and
//! replaced only when the rebuild is complete, so that a good copy is never lost. A mirror whose tip can't be read at
//! start is emptied by the first refresh.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use git2::{ErrorClass, ErrorCode, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags};
use muster_model::{ids::ObjectId, tree::Snapshot};

use crate::{
    address::Place,
    cause::Cause,
    connection::{Limits, Stop},
    error::Error,
    https,
    local::{self, Local},
    remote::{FetchError, RemoteConfig, Wanted},
    snapshot::{self, ReadError, TooBig, object_id},
    ssh,
};

const TIP: &str = "refs/muster/tip";
/// The most packs before the mirror is tidied. Every fetch adds a pack, and every lookup searches all of them.
const MAX_PACKS: usize = 64;

/// A mirror of one reference of a remote. Only one process can open it at a time.
pub struct Mirror {
    dir: PathBuf,
    config: RemoteConfig,
    limits: Limits,
    stop: Arc<Stop>,
    /// The repository. `None` if there is none yet, if it is damaged, or if an error closed it.
    repo: Option<Repository>,
    last: Option<Arc<Snapshot>>,
    /// The commit whose objects could not be read even after a rebuild. The mirror is not rebuilt for it again
    /// while the last good commit can be read.
    beyond_repair: Option<Oid>,
    _lock: Lock,
}

/// A locked file.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is just starting may have inherited its
        // descriptor. If unlocking fails, the file is unlocked when the last descriptor is closed.
        let _ = self.0.unlock();
    }
}

/// How a refresh changed the tip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The tip has not changed.
    None,
    /// The tip moved to a descendant of the old one, or there was no old one.
    Forward,
    /// The tip moved to a commit that is not a descendant of the old one: a force-push, or a moved tag.
    Forced {
        /// The old tip.
        old: ObjectId,
    },
}

/// The result of a refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// The files at the tip.
    pub snapshot: Arc<Snapshot>,
    /// How the tip moved.
    pub change: Change,
    /// True if the mirror had to be rebuilt.
    pub rebuilt: bool,
}

/// The starting point of an attempt.
struct Base<'a> {
    repo: &'a Repository,
    /// The tip before the attempt.
    old: Option<Oid>,
    /// The tip whose objects are complete in this repository.
    have: Option<Oid>,
    known: Option<&'a Snapshot>,
}

/// The failure of an attempt.
enum Failure {
    /// An error whose cause is known: the remote, the network, the configuration or this machine.
    Told(Error),
    /// Objects of this commit can't be read. Either the remote or the mirror is damaged, and a rebuild shows which.
    Damaged { commit: Oid, source: Cause },
}

impl Failure {
    /// Returns the failure to get the objects of this commit.
    fn of(commit: Oid, error: Error) -> Self {
        match error {
            Error::Corrupt { source, .. } => Self::Damaged { commit, source },
            error => Self::Told(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

impl From<FetchError> for Failure {
    fn from(FetchError { commit, error }: FetchError) -> Self {
        match commit {
            Some(commit) => Self::of(commit, error),
            None => Self::Told(error),
        }
    }
}

impl Mirror {
    /// Opens the mirror in this directory, which is created if it does not exist. Incomplete files of an
    /// earlier process are removed. The last good snapshot is available immediately, without the remote.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process uses the mirror, and [`Error::Storage`] if the directory can't
    /// be used.
    pub fn open(dir: &Path, config: RemoteConfig) -> Result<Self, Error> {
        let storage = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Storage { path, source }
        };
        fs::create_dir_all(dir).map_err(storage(dir))?;
        let lock_path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path);
        let lock = lock.map_err(storage(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked {
                dir: dir.to_owned(),
            },
            TryLockError::Error(source) => Error::Storage {
                path: lock_path,
                source,
            },
        })?;
        let mut mirror = Self {
            dir: dir.to_owned(),
            config,
            limits: Limits::default(),
            stop: Arc::default(),
            repo: None,
            last: None,
            beyond_repair: None,
            _lock: Lock(lock),
        };
        mirror.finish_swap()?;
        mirror
            .remember_source()
            .map_err(storage(&mirror.source_path()))?;
        unlock(&mirror.path()).map_err(storage(&mirror.path()))?;
        sweep(&mirror.path().join("objects/pack")).map_err(storage(&mirror.path()))?;
        mirror.load();
        Ok(mirror)
    }

    /// Sets time limits other than the default ones.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Returns the configuration of the mirrored remote.
    #[must_use]
    pub fn config(&self) -> &RemoteConfig {
        &self.config
    }

    /// Returns the last good snapshot.
    #[must_use]
    pub fn last(&self) -> Option<&Arc<Snapshot>> {
        self.last.as_ref()
    }

    pub(crate) fn stop_handle(&self) -> Arc<Stop> {
        self.stop.clone()
    }

    /// Asks the remote for its reference, fetches new objects, verifies them and moves the tip. This blocks the
    /// thread.
    ///
    /// # Errors
    /// [`Error`] if the remote can't be read. [`Mirror::last`] and the mirror's files then stay as they were.
    pub fn refresh(&mut self) -> Result<Refreshed, Error> {
        if self.stop.is_stopped() {
            return Err(Error::Stopped);
        }
        let old = self
            .last
            .as_ref()
            .map(|last| Oid::from_bytes(&last.commit.0));
        let old = old.transpose().map_err(|error| self.protocol(error))?;
        self.reopen()?;
        let Some(repo) = &self.repo else {
            return self.repair(old);
        };
        let base = Base {
            repo,
            old,
            // After an error, this repository may not be the one that holds the last good commit.
            have: old.filter(|old| repo.refname_to_id(TIP).is_ok_and(|tip| tip == *old)),
            known: self.last.as_deref(),
        };
        match self.attempt(&base) {
            Ok(Some((snapshot, change))) => Ok(self.refreshed(snapshot, change, false)),
            Ok(None) => match &self.last {
                Some(last) => Ok(unchanged(last)),
                None => Err(self.protocol(git2::Error::from_str("nothing was fetched"))),
            },
            Err(Failure::Told(error)) => Err(error),
            Err(Failure::Damaged { commit, source }) => {
                if self.beyond_repair == Some(commit) && self.is_whole() {
                    return Err(self.corrupt(source));
                }
                tracing::warn!(
                    error = %source,
                    dir = %self.dir.display(),
                    "objects can't be read; rebuilding the mirror from the remote"
                );
                self.repair(old)
            }
        }
    }

    /// Replaces the mirror with a new one that has only what the remote sends. The old one stays if that fails.
    fn repair(&mut self, old: Option<Oid>) -> Result<Refreshed, Error> {
        match self.rebuild(old) {
            Ok((snapshot, change)) => Ok(self.refreshed(snapshot, change, true)),
            Err(Failure::Told(error)) => Err(error),
            Err(Failure::Damaged { commit, source }) => {
                self.beyond_repair = Some(commit);
                Err(self.corrupt(source))
            }
        }
    }

    /// Records a good commit.
    fn refreshed(&mut self, snapshot: Snapshot, change: Change, rebuilt: bool) -> Refreshed {
        self.beyond_repair = None;
        let snapshot = Arc::new(snapshot);
        self.last = Some(snapshot.clone());
        Refreshed {
            snapshot,
            change,
            rebuilt,
        }
    }

    /// Reads the files of any commit in the mirror.
    ///
    /// # Errors
    /// [`Error::NoReference`] if the mirror does not have the commit, [`Error::MirrorDamaged`] if it can't be read,
    /// and [`Error::TooBig`] if it exceeds a limit.
    pub fn snapshot(&self, commit: ObjectId) -> Result<Snapshot, Error> {
        let missing = || Error::NoReference {
            remote: self.config.url.to_string(),
            reference: format!("commit {commit}"),
            there: format!("{} is followed", self.config.reference),
        };
        let id = Oid::from_bytes(&commit.0).map_err(|error| self.protocol(error))?;
        let repo = self.repo.as_ref().ok_or_else(missing)?;
        if repo
            .find_commit(id)
            .is_err_and(|error| error.code() == ErrorCode::NotFound)
        {
            return Err(missing());
        }
        let known = self.last.as_ref().map(|last| &*last.tree);
        snapshot::read(repo, id, known).map_err(|error| match error {
            ReadError::Git(source) => Error::MirrorDamaged {
                remote: self.config.url.to_string(),
                path: self.path(),
                source: source.into(),
            },
            ReadError::TooBig(source) => self.too_big(id, source),
        })
    }

    /// Merges the packs of many fetches into one, and drops objects that the followed reference does not reach.
    /// It does nothing while there are few packs. This blocks the thread.
    ///
    /// # Errors
    /// [`Error`] if the mirror's objects can't be read or written. No needed object is lost then.
    pub fn tidy(&mut self) -> Result<(), Error> {
        let packs = self.path().join("objects/pack");
        let storage = |source| Error::Storage {
            path: packs.clone(),
            source,
        };
        let names = pack_names(&packs).map_err(storage)?;
        let (Some(repo), Some(last)) = (&self.repo, &self.last) else {
            return Ok(());
        };
        if names.len() <= MAX_PACKS {
            return Ok(());
        }
        let merged = Oid::from_bytes(&last.commit.0)
            .and_then(|tip| local::pack(repo, &packs, tip))
            .map_err(|error| storage(io::Error::other(error.message().to_owned())))?;
        let Some(merged) = merged else { return Ok(()) };
        // The repository handle holds the old packs open.
        self.repo = None;
        let removed = names
            .iter()
            .filter(|name| **name != merged)
            .try_for_each(|name| remove_pack(&packs, name));
        // If this fails, `reopen` tries again at the next refresh.
        self.repo = self.open_repo(&self.path()).ok();
        removed
    }

    fn path(&self) -> PathBuf {
        self.dir.join("repo.git")
    }

    fn rebuild_path(&self) -> PathBuf {
        self.dir.join("rebuild.git")
    }

    fn source_path(&self) -> PathBuf {
        self.dir.join("source")
    }

    fn protocol(&self, source: git2::Error) -> Error {
        Error::Protocol {
            remote: self.config.url.to_string(),
            source: source.into(),
        }
    }

    fn corrupt(&self, source: Cause) -> Error {
        Error::Corrupt {
            remote: self.config.url.to_string(),
            source,
        }
    }

    fn too_big(&self, commit: Oid, source: TooBig) -> Error {
        Error::TooBig {
            remote: self.config.url.to_string(),
            commit: commit.to_string(),
            source,
        }
    }

    /// Records which reference of which remote the tip belongs to. If that changes, the objects stay, because most
    /// of them are probably needed again, but the tip is removed.
    fn remember_source(&self) -> io::Result<()> {
        let source = format!(
            "{}\n{}\n",
            self.config.url,
            self.config.reference.full_name()
        );
        let path = self.source_path();
        if fs::read_to_string(&path).is_ok_and(|text| text == source) {
            return Ok(());
        }
        match fs::remove_file(self.path().join(TIP)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::write(path, source)
    }

    fn open_repo(&self, path: &Path) -> Result<Repository, git2::Error> {
        let none: [&Path; 0] = [];
        let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE;
        Repository::open_ext(path, flags, none)
    }

    /// Finishes a swap that ended between its two renames.
    fn finish_swap(&self) -> Result<(), Error> {
        let (from, to) = (self.rebuild_path(), self.path());
        if to.exists() || !from.exists() {
            return Ok(());
        }
        fs::rename(&from, to).map_err(|source| Error::Storage { path: from, source })
    }

    /// Opens the repository again if an error closed it, and creates it if there is none. A repository that can't be
    /// used is left in place, and `repo` stays `None`.
    fn reopen(&mut self) -> Result<(), Error> {
        if self.repo.is_some() {
            return Ok(());
        }
        self.finish_swap()?;
        let path = self.path();
        let exists = path.try_exists().map_err(|source| Error::Storage {
            path: path.clone(),
            source,
        })?;
        if !exists {
            self.repo = Some(self.init(&path)?);
        } else if self.last.is_some() {
            // If there is no last good commit, `load` has found the repository damaged, so it is not opened.
            match self.open_repo(&path) {
                Ok(repo) => self.repo = Some(repo),
                Err(error) => tracing::warn!(
                    error = error.message(),
                    dir = %self.dir.display(),
                    "the mirror can't be opened and will be rebuilt from the remote"
                ),
            }
        }
        Ok(())
    }

    /// Loads the tip and its snapshot from disk, if all of it can be read.
    fn load(&mut self) {
        let Ok(repo) = self.open_repo(&self.path()) else {
            return;
        };
        let tip = match repo.refname_to_id(TIP) {
            Ok(tip) => tip,
            // No fetch of the followed reference was ever completed.
            Err(error) if error.code() == ErrorCode::NotFound => {
                self.repo = Some(repo);
                return;
            }
            Err(_) => return,
        };
        match snapshot::read(&repo, tip, None) {
            Ok(snapshot) => {
                self.repo = Some(repo);
                self.last = Some(Arc::new(snapshot));
            }
            Err(ReadError::Git(error)) => tracing::warn!(
                error = error.message(),
                dir = %self.dir.display(),
                "the mirror is damaged and will be rebuilt from the remote"
            ),
            // The mirror is not damaged. The next refresh reports this if the remote still has the commit.
            Err(ReadError::TooBig(_)) => self.repo = Some(repo),
        }
    }

    /// Returns true if the last good commit can still be read from disk.
    fn is_whole(&self) -> bool {
        let tip = self.open_repo(&self.path()).and_then(|repo| {
            let tip = repo.refname_to_id(TIP)?;
            Ok((repo, tip))
        });
        tip.is_ok_and(|(repo, tip)| snapshot::read(&repo, tip, None).is_ok())
    }

    /// Creates a new empty repository in place of whatever exists at the path.
    fn init(&self, path: &Path) -> Result<Repository, Error> {
        let storage = |source| Error::Storage {
            path: path.to_owned(),
            source,
        };
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage(error)),
            _ => {}
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(path, &options)
            .map_err(|error| storage(io::Error::other(error.message().to_owned())))
    }

    fn rebuild(&mut self, old: Option<Oid>) -> Result<(Snapshot, Change), Failure> {
        let (path, fresh, aside) = (
            self.path(),
            self.rebuild_path(),
            self.dir.join("damaged.git"),
        );
        let repo = self.init(&fresh)?;
        let built = self.attempt(&Base {
            repo: &repo,
            old,
            have: None,
            known: None,
        })?;
        let built = built.ok_or_else(|| {
            self.protocol(git2::Error::from_str("the remote's reference disappeared"))
        })?;
        drop(repo);
        self.repo = None;
        let swap = || -> io::Result<()> {
            if aside.exists() {
                fs::remove_dir_all(&aside)?;
            }
            if path.exists() {
                fs::rename(&path, &aside)?;
            }
            fs::rename(&fresh, &path)?;
            if aside.exists() {
                fs::remove_dir_all(&aside)?;
            }
            Ok(())
        };
        let swapped = swap();
        // If this fails, or the swap ended halfway, `reopen` continues at the next refresh.
        self.repo = self.open_repo(&path).ok();
        swapped.map_err(|source| Error::Storage {
            path: self.dir.clone(),
            source,
        })?;
        Ok(built)
    }

    /// Fetches the commit of the remote's reference, verifies it and moves the tip to it. Does not retry. Returns
    /// `None` if the reference has not moved.
    fn attempt(&self, base: &Base<'_>) -> Result<Option<(Snapshot, Change)>, Failure> {
        let Some(commit) = self.transfer(base)? else {
            return Ok(None);
        };
        let damaged = |source: git2::Error| Failure::Damaged {
            commit,
            source: source.into(),
        };
        // The new pack was not written through this handle.
        base.repo
            .odb()
            .and_then(|odb| odb.refresh())
            .map_err(damaged)?;
        let known = base.known.map(|known| &*known.tree);
        let snapshot = snapshot::read(base.repo, commit, known).map_err(|error| match error {
            ReadError::Git(source) => damaged(source),
            ReadError::TooBig(source) => Failure::Told(self.too_big(commit, source)),
        })?;
        let change = match base.old {
            Some(old) if old == commit => Change::None,
            Some(old) => {
                let follows = match base.repo.graph_descendant_of(commit, old) {
                    // A rebuilt mirror has only what is reachable from the new commit.
                    Err(error) if error.code() == ErrorCode::NotFound => false,
                    other => other.map_err(damaged)?,
                };
                let old = object_id(old).map_err(damaged)?;
                if follows {
                    Change::Forward
                } else {
                    Change::Forced { old }
                }
            }
            None => Change::Forward,
        };
        base.repo
            .reference(TIP, commit, true, "refresh")
            .map_err(|error| match error.class() {
                ErrorClass::Os => Failure::Told(Error::Storage {
                    path: base.repo.path().to_owned(),
                    source: io::Error::other(error.message().to_owned()),
                }),
                // The existing file is not a valid reference.
                _ => damaged(error),
            })?;
        Ok(Some((snapshot, change)))
    }

    /// Transfers the objects and returns the commit, or `None` if the remote's reference has not moved.
    fn transfer(&self, base: &Base<'_>) -> Result<Option<Oid>, Failure> {
        let bounds = (self.limits, &*self.stop);
        let path = match self.config.url.place() {
            Place::Local(path) => path,
            Place::Http { url, login } => {
                let login = login.as_ref();
                let wanted = https::fetch(&self.config, url, login, bounds, base.repo, base.have)?;
                return self.fetched(base.repo, &wanted);
            }
            Place::Ssh(place) => {
                let wanted = ssh::fetch(&self.config, place, bounds, base.repo, base.have)?;
                return self.fetched(base.repo, &wanted);
            }
        };
        let local = Local::open(&self.config, path)?;
        let id = local.tip()?;
        if base.have == Some(id) {
            return Ok(None);
        }
        let commit = local.commit(id)?.ok_or_else(|| self.not_a_commit())?;
        if base.have == Some(commit) {
            return Ok(None);
        }
        local
            .copy(base.repo, commit)
            .map_err(|error| Failure::of(commit, error))?;
        Ok(Some(commit))
    }

    /// Returns the commit that was fetched over a network, or `None` if there was nothing to fetch.
    fn fetched(&self, repo: &Repository, wanted: &Wanted) -> Result<Option<Oid>, Failure> {
        if !wanted.fetched {
            return Ok(None);
        }
        // The pack may be unknown to this handle.
        let object = repo
            .odb()
            .and_then(|odb| odb.refresh())
            .and_then(|()| repo.find_object(wanted.id, None));
        let object = object.map_err(|source| Failure::Damaged {
            commit: wanted.id,
            source: source.into(),
        })?;
        let commit = object.peel_to_commit().map_err(|_| self.not_a_commit())?;
        Ok(Some(commit.id()))
    }

    fn not_a_commit(&self) -> Error {
        Error::NotACommit {
            remote: self.config.url.to_string(),
            reference: self.config.reference.to_string(),
        }
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("dir", &self.dir)
            .field("config", &self.config)
            .finish()
    }
}

fn unchanged(last: &Arc<Snapshot>) -> Refreshed {
    Refreshed {
        snapshot: last.clone(),
        change: Change::None,
        rebuilt: false,
    }
}

/// Returns the names of complete packs.
fn pack_names(packs: &Path) -> io::Result<Vec<String>> {
    let files = match fs::read_dir(packs) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for file in files {
        let file = file?.file_name();
        let name = file
            .to_str()
            .and_then(|file| file.strip_prefix("pack-")?.strip_suffix(".idx"));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

/// Removes a pack. The index goes first, because a pack without an index is swept when the mirror is opened.
fn remove_pack(packs: &Path, name: &str) -> Result<(), Error> {
    for end in ["idx", "pack"] {
        let path = packs.join(format!("pack-{name}.{end}"));
        fs::remove_file(&path).map_err(|source| Error::Storage { path, source })?;
    }
    Ok(())
}

/// Removes lock files of references and configuration that a killed process left. They would look like those
/// of a running process. The caller holds the lock of the whole mirror.
fn unlock(dir: &Path) -> io::Result<()> {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let found = match fs::read_dir(&dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in found {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if entry.file_name() != "objects" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|suffix| suffix == "lock") {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

/// Removes the files that a process left when it was killed during a fetch: everything except packs with their
/// indexes.
fn sweep(packs: &Path) -> io::Result<()> {
    let whole = pack_names(packs)?;
    let files = match fs::read_dir(packs) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for file in files {
        let file = file?;
        let name = file.file_name().into_encoded_bytes();
        let name = String::from_utf8_lossy(&name);
        let stem = name
            .strip_prefix("pack-")
            .and_then(|name| name.split_once('.'));
        if !stem.is_some_and(|(stem, _)| whole.iter().any(|whole| whole == stem)) {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}
