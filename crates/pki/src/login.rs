//! The login file with which a person's command line connects to their hub.

use std::{
    fmt,
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Credentials, Key, PkiError, TrustBundle};

/// A login as `muster login` stores it: a hub, and the user's credentials for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The address of the hub, as `HOST:PORT`.
    pub hub: String,
    /// The name of the user at this hub.
    pub name: String,
    /// The certificate authorities to trust, in PEM form.
    pub ca: String,
    /// The user's certificate, in PEM form.
    pub certificate: String,
    /// The key of the certificate, in PEM form.
    pub key: String,
}

/// The reason why a login can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The login file does not exist.
    #[error("{path} does not exist: run `muster login` first, or name another file")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("can't {doing} {path}")]
    File {
        /// The operation that failed, as in "can't read".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The file is not a login.
    #[error("{path} is not a login: run `muster login` again")]
    Content {
        /// The file.
        path: PathBuf,
        /// The YAML error.
        source: serde_yaml::Error,
    },
}

impl Login {
    /// Reads a login from its file.
    ///
    /// # Errors
    /// [`LoginError`] if the file does not exist, can't be read, or is not a login.
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

    /// Writes the login to `path`, readable only by its owner, and creates missing parent folders. An
    /// existing file is replaced atomically.
    ///
    /// # Errors
    /// [`LoginError::File`] if a file or folder can't be written.
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
        // Temporary files are created with read and write permission for their owner only.
        let mut file =
            tempfile::NamedTempFile::new_in(folder).map_err(failed("create a file in", folder))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed("write", path))?;
        file.persist(path)
            .map(drop)
            .map_err(|e| failed("write", path)(e.error))
    }

    /// Returns the authorities to trust and the credentials to present.
    ///
    /// # Errors
    /// [`PkiError`] if one of them is malformed, or the key does not belong to the certificate.
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
