//! The errors of the authority.

use std::path::PathBuf;

use muster_model::ids::ClusterName;
use muster_pki::PkiError;
use muster_store::CommitError;

use crate::store_schema::RecordError;

/// The reason why the authority refuses a caller, or fails.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The token was not created by this hub, or its record is gone.
    #[error("this join token is not known here; make one with `muster cluster join-token`")]
    UnknownToken,
    /// The token has expired.
    #[error("this join token has expired; make one with `muster cluster join-token`")]
    ExpiredToken,
    /// The token was already used, by another key.
    #[error("this join token was used already; make one with `muster cluster join-token`")]
    UsedToken,
    /// The instance was removed.
    #[error(
        "this instance of cluster {0} was removed or is not known here; it needs a new join token"
    )]
    Revoked(ClusterName),
    /// The login was removed, or its record is gone.
    #[error(
        "this login was removed or is not known here; get one with `muster hub admin NAME` on the hub's machine"
    )]
    UnknownLogin,
    /// The instance is suspended, because its key is in two places. The text is the full message.
    #[error("{0}")]
    Suspended(String),
    /// Another hub leads.
    #[error("this hub has stepped down; another hub leads")]
    NotLeading,
    /// A CA created now would expire before the current one.
    #[error(
        "the clock of the hub's machine is wrong: a CA created now would expire before the current one"
    )]
    Clock,
    /// The file of removals can't be read or written.
    #[error("the list of removed clusters and logins in {path} can't be read or written", path = .0.display())]
    Removals(PathBuf, #[source] std::io::Error),
    /// The certificate request or a certificate is invalid.
    #[error("the certificate request can't be granted")]
    Pki(#[from] PkiError),
    /// A record of the store can't be read.
    #[error("the hub's records can't be read")]
    Record(#[from] RecordError),
    /// A write to the store failed.
    #[error("the hub's store refused the write")]
    Commit(#[from] CommitError),
}

impl AuthorityError {
    /// Returns the reason label for the metrics if the caller is refused, and `None` if the hub itself failed.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::UnknownToken => Some("unknown_token"),
            Self::ExpiredToken => Some("expired_token"),
            Self::UsedToken => Some("used_token"),
            Self::Revoked(_) => Some("revoked"),
            Self::UnknownLogin => Some("unknown_login"),
            Self::Suspended(_) => Some("copied_key"),
            Self::Pki(_) => Some("bad_request"),
            Self::NotLeading => Some("not_leading"),
            Self::Clock => Some("wrong_clock"),
            Self::Record(_) | Self::Commit(_) | Self::Removals(..) => None,
        }
    }
}
