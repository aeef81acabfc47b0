//! Tests that an agent's expired certificate can be renewed, and can be used for nothing else.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_agent::dial;
use muster_pki::{Ca, Certified, Credentials, Identity, Key, RENEWAL_GRACE};
use muster_proto::v1::{agent_message::Message, agents_client::AgentsClient};
use muster_store::{Store as _, Txn};
use tonic::{Code, Status};

use crate::{
    agents::{Agent, Badge, Memory, renew},
    fixture::{Hub, ca_of, publish, repository, store_of},
    raw::{hello, refusal, refused_to_people},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Returns a badge of this identity whose certificate expired `ago`.
fn ended(ca: &Ca, badge: &Badge, identity: &Identity, ago: Duration) -> Arc<Badge> {
    let key = Key::generate().unwrap();
    let issued = SystemTime::now() - ago - HOUR;
    let request = key.request().unwrap();
    let certificate = ca.sign(&request, identity, HOUR, issued).unwrap();
    Arc::new(Badge {
        cluster: badge.cluster.clone(),
        trust: badge.trust.clone(),
        credentials: Credentials::new(&certificate, key).unwrap(),
    })
}

/// Restarts the hub with a record that names this certificate as the newest of its instance.
async fn adopt(hub: Hub, badge: &Badge) -> Hub {
    let certified = Certified::of(badge.credentials.certificate()).unwrap();
    let Identity::Agent { cluster, instance } = certified.identity else {
        panic!("no agent");
    };
    let (config, state) = hub.stop().await;
    let store = store_of(&config).await;
    let key = format!("instance/{cluster}/{instance}");
    let kept = store.get(&key).await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&kept.value).unwrap();
    record["shown"] = certified.serial.into();
    record["granted"] = serde_json::json!([]);
    let txn = Txn::new().put(key, record.to_string());
    store.commit(txn).await.unwrap();
    drop(store);
    Hub::start(config, state).await
}

/// Returns a hub, its CA, and the badge and identity of an agent of cluster eu-1.
async fn joined(repo: &muster_testkit::gitserver::GitRepo) -> (Hub, Ca, Arc<Badge>, Identity) {
    let hub = Hub::new(repo).await;
    let badge = Badge::new(&hub, "eu-1").await;
    let identity = Certified::of(badge.credentials.certificate()).unwrap();
    let (config, state) = hub.stop().await;
    let ca = ca_of(&config).await;
    (
        Hub::start(config, state).await,
        ca,
        badge,
        identity.identity,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_renewed_and_the_cluster_goes_on() {
    let repo = repository();
    let (mut hub, ca, badge, identity) = joined(&repo).await;
    for ago in [Duration::from_secs(1), RENEWAL_GRACE - HOUR] {
        let late = ended(&ca, &badge, &identity, ago);
        hub = adopt(hub, &late).await;
        let renewed = renew(&hub, &late).await.unwrap();
        let now = Certified::of(renewed.credentials.certificate()).unwrap();
        assert_eq!(now.identity, identity);
        let agent = Agent::run(hub.address(), renewed, Memory::new());
        let size = format!("size: {}\n", ago.as_secs());
        let commit = publish(&repo, "larger", [("apps/web/values.yaml", size)]);
        hub.until_synced(&commit).await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_good_for_nothing_but_its_renewal() {
    let repo = repository();
    let (hub, ca, badge, identity) = joined(&repo).await;
    let badge = ended(&ca, &badge, &identity, HOUR);
    let refused = refusal(&hub, &badge, Message::Hello(hello(&badge))).await;
    assert_eq!(refused.code(), Code::Unauthenticated);
    insta::assert_snapshot!(refused.message(), @"this certificate has expired; renew it");

    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await;
    let channel = channel.unwrap();
    let mut refused: Vec<Status> = Vec::new();
    refused.extend(
        AgentsClient::new(channel.clone())
            .check(hello(&badge))
            .await
            .err(),
    );
    refused.extend(refused_to_people(channel).await);
    let codes: Vec<Code> = refused.iter().map(Status::code).collect();
    assert_eq!(codes, [Code::Unauthenticated; 15]);
    assert_eq!(hub.refused("expired").await, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_ca_or_of_a_removed_cluster_is_not_renewed() {
    let repo = repository();
    let (hub, ca, badge, identity) = joined(&repo).await;

    let foreign = Ca::create(SystemTime::now() - 24 * HOUR).unwrap();
    let foreign = ended(&foreign, &badge, &identity, HOUR);
    renew(&hub, &foreign).await.map(drop).unwrap_err();
    hub.refused_again("tls", 0).await;

    let late = ended(&ca, &badge, &identity, HOUR);
    hub.remove("eu-1").await;
    let removed = renew(&hub, &late).await.map(drop).unwrap_err();
    assert_eq!(removed.code(), Code::PermissionDenied);
    assert_eq!(hub.refused("revoked").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_warns_of_the_end_of_the_ca_until_it_is_replaced() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let told = |status: &muster_proto::v1::Status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| {
            problem
                .message
                .contains("the fleet's CA expires in 99 days")
        })
    };
    assert!(!told(&hub.status().await));
    let (config, state) = hub.stop().await;
    let store = store_of(&config).await;
    // A CA of ten years, of which all but 100 days have passed.
    let long_ago = SystemTime::now() - Duration::from_secs((3650 - 100) * 86_400);
    let ca = Ca::create(long_ago).unwrap();
    let txn = Txn::new().put("ca/current", ca.to_pem());
    store.commit(txn).await.unwrap();
    drop(store);
    let hub = Hub::start(config, state).await;
    assert!(told(&hub.status().await));
    let mut admin = hub.admin().await;
    let rotate = muster_proto::v1::RotateCaRequest::default();
    admin.rotate_ca(rotate).await.unwrap();
    // No agent has joined, and the hub renews the login of its machine, so nobody needs the old CA.
    let ends = async || {
        // Read the login again each time, since the hub renews it during the rotation.
        let (trust, credentials) = hub.login().open()?;
        let channel = dial(&hub.address(), &trust, Some(&credentials)).await?;
        let mut admin = muster_proto::v1::admin_client::AdminClient::new(channel);
        let status = admin.get_status(muster_proto::v1::StatusRequest::default());
        anyhow::ensure!(!told(status.await?.get_ref()));
        let info = admin.get_ca(muster_proto::v1::GetCaRequest {}).await?;
        anyhow::ensure!(info.get_ref().next.is_empty() && info.get_ref().name != ca.name()?);
        Ok(())
    };
    muster_testkit::wait::eventually("another CA", crate::fixture::SOON, ends)
        .await
        .unwrap();
}
