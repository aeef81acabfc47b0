//! Tests that a stream ends with its certificate, and that a certificate can be renewed before that.

use std::{sync::Arc, time::Duration};

use muster_agent::dial;
use muster_pki::{Credentials, Key, TrustBundle};
use muster_proto::v1::{self, enrolment_client::EnrolmentClient};

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, publish, repository},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_certificate_and_goes_on_with_the_next() {
    let repo = repository();
    let hub = Hub::with(&repo, |config| {
        config.agent_lifetime = Duration::from_secs(4);
    })
    .await;
    let badge = Badge::new(&hub, "eu-1").await;
    let agent = Agent::run(hub.address(), Arc::clone(&badge), Memory::new());
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;

    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials))
        .await
        .unwrap();
    let key = Key::generate().unwrap();
    let csr = key.request().unwrap();
    let renewed = EnrolmentClient::new(channel)
        .renew(v1::RenewRequest { csr })
        .await;
    let renewed = renewed.unwrap().into_inner();
    assert_eq!(renewed.cluster, "eu-1");
    let identity = |credentials: &Credentials| {
        muster_pki::Certified::of(credentials.certificate())
            .unwrap()
            .identity
    };
    let next = Badge {
        cluster: badge.cluster.clone(),
        trust: TrustBundle::from_pem(&renewed.trust).unwrap(),
        credentials: Credentials::new(&renewed.certificate, key).unwrap(),
    };
    // A renewal is not an enrolment: it is still the same instance.
    assert_eq!(identity(&next.credentials), identity(&badge.credentials));

    // The agent connects again, and is refused, only after its stream has ended.
    agent.until_ended("this certificate has expired").await;
    hub.refused_again("expired", 0).await;

    let (_, memory) = agent.stop().await;
    let late = Badge::new(&hub, "eu-1").await;
    let _agent = Agent::run(hub.address(), late, memory);
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_in_force(&commit).await;
}
