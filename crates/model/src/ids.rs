//! Names and numbers of a fleet. Each has its own type, so that a cluster can't be passed where a region
//! is expected, and a generation can't be compared with an epoch.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The error for a text that is not a valid name or number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {rule}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidId {
    pub(crate) fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            rule,
        }
    }
}

/// The pattern of an RFC 1123 label, which Kubernetes uses for most names.
pub(crate) const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$";
const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and '-', starting and ending with a letter or digit";

fn is_label(value: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = value.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| inner(b) || *b == b'-')
        && bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                if is_label(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(InvalidId::new($what, value, LABEL_RULE))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": LABEL_PATTERN,
                    "patternErrorMessage": LABEL_RULE,
                })
            }
        }
    };
}

label!(
    /// The name of a region, a group of clusters that fail together.
    RegionName,
    "region name"
);
label!(
    /// The name of a Kubernetes cluster, unique in the whole fleet.
    ClusterName,
    "cluster name"
);
label!(
    /// The name of an app, as in the folder `apps/NAME`.
    AppName,
    "app name"
);
label!(
    /// The name of a tier, which sets the RPO and RTO of apps.
    TierName,
    "tier name"
);
label!(
    /// The name of a health rule.
    RuleName,
    "name of a rule"
);
label!(
    /// The name of the fleet.
    FleetName,
    "fleet name"
);
label!(
    /// The id of one enrolment of an agent. A new enrolment under the same cluster name gets a new id.
    InstanceId,
    "instance id"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the next number.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The number of one version of a cluster's desired state. It only increases.
    Generation
);
number!(
    /// The fleet's counter of role and traffic changes. It only increases.
    Epoch
);

macro_rules! hash {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Returns the first eight hexadecimal digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId::new($what, value, $rule);
                let mut bytes = [0; $len];
                // `from_str_radix` would also accept a sign, as in `+a`.
                let digits = value.bytes().all(|digit| digit.is_ascii_hexdigit());
                if value.len() != 2 * $len || !digits {
                    return Err(invalid());
                }
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&value[2 * i..2 * i + 2], 16).map_err(|_| invalid())?;
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> String {
                hash.to_string()
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;
            fn try_from(value: &[u8]) -> Result<Self, InvalidId> {
                value.try_into().map(Self).map_err(|_| InvalidId::new($what, "", $rule))
            }
        }
    };
}

hash!(
    /// The id of a Git commit or blob (SHA-1).
    ObjectId,
    20,
    "Git object id",
    "use 40 hexadecimal digits"
);
hash!(
    /// A BLAKE3 hash, such as that of a bundle's content or of a generation's list of bundles.
    ContentHash,
    32,
    "content hash",
    "use 64 hexadecimal digits"
);

impl ContentHash {
    /// Returns the hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// The role of an app in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The app serves in this region, as in every other region where it is placed.
    Active,
    /// The app is the only writer.
    Primary,
    /// The app follows the primary and is ready to take over.
    Standby,
    /// The app must not write.
    Fenced,
}

impl Role {
    /// Every role, in the order in which roles are shown to people.
    pub const ALL: [Self; 4] = [Self::Active, Self::Primary, Self::Standby, Self::Fenced];

    /// Returns the word that templates, status and the command line use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Fenced => "fenced",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == value)
            .ok_or_else(|| InvalidId::new("role", value, "use active, primary, standby or fenced"))
    }
}

#[cfg(test)]
mod tests;
