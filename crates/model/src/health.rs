//! The words for how well an object is, which are Argo CD's.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How well an object is, from the best to the worst.
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
    /// It does what it should.
    #[default]
    Healthy,
    /// Somebody stopped it on purpose.
    Suspended,
    /// It is on its way.
    Progressing,
    /// It should exist and doesn't.
    Missing,
    /// It failed, or can't get on by itself.
    Degraded,
    /// It can't be told.
    Unknown,
}

impl Health {
    /// The word.
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
