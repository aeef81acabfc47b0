//! Join tokens. One text contains everything that a new agent needs to reach its hub and to enrol once.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use muster_model::ids::ClusterName;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use crate::{PkiError, TrustBundle};

const FAMILY: &str = "muster-join.";
const VERSION: &str = "v1.";

/// The content of a join token, as `muster cluster join-token` creates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The address of the hub, as `HOST:PORT`.
    pub hub: String,
    /// The certificate authorities that the agent trusts from the first connection on.
    pub trust: TrustBundle,
    /// The only cluster that can join with the token.
    pub cluster: ClusterName,
    /// The secret that proves that the hub issued the token.
    pub secret: JoinSecret,
    /// The time when the token expires, in whole seconds.
    pub expires: SystemTime,
}

/// The secret of a join token. The hub stores only its [`hash`](Self::hash).
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; 32]);

impl JoinSecret {
    /// Returns a new random secret.
    #[must_use]
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Returns the hash that the hub stores and compares: BLAKE3 in hexadecimal digits. A secret of 256
    /// random bits can't be guessed from it.
    #[must_use]
    pub fn hash(&self) -> String {
        blake3::hash(&self.0).to_hex().to_string()
    }

    /// Returns the secret itself, as the agent sends it.
    #[must_use]
    pub fn expose(&self) -> String {
        BASE64.encode(self.0)
    }
}

impl FromStr for JoinSecret {
    type Err = JoinTokenError;
    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let bytes = BASE64.decode(text).map_err(|_| JoinTokenError::Damaged)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| JoinTokenError::Damaged)
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

/// The reason why a text is not a usable join token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// The text is not a join token.
    #[error("this is not a join token: a join token starts with muster-join.v1.")]
    NotAToken,
    /// A newer hub created the token.
    #[error("this join token was made by a newer muster: run an agent of the hub's version")]
    Newer,
    /// Part of the token is missing or was changed.
    #[error(
        "the join token is cut short or changed: copy it whole, from muster-join. to its last letter"
    )]
    Damaged,
    /// The certificate authority in the token can't be used.
    #[error("the join token's certificate authority can't be used: make a new token")]
    Trust {
        /// The problem with the authority.
        source: PkiError,
    },
}

#[derive(Deserialize)]
struct Content {
    hub: String,
    ca: Vec<String>,
    cluster: ClusterName,
    secret: String,
    /// Unix time in seconds.
    expires: u64,
}

impl JoinToken {
    /// Returns the token as one word to copy. It contains a secret: treat it as one.
    #[must_use]
    pub fn expose(&self) -> String {
        let expires = self.expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ca: Vec<_> = self
            .trust
            .authorities()
            .iter()
            .map(|ca| BASE64.encode(ca))
            .collect();
        let content = serde_json::json!({
            "hub": self.hub,
            "ca": ca,
            "cluster": self.cluster.as_str(),
            "secret": self.secret.expose(),
            "expires": expires.as_secs(),
        });
        format!("{FAMILY}{VERSION}{}", BASE64.encode(content.to_string()))
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    /// Parses a token. It ignores line breaks and spaces, which terminals and mail programs insert into long
    /// words.
    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let versioned = text.strip_prefix(FAMILY).ok_or(JoinTokenError::NotAToken)?;
        let Some(content) = versioned.strip_prefix(VERSION) else {
            let cut = VERSION.starts_with(versioned);
            return Err(if cut {
                JoinTokenError::Damaged
            } else {
                JoinTokenError::Newer
            });
        };
        let json = BASE64
            .decode(content)
            .map_err(|_| JoinTokenError::Damaged)?;
        let content: Content =
            serde_json::from_slice(&json).map_err(|_| JoinTokenError::Damaged)?;
        let ca: Result<Vec<_>, _> = content
            .ca
            .iter()
            .map(|ca| BASE64.decode(ca).map(CertificateDer::from))
            .collect();
        Ok(Self {
            hub: content.hub,
            trust: TrustBundle::new(ca.map_err(|_| JoinTokenError::Damaged)?)
                .map_err(|source| JoinTokenError::Trust { source })?,
            cluster: content.cluster,
            secret: content.secret.parse()?,
            expires: UNIX_EPOCH
                .checked_add(Duration::from_secs(content.expires))
                .ok_or(JoinTokenError::Damaged)?,
        })
    }
}

#[cfg(test)]
mod tests;
