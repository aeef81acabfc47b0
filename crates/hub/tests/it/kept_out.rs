//! Tests that callers without permission are refused, and that each refusal is counted by its reason.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::ensure;
use muster_agent::{dial, follow};
use muster_pki::{Ca, Credentials, Identity, JoinSecret, Key, RENEWAL_GRACE};
use muster_proto::v1::{
    self, admin_client::AdminClient, agent_message::Message, enrolment_client::EnrolmentClient,
};
use muster_testkit::wait::eventually;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    agents::{Agent, Badge, Memory, enrol_with},
    fixture::{Hub, SOON, ca_of, publish, repository},
    raw::{Raw, hello, refusal, refused_to_people},
};

/// Connects an agent with this badge. Returns the refusal, or `None` if the agent is served.
async fn told(hub: &Hub, badge: &Badge, cluster: &str) -> Option<String> {
    let stop = CancellationToken::new();
    let channel = match dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await {
        Ok(channel) => channel,
        Err(error) => return Some(format!("{error:?}")),
    };
    let (memory, cluster) = (Memory::new(), cluster.parse().unwrap());
    let welcomed = || stop.cancel();
    let renew = tokio::sync::Notify::new();
    let following = follow(
        channel,
        &cluster,
        1,
        memory.as_ref(),
        &stop,
        &renew,
        welcomed,
    );
    following.await.err().map(|error| error.to_string())
}

