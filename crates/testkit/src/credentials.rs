//! The keys and certificates of one control plane, created once and stored in its directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// The first address of the service network, at which pods reach the API server.
const SERVICE_ADDRESS: &str = "10.96.0.1";

/// The paths of the PEM files in a cluster's directory.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Returns the credentials in the directory, and creates them if they are missing.
    pub(crate) fn in_directory(directory: PathBuf) -> anyhow::Result<Self> {
        let credentials = Self { directory };
        // This key is written last, so all other files exist if it does.
        if !credentials.service_account_key().exists() {
            credentials
                .make()
                .context("cannot make the cluster's certificates")?;
        }
        Ok(credentials)
    }

    /// The path of the CA certificate, which signs all others.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The paths of the certificate and key of the servers, which all listen on the loopback address.
    pub(crate) fn server(&self) -> (PathBuf, PathBuf) {
        (
            self.directory.join("server.crt"),
            self.directory.join("server.key"),
        )
    }

    /// The paths of the certificate and key of a client in the group `system:masters`.
    pub(crate) fn admin(&self) -> (PathBuf, PathBuf) {
        (
            self.directory.join("admin.crt"),
            self.directory.join("admin.key"),
        )
    }

    /// The path of the private key that signs service account tokens.
    pub(crate) fn service_account_key(&self) -> PathBuf {
        self.directory.join("service-account.key")
    }

    /// The path of the public key that verifies service account tokens.
    pub(crate) fn service_account_public_key(&self) -> PathBuf {
        self.directory.join("service-account.pub")
    }

    fn make(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut params = params("muster-testkit-ca", vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write(&self.authority(), &authority.pem())?;

        let names = [
            "localhost",
            "127.0.0.1",
            SERVICE_ADDRESS,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let mut server = self::params("server", names.map(str::to_owned).to_vec())?;
        // etcd's gRPC gateway connects to its own server as a client.
        server.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        issue(&server, &authority, self.server())?;

        let mut admin = self::params("admin", vec![])?;
        admin
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(&admin, &authority, self.admin())?;

        let pair = KeyPair::generate()?;
        write(&self.service_account_public_key(), &pair.public_key_pem())?;
        write(&self.service_account_key(), &pair.serialize_pem())
    }

    /// Returns a kubeconfig for the administrator, with embedded certificates and key.
    pub(crate) fn kubeconfig(&self, cluster: &str, port: u16) -> anyhow::Result<String> {
        let (certificate, key) = self.admin();
        let encode = |path: &Path| -> anyhow::Result<String> {
            let bytes =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(STANDARD.encode(bytes))
        };
        let (authority, certificate, key) = (
            encode(&self.authority())?,
            encode(&certificate)?,
            encode(&key)?,
        );
        Ok(format!(
            "apiVersion: v1
kind: Config
current-context: {cluster}
clusters:
- name: {cluster}
  cluster:
    server: https://127.0.0.1:{port}
    certificate-authority-data: {authority}
users:
- name: {cluster}-admin
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: {cluster}
  context:
    cluster: {cluster}
    user: {cluster}-admin
"
        ))
    }
}

fn params(name: &str, alternatives: Vec<String>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(3650);
    Ok(params)
}

fn issue(
    params: &CertificateParams,
    authority: &CertifiedIssuer<'_, KeyPair>,
    (certificate, key): (PathBuf, PathBuf),
) -> anyhow::Result<()> {
    let pair = KeyPair::generate()?;
    write(&certificate, &params.signed_by(&pair, authority)?.pem())?;
    write(&key, &pair.serialize_pem())
}

/// Writes a file that only its owner may read.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
