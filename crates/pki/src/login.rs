//! The file that makes a person's command line speak to their hub.

use std::{
    fmt,
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Credentials, Key, PkiError, TrustBundle};

/// What `muster login` keeps: a hub, and who one is there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Where the hub is reached: `HOST:PORT`.
    pub hub: String,
    /// The name under which one is known there.
    pub name: String,
    /// The authorities to trust, in PEM form.
    pub ca: String,
    /// The certificate, in PEM form.
    pub certificate: String,
    /// Its key, in PEM form.
    pub key: String,
}

/// Why a login can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// There is none.
    #[error("{path} does not exist: run `muster login` first, or name another file")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("can't {doing} {path}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a login: run `muster login` again")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_yaml::Error,
    },
}

impl Login {
    /// Reads a login from its file.
    ///
    /// # Errors
    /// When it is not there, can't be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, LoginError> {
        let text = fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LoginError::Missing {
                path: path.to_owned(),
            },
            _ => LoginError::File {
                doing: "read",
                path: path.to_owned(),
                source,
            },
        })?;
        serde_yaml::from_str(&text).map_err(|source| LoginError::Content {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes the login to `path`, for its owner's eyes only, and makes the folders above it. A file
    /// that is there is replaced in one step.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, path: &Path) -> Result<(), LoginError> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| LoginError::File {
                doing,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("create the folder", folder))?;
        let text = serde_yaml::to_string(self).map_err(|source| LoginError::Content {
            path: path.to_owned(),
            source,
        })?;
        // Temporary files are made for their owner's eyes only.
        let mut file =
            tempfile::NamedTempFile::new_in(folder).map_err(failed("create a file in", folder))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed("write", path))?;
        file.persist(path)
            .map(drop)
            .map_err(|e| failed("write", path)(e.error))
    }

    /// The authorities to trust and the credentials to show.
    ///
    /// # Errors
    /// When one of them is broken, or the key is not the certificate's.
    pub fn open(&self) -> Result<(TrustBundle, Credentials), PkiError> {
        let credentials = Credentials::new(&self.certificate, Key::from_pem(&self.key)?)?;
        Ok((TrustBundle::from_pem(&self.ca)?, credentials))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("hub", &self.hub)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
