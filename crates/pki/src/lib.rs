//! Who is who between a hub, its agents and its people.
//!
//! The hub owns a certificate authority ([`Ca`]). Agents and people make their keys themselves
//! ([`Key`]) and get short-lived certificates over them; the hub decides what a certificate says and
//! takes nothing but the public key from a request. A connection is TLS 1.3 in both directions
//! ([`ServerTls`], [`client_config`]), and whom a certificate names is an [`Identity`].
//!
//! Keys are ECDSA P-256. The names of clusters and instances are `muster-model`'s, which has no
//! effects. The time is passed by callers; [`clock`] is where they have it from.

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
