//! Listing references and fetching over SSH.
//!
//! `git-upload-pack` runs on the server in an SSH session of `russh`. libgit2 speaks Git's protocol with it
//! through a loopback port, as if it were a `git://` server, so no C library has a part in the encryption.

mod bridge;
mod session;

use std::{fs, path::PathBuf, thread};

use git2::{
    AutotagOption, Direction, ErrorClass, ErrorCode, FetchOptions, Oid, RemoteCallbacks, Repository,
};
use tokio_util::sync::CancellationToken;

use self::{
    bridge::{Bridge, Ended},
    session::Session,
};
use crate::{
    address::Ssh,
    cause::Cause,
    connection::{ConnectionError, Limits, Stop},
    error::Error,
    remote::{Auth, FetchError, RemoteConfig, Wanted, choose},
};

/// Looks up the followed reference and fetches the objects that `repo` lacks, unless the reference points to
/// `have`.
pub(crate) fn fetch(
    config: &RemoteConfig,
    ssh: &Ssh,
    (limits, stop): (Limits, &Stop),
    repo: &Repository,
    have: Option<Oid>,
) -> Result<Wanted, FetchError> {
    let local = |error| Error::Unreachable {
        remote: config.url.to_string(),
        source: ConnectionError::Loopback(error),
    };
    let key = key(&config.auth)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(local)?;
    let session = runtime.block_on(async {
        tokio::select! {
            opened = Session::open(config, ssh, key, limits) => opened,
            () = stop.stopped() => Err(Error::Stopped),
        }
    })?;
    let bridge = Bridge::open().map_err(local)?;
    let url = bridge.url();
    let done = CancellationToken::new();
    let (fetched, ended) = thread::scope(|scope| {
        let bridging = scope.spawn(|| {
            let bridging = bridge.run(session, &ssh.host, limits, &done);
            runtime.block_on(async {
                tokio::select! {
                    ended = bridging => ended,
                    () = stop.stopped() => Ended::default(),
                }
            })
        });
        let fetched = Download {
            config,
            stop,
            url: &url,
        }
        .run(repo, have);
        done.cancel();
        (fetched, bridging.join().unwrap_or_default())
    });
    fetched.map_err(|failed| match failed {
        Failed::Told(error) => error.into(),
        Failed::Git { .. } if stop.is_stopped() => Error::Stopped.into(),
        Failed::Git { error, commit } => FetchError {
            commit,
            error: explain(config, error, commit.is_some(), ended),
        },
    })
}

/// The reason why libgit2's part of a fetch failed.
enum Failed {
    /// An error of this crate, which already states the reason.
    Told(Error),
    /// An error of libgit2. `commit` is the reference's commit if the error occurred after the reference was found.
    Git {
        error: git2::Error,
        commit: Option<Oid>,
    },
}

/// libgit2's part of a fetch.
struct Download<'a> {
    config: &'a RemoteConfig,
    stop: &'a Stop,
    /// The address of the bridge.
    url: &'a str,
}

impl Download<'_> {
    fn run(&self, repo: &Repository, have: Option<Oid>) -> Result<Wanted, Failed> {
        let failed = |commit| move |error| Failed::Git { error, commit };
        let mut remote = repo.remote_anonymous(self.url).map_err(failed(None))?;
        let mut connection = remote
            .connect_auth(Direction::Fetch, Some(self.callbacks()), None)
            .map_err(failed(None))?;
        let found = {
            let heads = connection.list().map_err(failed(None))?;
            let heads: Vec<_> = heads.iter().map(|head| (head.name(), head.oid())).collect();
            choose(self.config, &heads).map_err(Failed::Told)?
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
            .map_err(failed(Some(found.commit)))?;
        Ok(Wanted {
            id: found.id,
            fetched: true,
        })
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.transfer_progress(|_| !self.stop.is_stopped());
        callbacks
    }
}

/// Converts an error of libgit2, using how the SSH session ended to find the cause. `fetching` is true if the error
/// occurred after the reference was found.
fn explain(config: &RemoteConfig, error: git2::Error, fetching: bool, ended: Ended) -> Error {
    let remote = config.url.to_string();
    if let Some(source) = ended.failure {
        return Error::Unreachable { remote, source };
    }
    let (class, code) = (error.class(), error.code());
    let text = format!("{} {}", ended.said, error.message()).to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let source = match ended.said.is_empty() {
        true => Cause::Git(error),
        false => Cause::Said(ended.said),
    };
    match class {
        _ if !fetching
            && says(&[
                "not appear to be a git repository",
                "not found",
                "not be found",
            ]) =>
        {
            Error::NotFound { remote, source }
        }
        // The pack or its delta bases are damaged.
        ErrorClass::Indexer | ErrorClass::Odb | ErrorClass::Zlib | ErrorClass::Object => {
            Error::Corrupt { remote, source }
        }
        // `git upload-pack` failed on the repository, and the connection is intact.
        _ if code == ErrorCode::Eof
            || ended.status.is_some_and(|status| status != 0)
            || says(&["remote error", "upload-pack", "could not read from remote"]) =>
        {
            Error::Corrupt { remote, source }
        }
        ErrorClass::Os | ErrorClass::Net => Error::Unreachable {
            remote,
            source: ConnectionError::Broken(source),
        },
        _ => Error::Protocol { remote, source },
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
