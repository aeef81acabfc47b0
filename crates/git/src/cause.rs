//! What a remote, or the library that spoke with it, reported.

/// What the other side, or the library that spoke with it, said.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// libgit2; without the class and code that git2 adds.
    #[error("{}", .0.message().trim())]
    Git(git2::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Said(String),
}

impl From<git2::Error> for Cause {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}