/// Returns a badge that this CA signed.
fn signed(ca: &Ca, badge: &Badge, identity: &Identity, now: SystemTime) -> Badge {
    let key = Key::generate().unwrap();
    let hour = Duration::from_secs(3600);
    let certificate = ca
        .sign(&key.request().unwrap(), identity, hour, now)
        .unwrap();
    Badge {
        cluster: badge.cluster.clone(),
        trust: badge.trust.clone(),
        credentials: Credentials::new(&certificate, key).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_not_of_this_fleet_are_refused() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let good = Badge::new(&hub, "eu-1").await;
    let Identity::Agent { instance, .. } =
        muster_pki::Certified::of(good.credentials.certificate())
            .unwrap()
            .identity
    else {
        panic!("no agent");
    };
    let (config, state) = hub.stop().await;
    let ca = ca_of(&config).await;
    let hub = Hub::start(config, state).await;
    let identity = Identity::Agent {
        cluster: "eu-1".parse().unwrap(),
        instance: instance.clone(),
    };
    let now = SystemTime::now();

    assert_eq!(told(&hub, &good, "eu-1").await, None);
    let copied = signed(&ca, &good, &identity, now);
    assert_eq!(told(&hub, &copied, "eu-1").await, None);
    assert_eq!(hub.count("muster_hub_refused_total", "").await, 0);

    // It expired an hour ago: it can be renewed, and used for nothing else.
    let ended = Duration::from_secs(2 * 3600);
    let expired = signed(&ca, &good, &identity, now - ended);
    insta::assert_snapshot!(told(&hub, &expired, "eu-1").await.unwrap(), @"this certificate has expired; renew it");
    assert_eq!(hub.refused("expired").await, 1);
    // It can be renewed only for a limited time, and the expired certificate of a login not at all.
    let forgotten = signed(&ca, &good, &identity, now - RENEWAL_GRACE - ended);
    assert!(told(&hub, &forgotten, "eu-1").await.is_some());
    let refused = hub.refused_again("tls", 0).await;
    let person = Identity::Admin("ada".parse().unwrap());
    let person = signed(&ca, &good, &person, now - ended);
    assert!(told(&hub, &person, "eu-1").await.is_some());
    let refused = hub.refused_again("tls", refused).await;

    let other = Ca::create(now).unwrap();
    let foreign = signed(&other, &good, &identity, now);
    assert!(told(&hub, &foreign, "eu-1").await.is_some());
    hub.refused_again("tls", refused).await;

    // Signed by the fleet's CA, but never enrolled.
    let stranger = Identity::Agent {
        cluster: "eu-1".parse().unwrap(),
        instance: "i-0000000000000000".parse().unwrap(),
    };
    let stranger = signed(&ca, &good, &stranger, now);
    insta::assert_snapshot!(told(&hub, &stranger, "eu-1").await.unwrap(), @"this instance of cluster eu-1 was removed or is not known here; it needs a new join token");
    assert_eq!(hub.refused("revoked").await, 1);

    // No certificate at all.
    let channel = dial(&hub.address(), &good.trust, None).await.unwrap();
    let (memory, stop) = (Memory::new(), CancellationToken::new());
    let refused = follow(
        channel.clone(),
        &good.cluster,
        1,
        memory.as_ref(),
        &stop,
        &tokio::sync::Notify::new(),
        || {},
    )
    .await;
    insta::assert_snapshot!(refused.unwrap_err(), @"an agent needs a certificate: enrol with a join token");
    let renewing = EnrolmentClient::new(channel.clone())
        .renew(v1::RenewRequest::default())
        .await;
    assert_eq!(renewing.unwrap_err().code(), Code::Unauthenticated);
    let asking = AdminClient::new(channel)
        .get_status(v1::StatusRequest::default())
        .await;
    assert_eq!(asking.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(hub.refused("no_certificate").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_for_something_else_are_refused() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "eu-1").await;

    // Cluster eu-1's certificate, asking for eu-2.
    insta::assert_snapshot!(told(&hub, &badge, "eu-2").await.unwrap(), @"the certificate is cluster eu-1's, but the agent asks for eu-2");
    assert_eq!(hub.refused("other_cluster").await, 1);

    // An agent that makes the calls for people.
    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials))
        .await
        .unwrap();
    let refused = refused_to_people(channel).await;
    let told: Vec<_> = refused
        .iter()
        .map(|status| (status.code(), status.message()))
        .collect();
    assert_eq!(
        told,
        [(Code::Unauthenticated, "an agent may not do this"); 14]
    );
    assert_eq!(hub.refused("not_an_admin").await, 14);

    // A person who opens an agent's stream.
    let (trust, credentials) = hub.login().open().unwrap();
    let person = Badge {
        cluster: badge.cluster.clone(),
        trust,
        credentials,
    };
    let refused = refusal(&hub, &person, Message::Hello(hello(&person))).await;
    assert_eq!(refused.message(), "this is not an agent's certificate");
    assert_eq!(hub.refused("not_an_agent").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_no_agent_sends_are_refused_or_ignored() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "eu-1").await;

    let old = v1::Hello {
        protocol: 99,
        version: "9.9.9".to_owned(),
        ..hello(&badge)
    };
    let refused = refusal(&hub, &badge, Message::Hello(old)).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    insta::assert_snapshot!(refused.message(), @"the agent (version 9.9.9) speaks protocol 99, this hub (version 0.1.0) 2; upgrade the older one");
    assert_eq!(hub.refused("protocol").await, 1);

    let refused = refusal(&hub, &badge, Message::Report(v1::Report::default())).await;
    assert_eq!(refused.message(), "a stream begins with a hello");
    assert_eq!(hub.refused("no_hello").await, 1);

    // The highest numbers, which have no successor.
    let (term, generation) = (u64::MAX, u64::MAX);
    let last = v1::Hello {
        term: Some(v1::Term {
            number: term,
            nonce: 1,
            ..v1::Term::default()
        }),
        generation,
        content: vec![0; 32],
        ..hello(&badge)
    };
    let refused = refusal(&hub, &badge, Message::Hello(last)).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(hub.refused("impossible_number").await, 1);
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let report = v1::Report {
        generation,
        content: vec![0; 32],
        ..v1::Report::default()
    };
    let message = Some(Message::Report(report));
    raw.say.send(v1::AgentMessage { message }).await.unwrap();
    assert_eq!(raw.generation().await.number, 1);

    // A second hello ends the stream, but the agent's next stream is served.
    let message = Some(Message::Hello(hello(&badge)));
    raw.say.send(v1::AgentMessage { message }).await.unwrap();
    assert_eq!(
        raw.next().await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(told(&hub, &badge, "eu-1").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens_work_once_and_not_for_long() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let token = hub.token("eu-1").await;
    let csr = Key::generate().unwrap().request().unwrap();
    let granted = enrol_with(&token, &csr).await.unwrap();
    assert_eq!(granted.cluster, "eu-1");
    // The answer was lost: the same request is answered again, with the same identity.
    let again = enrol_with(&token, &csr).await.unwrap();
    assert_eq!(again.instance, granted.instance);
    assert_eq!(hub.count("muster_hub_refused_total", "").await, 0);

    let other = Key::generate().unwrap().request().unwrap();
    let used = enrol_with(&token, &other).await.unwrap_err();
    assert_eq!(used.code(), Code::PermissionDenied);
    insta::assert_snapshot!(used.message(), @"this join token was used already; make one with `muster cluster join-token`");
    assert_eq!(hub.refused("used_token").await, 1);

    let mut unknown = token.clone();
    unknown.secret = JoinSecret::generate();
    let refused = enrol_with(&unknown, &other).await.unwrap_err();
    insta::assert_snapshot!(refused.message(), @"this join token is not known here; make one with `muster cluster join-token`");
    assert_eq!(hub.refused("unknown_token").await, 1);

    // Tokens that were cut off or repeated, as by a terminal.
    let channel = dial(&token.hub, &token.trust, None).await.unwrap();
    let whole = token.secret.expose();
    for text in [&whole[..20], "", &whole.repeat(100)] {
        let request = v1::EnrolRequest {
            token: text.to_owned(),
            csr: other.clone(),
        };
        let refused = EnrolmentClient::new(channel.clone())
            .enrol(request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    assert_eq!(hub.refused("unknown_token").await, 4);

    let fresh = hub.token("eu-1").await;
    let refused = enrol_with(&fresh, "-----BEGIN CERTIFICATE REQUEST-----")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(hub.refused("bad_request").await, 1);
    // A bad request does not use the token up.
    enrol_with(&fresh, &other).await.unwrap();

    let short = hub.token_for("eu-1", 1).await;
    let expiring = eventually("the token expires", SOON, async || {
        let refused = enrol_with(&short, "no request").await.unwrap_err();
        ensure!(refused.message().contains("has expired"), "{refused}");
        Ok(())
    });
    expiring.await.unwrap();
    let refused = enrol_with(&short, &other).await.unwrap_err();
    insta::assert_snapshot!(refused.message(), @"this join token has expired; make one with `muster cluster join-token`");
    assert!(hub.refused("expired_token").await >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_cluster_is_out_until_it_joins_again() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let unused = hub.token("eu-2").await;

    assert_eq!(hub.remove("eu-2").await, 1);
    agent.until_ended("it needs a new join token").await;
    assert!(hub.refused("revoked").await >= 1);
    let channel = dial(
        &hub.address(),
        &agent.badge.trust,
        Some(&agent.badge.credentials),
    )
    .await;
    let csr = Key::generate().unwrap().request().unwrap();
    let request = v1::RenewRequest { csr: csr.clone() };
    let renewing = EnrolmentClient::new(channel.unwrap()).renew(request).await;
    assert_eq!(renewing.unwrap_err().code(), Code::PermissionDenied);
    // Tokens that were created for it are void, too.
    assert!(enrol_with(&unused, &csr).await.is_err());
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-2").unwrap();
        ensure!(
            cluster.state() == v1::ClusterState::Unjoined
                && cluster.apps.iter().all(|app| !app.synced)
        );
        Ok(())
    };
    hub.until("it is shown as not joined", look).await;
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_in_force(&commit).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"1"}"#);

    let (_, memory) = agent.stop().await;
    let badge = Badge::new(&hub, "eu-2").await;
    let agent = Agent::run(hub.address(), badge, Arc::clone(&memory));
    agent
        .memory
        .until("the newest commit", |memory| memory.generation() == 2)
        .await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    hub.until_synced(&commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_that_take_turns_are_both_refused() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let first = Agent::join(&hub, "eu-1").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    // A copy of the cluster: the same certificate, another process.
    let second = Agent::run(hub.address(), Arc::clone(&first.badge), Memory::new());
    let held = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-1").unwrap();
        let told = cluster.problems.iter().find(|p| p.contains("take turns"));
        ensure!(!cluster.connected && told.is_some());
        Ok(told.unwrap().clone())
    };
    let told = hub.until("both are refused", held).await;
    insta::assert_snapshot!(told, @"two agents take turns as cluster eu-1: is this a copy of the cluster? Stop one of them; both are refused for a minute");
    first.until_ended("turns").await;
    second.until_ended("turns").await;
    assert!(hub.refused("two_processes").await >= 2);
    // Neither gets anything new.
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_in_force(&commit).await;
    assert_eq!(first.memory.data("web"), r#"{"size":"1"}"#);
    assert_ne!(second.memory.data("web"), r#"{"size":"2"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_cluster_do_not_fight() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let old = Agent::join(&hub, "eu-1").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let new = Agent::run(hub.address(), Arc::clone(&old.badge), Memory::new());
    old.until_ended("turns").await;
    new.until_ended("turns").await;
    assert!(old.memory.deliveries().0 + new.memory.deliveries().0 <= 3);
}
