//! Asking and fetching over HTTPS and SSH.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, ErrorClass, ErrorCode,
    FetchOptions, Oid, ProxyOptions, RemoteCallbacks, Repository,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use url::Url;

use crate::{
    address::{Login, Place, Ssh},
    connection::{ConnectionError, Limits, Relay, Route, Stop},
    error::Error,
    known_hosts,
    remote::{Auth, Reference, RemoteConfig},
};

/// What most hosts want beside a token; others accept anything.
const TOKEN_USER: &str = "x-access-token";
/// References that an error names.
const NAMED: usize = 5;

/// One connection's parts: built for each attempt, so that every secret is read anew.
pub(crate) struct Network<'a> {
    config: &'a RemoteConfig,
    stop: &'a Stop,
    relay: Relay,
    /// As libgit2 gets it.
    url: String,
    access: Access,
    /// What a callback found wrong; it says more than libgit2's error.
    verdict: RefCell<Option<Error>>,
    asked: Cell<bool>,
}

enum Access {
    Http {
        host: String,
        login: Option<Login>,
        roots: Option<Arc<WebPkiServerVerifier>>,
    },
    Ssh {
        ssh: Ssh,
        key: Option<PathBuf>,
        known_hosts: Option<PathBuf>,
    },
}

/// A commit to have, and whether the mirror has it now.
pub(crate) struct Wanted {
    /// What the reference points to, perhaps an annotated tag.
    pub(crate) id: Oid,
    /// Whether objects were asked for.
    pub(crate) fetched: bool,
}

impl<'a> Network<'a> {
    pub(crate) fn open(
        config: &'a RemoteConfig,
        limits: Limits,
        stop: &'a Stop,
    ) -> Result<Self, Error> {
        let auth = &config.auth;
        let remote = || config.url.to_string();
        let relay = |route| {
            Relay::open(route, limits, stop).map_err(|source| Error::Unreachable {
                remote: remote(),
                source,
            })
        };
        let (relay, url, access) = match config.url.place() {
            Place::Http { url, login } => {
                let (relay, through) = http_way(url, relay)?;
                let login = http_login(auth, login.as_ref())?;
                let host = url.host_str().unwrap_or_default().to_owned();
                let roots = auth.ca_file.as_deref().map(extra_roots).transpose()?;
                (relay, through, Access::Http { host, login, roots })
            }
            Place::Ssh(ssh) => {
                let relay = relay(Route::To {
                    host: ssh.host.clone(),
                    port: ssh.port,
                })?;
                let url = format!("[{}@127.0.0.1:{}]:{}", ssh.user, relay.port(), ssh.path);
                let key = ssh_key(auth)?;
                let known_hosts = auth.known_hosts.clone();
                (
                    relay,
                    url,
                    Access::Ssh {
                        ssh: ssh.clone(),
                        key,
                        known_hosts,
                    },
                )
            }
            // The mirror reads a directory itself.
            Place::Local(path) => {
                let source = git2::Error::from_str("a directory is no network address");
                let remote = path.display().to_string();
                return Err(Error::Protocol { remote, source });
            }
        };
        Ok(Self {
            config,
            stop,
            relay,
            url,
            access,
            verdict: None.into(),
            asked: false.into(),
        })
    }

