//! A remote that is a directory on this machine. Its reference is read and its objects are copied directly,
//! without a Git process or protocol.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use flate2::bufread::ZlibDecoder;
use git2::{ErrorClass, ErrorCode, Object, ObjectType, Oid, Repository, RepositoryOpenFlags};

use crate::{
    cause::Cause,
    error::Error,
    remote::{RemoteConfig, no_reference},
};

/// An opened local repository.
pub(crate) struct Local<'a> {
    config: &'a RemoteConfig,
    repo: Repository,
    objects: Vec<PathBuf>,
}

impl<'a> Local<'a> {
    pub(crate) fn open(config: &'a RemoteConfig, path: &Path) -> Result<Self, Error> {
        // Only the path itself is opened, bare or not, and never a repository in a parent directory.
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
        let objects = object_directories(&repo);
        Ok(Self {
            config,
            repo,
            objects,
        })
    }

    fn corrupt(&self, source: impl Into<Cause>) -> Error {
        Error::Corrupt {
            remote: self.config.url.to_string(),
            source: source.into(),
        }
    }

    /// Returns the object that the followed reference points to. It may be an annotated tag.
    pub(crate) fn tip(&self) -> Result<Oid, Error> {
        let name = self.config.reference.full_name();
        let found = self
            .repo
            .find_reference(&name)
            .and_then(|reference| reference.resolve());
        let error = match found {
            Ok(reference) => match reference.target() {
                Some(id) => return Ok(id),
                None => git2::Error::from_str("the reference has no target"),
            },
            Err(error) => error,
        };
        if error.code() != ErrorCode::NotFound {
            return Err(match error.class() {
                ErrorClass::Os => Error::Unreadable {
                    path: self.repo.path().to_owned(),
                    source: io::Error::other(error.message().to_owned()),
                },
                _ => self.corrupt(error),
            });
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

    /// Peels tags and returns the commit, or `None` if the object does not lead to a commit.
    pub(crate) fn commit(&self, id: Oid) -> Result<Option<Oid>, Error> {
        let mut id = id;
        loop {
            let object = self.object(id)?;
            match (object.kind(), object.as_tag()) {
                (Some(ObjectType::Commit), _) => return Ok(Some(id)),
                (_, Some(tag)) => id = tag.target_id(),
                _ => return Ok(None),
            }
        }
    }

    /// Writes the objects that are reachable from `commit` and missing in `mirror` to a pack in the mirror. The
    /// mirror stores an object only together with everything reachable from it, so the walk can stop at objects
    /// that the mirror has.
    pub(crate) fn copy(&self, mirror: &Repository, commit: Oid) -> Result<(), Error> {
        let packs = mirror.path().join("objects/pack");
        let failed = |error: git2::Error| match error.class() {
            ErrorClass::Os => Error::Storage {
                path: packs.clone(),
                source: io::Error::other(error.message().to_owned()),
            },
            _ => self.corrupt(error),
        };
        let there = mirror.odb().map_err(failed)?;
        let mut builder = self.repo.packbuilder().map_err(failed)?;
        let mut seen = HashSet::new();
        let mut open = vec![commit];
        while let Some(id) = open.pop() {
            if there.exists(id) || !seen.insert(id) {
                continue;
            }
            let object = self.object(id)?;
            builder.insert_object(id, None).map_err(failed)?;
            if let Some(commit) = object.as_commit() {
                open.push(commit.tree_id());
                open.extend(commit.parent_ids());
            } else if let Some(tree) = object.as_tree() {
                let inner = tree
                    .iter()
                    .filter(|entry| entry.kind() != Some(ObjectType::Commit));
                open.extend(inner.map(|entry| entry.id()));
            }
        }
        if !seen.is_empty() {
            builder.write(&packs, 0).map_err(failed)?;
        }
        Ok(())
    }

    fn object(&self, id: Oid) -> Result<Object<'_>, Error> {
        for objects in &self.objects {
            self.check_loose(objects, id)?;
        }
        self.repo
            .find_object(id, None)
            .map_err(|error| self.corrupt(error))
    }

    /// Checks that a loose object's file is complete. libgit2 would read a truncated file in an endless loop.
    fn check_loose(&self, objects: &Path, id: Oid) -> Result<(), Error> {
        let name = id.to_string();
        let path = objects.join(&name[..2]).join(&name[2..]);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The object may be intact: perhaps this user just lacks the permission to read its file.
            Err(source) => return Err(Error::Unreadable { path, source }),
        };
        let mut content = ZlibDecoder::new(BufReader::new(file));
        io::copy(&mut content, &mut io::sink()).map_err(|error| {
            let text = format!("the file of object {id} is damaged: {error}");
            self.corrupt(Cause::Said(text))
        })?;
        Ok(())
    }
}

/// Returns the object directories of a repository: its own and its alternates.
fn object_directories(repo: &Repository) -> Vec<PathBuf> {
    let mut found = vec![repo.commondir().join("objects")];
    let mut next = 0;
    while next < found.len() {
        // A repository without this file has no alternates.
        let text = fs::read_to_string(found[next].join("info/alternates")).unwrap_or_default();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let directory = found[next].join(line);
            if !found.contains(&directory) {
                found.push(directory);
            }
        }
        next += 1;
    }
    found
}

/// Writes everything reachable from a commit as one pack and returns the pack's name.
pub(crate) fn pack(
    repo: &Repository,
    packs: &Path,
    commit: Oid,
) -> Result<Option<String>, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.push(commit)?;
    let mut builder = repo.packbuilder()?;
    builder.insert_walk(&mut walk)?;
    builder.write(packs, 0)?;
    Ok(builder.name()?.map(str::to_owned))
}

/// Returns the directories where this repository stores its references, and whether to watch them recursively.
pub(crate) fn reference_places(path: &Path) -> Option<Vec<(PathBuf, Below)>> {
    let repo = Repository::open(path).ok()?;
    let common = repo.commondir().to_owned();
    let mut places = vec![(common.clone(), Below::No)];
    // A linked work tree has its own HEAD.
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

/// Selects whether the subdirectories of a watched directory are watched, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Yes,
    No,
}
