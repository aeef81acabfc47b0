//! An SSH session in which the server runs `git-upload-pack`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use russh::{
    Channel, ChannelMsg, Preferred,
    client::{self, AuthResult, Handle, Msg},
    keys::{self, Algorithm, PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key},
};
use tokio::time::timeout;

use crate::{
    address::Ssh,
    cause::Cause,
    connection::{ConnectionError, Limits, dial},
    error::Error,
    known_hosts::{HostKeyError, KnownHosts},
    remote::RemoteConfig,
};

/// How much data the server may send before it must wait for us, in bytes.
const WINDOW: u32 = 8 << 20;

/// A session with a running `git-upload-pack`. The server ends the program when the session is dropped.
pub(super) struct Session {
    /// The standard input and output of the program.
    pub(super) channel: Channel<Msg>,
    /// The SSH connection. The channel works only while this handle exists.
    pub(super) handle: Handle<HostKeys>,
}

impl Session {
    /// Connects, checks the host's key, logs in and starts the program.
    pub(super) async fn open(
        config: &RemoteConfig,
        ssh: &Ssh,
        key: Option<PathBuf>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let remote = || config.url.to_string();
        let unreachable = |source| Error::Unreachable {
            remote: remote(),
            source,
        };
        let broken = |error: russh::Error| {
            unreachable(ConnectionError::Broken(Cause::Said(error.to_string())))
        };
        let stalled = |_| {
            unreachable(ConnectionError::Stalled {
                host: ssh.host.clone(),
                after: limits.stall,
            })
        };
        let untrusted = |source| Error::HostKey {
            remote: remote(),
            source,
        };
        let file = config.auth.known_hosts.as_deref();
        let known = KnownHosts::read(file, &ssh.host, ssh.port).map_err(untrusted)?;
        let stream = dial(&ssh.host, ssh.port, limits)
            .await
            .map_err(unreachable)?;
        let refused = Arc::new(Mutex::new(None));
        let settings = Arc::new(settings(&known.kinds()));
        let host_keys = HostKeys {
            known,
            refused: Arc::clone(&refused),
        };
        let connecting = client::connect_stream(settings, stream, host_keys);
        let connected = timeout(limits.stall, connecting).await.map_err(stalled)?;
        let mut handle = connected.map_err(|error| {
            let refused = refused
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            refused.map_or_else(|| broken(error), untrusted)
        })?;

        let denied = |hint: &str| Error::Denied {
            remote: remote(),
            hint: hint.to_owned(),
        };
        let Some(key) = key else {
            return Err(denied(
                "there is no private key; give one that may read the repository",
            ));
        };
        let accepted = timeout(limits.stall, login(&mut handle, &ssh.user, &key));
        match accepted.await.map_err(stalled)? {
            Ok(AuthResult::Success) => {}
            Ok(AuthResult::Failure { .. }) => {
                return Err(denied(
                    "it does not accept the private key; add the public key to those that may read the repository",
                ));
            }
            Err(LoginError::Key(error)) => {
                return Err(denied(&format!(
                    "the private key can't be used (keys with a passphrase are not supported): {error}"
                )));
            }
            Err(LoginError::Session(error)) => return Err(broken(error)),
        }
        let starting = timeout(limits.stall, start(&handle, &ssh.path));
        match starting.await.map_err(stalled)?.map_err(broken)? {
            Some(channel) => Ok(Self { channel, handle }),
            None => Err(denied("it does not let this user run git-upload-pack")),
        }
    }
}

/// Returns the settings of a client that asks for a host key of these types first, as OpenSSH does.
fn settings(kinds: &[&str]) -> client::Config {
    let mut preferred = Preferred::DEFAULT;
    let is_known = |algorithm: &Algorithm| match algorithm {
        Algorithm::Rsa { .. } => kinds.contains(&"ssh-rsa"),
        other => kinds.contains(&other.as_str()),
    };
    let keys = preferred.key.to_mut();
    keys.sort_by_key(|algorithm| !is_known(algorithm));
    client::Config {
        window_size: WINDOW,
        preferred,
        nodelay: true,
        ..client::Config::default()
    }
}

/// The reason why a login failed before the server accepted or refused the key.
#[derive(Debug, thiserror::Error)]
enum LoginError {
    /// The file holds no key that can be used.
    #[error("the private key can't be used")]
    Key(#[from] keys::Error),
    /// The session broke.
    #[error("the session broke")]
    Session(#[from] russh::Error),
}

/// Logs in with a private key.
async fn login(
    handle: &mut Handle<HostKeys>,
    user: &str,
    key: &Path,
) -> Result<AuthResult, LoginError> {
    let key = load_secret_key(key, None)?;
    let hash = match key.algorithm().is_rsa() {
        true => handle.best_supported_rsa_hash().await?.flatten(),
        false => None,
    };
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    Ok(handle.authenticate_publickey(user, key).await?)
}

/// Starts `git-upload-pack`. Returns `None` if the server refuses it.
async fn start(
    handle: &Handle<HostKeys>,
    path: &str,
) -> Result<Option<Channel<Msg>>, russh::Error> {
    let mut channel = handle.channel_open_session().await?;
    // The server passes the command to a shell, so the path must be quoted.
    let path = path.replace('\'', r"'\''");
    channel
        .exec(true, format!("git-upload-pack '{path}'"))
        .await?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(Some(channel)),
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            _ => return Ok(None),
        }
    }
}

/// Accepts a host's key only if a known_hosts file has it.
pub(super) struct HostKeys {
    known: KnownHosts,
    /// The reason why the key was refused, or `None` if it was not refused.
    refused: Arc<Mutex<Option<HostKeyError>>>,
}

impl client::Handler for HostKeys {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        // The client does not ask for a certificate. If it gets one, the key is empty and the check fails.
        let key = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.to_bytes().unwrap_or_default(),
            PublicKeyOrCertificate::Certificate(_) => Vec::new(),
        };
        let checked = self.known.check(&key);
        let accepted = checked.is_ok();
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = checked.err();
        Ok(accepted)
    }
}
