//! The errors of a repository. Their messages say what to do.

use std::{io, path::PathBuf};

use crate::{
    cause::Cause, connection::ConnectionError, known_hosts::HostKeyError, snapshot::TooBig,
};

/// The reason why a mirror could not be opened or refreshed. No message contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed, broke or stalled.
    #[error("{remote} can't be reached")]
    Unreachable {
        /// The remote, as shown to people.
        remote: String,
        /// The error of the connection.
        #[source]
        source: ConnectionError,
    },
    /// The remote refused the login.
    #[error("{remote} refused the login: {hint}")]
    Denied {
        /// The remote.
        remote: String,
        /// What is wrong with the login, and what to do about it.
        hint: String,
    },
    /// The key of the SSH host is not a known one.
    #[error("the SSH host of {remote} can't be trusted")]
    HostKey {
        /// The remote.
        remote: String,
        /// The problem with the host's key.
        #[source]
        source: HostKeyError,
    },
    /// The server's TLS certificate can't be trusted.
    #[error(
        "the TLS certificate of {remote} can't be trusted: it is not for this host, has expired, or \
         its CA is unknown; if the CA is your own, give its certificate as the extra CA file"
    )]
    Certificate {
        /// The remote.
        remote: String,
        /// The verification error.
        #[source]
        source: Cause,
    },
    /// There is no repository at the address, or the login may not see it.
    #[error(
        "there is no Git repository at {remote}, or it is hidden from this login; check the address \
         and the permissions"
    )]
    NotFound {
        /// The remote.
        remote: String,
        /// The remote's answer.
        #[source]
        source: Cause,
    },
    /// The repository has no commit.
    #[error("{remote} has no commit yet; push one")]
    Empty {
        /// The remote.
        remote: String,
    },
    /// The followed reference does not exist.
    #[error("{remote} lacks {reference}; {there}")]
    NoReference {
        /// The remote.
        remote: String,
        /// The followed reference, in words.
        reference: String,
        /// A clause that names references that exist, or the one that is followed.
        there: String,
    },
    /// The followed reference points to something other than a commit.
    #[error("{reference} of {remote} is not a commit; point it at one")]
    NotACommit {
        /// The remote.
        remote: String,
        /// The followed reference, in words.
        reference: String,
    },
    /// The local repository belongs to another user, so Git does not trust it.
    #[error(
        "{path} belongs to another user; run as that user, or trust it with: \
         git config --global --add safe.directory {path}"
    )]
    Owner {
        /// The directory.
        path: String,
    },
    /// The remote's objects can't be read or arrive incomplete.
    #[error(
        "{remote} is damaged: the commit's files can't be read; run `git fsck` there and restore it"
    )]
    Corrupt {
        /// The remote.
        remote: String,
        /// The error from reading the objects.
        #[source]
        source: Cause,
    },
    /// The mirror's objects can't be read, although they could be read when they were fetched.
    #[error(
        "the mirror of {remote} in {path} is damaged; to fetch it again, stop the hub and remove that directory"
    )]
    MirrorDamaged {
        /// The remote.
        remote: String,
        /// The mirror's repository.
        path: PathBuf,
        /// The error from reading the objects.
        #[source]
        source: Cause,
    },
    /// A file of a local repository can't be opened, for example because of its permissions.
    #[error("{path} can't be read; check that this user may read every file of the repository")]
    Unreadable {
        /// The file, or the repository if the file is not known.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The commit's tree exceeds a limit.
    #[error("commit {commit} of {remote} is too big for a fleet repository")]
    TooBig {
        /// The remote.
        remote: String,
        /// The commit.
        commit: String,
        /// The limit that it exceeds.
        #[source]
        source: TooBig,
    },
    /// A file with a token, key or certificate can't be used.
    #[error("{what} {path} can't be used")]
    Secret {
        /// The purpose of the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Another process uses the mirror.
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
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Any other error of the remote or the transport.
    #[error("{remote} could not be fetched")]
    Protocol {
        /// The remote.
        remote: String,
        /// The error that was reported.
        #[source]
        source: Cause,
    },
    /// The watcher is stopping.
    #[error("the refresh was stopped")]
    Stopped,
}

impl Error {
    /// Returns the message with those of all its sources, in one line.
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
