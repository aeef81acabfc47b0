//! What to follow and how to log in, as an operator gives it.

use std::{fmt, path::PathBuf};

use crate::address::RemoteUrl;

/// Which of the repository's references is followed.
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
    /// The full name within a repository.
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

/// The files with which to log in and to know the other side. Each is read again at every attempt,
/// so that a rotated secret is used at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// Holds the token for `https://`, sent as the password.
    pub token_file: Option<PathBuf>,
    /// The user beside the token; most Git hosts accept any.
    pub username: Option<String>,
    /// Private key for SSH, without a passphrase. By default the usual ones of the user's `~/.ssh`.
    pub ssh_key: Option<PathBuf>,
    /// Keys of SSH hosts. By default `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// PEM certificates that are trusted for `https://` besides those of the system. Where the
    /// server's certificate comes from an intermediate CA, that CA's certificate is needed here.
    pub ca_file: Option<PathBuf>,
}

/// A repository to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Where it is.
    pub url: RemoteUrl,
    /// What of it is followed.
    pub reference: Reference,
    /// How to log in.
    pub auth: Auth,
}

impl RemoteConfig {
    /// The default branch at this address, with what this user's account offers to log in.
    #[must_use]
    pub fn new(url: RemoteUrl) -> Self {
        Self {
            url,
            reference: Reference::default(),
            auth: Auth::default(),
        }
    }
}
