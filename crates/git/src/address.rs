//! The address of a repository. It is checked once, when it is parsed, and shown without secrets.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// The address of a repository. Its text form never contains a login or token.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl(Place);

/// The supported kinds of repository addresses.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory on this machine.
    Local(PathBuf),
    /// HTTP, with TLS except on this machine.
    Http {
        /// The URL without user and password.
        url: Url,
        /// The login from the URL.
        login: Option<Login>,
    },
    /// An SSH address.
    Ssh(Ssh),
}

/// User and password of an HTTP URL. It has no `Debug`, so that it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Option<String>,
}

/// An SSH address.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Ssh {
    pub(crate) user: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The path as it is sent to the server: absolute, or relative to the user's home directory.
    pub(crate) path: String,
}

/// The reason why a text is not a valid repository address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The text is empty.
    #[error("the repository's address is empty; give a path or a URL")]
    Empty,
    /// The address uses HTTP without TLS to another machine.
    #[error(
        "http:// to {host} would send the token and the fleet's state unencrypted; use https:// \
         (http:// is accepted for this machine only)"
    )]
    Plain {
        /// The host.
        host: String,
    },
    /// The URL's scheme is not supported.
    #[error("{scheme}:// is not supported; use https://, ssh://, file:// or a path")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// The `file://` URL names another machine or has no absolute path.
    #[error("a file URL needs an absolute path of this machine, as in file:///srv/fleet.git")]
    File,
    /// The address has no host.
    #[error("the address has no host")]
    NoHost,
    /// The address has no path to a repository.
    #[error("the address has no path to a repository")]
    NoPath,
    /// The SSH address contains a password.
    #[error("a password in an ssh address is not supported; remove it and use a private key")]
    SshPassword,
    /// The text is not a valid URL.
    #[error("the address is not a valid URL")]
    Malformed(#[source] url::ParseError),
    /// The path is relative and the working directory can't be determined.
    #[error("{path:?} is not an absolute path, and the working directory can't be determined")]
    Relative {
        /// The path.
        path: PathBuf,
    },
}

impl RemoteUrl {
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }

    /// Returns the port of a network address, or 0 for a directory.
    pub(crate) fn port(&self) -> u16 {
        match &self.0 {
            Place::Local(_) => 0,
            Place::Http { url, .. } => url.port_or_known_default().unwrap_or(0),
            Place::Ssh(ssh) => ssh.port,
        }
    }

    /// Returns the directory, if the repository is a directory on this machine.
    #[must_use]
    pub fn local_path(&self) -> Option<&Path> {
        match &self.0 {
            Place::Local(path) => Some(path),
            Place::Http { .. } | Place::Ssh(_) => None,
        }
    }
}

impl FromStr for RemoteUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        let place = if text.contains("://") {
            let url = Url::parse(text).map_err(UrlError::Malformed)?;
            match url.scheme() {
                "file" => Place::Local(url.to_file_path().map_err(|()| UrlError::File)?),
                "http" | "https" => http(url)?,
                "ssh" | "git+ssh" | "ssh+git" => Place::Ssh(ssh(&url)?),
                other => {
                    return Err(UrlError::Scheme {
                        scheme: other.to_owned(),
                    });
                }
            }
        } else if let Some(ssh) = scp_like(text)? {
            Place::Ssh(ssh)
        } else {
            let path = std::path::absolute(text);
            Place::Local(path.map_err(|_| UrlError::Relative { path: text.into() })?)
        };
        Ok(Self(place))
    }
}

fn http(mut url: Url) -> Result<Place, UrlError> {
    let host = url.host().ok_or(UrlError::NoHost)?;
    let here = match &host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    };
    if url.scheme() == "http" && !here {
        return Err(UrlError::Plain {
            host: host.to_string(),
        });
    }
    if url.path().trim_matches('/').is_empty() {
        return Err(UrlError::NoPath);
    }
    let login = (!url.username().is_empty() || url.password().is_some()).then(|| Login {
        user: decoded(url.username()),
        password: url.password().map(decoded),
    });
    // Neither call can fail for a URL that has a host.
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    cleared.map_err(|()| UrlError::NoHost)?;
    url.set_query(None);
    url.set_fragment(None);
    Ok(Place::Http { url, login })
}

fn ssh(url: &Url) -> Result<Ssh, UrlError> {
    if url.password().is_some() {
        return Err(UrlError::SshPassword);
    }
    let host = match url.host().ok_or(UrlError::NoHost)? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    };
    let path = decoded(url.path());
    // `ssh://host/~user/repo` is relative to that user's home.
    let path = path
        .strip_prefix('/')
        .filter(|rest| rest.starts_with('~'))
        .unwrap_or(&path);
    if path.trim_matches('/').is_empty() {
        return Err(UrlError::NoPath);
    }
    Ok(Ssh {
        user: ssh_user(&decoded(url.username())),
        host,
        port: url.port().unwrap_or(22),
        path: path.to_owned(),
    })
}

/// Parses `[user@]host:path`. As in `git`, a text with a `/` before the colon is not such an address.
fn scp_like(text: &str) -> Result<Option<Ssh>, UrlError> {
    let (login, rest) = match text.split_once('@') {
        Some((user, rest)) if !user.contains(['/', ':']) => (user, rest),
        _ => ("", text),
    };
    let split = match rest
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"))
    {
        Some(split) => split,
        None => match rest.split_once(':') {
            Some(split) if !split.0.contains('/') => split,
            _ => return Ok(None),
        },
    };
    let (host, path) = split;
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    if path.trim_matches('/').is_empty() {
        return Err(UrlError::NoPath);
    }
    Ok(Some(Ssh {
        user: ssh_user(login),
        host: host.into(),
        port: 22,
        path: path.into(),
    }))
}

/// Returns the SSH user, which is `git` by default. Git hosts use that name, and the local user's name is never
/// right for a hub.
fn ssh_user(user: &str) -> String {
    if user.is_empty() { "git" } else { user }.to_owned()
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Local(path) => path.display().fmt(f),
            Place::Http { url, .. } => url.fmt(f),
            Place::Ssh(Ssh {
                user,
                host,
                port,
                path,
            }) => {
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.clone()
                };
                match (*port, path.starts_with('/')) {
                    (22, _) => write!(f, "{user}@{host}:{path}"),
                    (port, true) => write!(f, "ssh://{user}@{host}:{port}{path}"),
                    (port, false) => write!(f, "ssh://{user}@{host}:{port}/{path}"),
                }
            }
        }
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteUrl({self})")
    }
}

#[cfg(test)]
mod tests;
