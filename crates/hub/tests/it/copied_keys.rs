//! Tests copied keys, repeated enrolments, and removals that nothing must undo.

use std::sync::Arc;

use muster_agent::dial;
use muster_pki::{Credentials, Key};
use muster_proto::v1::{self, agent_message::Message, enrolment_client::EnrolmentClient};
use muster_store::backup;
use tonic::Code;

use crate::{
    agents::{Agent, Badge, Memory, renew},
    fixture::{Hub, SOON, publish, repository, restored},
    raw::{Raw, hello, refusal},
};

/// Presents a certificate by opening a stream with it.
async fn show(hub: &Hub, badge: &Badge) {
    Raw::hello(hub, badge, hello(badge))
        .await
        .unwrap()
        .welcome()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_is_suspended_with_the_one_that_it_was_copied_from() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let first = Badge::new(&hub, "eu-1").await;
    show(&hub, &first).await;
    // After a lost answer the renewal may be repeated any number of times.
    renew(&hub, &first).await.unwrap();
    renew(&hub, &first).await.unwrap();
    let second = renew(&hub, &first).await.unwrap();
    show(&hub, &second).await;
    let third = renew(&hub, &second).await.unwrap();
    show(&hub, &third).await;
    assert_eq!(hub.refused("copied_key").await, 0);
    // Somebody who copied the second certificate renews it now, although its owner has already presented the third.
    let refused = renew(&hub, &second).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("its key is in two places"),
        "{refused}"
    );
    // Nobody can tell the copy from the original, so neither is served, not even after a restart.
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
async fn an_answer_that_was_lost_makes_no_copy() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let token = hub.token("eu-1").await;
    let key = Key::generate().unwrap();
    let csr = key.request().unwrap();
    let mut badges = Vec::new();
    // The same request, whose first answer was lost.
    for _ in 0..2 {
        let granted = crate::agents::enrol_with(&token, &csr).await.unwrap();
        let key = Key::from_pem(&key.to_pem()).unwrap();
        badges.push(Arc::new(Badge {
            cluster: "eu-1".parse().unwrap(),
            trust: token.trust.clone(),
            credentials: Credentials::new(&granted.certificate, key).unwrap(),
        }));
    }
    let enrolled = badges.pop().unwrap();
    show(&hub, &enrolled).await;
    // Of two renewals, the agent uses the first one after all.
    let kept = renew(&hub, &enrolled).await.unwrap();
    renew(&hub, &enrolled).await.unwrap();
    show(&hub, &kept).await;
    let next = renew(&hub, &kept).await.unwrap();
    show(&hub, &next).await;
    assert_eq!(hub.refused("copied_key").await, 0);
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
        // The enrolment came either before the removal or after it.
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
    let mut newer = Arc::clone(&other);
    for _ in 0..2 {
        show(&hub, &newer).await;
        newer = renew(&hub, &newer).await.unwrap();
    }
    let (config, state) = restored(hub, &kept).await;
    let hub = Hub::start(config, state).await;
    // A certificate that was renewed since the backup does not count as copied.
    let newer = renew(&hub, &newer).await.unwrap();
    show(&hub, &newer).await;
    renew(&hub, &newer).await.unwrap();
    let message = Message::Hello(hello(&removed));
    assert_eq!(
        refusal(&hub, &removed, message).await.code(),
        Code::PermissionDenied
    );
    renew(&hub, &removed).await.map(drop).unwrap_err();
}

/// Creates a login for a person, and returns an admin client with it.
async fn person(
    hub: &Hub,
    name: &str,
) -> muster_proto::v1::admin_client::AdminClient<tonic::transport::Channel> {
    let key = Key::generate().unwrap();
    let request = v1::CreateAdminRequest {
        name: name.to_owned(),
        valid_seconds: 3600,
        csr: key.request().unwrap(),
    };
    let granted = hub
        .admin()
        .await
        .create_admin(request)
        .await
        .unwrap()
        .into_inner();
    let (trust, _) = hub.login().open().unwrap();
    let credentials = Credentials::new(&granted.certificate, key).unwrap();
    let channel = dial(&hub.address(), &trust, Some(&credentials))
        .await
        .unwrap();
    v1::admin_client::AdminClient::new(channel)
}

