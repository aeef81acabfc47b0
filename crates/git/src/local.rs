//! A remote that is a directory of this machine: its reference is read and its objects are copied
//! without any process or protocol between.

use std::path::{Path, PathBuf};

use git2::{ErrorClass, ErrorCode, Oid, Repository, RepositoryOpenFlags};

use crate::{
    error::Error,
    remote::{RemoteConfig, no_reference},
};

/// An opened local repository.
pub(crate) struct Local<'a> {
    config: &'a RemoteConfig,
    repo: Repository,
}

impl<'a> Local<'a> {
    pub(crate) fn open(config: &'a RemoteConfig, path: &Path) -> Result<Self, Error> {
        // The path itself, bare or not, never a repository that happens to stand above it.
        let flags = RepositoryOpenFlags::NO_SEARCH;
        let none: [&Path; 0] = [];
        let repo = Repository::open_ext(path, flags, none).map_err(|error| {
            let remote = config.url.to_string();
            match error.code() {
                ErrorCode::Owner => Error::Owner { path: remote },
                ErrorCode::NotFound => Error::NotFound {
                    remote,
                    source: error.into(),
                },
                _ => Error::Protocol {
                    remote,
                    source: error.into(),
                },
            }
        })?;
        Ok(Self { config, repo })
    }

    fn corrupt(&self, source: git2::Error) -> Error {
        Error::Corrupt {
            remote: self.config.url.to_string(),
            source: source.into(),
        }
    }

    /// What the followed reference points to, perhaps an annotated tag.
    pub(crate) fn tip(&self) -> Result<Oid, Error> {
        let name = self.config.reference.full_name();
        let found = self
            .repo
            .find_reference(&name)
            .and_then(|reference| reference.resolve());
        let error = match found {
            Ok(reference) => match reference.target() {
                Some(id) => return Ok(id),
                None => git2::Error::from_str("the reference leads nowhere"),
            },
            Err(error) => error,
        };
        if error.code() != ErrorCode::NotFound {
            return Err(self.corrupt(error));
        }
        let references = self
            .repo
            .references()
            .map_err(|error| self.corrupt(error))?;
        let names: Vec<_> = references
            .flatten()
            .map(|found| String::from_utf8_lossy(found.name_bytes()).into_owned())
            .collect();
        if names.is_empty() {
            return Err(Error::Empty {
                remote: self.config.url.to_string(),
            });
        }
        Err(no_reference(self.config, names.iter().map(String::as_str)))
    }

    /// The commit behind an object of this repository, if it is one.
    pub(crate) fn commit(&self, id: Oid) -> Result<Option<Oid>, Error> {
        let object = self
            .repo
            .find_object(id, None)
            .map_err(|error| self.corrupt(error))?;
        Ok(object.peel_to_commit().ok().map(|commit| commit.id()))
    }

    /// Writes what `commit` has and `have` lacks as a pack into a directory of packs.
    pub(crate) fn copy(&self, packs: &Path, commit: Oid, have: Option<Oid>) -> Result<(), Error> {
        // After a force-push and a collection here, the old commit may be gone.
        let have = have.filter(|id| self.repo.find_commit(*id).is_ok());
        pack(&self.repo, packs, commit, have).map_err(|error| match error.class() {
            ErrorClass::Os => Error::Storage {
                path: packs.to_owned(),
                source: std::io::Error::other(error.message().to_owned()),
            },
            _ => self.corrupt(error),
        })?;
        Ok(())
    }
}

/// Writes the objects of `commit` without those of `have` as one pack; its name is given, unless
/// there is nothing to write.
pub(crate) fn pack(
    repo: &Repository,
    packs: &Path,
    commit: Oid,
    have: Option<Oid>,
) -> Result<Option<String>, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.push(commit)?;
    if let Some(have) = have {
        walk.hide(have)?;
    }
    let mut builder = repo.packbuilder()?;
    builder.insert_walk(&mut walk)?;
    if builder.object_count() == 0 {
        return Ok(None);
    }
    builder.write(packs, 0)?;
    Ok(builder.name()?.map(str::to_owned))
}

/// Where this repository keeps its references: what to watch, with everything below or only itself.
pub(crate) fn reference_places(path: &Path) -> Option<Vec<(PathBuf, Below)>> {
    let repo = Repository::open(path).ok()?;
    let common = repo.commondir().to_owned();
    let mut places = vec![(common.clone(), Below::No)];
    // A linked work tree has a HEAD of its own.
    if repo.path() != common {
        places.push((repo.path().to_owned(), Below::No));
    }
    for dir in ["refs", "reftable"] {
        let dir = common.join(dir);
        if dir.is_dir() {
            places.push((dir, Below::Yes));
        }
    }
    Some(places)
}

/// Whether directories below a watched one are watched, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Yes,
    No,
}
