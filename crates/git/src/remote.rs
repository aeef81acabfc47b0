//! The operator's configuration: which reference to follow, and how to log in.

use std::{fmt, path::PathBuf};

use git2::Oid;

use crate::{address::RemoteUrl, error::Error};

/// The maximum number of existing references that an error lists.
const NAMED: usize = 5;

/// The reference of the repository that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reference {
    /// The remote's `HEAD`: its default branch.
    #[default]
    Default,
    /// A branch, by its name without `refs/heads/`.
    Branch(String),
    /// A tag, by its name without `refs/tags/`. Annotated tags are peeled.
    Tag(String),
}

impl Reference {
    /// Returns the full name of the reference.
    pub(crate) fn full_name(&self) -> String {
        match self {
            Self::Default => "HEAD".to_owned(),
            Self::Branch(name) => format!("refs/heads/{name}"),
            Self::Tag(name) => format!("refs/tags/{name}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default branch"),
            Self::Branch(name) => write!(f, "branch {name}"),
            Self::Tag(name) => write!(f, "tag {name}"),
        }
    }
}

/// The files for logging in and for authenticating the remote. They are read again at every attempt, so that
/// a rotated secret takes effect immediately.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// The file with the token for `https://`, which is sent as the password.
    pub token_file: Option<PathBuf>,
    /// The user name that is sent with the token. Most Git hosts accept any name.
    pub username: Option<String>,
    /// The private key for SSH, without a passphrase. By default, the usual keys in `~/.ssh`.
    pub ssh_key: Option<PathBuf>,
    /// The file with the keys of known SSH hosts. By default, `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// The file with PEM certificates of CAs that are trusted for `https://` in addition to the system's. If an
    /// intermediate CA issued the server's certificate and the server does not send that CA's certificate, this file
    /// needs it.
    pub ca_file: Option<PathBuf>,
}

/// The configuration of a followed repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// The repository's address.
    pub url: RemoteUrl,
    /// The followed reference.
    pub reference: Reference,
    /// The files for logging in.
    pub auth: Auth,
}

impl RemoteConfig {
    /// Returns a configuration for the default branch at this address, with the default [`Auth`]: no token file,
    /// and the current user's SSH keys.
    #[must_use]
    pub fn new(url: RemoteUrl) -> Self {
        Self {
            url,
            reference: Reference::default(),
            auth: Auth::default(),
        }
    }
}

/// The result of a fetch over a network.
pub(crate) struct Wanted {
    /// The object that the reference points to. It may be an annotated tag.
    pub(crate) id: Oid,
    /// True if objects were fetched. False if the mirror already has the commit.
    pub(crate) fetched: bool,
}

/// The failure of a fetch over a network.
#[derive(Debug)]
pub(crate) struct FetchError {
    /// The commit whose objects were being fetched. `None` if the failure came earlier, when the mirror's objects
    /// had not been used yet.
    pub(crate) commit: Option<Oid>,
    pub(crate) error: Error,
}

impl From<Error> for FetchError {
    fn from(error: Error) -> Self {
        Self {
            commit: None,
            error,
        }
    }
}

/// The followed reference as a remote lists it.
#[derive(Debug)]
pub(crate) struct Found {
    /// The object that the reference points to.
    pub(crate) id: Oid,
    /// The object behind all tags. It may be something other than a commit.
    pub(crate) commit: Oid,
}

/// Finds the followed reference in the remote's list. The list also has an entry `NAME^{}` for each annotated
/// tag, with the object that the tag leads to.
pub(crate) fn choose(config: &RemoteConfig, heads: &[(&str, Oid)]) -> Result<Found, Error> {
    if heads.is_empty() {
        return Err(Error::Empty {
            remote: config.url.to_string(),
        });
    }
    let name = config.reference.full_name();
    let of = |name: &str| heads.iter().find(|head| head.0 == name).map(|head| head.1);
    let id = of(&name).ok_or_else(|| no_reference(config, heads.iter().map(|head| head.0)))?;
    Ok(Found {
        id,
        commit: of(&format!("{name}^{{}}")).unwrap_or(id),
    })
}

/// Returns the error for a missing reference. It names a few references that exist.
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

#[cfg(test)]
mod tests;
