//! A commit's files, read from the object store.

use std::{collections::HashMap, sync::Arc};

use git2::{ObjectType, Odb, Oid, Repository, Sort};
use muster_model::{
    ids::ObjectId,
    tree::{Entry, MAX_FILE_BYTES, PRUNE_TRAILER, Recent, Snapshot, Tree},
};

/// Files and directories of one commit. A tree that names itself over and over can have more paths
/// than any memory holds.
pub(crate) const MAX_ENTRIES: usize = 200_000;
/// The length of a path in bytes, as most systems have it.
pub(crate) const MAX_PATH_BYTES: usize = 4096;
/// Content of all files of one commit in bytes, each different content counted once.
pub(crate) const MAX_TREE_BYTES: u64 = 1 << 30;

/// What a commit has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooBig {
    /// Files and directories.
    #[error("it has more than {MAX_ENTRIES} files and directories")]
    Entries,
    /// A path's length.
    #[error("it has a path of more than {MAX_PATH_BYTES} bytes")]
    Path,
    /// Content.
    #[error("its files have more than {} MiB together", MAX_TREE_BYTES >> 20)]
    Bytes,
}

/// Why a commit's files could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Git(git2::Error),
    TooBig(TooBig),
}

impl From<git2::Error> for ReadError {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}

/// Git's modes of tree entries.
const TREE: i32 = 0o040_000;
const SYMLINK: i32 = 0o120_000;
const GITLINK: i32 = 0o160_000;
const TYPE: i32 = 0o170_000;

pub(crate) fn object_id(oid: Oid) -> Result<ObjectId, git2::Error> {
    // git2 is built for SHA-1 repositories, so this does not happen.
    ObjectId::try_from(oid.as_bytes()).map_err(|error| git2::Error::from_str(&error.to_string()))
}

/// Reads the commit with all of its files. Content that `known` has is taken from there; every
/// other object is read and its hash checked.
pub(crate) fn read(
    repo: &Repository,
    commit: Oid,
    known: Option<&Tree>,
) -> Result<Snapshot, ReadError> {
    let commit = repo.find_commit(commit)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut reader = Reader {
        odb: repo.odb()?,
        contents: HashMap::new(),
        bytes: 0,
    };
    for entry in known.into_iter().flat_map(|tree| tree.entries.values()) {
        if let Entry::File { id, bytes } = entry {
            reader.contents.insert(
                *id,
                Content {
                    bytes: bytes.clone(),
                    counted: false,
                },
            );
        }
    }
    Ok(Snapshot {
        recent: recent(repo, commit.id())?,
        commit: object_id(commit.id())?,
        subject: commit.summary_bytes().map(text).unwrap_or_default(),
        author: text(commit.author().name_bytes()),
        committed_at: commit.time().seconds(),
        tree: Arc::new(reader.tree(repo, commit.tree_id())?),
    })
}

/// So many commits are read for what their messages say. What more of them say that come in one push is
/// not heard, which deletes nothing.
const RECENT: usize = 64;

/// A commit and those before it.
fn recent(repo: &Repository, commit: Oid) -> Result<Vec<Recent>, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL)?;
    walk.push(commit)?;
    let mut recent = Vec::new();
    for id in walk.take(RECENT) {
        // A shallow mirror ends somewhere.
        let Ok(commit) = id.and_then(|id| repo.find_commit(id)) else {
            break;
        };
        let message = String::from_utf8_lossy(commit.message_bytes());
        let trailers = git2::message_trailers_strs(&message)?;
        let lets_go = trailers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(PRUNE_TRAILER))
            .filter_map(|(_, app)| app.trim().parse().ok());
        recent.push(Recent {
            lets_go: lets_go.collect(),
            commit: object_id(commit.id())?,
        });
    }
    Ok(recent)
}

struct Content {
    bytes: Arc<[u8]>,
    /// Whether it is part of this commit already.
    counted: bool,
}

struct Reader<'repo> {
    odb: Odb<'repo>,
    contents: HashMap<ObjectId, Content>,
    bytes: u64,
}

impl Reader<'_> {
    fn tree(&mut self, repo: &Repository, root: Oid) -> Result<Tree, ReadError> {
        let mut files = Tree::default();
        let mut seen = 0;
        // Not recursive: the depth is the repository's choice, our stack is not.
        let mut open = vec![(String::new(), root)];
        while let Some((prefix, id)) = open.pop() {
            for entry in &repo.find_tree(id)? {
                seen += 1;
                if seen > MAX_ENTRIES {
                    return Err(ReadError::TooBig(TooBig::Entries));
                }
                let path = format!("{prefix}{}", String::from_utf8_lossy(entry.name_bytes()));
                if path.len() > MAX_PATH_BYTES {
                    return Err(ReadError::TooBig(TooBig::Path));
                }
                let found = match entry.filemode() & TYPE {
                    TREE => {
                        open.push((path + "/", entry.id()));
                        continue;
                    }
                    GITLINK => Entry::Submodule,
                    SYMLINK => match self.blob(entry.id())? {
                        Entry::File { bytes, .. } => Entry::Symlink {
                            target: String::from_utf8_lossy(&bytes).into_owned(),
                        },
                        other => other,
                    },
                    _ => self.blob(entry.id())?,
                };
                files.entries.insert(path, found);
            }
        }
        Ok(files)
    }

    fn blob(&mut self, oid: Oid) -> Result<Entry, ReadError> {
        let id = object_id(oid)?;
        let content = match self.contents.get_mut(&id) {
            Some(content) => content,
            None => {
                let (size, kind) = self.odb.read_header(oid)?;
                if kind != ObjectType::Blob {
                    let text = format!("{oid} stands where a file should be and is a {kind}");
                    return Err(git2::Error::from_str(&text).into());
                }
                if size as u64 > MAX_FILE_BYTES {
                    return Ok(Entry::TooLarge { size: size as u64 });
                }
                let bytes = self.odb.read(oid)?.data().into();
                self.contents.entry(id).or_insert(Content {
                    bytes,
                    counted: false,
                })
            }
        };
        if !content.counted {
            content.counted = true;
            self.bytes += content.bytes.len() as u64;
            if self.bytes > MAX_TREE_BYTES {
                return Err(ReadError::TooBig(TooBig::Bytes));
            }
        }
        Ok(Entry::File {
            id,
            bytes: content.bytes.clone(),
        })
    }
}
