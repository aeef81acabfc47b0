//! Listing references and fetching over SSH, with libgit2 through a [`Relay`].

use std::{
    cell::{Cell, RefCell},
    fs,
    path::PathBuf,
};

use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, ErrorClass, ErrorCode,
    FetchOptions, Oid, RemoteCallbacks, Repository,
};

use crate::{
    address::Ssh,
    cause::Cause,
    connection::{ConnectionError, Limits, Relay, Stop},
    error::Error,
    known_hosts,
    remote::{Auth, RemoteConfig, Wanted, choose},
};

/// Looks up the followed reference and fetches the objects that `repo` lacks, unless the reference points to
/// `have`.
pub(crate) fn fetch(
    config: &RemoteConfig,
    ssh: &Ssh,
    (limits, stop): (Limits, &Stop),
    repo: &Repository,
    have: Option<Oid>,
) -> Result<Wanted, Error> {
    let relay =
        Relay::open(&ssh.host, ssh.port, limits, stop).map_err(|source| Error::Unreachable {
            remote: config.url.to_string(),
            source,
        })?;
    let key = key(&config.auth)?;
    let session = Session {
        config,
        ssh,
        stop,
        relay,
        key,
        verdict: RefCell::new(None),
        asked: Cell::new(false),
    };
    session.fetch(repo, have)
}

struct Session<'a> {
    config: &'a RemoteConfig,
    ssh: &'a Ssh,
    stop: &'a Stop,
    relay: Relay,
    key: Option<PathBuf>,
    /// The error that a callback found. It is more precise than libgit2's error.
    verdict: RefCell<Option<Error>>,
    asked: Cell<bool>,
}

impl Session<'_> {
    fn fetch(&self, repo: &Repository, have: Option<Oid>) -> Result<Wanted, Error> {
        let Ssh { user, path, .. } = self.ssh;
        let url = format!("[{user}@127.0.0.1:{}]:{path}", self.relay.port());
        let mut remote = repo
            .remote_anonymous(&url)
            .map_err(|error| self.explain(error, false))?;
        let mut connection = remote
            .connect_auth(Direction::Fetch, Some(self.callbacks()), None)
            .map_err(|error| self.explain(error, false))?;
        let found = {
            let heads = connection
                .list()
                .map_err(|error| self.explain(error, false))?;
            let heads: Vec<_> = heads.iter().map(|head| (head.name(), head.oid())).collect();
            choose(self.config, &heads)?
        };
        if have == Some(found.commit) {
            return Ok(Wanted {
                id: found.id,
                fetched: false,
            });
        }
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .download_tags(AutotagOption::None);
        let refspec = format!("+{}:refs/muster/fetched", self.config.reference.full_name());
        connection
            .remote()
            .download(&[&refspec], Some(&mut options))
            .map_err(|error| self.explain(error, true))?;
        Ok(Wanted {
            id: found.id,
            fetched: true,
        })
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks
            .credentials(|_, _, allowed| self.credentials(allowed))
            .certificate_check(|cert, _| self.host_key(cert))
            .transfer_progress(|_| !self.stop.is_stopped());
        callbacks
    }

    fn refuse(&self, error: Error) -> git2::Error {
        self.verdict.borrow_mut().get_or_insert(error);
        git2::Error::new(ErrorCode::User, ErrorClass::Callback, "refused")
    }

    fn denied(&self, hint: &str) -> Error {
        Error::Denied {
            remote: self.config.url.to_string(),
            hint: hint.to_owned(),
        }
    }

    fn credentials(&self, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let again = self.asked.replace(true);
        let hint = match &self.key {
            None => "there is no private key; give one that may read the repository",
            Some(_) if again => {
                "it does not accept the private key (a key with a passphrase can't be used); add \
                 the public key to those that may read the repository"
            }
            Some(key) if allowed.is_ssh_key() => {
                return Cred::ssh_key(&self.ssh.user, None, key, None);
            }
            Some(_) => "it does not accept public keys",
        };
        Err(self.refuse(self.denied(hint)))
    }

    fn host_key(&self, cert: &git2::cert::Cert<'_>) -> Result<CertificateCheckStatus, git2::Error> {
        let key = cert
            .as_hostkey()
            .and_then(|key| key.hostkey())
            .unwrap_or_default();
        let known_hosts = self.config.auth.known_hosts.as_deref();
        known_hosts::check(known_hosts, &self.ssh.host, self.ssh.port, key)
            .map(|()| CertificateCheckStatus::CertificateOk)
            .map_err(|source| {
                self.refuse(Error::HostKey {
                    remote: self.config.url.to_string(),
                    source,
                })
            })
    }

    /// Converts libgit2's error. `fetching` is true after the reference was found.
    fn explain(&self, error: git2::Error, fetching: bool) -> Error {
        let remote = self.config.url.to_string();
        if self.stop.is_stopped() {
            return Error::Stopped;
        }
        if let Some(verdict) = self.verdict.take() {
            return verdict;
        }
        if let Some(source) = self.relay.failure() {
            return Error::Unreachable { remote, source };
        }
        let text = error.message().to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let (class, code) = (error.class(), error.code());
        let source = Cause::Git(error);
        match class {
            ErrorClass::Ssh if says(&["authenticat", "private key", "public key"]) => self.denied(
                "the private key can't be used (one with a passphrase can't be), or may not read \
                 the repository",
            ),
            _ if !fetching && says(&["not appear to be a git repository", "not found"]) => {
                Error::NotFound { remote, source }
            }
            // The pack or its delta bases are damaged.
            ErrorClass::Indexer | ErrorClass::Odb | ErrorClass::Zlib | ErrorClass::Object => {
                Error::Corrupt { remote, source }
            }
            // `git upload-pack` failed on the repository, and the connection is intact.
            _ if code == ErrorCode::Eof
                || says(&["remote error", "upload-pack", "could not read from remote"]) =>
            {
                Error::Corrupt { remote, source }
            }
            ErrorClass::Os | ErrorClass::Net | ErrorClass::Ssh => Error::Unreachable {
                remote,
                source: ConnectionError::Broken(source),
            },
            _ => Error::Protocol { remote, source },
        }
    }
}

/// Returns the configured key, which must be readable, or the first existing default key.
fn key(auth: &Auth) -> Result<Option<PathBuf>, Error> {
    if let Some(path) = &auth.ssh_key {
        fs::File::open(path).map_err(|source| Error::Secret {
            what: "the private key",
            path: path.clone(),
            source,
        })?;
        return Ok(Some(path.clone()));
    }
    let home = std::env::home_dir();
    let usual = ["id_ed25519", "id_ecdsa", "id_rsa"];
    let mut keys = usual
        .iter()
        .filter_map(|name| Some(home.as_ref()?.join(".ssh").join(name)));
    Ok(keys.find(|path| path.is_file()))
}
