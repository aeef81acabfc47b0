//! Health states of objects, under the same names as in Argo CD.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The health of an object. The variants are ordered from best to worst.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum Health {
    /// The object works as it should.
    #[default]
    Healthy,
    /// The object was paused on purpose.
    Suspended,
    /// The object is not healthy yet, but is making progress.
    Progressing,
    /// The object should exist but does not.
    Missing,
    /// The object has failed, or can't recover by itself.
    Degraded,
    /// The health of the object can't be determined.
    Unknown,
}

impl Health {
    /// Returns the name of the state.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Suspended => "Suspended",
            Self::Progressing => "Progressing",
            Self::Missing => "Missing",
            Self::Degraded => "Degraded",
            Self::Unknown => "Unknown",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
