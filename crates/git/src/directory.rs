//! Reads a plain directory as the tree that a commit of it would have.

use std::{fs, io, os::unix::ffi::OsStrExt, path::Path};

use git2::{ObjectType, Oid};
use muster_model::tree::{Entry, MAX_FILE_BYTES, Tree};

use crate::snapshot::{MAX_ENTRIES, MAX_PATH_BYTES, TooBig, object_id};

/// Returns the files under a directory, with the ids that Git would give them. `.git` is skipped, symbolic
/// links are not followed, a directory with its own repository counts as a submodule, and anything that is
/// not a file, link or directory is ignored.
///
/// # Errors
/// An I/O error with the path in its message if something can't be read, or if there are too many files.
pub fn read_dir(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::default();
    let mut seen = 0;
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((dir, prefix)) = open.pop() {
        for found in fs::read_dir(&dir).map_err(|error| at(&dir, &error))? {
            let found = found.map_err(|error| at(&dir, &error))?;
            if found.file_name() == ".git" {
                continue;
            }
            seen += 1;
            if seen > MAX_ENTRIES {
                return Err(at(root, &io::Error::other(TooBig::Entries)));
            }
            let path = found.path();
            let name = String::from_utf8_lossy(found.file_name().as_bytes()).into_owned();
            let name = format!("{prefix}{name}");
            if name.len() > MAX_PATH_BYTES {
                return Err(at(root, &io::Error::other(TooBig::Path)));
            }
            let kind = found.file_type().map_err(|error| at(&path, &error))?;
            if kind.is_dir() && !path.join(".git").exists() {
                open.push((path, name + "/"));
                continue;
            }
            let entry = if kind.is_dir() {
                Entry::Submodule
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| at(&path, &error))?;
                Entry::Symlink {
                    target: target.to_string_lossy().into_owned(),
                }
            } else if kind.is_file() {
                file(&path).map_err(|error| at(&path, &error))?
            } else {
                continue;
            };
            tree.entries.insert(name, entry);
        }
    }
    Ok(tree)
}

fn file(path: &Path) -> io::Result<Entry> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE_BYTES {
        return Ok(Entry::TooLarge { size });
    }
    let bytes = fs::read(path)?;
    let id = Oid::hash_object(ObjectType::Blob, &bytes).and_then(object_id);
    Ok(Entry::File {
        id: id.map_err(io::Error::other)?,
        bytes: bytes.into(),
    })
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
