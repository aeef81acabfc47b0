//! The removed instances and logins, in a file beside the store. Backups of the store do not contain this file, so a
//! restore does not bring a removed agent or login back.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use muster_model::ids::{ClusterName, InstanceId};
use serde::{Deserialize, Serialize};

use crate::{authority::AuthorityError, config::REMOVED_FILE};

/// The file that lists removed instances and logins.
#[derive(Debug)]
pub(crate) struct Removals {
    path: PathBuf,
    writing: Mutex<()>,
}

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Names {
    pub(crate) instances: BTreeSet<(ClusterName, InstanceId)>,
    /// The serial numbers of the certificates of removed logins.
    pub(crate) logins: BTreeSet<String>,
}

impl Removals {
    pub(crate) fn in_directory(state: &Path) -> Self {
        Self {
            path: state.join(REMOVED_FILE),
            writing: Mutex::default(),
        }
    }

    /// Reads the whole list; it is empty if the file does not exist.
    pub(crate) fn read(&self) -> Result<Names, AuthorityError> {
        let read = match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Names::default()),
            Err(error) => Err(error),
        };
        read.map_err(|error| AuthorityError::Removals(self.path.clone(), error))
    }

    /// Adds names to the list. Call this before removing them from the store.
    pub(crate) fn add(&self, more: Names) -> Result<(), AuthorityError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.read()?;
        names.instances.extend(more.instances);
        names.logins.extend(more.logins);
        let write = || -> io::Result<()> {
            let new = self.path.with_extension("new");
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(&names)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            match self.path.parent() {
                Some(directory) => fs::File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|error| AuthorityError::Removals(self.path.clone(), error))
    }
}
