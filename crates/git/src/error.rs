//! What can go wrong with a repository, in words that tell a person what to do.

use std::{io, path::PathBuf};

use crate::{
    cause::Cause, connection::ConnectionError, known_hosts::HostKeyError, snapshot::TooBig,
};

/// Why a mirror could not be opened or refreshed. No message has a secret in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or one that broke or stalled.
    #[error("{remote} can't be reached")]
    Unreachable {
        /// The remote, as shown to people.
        remote: String,
        /// What happened to the connection.
        #[source]
        source: ConnectionError,
    },
    /// The remote refused to let us in.
    #[error("{remote} refused the login: {hint}")]
    Denied {
        /// The remote.
        remote: String,
        /// What to do.
        hint: String,
    },
    /// An SSH host whose key is not the known one.
    #[error("the SSH host of {remote} can't be trusted")]
    HostKey {
        /// The remote.
        remote: String,
        /// What is wrong with its key.
        #[source]
        source: HostKeyError,
    },
    /// A TLS certificate that can't be trusted.
    #[error(
        "the TLS certificate of {remote} can't be trusted: it is not for this host, has expired, or \
         its CA is unknown; where it is a CA of yours, give its certificate as the extra CA file"
    )]
    Certificate {
        /// The remote.
        remote: String,
        /// What the verification said.
        #[source]
        source: Cause,
    },
    /// No repository there.
    #[error(
        "there is no Git repository at {remote}, or it is hidden from this login; check the address \
         and the permissions"
    )]
    NotFound {
        /// The remote.
        remote: String,
        /// What the remote said.
        #[source]
        source: Cause,
    },
    /// A repository without a commit.
    #[error("{remote} has no commit yet; push one")]
    Empty {
        /// The remote.
        remote: String,
    },
    /// The followed reference is not there.
    #[error("{remote} lacks {reference}; {there}")]
    NoReference {
        /// The remote.
        remote: String,
        /// What is followed.
        reference: String,
        /// What is there instead.
        there: String,
    },
    /// The followed reference leads to something else than a commit.
    #[error("{reference} of {remote} is not a commit; point it at one")]
    NotACommit {
        /// The remote.
        remote: String,
        /// What is followed.
        reference: String,
    },
    /// A local repository of another user, which Git does not trust.
    #[error(
        "{path} belongs to another user; run as that user, or trust it with: \
         git config --global --add safe.directory {path}"
    )]
    Owner {
        /// The directory.
        path: String,
    },
    /// The remote's objects can't be read, or don't arrive whole.
    #[error(
        "{remote} is damaged: the commit's files can't be read; run `git fsck` there and restore it"
    )]
    Corrupt {
        /// The remote.
        remote: String,
        /// What can't be read.
        #[source]
        source: Cause,
    },
    /// The commit's tree is over what is read.
    #[error("commit {commit} of {remote} is too big for a fleet repository")]
    TooBig {
        /// The remote.
        remote: String,
        /// The commit.
        commit: String,
        /// The limit.
        #[source]
        source: TooBig,
    },
    /// A file with a token, key or certificate can't be used.
    #[error("{what} {path} can't be used")]
    Secret {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the mirror.
    #[error("{dir} is in use by another process; a state directory belongs to one hub")]
    Locked {
        /// The mirror's directory.
        dir: PathBuf,
    },
    /// The mirror's own directory can't be read or written.
    #[error("{path} can't be used; check its permissions and the free space of its disk")]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else that the remote or the transport said.
    #[error("{remote} could not be fetched")]
    Protocol {
        /// The remote.
        remote: String,
        /// What was said.
        #[source]
        source: Cause,
    },
    /// The watcher is stopping.
    #[error("the refresh was stopped")]
    Stopped,
}

impl Error {
    /// The whole chain in one line, for people.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