async fn names(hub: &Hub) -> Vec<String> {
    let listed = hub
        .admin()
        .await
        .list_logins(v1::ListLoginsRequest {})
        .await;
    let mut names: Vec<String> = listed
        .unwrap()
        .into_inner()
        .logins
        .into_iter()
        .map(|login| login.name)
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_taken_back_at_once_and_for_good() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let mut ada = person(&hub, "ada").await;
    let mut grace = person(&hub, "grace").await;
    let mut watching = ada
        .watch_status(v1::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    watching.message().await.unwrap().unwrap();
    assert_eq!(names(&hub).await, ["ada", "grace", "local"]);
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();

    let request = v1::RemoveLoginsRequest {
        name: "ada".to_owned(),
    };
    let removed = hub
        .admin()
        .await
        .remove_logins(request.clone())
        .await
        .unwrap();
    assert_eq!(removed.into_inner().removed, 1);
    let refused = ada
        .get_status(v1::StatusRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused
            .message()
            .contains("was removed or is not known here"),
        "{refused}"
    );
    // A watching client gets at most the messages that were already on their way.
    publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    let ended = async {
        loop {
            if let Err(status) = watching.message().await {
                break status;
            }
        }
    };
    let ended = tokio::time::timeout(SOON, ended).await.unwrap();
    assert_eq!(ended.code(), Code::PermissionDenied);
    grace
        .get_status(v1::StatusRequest::default())
        .await
        .unwrap();
    assert_eq!(names(&hub).await, ["grace", "local"]);
    let again = hub.admin().await.remove_logins(request).await.unwrap();
    assert_eq!(again.into_inner().removed, 0);

    // A restored backup does not bring it back, and each start replaces the local login instead of adding one.
    let local = hub.login();
    let (config, state) = restored(hub, &kept).await;
    let hub = Hub::start(config, state).await;
    assert_eq!(names(&hub).await, ["grace", "local"]);
    let (trust, credentials) = local.open().unwrap();
    let channel = dial(&hub.address(), &trust, Some(&credentials))
        .await
        .unwrap();
    let mut old = v1::admin_client::AdminClient::new(channel);
    let refused = old
        .get_status(v1::StatusRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // No login can have an unlimited lifetime.
    let key = Key::generate().unwrap();
    let request = v1::CreateAdminRequest {
        name: "eve".to_owned(),
        valid_seconds: 10 * 365 * 86_400,
        csr: key.request().unwrap(),
    };
    let refused = hub.admin().await.create_admin(request).await.unwrap_err();
    assert_eq!(refused.message(), "that is too long; at most 365 days");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_on_a_connection_from_before_its_ca_was_dropped_are_refused() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let mut ada = person(&hub, "ada").await;
    let mut bob = person(&hub, "bob").await;
    let badge = Badge::new(&hub, "eu-1").await;
    show(&hub, &badge).await;
    let address = hub.address();
    let agent = dial(&address, &badge.trust, Some(&badge.credentials));
    let mut agent = EnrolmentClient::new(agent.await.unwrap());

    let rotate = v1::RotateCaRequest::default();
    ada.rotate_ca(rotate).await.unwrap();
    let look = v1::FollowCaRequest::default();
    assert!(bob.follow_ca(look.clone()).await.unwrap().get_ref().needed);
    // A removed login can't move to the new CA, and a certificate that it received for that is removed with it.
    let csr = || Key::generate().unwrap().request().unwrap();
    let follow = || v1::FollowCaRequest { csr: csr() };
    let unseen = bob.follow_ca(follow()).await.unwrap().into_inner();
    assert!(!unseen.certificate.is_empty());
    let remove = v1::RemoveLoginsRequest {
        name: "bob".to_owned(),
    };
    // Two logins are removed: bob's old one, and the new one that was not presented yet.
    let removed = ada.remove_logins(remove).await.unwrap();
    assert_eq!(removed.get_ref().removed, 2);
    assert_eq!(
        bob.follow_ca(follow()).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let behind = ada.get_ca(v1::GetCaRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (behind.clusters, behind.logins),
        (vec!["eu-1".to_owned()], vec!["ada".to_owned()])
    );
    let finish = v1::RotateCaRequest {
        finish: true,
        reason: String::new(),
    };
    // This is the last answer that this login gets.
    ada.rotate_ca(finish).await.unwrap();
    for refused in [
        ada.get_status(v1::StatusRequest::default()).await.map(drop),
        ada.follow_ca(follow()).await.map(drop),
        agent.renew(v1::RenewRequest { csr: csr() }).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(refused.message().contains("no longer trusts"), "{refused}");
    }
    assert_eq!(hub.refused("old_ca").await, 3);
}
