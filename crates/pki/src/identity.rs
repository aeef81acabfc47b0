//! The identities that certificates name.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_model::ids::{ClusterName, InstanceId};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{PkiError, clock::SKEW};

/// The client that a certificate was issued to. Its text form is the URI in the certificate, in SPIFFE's format.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// One enrolment of a cluster's agent: `spiffe://muster/cluster/CLUSTER/instance/INSTANCE`.
    Agent {
        /// The only cluster that the agent may act for.
        cluster: ClusterName,
        /// The ID of the enrolment.
        instance: InstanceId,
    },
    /// A person or script that administers the hub: `spiffe://muster/admin/NAME`.
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

/// The error for a text that is not a valid name for a person or script.
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

/// The content of a client's certificate. TLS has already checked that the certificate is genuine and that its
/// validity has begun. An agent's certificate may have expired. The owner of a connection must close the connection at
/// `not_after`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The client.
    pub identity: Identity,
    /// The certificate's serial number in hexadecimal digits. Revocations refer to it.
    pub serial: String,
    /// The name of the authority that signed it.
    pub issuer: String,
    /// The start of the certificate's validity.
    pub not_before: SystemTime,
    /// The end of the certificate's validity.
    pub not_after: SystemTime,
}

impl Certified {
    /// Returns the time when the certificate was issued. Its validity starts [`SKEW`] earlier.
    #[must_use]
    pub fn made(&self) -> SystemTime {
        (self.not_before + SKEW).min(self.not_after)
    }
}

impl Certified {
    /// Reads a client's certificate in PEM form.
    ///
    /// # Errors
    /// The errors of [`Certified::of`], and [`PkiError::Pem`] if the text is not a certificate in PEM form.
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
    /// [`PkiError`] if the certificate is malformed, or does not name exactly one identity.
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

/// Returns the time when a certificate should be renewed: after two thirds of its lifetime. A hub may then be
/// unreachable for the last third without any agent losing its connection.
#[must_use]
pub fn rotate_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    // The validity starts before the certificate was issued. If that time counted, a short-lived certificate
    // would be due for renewal as soon as it is issued, again and again.
    let made = (not_before + SKEW).min(not_after);
    let lifetime = not_after.duration_since(made).unwrap_or_default();
    made + lifetime * 2 / 3
}

/// Returns true if a self-issued credential must be renewed: after half of its lifetime, or if `made` is at least
/// [`SKEW`] in the future. In the second case the clock was wrong, and the real age is unknown.
#[must_use]
pub fn is_due(made: SystemTime, lifetime: Duration, now: SystemTime) -> bool {
    now.duration_since(made)
        .map_or_else(|ahead| ahead.duration() >= SKEW, |age| age >= lifetime / 2)
}

#[cfg(test)]
mod tests;
