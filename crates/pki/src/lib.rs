//! The public key infrastructure of a fleet: authentication between a hub, its agents and its people.
//!
//! The hub owns a certificate authority ([`Ca`]). Agents and people generate their own keys ([`Key`])
//! and get short-lived certificates for them. The hub decides what a certificate says and takes only the
//! public key from a request. Connections use mutual TLS 1.3 ([`ServerTls`], [`client_config`]). A
//! client's certificate names an [`Identity`].
//!
//! Keys are ECDSA P-256. The types for names of clusters and instances come from `muster-model`. Callers
//! pass the current time, which they read from [`clock`].

mod ca;
pub mod clock;
mod error;
mod identity;
mod join;
mod key;
mod login;
mod renewable;
mod terms;
mod tls;
mod trust;

pub use ca::Ca;
pub use clock::SKEW;
pub use error::PkiError;
pub use identity::{AdminName, Certified, Identity, InvalidAdminName, is_due, rotate_at};
pub use join::{JoinSecret, JoinToken, JoinTokenError};
pub use key::{Credentials, Key};
pub use login::{Login, LoginError};
pub use renewable::RENEWAL_GRACE;
pub use terms::TermKey;
pub use tls::{HUB_SERVER_NAME, ServerTls, client_config};
pub use trust::TrustBundle;
