//! Whom a certificate names.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_model::ids::{ClusterName, InstanceId};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{PkiError, clock::SKEW};

/// The client that a certificate was given to. Its text is the URI in the certificate, in SPIFFE's form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// One enrolment of a cluster's agent: `spiffe://muster/cluster/CLUSTER/instance/INSTANCE`.
    Agent {
        /// The cluster that it speaks for, and the only one.
        cluster: ClusterName,
        /// The enrolment.
        instance: InstanceId,
    },
    /// A person or script that may give orders to the hub: `spiffe://muster/admin/NAME`.
    Admin(AdminName),
}

const PREFIX: &str = "spiffe://muster/";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { cluster, instance } => {
                write!(f, "{PREFIX}cluster/{cluster}/instance/{instance}")
            }
            Self::Admin(name) => write!(f, "{PREFIX}admin/{name}"),
        }
    }
}

impl Identity {
    fn parse(uri: &str) -> Option<Self> {
        let parts: Vec<_> = uri.strip_prefix(PREFIX)?.split('/').collect();
        match parts[..] {
            ["cluster", cluster, "instance", instance] => Some(Self::Agent {
                cluster: cluster.parse().ok()?,
                instance: instance.parse().ok()?,
            }),
            ["admin", name] => Some(Self::Admin(name.parse().ok()?)),
            _ => None,
        }
    }
}

/// The name under which a person or script appears in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminName(String);

/// The text is no name for a person or script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid name: use 1 to 63 letters, digits and any of . _ @ -")]
pub struct InvalidAdminName(String);

impl FromStr for AdminName {
    type Err = InvalidAdminName;
    fn from_str(name: &str) -> Result<Self, InvalidAdminName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
        if (1..=63).contains(&name.len()) && name.chars().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidAdminName(name.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for AdminName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a client's certificate says. That it is genuine was TLS's part, and that it has begun; an agent's
/// may have ended. A connection that outlives `not_after` must be ended by its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The client.
    pub identity: Identity,
    /// The certificate's number, in hexadecimal digits: what a revocation names.
    pub serial: String,
    /// The name of the authority that signed it.
    pub issuer: String,
    /// The start of its time.
    pub not_before: SystemTime,
    /// The end of its time.
    pub not_after: SystemTime,
}

impl Certified {
    /// When it was made: its time begins a little earlier.
    #[must_use]
    pub fn made(&self) -> SystemTime {
        (self.not_before + SKEW).min(self.not_after)
    }
}

impl Certified {
    /// Reads a client's certificate in PEM form.
    ///
    /// # Errors
    /// As [`Certified::of`], and when it is no PEM.
    pub fn of_pem(certificate: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(|_| PkiError::Pem {
            what: "certificate",
        })?;
        Self::of(&der)
    }

    /// Reads a client's certificate.
    ///
    /// # Errors
    /// When it is malformed, or does not name exactly one identity.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let certificate = parse(certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|source| PkiError::Certificate {
                source: source.into(),
            })?
            .map_or(&[][..], |names| &names.value.general_names);
        let identity = match names {
            [GeneralName::URI(uri)] => Identity::parse(uri),
            _ => None,
        };
        let (not_before, not_after) = validity(&certificate);
        Ok(Self {
            identity: identity.ok_or_else(|| PkiError::NoIdentity {
                found: names.iter().take(4).map(ToString::to_string).collect(),
            })?,
            serial: certificate
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            issuer: certificate.issuer().to_string(),
            not_before,
            not_after,
        })
    }
}

pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, PkiError> {
    let malformed = |source: x509_parser::error::X509Error| PkiError::Certificate {
        source: source.into(),
    };
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|e| match e {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => malformed(e),
        x509_parser::nom::Err::Incomplete(_) => {
            malformed(x509_parser::error::X509Error::InvalidCertificate)
        }
    })?;
    if rest.is_empty() {
        Ok(parsed)
    } else {
        Err(malformed(x509_parser::error::X509Error::InvalidCertificate))
    }
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |time: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
    };
    let validity = certificate.validity();
    (time(validity.not_before), time(validity.not_after))
}

/// When a certificate should be replaced: after two thirds of its time, so that a hub which is away for
/// the rest of it costs nobody their connection.
#[must_use]
pub fn rotate_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    // It begins before it was made, which a short one would otherwise be renewed for at once, for ever.
    let made = (not_before + SKEW).min(not_after);
    let lifetime = not_after.duration_since(made).unwrap_or_default();
    made + lifetime * 2 / 3
}

/// Whether what its owner makes himself, at this time and for so long, is to be made anew: after half of its time,
/// and when the clock says that it was made in the future, which is then longer ago than anybody knows.
#[must_use]
pub fn is_due(made: SystemTime, lifetime: Duration, now: SystemTime) -> bool {
    now.duration_since(made)
        .map_or_else(|ahead| ahead.duration() >= SKEW, |age| age >= lifetime / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_time_however_short() {
        let made = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for seconds in [3, 45, 86_400] {
            let end = made + Duration::from_secs(seconds);
            let due = rotate_at(made - SKEW, end).duration_since(made).unwrap();
            assert_eq!(due, Duration::from_secs(seconds) * 2 / 3);
        }
    }

    #[test]
    fn a_clock_that_jumps_makes_things_due() {
        let (hour, made) = (Duration::from_secs(3600), UNIX_EPOCH + SKEW * 1000);
        let due = |now| is_due(made, hour, now);
        assert!(!due(made) && !due(made + hour / 3) && !due(made - SKEW / 2));
        assert!(
            due(made + hour / 2) && due(made + hour * 9) && due(made - SKEW) && due(UNIX_EPOCH)
        );
    }

    #[test]
    fn identities_are_their_uris() {
        let agent = Identity::Agent {
            cluster: "eu-west-1".parse().unwrap(),
            instance: "a1b2".parse().unwrap(),
        };
        let admin = Identity::Admin("ada@example.org".parse().unwrap());
        for (identity, uri) in [
            (agent, "spiffe://muster/cluster/eu-west-1/instance/a1b2"),
            (admin, "spiffe://muster/admin/ada@example.org"),
        ] {
            assert_eq!(identity.to_string(), uri);
            assert_eq!(Identity::parse(uri), Some(identity));
        }
    }

    proptest! {
        #[test]
        fn no_other_text_is_an_identity(
            uri in "(spiffe://muster/|spiffe://other/|)(cluster|admin|hub|)/?[a-zA-Z/%.é-]{0,12}(/instance/)?[a-z/-]{0,4}"
        ) {
            if let Some(identity) = Identity::parse(&uri) {
                prop_assert_eq!(identity.to_string(), uri);
            }
        }
    }

    #[test]
    fn names_of_people_fit_a_uri_and_a_log() {
        for bad in ["", "a/b", "a b", "ä", "a%2f", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<AdminName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rotates_after_two_thirds() {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
        assert_eq!(rotate_at(at(10) - SKEW, at(34)), at(26));
        assert_eq!(rotate_at(at(10) - SKEW, at(10)), at(10));
        assert_eq!(rotate_at(at(10) - SKEW, at(9)), at(9));
    }
}
