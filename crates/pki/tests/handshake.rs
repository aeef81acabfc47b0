//! Tests of real handshakes between a hub and its clients, and of authority, key and login files.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_pki::{
    Ca, Certified, Credentials, HUB_SERVER_NAME, Identity, Key, Login, LoginError, PkiError,
    RENEWAL_GRACE, SKEW, ServerTls, TrustBundle, client_config,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn agent(cluster: &str) -> Identity {
    Identity::Agent {
        cluster: cluster.parse().unwrap(),
        instance: "i1".parse().unwrap(),
    }
}

fn enrol(ca: &Ca, identity: &Identity, at: SystemTime) -> Credentials {
    let key = Key::generate().unwrap();
    let certificate = ca.sign(&key.request().unwrap(), identity, DAY, at).unwrap();
    Credentials::new(&certificate, key).unwrap()
}

fn trust(authorities: &[&Ca]) -> TrustBundle {
    TrustBundle::new(authorities.iter().map(|ca| ca.certificate().clone())).unwrap()
}

/// The certificates that hub and client have received from each other.
#[derive(Debug)]
struct Met {
    client: Option<CertificateDer<'static>>,
    hub: CertificateDer<'static>,
}

async fn meet_as(
    name: &str,
    hub: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> io::Result<Met> {
    let (near, far) = tokio::io::duplex(1 << 14);
    let served = tokio::spawn(async move {
        let mut stream = TlsAcceptor::from(hub).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.shutdown().await?;
        let client = stream.get_ref().1.peer_certificates();
        io::Result::Ok(client.map(|chain| chain[0].clone().into_owned()))
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(client).connect(name, near).await?;
    // In TLS 1.3 the client learns only with the first read that its certificate was refused.
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    let hub = stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned();
    Ok(Met {
        client: served.await??,
        hub,
    })
}

async fn meet(
    hub: &ServerTls,
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
) -> io::Result<Met> {
    meet_as(
        HUB_SERVER_NAME,
        hub.config(),
        client_config(trust, credentials).unwrap(),
    )
    .await
}

fn refusal(met: io::Result<Met>) -> String {
    met.unwrap_err().to_string()
}

struct Hub {
    ca: Ca,
    tls: ServerTls,
}

fn hub() -> Hub {
    let ca = Ca::create(now()).unwrap();
    let own = ca.hub_credentials(&[], DAY, now()).unwrap();
    let tls = ServerTls::new(&trust(&[&ca]), &own, muster_pki::RENEWAL_GRACE).unwrap();
    Hub { ca, tls }
}

#[tokio::test]
async fn an_agent_is_known_by_its_certificate() {
    let Hub { ca, tls } = hub();
    let own = enrol(&ca, &agent("eu-west-1"), now());
    let met = meet(&tls, &trust(&[&ca]), Some(&own)).await.unwrap();
    let certified = Certified::of(&met.client.unwrap()).unwrap();
    assert_eq!(certified.identity, agent("eu-west-1"));
    assert_eq!(certified.serial.len(), 32);
    let lifetime = certified
        .not_after
        .duration_since(certified.not_before)
        .unwrap();
    assert_eq!(lifetime, DAY + SKEW);
    assert_eq!(
        own.validity().unwrap(),
        (certified.not_before, certified.not_after)
    );
    assert!(certified.not_before <= now() - SKEW);

    let admin = Identity::Admin("ada@example.org".parse().unwrap());
    let met = meet(&tls, &trust(&[&ca]), Some(&enrol(&ca, &admin, now())))
        .await
        .unwrap();
    assert_eq!(Certified::of(&met.client.unwrap()).unwrap().identity, admin);
}

#[tokio::test]
async fn a_client_without_a_certificate_can_connect_to_enrol() {
    let Hub { ca, tls } = hub();
    assert_eq!(meet(&tls, &trust(&[&ca]), None).await.unwrap().client, None);
}

#[tokio::test]
async fn certificates_of_other_times_and_authorities_are_refused() {
    let Hub { ca, tls } = hub();
    let trust = trust(&[&ca]);
    // An agent's certificate that expired yesterday is accepted for renewal. Expired certificates of other
    // clients are refused, and so are agents' certificates after the grace period.
    let expired = enrol(&ca, &agent("a"), now() - 2 * DAY);
    meet(&tls, &trust, Some(&expired)).await.unwrap();
    let admin = Identity::Admin("ada@example.org".parse().unwrap());
    for expired in [
        enrol(&ca, &admin, now() - 2 * DAY),
        enrol(&ca, &agent("a"), now() - RENEWAL_GRACE - 2 * DAY),
    ] {
        let error = refusal(meet(&tls, &trust, Some(&expired)).await);
        assert!(error.contains("CertificateExpired"), "{error}");
    }
    let early = enrol(&ca, &agent("a"), now() + DAY);
    let error = refusal(meet(&tls, &trust, Some(&early)).await);
    assert!(error.contains("alert"), "{error}");
    let stranger = enrol(&Ca::create(now()).unwrap(), &agent("a"), now());
    let error = refusal(meet(&tls, &trust, Some(&stranger)).await);
    assert!(error.contains("UnknownCA"), "{error}");
}

#[tokio::test]
async fn hubs_and_agents_cannot_use_each_others_certificates() {
    let Hub { ca, tls } = hub();
    let trust = trust(&[&ca]);
    let own = enrol(&ca, &agent("a"), now());
    let false_hub = ServerTls::new(&trust, &own, muster_pki::RENEWAL_GRACE).unwrap();
    let error = refusal(meet(&false_hub, &trust, None).await);
    assert!(error.contains("certificate"), "{error}");
    let hubs = ca.hub_credentials(&[], DAY, now()).unwrap();
    meet(&tls, &trust, Some(&hubs)).await.unwrap_err();
    assert!(matches!(
        Certified::of(hubs.certificate()),
        Err(PkiError::NoIdentity { .. })
    ));
}

#[tokio::test]
async fn another_fleets_hub_is_not_trusted() {
    let (ours, theirs) = (hub(), hub());
    let own = enrol(&ours.ca, &agent("a"), now());
    let error = refusal(meet(&theirs.tls, &trust(&[&ours.ca]), Some(&own)).await);
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn the_hubs_certificate_is_valid_for_all_its_names() {
    let ca = Ca::create(now()).unwrap();
    let names = [
        "hub.example.org".to_owned(),
        "192.0.2.7".to_owned(),
        "::1".to_owned(),
    ];
    let own = ca.hub_credentials(&names, DAY, now()).unwrap();
    let tls = ServerTls::new(&trust(&[&ca]), &own, muster_pki::RENEWAL_GRACE).unwrap();
    for name in names.iter().map(String::as_str).chain([HUB_SERVER_NAME]) {
        let client = client_config(&trust(&[&ca]), None).unwrap();
        meet_as(name, tls.config(), client).await.unwrap();
    }
    let client = client_config(&trust(&[&ca]), None).unwrap();
    meet_as("other.example.org", tls.config(), client)
        .await
        .unwrap_err();
    let bad = ca
        .hub_credentials(&["no name".to_owned()], DAY, now())
        .unwrap_err();
    assert!(matches!(bad, PkiError::ServerName { .. }), "{bad:?}");
}

#[tokio::test]
async fn the_authority_is_rotated_while_all_go_on() {
    let (old, new) = (Ca::create(now()).unwrap(), Ca::create(now()).unwrap());
    let both = trust(&[&old, &new]);
    let of_old = enrol(&old, &agent("a"), now());
    let of_new = enrol(&new, &agent("a"), now());
    let old_hub = old.hub_credentials(&[], DAY, now()).unwrap();
    let new_hub = new.hub_credentials(&[], DAY, now()).unwrap();
    let tls = ServerTls::new(&trust(&[&old]), &old_hub, muster_pki::RENEWAL_GRACE).unwrap();
    let met = |tls: &ServerTls, trust: &TrustBundle, own: &Credentials| {
        let client = client_config(trust, Some(own)).unwrap();
        meet_as(HUB_SERVER_NAME, tls.config(), client)
    };
    met(&tls, &trust(&[&old]), &of_old).await.unwrap();
    met(&tls, &both, &of_new).await.unwrap_err();
    // 1. The hub trusts the successor, too.
    tls.update(&both, &old_hub).unwrap();
    met(&tls, &trust(&[&old]), &of_old).await.unwrap();
    met(&tls, &both, &of_new).await.unwrap();
    // 2. The hub's certificate is signed by the successor. Clients trust both.
    tls.update(&both, &new_hub).unwrap();
    met(&tls, &both, &of_old).await.unwrap();
    met(&tls, &both, &of_new).await.unwrap();
    // 3. The old authority is no longer trusted.
    tls.update(&trust(&[&new]), &new_hub).unwrap();
    met(&tls, &trust(&[&new]), &of_new).await.unwrap();
    met(&tls, &both, &of_old).await.unwrap_err();
}

#[tokio::test]
async fn a_new_certificate_is_shown_at_once_and_nothing_is_resumed() {
    let Hub { ca, tls } = hub();
    let trust = trust(&[&ca]);
    // All connections use one client, so that it could resume a session if there were one.
    let own = enrol(&ca, &agent("a"), now());
    let client = client_config(&trust, Some(&own)).unwrap();
    let first = meet_as(HUB_SERVER_NAME, tls.config(), client.clone())
        .await
        .unwrap();
    let renewed = ca.hub_credentials(&[], DAY, now()).unwrap();
    tls.update(&trust, &renewed).unwrap();
    let second = meet_as(HUB_SERVER_NAME, tls.config(), client.clone())
        .await
        .unwrap();
    assert_ne!(first.hub, second.hub);
    assert_eq!(&second.hub, renewed.certificate());
    tls.update(&self::trust(&[&Ca::create(now()).unwrap()]), &renewed)
        .unwrap();
    meet_as(HUB_SERVER_NAME, tls.config(), client)
        .await
        .unwrap_err();
}

#[test]
fn the_hub_decides_what_a_certificate_says() {
    let ca = Ca::create(now()).unwrap();
    // A request that asks for an admin's identity and for a CA certificate.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = "spiffe://muster/admin/root".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = ca.sign(&request, &agent("a"), DAY, now()).unwrap();
    let key = Key::from_pem(&key.serialize_pem()).unwrap();
    let own = Credentials::new(&certificate, key).unwrap();
    assert_eq!(
        Certified::of(own.certificate()).unwrap().identity,
        agent("a")
    );
    let error = TrustBundle::from_pem(&certificate).unwrap_err();
    assert!(matches!(error, PkiError::NotACa), "{error:?}");
}

#[test]
fn requests_prove_their_key() {
    let ca = Ca::create(now()).unwrap();
    let sign = |request: &str| ca.sign(request, &agent("a"), DAY, now()).unwrap_err();
    let request = Key::generate().unwrap().request().unwrap();
    let other = Key::generate().unwrap().request().unwrap();
    // A forged request: the public key is replaced, and the signature is that of the original key.
    let der = |pem: &str| pem::parse(pem).unwrap().into_contents();
    let (mut forged, other) = (der(&request), der(&other));
    let at = forged
        .windows(2)
        .position(|bytes| bytes == [0x00, 0x04])
        .unwrap()
        + 2;
    forged[at..at + 64].copy_from_slice(&other[at..at + 64]);
    let error = sign(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged)));
    assert!(matches!(error, PkiError::Request { .. }), "{error:?}");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let error = sign(&request.pem().unwrap());
    assert!(matches!(error, PkiError::RequestKey), "{error:?}");
    assert!(matches!(sign("hello"), PkiError::Request { .. }));
}

#[test]
fn an_authority_survives_its_text_and_its_certificates_end_with_it() {
    let start = now() - Duration::from_secs(9 * 365 * 24 * 3600 + 364 * 24 * 3600);
    let ca = Ca::create(start).unwrap();
    let again = Ca::from_pem(&ca.to_pem()).unwrap();
    assert_eq!(again.to_pem(), ca.to_pem());
    assert_eq!(again.not_after(), ca.not_after());
    let own = again.hub_credentials(&[], 7 * DAY, now()).unwrap();
    assert_eq!(own.validity().unwrap().1, ca.not_after());
    let error = again
        .hub_credentials(&[], DAY, now() + 7 * DAY)
        .unwrap_err();
    assert!(matches!(error, PkiError::CaExpired), "{error:?}");

    let other = Ca::create(start).unwrap().to_pem();
    let (certificate, _) = other.split_at(other.find("-----BEGIN PRIVATE").unwrap());
    let key = &ca.to_pem()[ca.to_pem().find("-----BEGIN PRIVATE").unwrap()..];
    for (text, wanted) in [
        (
            format!("{certificate}{key}"),
            "the key does not belong to the certificate",
        ),
        (
            certificate.to_owned(),
            "no private key in PEM form was found",
        ),
        (key.to_owned(), "no certificate in PEM form was found"),
    ] {
        assert_eq!(Ca::from_pem(&text).unwrap_err().to_string(), wanted);
    }
    let both = trust(&[&ca, &Ca::create(start).unwrap()]);
    assert_eq!(TrustBundle::from_pem(&both.to_pem()).unwrap(), both);
}

#[test]
fn keys_do_not_show_themselves() {
    let ca = Ca::create(now()).unwrap();
    let own = enrol(&ca, &agent("a"), now());
    let secret = own.key().to_pem().lines().nth(1).unwrap().to_owned();
    let debug = format!("{ca:?} {own:?} {:?}", own.key());
    assert!(
        !debug.contains("PRIVATE") && !debug.contains(&secret),
        "{debug}"
    );
}

#[test]
fn a_login_is_kept_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("muster/config.yaml");
    let missing = Login::read(&path).unwrap_err();
    assert!(matches!(missing, LoginError::Missing { .. }), "{missing:?}");

    let ca = Ca::create(now()).unwrap();
    let own = enrol(&ca, &Identity::Admin("ada".parse().unwrap()), now());
    let login = Login {
        hub: "hub.example.org:7443".to_owned(),
        name: "ada".to_owned(),
        ca: trust(&[&ca]).to_pem(),
        certificate: own.certificate_pem(),
        key: own.key().to_pem(),
    };
    login.write(&path).unwrap();
    login.write(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    let read = Login::read(&path).unwrap();
    assert_eq!(read, login);
    let (trusted, opened) = read.open().unwrap();
    assert_eq!(
        (trusted, opened.certificate()),
        (trust(&[&ca]), own.certificate())
    );
    assert!(!format!("{login:?}").contains("PRIVATE"));

    fs::write(&path, "hub: x\nhubb: y\n").unwrap();
    let error = Login::read(&path).unwrap_err();
    assert!(matches!(error, LoginError::Content { .. }), "{error:?}");
}
