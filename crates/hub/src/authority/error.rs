//! Why the authority refuses a caller, or fails.

use std::path::PathBuf;

use muster_model::ids::ClusterName;
use muster_pki::PkiError;
use muster_store::CommitError;

use crate::store_schema::RecordError;

/// Why somebody is turned away, or can't be served.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The token was never made here, or its record is gone.
    #[error("this join token is not known here; make one with `muster cluster join-token`")]
    UnknownToken,
    /// The token is too old.
    #[error("this join token has expired; make one with `muster cluster join-token`")]
    ExpiredToken,
    /// The token was used by another key.
    #[error("this join token was used already; make one with `muster cluster join-token`")]
    UsedToken,
    /// The instance was removed.
    #[error(
        "this instance of cluster {0} was removed or is not known here; it needs a new join token"
    )]
    Revoked(ClusterName),
    /// The login was taken back, or its record is gone.
    #[error(
        "this login was removed or is not known here; get one with `muster hub admin NAME` on the hub's machine"
    )]
    UnknownLogin,
    /// The instance's key is in two places.
    #[error("{0}")]
    Held(String),
    /// Another hub leads.
    #[error("this hub has stepped down; another hub leads")]
    NotLeading,
    /// A CA that is made now would end before the one that there is.
    #[error(
        "the clock of the hub's machine is wrong: a CA that is made now would end before the old one"
    )]
    Clock,
    /// What was removed can't be written down.
    #[error("what was removed can't be kept in {path}", path = .0.display())]
    Removals(PathBuf, #[source] std::io::Error),
    /// A request or certificate is not what it should be.
    #[error("the certificate request can't be granted")]
    Pki(#[from] PkiError),
    /// The records fail.
    #[error("the hub's records fail")]
    Record(#[from] RecordError),
    /// A write fails.
    #[error("the hub's store refuses the write")]
    Commit(#[from] CommitError),
}

impl AuthorityError {
    /// Whether the caller is at fault, and a word for the metrics.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::UnknownToken => Some("unknown_token"),
            Self::ExpiredToken => Some("expired_token"),
            Self::UsedToken => Some("used_token"),
            Self::Revoked(_) => Some("revoked"),
            Self::UnknownLogin => Some("unknown_login"),
            Self::Held(_) => Some("copied_key"),
            Self::Pki(_) => Some("bad_request"),
            Self::NotLeading => Some("not_leading"),
            Self::Clock => Some("wrong_clock"),
            Self::Record(_) | Self::Commit(_) | Self::Removals(..) => None,
        }
    }
}