    /// Asks for the reference and fetches what `repo` lacks of it, unless it leads to `have`.
    pub(crate) fn fetch(&self, repo: &Repository, have: Option<Oid>) -> Result<Wanted, Error> {
        let mut remote = repo
            .remote_anonymous(&self.url)
            .map_err(|error| self.explain(error, false))?;
        let mut proxy = ProxyOptions::new();
        // Only here is the relay a proxy; elsewhere the URL leads to it.
        if matches!(self.config.url.place(), Place::Http { url, .. } if url.scheme() == "https") {
            proxy.url(&format!("http://127.0.0.1:{}", self.relay.port()));
        }
        let mut connection = remote
            .connect_auth(Direction::Fetch, Some(self.callbacks()), Some(proxy))
            .map_err(|error| self.explain(error, false))?;
        let found = {
            let heads = connection
                .list()
                .map_err(|error| self.explain(error, false))?;
            let heads: Vec<_> = heads.iter().map(|head| (head.name(), head.oid())).collect();
            choose(self.config, &heads)?
        };
        if have.is_some() && found.commit == have {
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
            .credentials(|url, _, allowed| self.credentials(url, allowed))
            .certificate_check(|cert, _| self.certificate(cert))
            .transfer_progress(|_| !self.stop.is_stopped());
        callbacks
    }

    fn refuse(&self, error: Error) -> git2::Error {
        self.verdict.borrow_mut().get_or_insert(error);
        git2::Error::new(ErrorCode::User, ErrorClass::Callback, "refused")
    }

    fn denied(&self, hint: &str) -> git2::Error {
        let remote = self.config.url.to_string();
        self.refuse(Error::Denied {
            remote,
            hint: hint.to_owned(),
        })
    }

    fn credentials(&self, url: &str, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let again = self.asked.replace(true);
        match &self.access {
            Access::Http { login: None, .. } => Err(self
                .denied("it wants a login; give a file with a token that may read the repository")),
            Access::Http { .. } if again => {
                Err(self.denied("the token is wrong, has expired, or may not read the repository"))
            }
            Access::Http {
                host,
                login: Some(login),
                ..
            } => {
                // After a redirect another host would get the token.
                let asking = Url::parse(url).ok();
                let asking = asking.as_ref().and_then(Url::host_str).unwrap_or_default();
                if asking != host && asking != "127.0.0.1" {
                    let hint = format!(
                        "it redirects to {asking}, which is not given the token; use that \
                         host's address if it is the right one"
                    );
                    return Err(self.denied(&hint));
                }
                Cred::userpass_plaintext(&login.user, login.password.as_deref().unwrap_or(""))
            }
            Access::Ssh { key: None, .. } => {
                Err(self.denied("there is no private key; give one that may read the repository"))
            }
            Access::Ssh { .. } if again => Err(self.denied(
                "it does not accept the private key (a key with a passphrase can't be used); add \
                 the public key to those that may read the repository",
            )),
            Access::Ssh {
                ssh,
                key: Some(key),
                ..
            } if allowed.is_ssh_key() => Cred::ssh_key(&ssh.user, None, key, None),
            Access::Ssh { .. } => Err(self.denied("it takes no public keys")),
        }
    }

    fn certificate(
        &self,
        cert: &git2::cert::Cert<'_>,
    ) -> Result<CertificateCheckStatus, git2::Error> {
        let remote = || self.config.url.to_string();
        match &self.access {
            Access::Http { roots: None, .. } => Ok(CertificateCheckStatus::CertificatePassthrough),
            Access::Http {
                host,
                roots: Some(roots),
                ..
            } => {
                let leaf = cert
                    .as_x509()
                    .map(|cert| CertificateDer::from(cert.data().to_vec()));
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                if let (Some(leaf), Ok(name)) = (leaf, name)
                    && roots
                        .verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
                        .is_ok()
                {
                    return Ok(CertificateCheckStatus::CertificateOk);
                }
                // The system's CAs count, too.
                Ok(CertificateCheckStatus::CertificatePassthrough)
            }
            Access::Ssh {
                ssh, known_hosts, ..
            } => {
                let key = cert
                    .as_hostkey()
                    .and_then(|key| key.hostkey())
                    .unwrap_or_default();
                known_hosts::check(known_hosts.as_deref(), &ssh.host, ssh.port, key)
                    .map(|()| CertificateCheckStatus::CertificateOk)
                    .map_err(|source| {
                        self.refuse(Error::HostKey {
                            remote: remote(),
                            source,
                        })
                    })
            }
        }
    }

    /// Turns libgit2's error into ours. `fetching` is after the reference was found.
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
        match error.class() {
            _ if error.code() == ErrorCode::Certificate => Error::Certificate { remote },
            ErrorClass::Ssl if says(&["certificate"]) => Error::Certificate { remote },
            ErrorClass::Ssh if says(&["denied", "authenticate", "private key"]) => {
                let hint = "the private key can't be used, or is not one that may read the \
                            repository (a key with a passphrase can't be used)";
                Error::Denied {
                    remote,
                    hint: hint.to_owned(),
                }
            }
            ErrorClass::Http if says(&["status code: 401", "status code: 403"]) => {
                let hint = "the token may not read the repository".to_owned();
                Error::Denied { remote, hint }
            }
            ErrorClass::Http if says(&["status code: 404"]) => Error::NotFound {
                remote,
                source: error,
            },
            _ if says(&["does not appear to be a git repository", "not found"]) && !fetching => {
                Error::NotFound {
                    remote,
                    source: error,
                }
            }
            // The pack, or what it builds upon.
            ErrorClass::Indexer | ErrorClass::Odb | ErrorClass::Zlib | ErrorClass::Object => {
                Error::Corrupt {
                    remote,
                    source: error,
                }
            }
            // What `git upload-pack` says when it can't read its own repository.
            _ if says(&[
                "remote error",
                "upload-pack",
                "bad object",
                "unable to read",
            ]) =>
            {
                Error::Corrupt {
                    remote,
                    source: error,
                }
            }
            ErrorClass::Os | ErrorClass::Net | ErrorClass::Ssl | ErrorClass::Ssh
                if says(&[
                    "eof",
                    "connection",
                    "socket",
                    "reset",
                    "banner",
                    "recv",
                    "send",
                ]) =>
            {
                Error::Unreachable {
                    remote,
                    source: ConnectionError::Broken(error),
                }
            }
            _ => Error::Protocol {
                remote,
                source: error,
            },
        }
    }
}

struct Found {
    id: Oid,
    /// The commit, where the remote says it.
    commit: Option<Oid>,
}

