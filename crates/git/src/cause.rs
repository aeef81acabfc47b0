//! The underlying errors from a remote or from the Git library.

/// The error that the remote, or the library that talked to it, reported.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// An error of libgit2, shown without the class and code that git2 adds.
    #[error("{}", .0.message().trim())]
    Git(git2::Error),
    /// Any other error, as text.
    #[error("{0}")]
    Said(String),
}

impl From<git2::Error> for Cause {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}
