//! Keys and enrolments in more than one place, and removals that something could undo.

use std::sync::Arc;

use muster_agent::dial;
use muster_hub::HubConfig;
use muster_pki::{Credentials, Key};
use muster_proto::v1::{self, agent_message::Message, enrolment_client::EnrolmentClient};
use muster_store::{backup, restore};
use muster_testkit::wait::eventually;
use tonic::{Code, Status};

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, SOON, publish, repository},
    raw::{Raw, hello, refusal},
};

async fn renew(hub: &Hub, badge: &Badge) -> Result<Arc<Badge>, Status> {
    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await;
    let key = Key::generate().unwrap();
    let csr = key.request().unwrap();
    let renewed = EnrolmentClient::new(channel.unwrap())
        .renew(v1::RenewRequest { csr })
        .await?
        .into_inner();
    Ok(Arc::new(Badge {
        cluster: badge.cluster.clone(),
        trust: badge.trust.clone(),
        credentials: Credentials::new(&renewed.certificate, key).unwrap(),
    }))
}

/// Shows a certificate: opens a stream with it.
async fn show(hub: &Hub, badge: &Badge) {
    Raw::hello(hub, badge, hello(badge))
        .await
        .unwrap()
        .welcome()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_is_held_with_the_one_that_it_was_copied_from() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let first = Badge::new(&hub, "eu-1").await;
    show(&hub, &first).await;
    // An answer that was lost is asked for again, as often as it takes.
    renew(&hub, &first).await.unwrap();
    renew(&hub, &first).await.unwrap();
    let second = renew(&hub, &first).await.unwrap();
    show(&hub, &second).await;
    let third = renew(&hub, &second).await.unwrap();
    show(&hub, &third).await;
    assert_eq!(hub.refused("copied_key").await, 0);
    // Somebody who copied the second certificate renews it now: it was renewed, and that was used.
    let refused = renew(&hub, &second).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("its key is in two places"),
        "{refused}"
    );
    // Nobody can tell who is who, so neither is served, and a restart changes nothing.
    let hub = hub.restart().await;
    for badge in [&second, &third] {
        let message = Message::Hello(hello(badge));
        assert_eq!(
            refusal(&hub, badge, message).await.code(),
            Code::PermissionDenied
        );
        renew(&hub, badge).await.map(drop).unwrap_err();
    }
    assert_eq!(hub.refused("copied_key").await, 4);
    // A new enrolment is another instance.
    let agent = Agent::join(&hub, "eu-1").await;
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_synced(&commit).await;
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_replaces_the_one_before() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let old = Badge::new(&hub, "eu-1").await;
    let agent = Agent::run(hub.address(), Arc::clone(&old), Memory::new());
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let new = Badge::new(&hub, "eu-1").await;
    agent.until_ended("was removed or is not known here").await;
    let message = Message::Hello(hello(&old));
    assert_eq!(
        refusal(&hub, &old, message).await.code(),
        Code::PermissionDenied
    );
    renew(&hub, &old).await.map(drop).unwrap_err();
    show(&hub, &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_misses_no_enrolment() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    for _ in 0..20 {
        let token = hub.token("eu-1").await;
        let key = Key::generate().unwrap();
        let csr = key.request().unwrap();
        let (enrolled, _) =
            tokio::join!(crate::agents::enrol_with(&token, &csr), hub.remove("eu-1"));
        let Ok(granted) = enrolled else { continue };
        let badge = Badge {
            cluster: "eu-1".parse().unwrap(),
            trust: token.trust.clone(),
            credentials: Credentials::new(&granted.certificate, key).unwrap(),
        };
        // It came before the removal or after it; there is nothing between.
        let served = Raw::hello(&hub, &badge, hello(&badge)).await;
        let removed = hub.remove("eu-1").await;
        assert_eq!(u32::from(served.is_ok()), removed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_no_removed_cluster_back() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let removed = Badge::new(&hub, "eu-1").await;
    let other = Badge::new(&hub, "eu-2").await;
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();
    assert_eq!(hub.remove("eu-1").await, 1);
    let grpc = hub.addresses.grpc;
    let (config, state) = hub.stop().await;
    let restoring = eventually("the store is free", SOON, async || {
        Ok(restore(&kept, &config.store_path())?)
    });
    restoring.await.unwrap();
    let config = HubConfig {
        listen: grpc,
        ..config
    };
    let hub = Hub::start(config, state).await;
    let message = Message::Hello(hello(&removed));
    assert_eq!(
        refusal(&hub, &removed, message).await.code(),
        Code::PermissionDenied
    );
    renew(&hub, &removed).await.map(drop).unwrap_err();
    show(&hub, &other).await;
}