/// The followed reference among those of the remote.
fn choose(config: &RemoteConfig, heads: &[(&str, Oid)]) -> Result<Found, Error> {
    let remote = config.url.to_string();
    if heads.is_empty() {
        return Err(Error::Empty { remote });
    }
    let name = config.reference.full_name();
    let of = |name: &str| heads.iter().find(|head| head.0 == name).map(|head| head.1);
    let Some(id) = of(&name) else {
        let names = heads.iter().map(|head| head.0);
        return Err(no_reference(config, names));
    };
    // An annotated tag comes with what it leads to, whatever that is.
    let commit = Some(of(&format!("{name}^{{}}")).unwrap_or(id));
    Ok(Found { id, commit })
}

/// The error for a reference that isn't there, with a few of those that are.
pub(crate) fn no_reference<'a>(
    config: &RemoteConfig,
    names: impl Iterator<Item = &'a str>,
) -> Error {
    let (prefix, kind) = match config.reference {
        Reference::Tag(_) => ("refs/tags/", "tag"),
        Reference::Branch(_) | Reference::Default => ("refs/heads/", "branch"),
    };
    let mut others = names
        .filter(|name| !name.ends_with("^{}"))
        .filter_map(|name| name.strip_prefix(prefix))
        .collect::<Vec<_>>();
    others.sort_unstable();
    let more = others.len().saturating_sub(NAMED);
    others.truncate(NAMED);
    let there = match (others.is_empty(), more) {
        (true, _) => format!("it has no {kind} at all"),
        (false, 0) => format!("it has: {}", others.join(", ")),
        (false, more) => format!("it has: {} and {more} more", others.join(", ")),
    };
    Error::NoReference {
        remote: config.url.to_string(),
        reference: config.reference.to_string(),
        there,
    }
}

/// A relay for the URL, and the URL that leads through it.
fn http_way(
    url: &Url,
    relay: impl Fn(Route) -> Result<Relay, Error>,
) -> Result<(Relay, String), Error> {
    if url.scheme() == "https" {
        return Ok((relay(Route::Named)?, url.to_string()));
    }
    let host = url
        .host_str()
        .unwrap_or("127.0.0.1")
        .trim_matches(['[', ']'])
        .to_owned();
    let relay = relay(Route::To {
        host,
        port: url.port().unwrap_or(80),
    })?;
    let through = format!("http://127.0.0.1:{}{}", relay.port(), url.path());
    Ok((relay, through))
}

fn secret(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Secret {
        what,
        path: path.to_owned(),
        source,
    }
}

fn http_login(auth: &Auth, login: Option<&Login>) -> Result<Option<Login>, Error> {
    let Some(path) = &auth.token_file else {
        return Ok(login.cloned());
    };
    let what = "the token file";
    let text = fs::read_to_string(path).map_err(|source| secret(what, path, source))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_control) {
        let source = io::Error::other("it must hold the token and nothing else");
        return Err(secret(what, path, source));
    }
    let user = auth
        .username
        .clone()
        .or_else(|| login.map(|login| login.user.clone()));
    let user = user
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| TOKEN_USER.to_owned());
    Ok(Some(Login {
        user,
        password: Some(token.to_owned()),
    }))
}

fn extra_roots(path: &Path) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let wrong = |error: String| secret("the extra CA file", path, io::Error::other(error));
    let pem = fs::read(path).map_err(|source| secret("the extra CA file", path, source))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let cert = cert.map_err(|error| wrong(error.to_string()))?;
        roots.add(cert).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it has no PEM certificate".to_owned()));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .build()
        .map_err(|error| wrong(error.to_string()))
}

/// The key that was given, which must be readable, or the first of the usual ones.
fn ssh_key(auth: &Auth) -> Result<Option<PathBuf>, Error> {
    if let Some(path) = &auth.ssh_key {
        fs::File::open(path).map_err(|source| secret("the private key", path, source))?;
        return Ok(Some(path.clone()));
    }
    let home = std::env::home_dir();
    let usual = ["id_ed25519", "id_ecdsa", "id_rsa"];
    let mut keys = usual
        .iter()
        .filter_map(|name| Some(home.as_ref()?.join(".ssh").join(name)));
    Ok(keys.find(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reference: Reference, names: &[&str]) -> String {
        let url = "/srv/fleet.git".parse().unwrap();
        let config = RemoteConfig {
            reference,
            ..RemoteConfig::new(url)
        };
        no_reference(&config, names.iter().copied()).to_string()
    }

    #[test]
    fn a_missing_reference_is_told_with_those_that_exist() {
        let branch = || Reference::Branch("main".into());
        let heads = [
            "HEAD",
            "refs/heads/b",
            "refs/heads/a",
            "refs/tags/v1",
            "refs/tags/v1^{}",
        ];
        assert_eq!(
            error(branch(), &heads),
            "/srv/fleet.git lacks branch main; it has: a, b"
        );
        assert_eq!(
            error(Reference::Tag("v2".into()), &heads),
            "/srv/fleet.git lacks tag v2; it has: v1"
        );
        let many: Vec<_> = (0..7).map(|i| format!("refs/heads/{i}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(error(branch(), &many).ends_with("it has: 0, 1, 2, 3, 4 and 2 more"));
        assert!(error(branch(), &[]).ends_with("it has no branch at all"));
    }
}
