//! Reads the files of a commit from the object store.

use std::{collections::HashMap, sync::Arc};

use git2::{ObjectType, Odb, Oid, Repository, Sort};
use muster_model::{
    ids::ObjectId,
    tree::{Entry, MAX_FILE_BYTES, PRUNE_TRAILER, Recent, Snapshot, Tree},
};

/// The most files and directories of one commit. Without this limit, a small repository whose trees contain the same
/// subtrees many times could have more paths than fit in memory.
pub(crate) const MAX_ENTRIES: usize = 200_000;
/// The maximum length of a path in bytes. It is the limit of most systems.
pub(crate) const MAX_PATH_BYTES: usize = 4096;
/// The most bytes that all files of one commit together may have. Identical files count once.
pub(crate) const MAX_TREE_BYTES: u64 = 1 << 30;

/// The limit that a commit exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooBig {
    /// The commit has too many files and directories.
    #[error("it has more than {MAX_ENTRIES} files and directories")]
    Entries,
    /// A path is too long.
    #[error("it has a path of more than {MAX_PATH_BYTES} bytes")]
    Path,
    /// The files together are too large.
    #[error("its files have more than {} MiB together", MAX_TREE_BYTES >> 20)]
    Bytes,
}

/// The reason why a commit's files could not be read.
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

// The file types in the modes of Git's tree entries.
const TREE: i32 = 0o040_000;
const SYMLINK: i32 = 0o120_000;
const GITLINK: i32 = 0o160_000;
const TYPE: i32 = 0o170_000;

pub(crate) fn object_id(oid: Oid) -> Result<ObjectId, git2::Error> {
    // This can't fail, because git2 is built for SHA-1 repositories.
    ObjectId::try_from(oid.as_bytes()).map_err(|error| git2::Error::from_str(&error.to_string()))
}

/// Reads a commit with all of its files. Content that is in `known` is reused. Every other object is read, and its
/// hash is checked.
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

/// The most commits whose messages are read for trailers. If a push has more commits, the trailers of the older
/// ones are ignored, which only means that less is deleted.
const RECENT: usize = 64;

/// Returns a commit and its recent ancestors, with the apps whose deletion their trailers approve.
fn recent(repo: &Repository, commit: Oid) -> Result<Vec<Recent>, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL)?;
    walk.push(commit)?;
    let mut recent = Vec::new();
    for id in walk.take(RECENT) {
        // In a shallow mirror the history ends early.
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
    /// True once this content has been counted for the commit.
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
        // This is not recursive, because the repository decides how deep its trees are nested.
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
                    let text = format!("{oid} should be a file but is a {kind}");
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
