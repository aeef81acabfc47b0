//! Tests compromised agents: their messages harm no cluster but their own, and the hub shows what they did.

use anyhow::{Context as _, ensure};
use muster_agent::Cluster as _;
use muster_proto::v1;
use muster_store::Store as _;
use tonic::Code;

use crate::{
    agents::{Agent, Badge},
    fixture::{Hub, SOON, publish, repository, store_of},
    raw::{Raw, hello, refusal},
    terms::term_key,
};

/// Waits until a problem of the cluster contains this text, and returns the problem.
async fn told(hub: &Hub, cluster: &str, what: &str) -> String {
    let look = |status: &v1::Status| {
        let mut clusters = status.clusters.iter();
        let cluster = clusters.find(|c| c.name == cluster).context("no cluster")?;
        let mut problems = cluster.problems.iter();
        let problem = problems.find(|problem| problem.contains(what));
        Ok(problem.context("no such problem")?.clone())
    };
    hub.until(what, look).await
}

async fn say(raw: &Raw, report: v1::Report) {
    let message = v1::AgentMessage {
        message: Some(v1::agent_message::Message::Report(report)),
    };
    // The send fails if the stream was refused meanwhile.
    let _ = raw.say.send(message).await;
}

/// Returns the status with which a stream ends.
async fn end(mut raw: Raw) -> tonic::Status {
    loop {
        if let Err(status) = raw.next().await {
            return status;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_no_hub_gave_changes_nothing() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let good = Agent::join(&hub, "eu-1").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let badge = Badge::new(&hub, "us-1").await;
    let own = good.memory.known();
    let terms = [
        (i64::MAX as u64, 1),
        (own.term.number + 1, 1),
        (own.term.number, own.term.nonce ^ 1),
    ];
    let mut streams = Vec::new();
    for (number, nonce) in terms {
        let before = hub.refused("unproven_term").await;
        for proof in [Vec::new(), vec![7; 32], own.term.proof.0.to_vec()] {
            let hello = v1::Hello {
                term: Some(v1::Term {
                    number,
                    nonce,
                    proof,
                }),
                incarnation: own.incarnation.clone(),
                ..hello(&badge)
            };
            let message = v1::agent_message::Message::Hello(hello);
            let status = refusal(&hub, &badge, message).await;
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            streams.push(status.message().to_owned());
        }
        assert_eq!(hub.refused("unproven_term").await, before + 3);
    }
    assert!(
        streams
            .iter()
            .all(|why| why.contains("which no hub of this fleet issued")),
        "{streams:?}"
    );
    told(&hub, "us-1", "which no hub of this fleet issued").await;
    // Delivery to the others continues on the existing stream.
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    good.memory
        .until("the commit", |memory| {
            memory.data("web") == r#"{"size":"2"}"#
        })
        .await;
    assert_eq!(good.memory.known().term, own.term);
    hub.until_in_force(&commit).await;
    // A restarted hub takes the next number, not one that an agent invented.
    let (hub, key) = term_key(hub).await;
    good.memory
        .until("a newer term", |memory| {
            memory.known().term.number > own.term.number
        })
        .await;
    let next = good.memory.known();
    assert!(next.term.number <= own.term.number + 2, "{next:?}");
    assert!(key.holds(
        next.term.number,
        next.term.nonce,
        &next.incarnation,
        &next.term.proof.0
    ));
    // The refusal is in the audit log once.
    let (config, _state) = hub.stop().await;
    let audit = store_of(&config).await.range("audit/").await.unwrap();
    let texts = audit
        .into_iter()
        .map(|(_, entry)| String::from_utf8_lossy(&entry.value).into_owned());
    let held: Vec<String> = texts.filter(|text| text.contains("refused: ")).collect();
    assert!(
        held.len() == 1 && held[0].contains("agent of cluster us-1"),
        "{held:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invented_apps_and_endless_texts_fill_nothing() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;
    let mut raw = Raw::hello(
        &hub,
        &badge,
        v1::Hello {
            version: "v".repeat(3_000_000),
            ..hello(&badge)
        },
    )
    .await
    .unwrap();
    raw.welcome().await;
    let invented = (0..20_000).map(|n| v1::AppReport {
        app: format!("invented-{n}"),
        ..v1::AppReport::default()
    });
    let web = v1::AppReport {
        app: "web".to_owned(),
        health: "h".repeat(1_000_000),
        problems: vec![v1::ObjectProblem::default(); 10_000],
        ..v1::AppReport::default()
    };
    let report = v1::Report {
        apps: invented.chain([web]).collect(),
        full: true,
        digest: vec![1; 100_000],
        problems: vec!["p".repeat(1000); 1000],
        cluster_scoped: vec!["K.example.com".to_owned(); 20_000],
        ..v1::Report::default()
    };
    say(&raw, report).await;
    let said = told(&hub, "us-1", "apps that are not in this cluster").await;
    assert!(said.contains("reports 19936 apps"), "{said}");
    let status = hub.status().await;
    let cluster = status.clusters.iter().find(|c| c.name == "us-1").unwrap();
    assert_eq!(cluster.agent_version.len(), 64);
    assert!(cluster.apps.len() < 70, "{}", cluster.apps.len());
    let (config, _state) = hub.stop().await;
    let kept = store_of(&config).await.get("observed/us-1").await.unwrap();
    let kept = kept.unwrap().value.len();
    assert!(kept < 200_000, "{kept} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_says_too_much_ends_or_is_slowed_down() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;

    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let large = v1::Report {
        problems: vec!["p".repeat(5_000_000)],
        ..v1::Report::default()
    };
    say(&raw, large).await;
    let status = end(raw).await;
    assert!(status.message().contains("too large a message"), "{status}");
    told(&hub, "us-1", "too large a message").await;

    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let (saying, flood) = (raw.say.clone(), 20_000);
    let said = tokio::spawn(async move {
        for _ in 0..flood {
            let message = v1::agent_message::Message::Report(v1::Report::default());
            let message = v1::AgentMessage {
                message: Some(message),
            };
            if saying.send(message).await.is_err() {
                return;
            }
        }
    });
    told(&hub, "us-1", "sends more than the hub accepts").await;
    assert!(!said.is_finished(), "it was not slowed down");
    said.abort();
    assert_eq!(hub.refused("too_much").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_reported_only_while_it_lasts() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    for _ in 0..700 {
        say(&raw, v1::Report::default()).await;
    }
    told(&hub, "us-1", "sends more than the hub accepts").await;
    let over = |status: &v1::Status| {
        let mut clusters = status.clusters.iter();
        let cluster = clusters.find(|cluster| cluster.name == "us-1");
        let cluster = cluster.context("no cluster")?;
        ensure!(cluster.problems.is_empty(), "{:?}", cluster.problems);
        ensure!(cluster.connected, "the stream ended");
        Ok(())
    };
    hub.until("the end of the report of the flood", over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_was_never_sent_is_not_believed() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let generation = raw.generation().await;
    let report = |generation: u64| v1::Report {
        generation,
        content: vec![9; 32],
        ..v1::Report::default()
    };
    // Reports about older generations may still be on their way, so a number that is not above the newest is ignored.
    say(&raw, report(generation.number)).await;
    say(&raw, report(generation.number + 1000)).await;
    let status = end(raw).await;
    assert!(
        status.message().contains("which the hub did not send"),
        "{status}"
    );
    assert_eq!(hub.wanted().await["us-1"], generation.number);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_list_of_objects_is_not_accepted() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    raw.generation().await;
    let asked = hub.ask_for_objects("us-1").await;
    let Ok(v1::hub_message::Message::ListObjects(question)) = raw.next().await else {
        panic!("no question");
    };
    let list = v1::ObjectList {
        request: question.request,
        objects: vec![v1::ObjectState::default(); 200_001],
        last: true,
    };
    let message = Some(v1::agent_message::Message::Objects(list));
    raw.say.send(v1::AgentMessage { message }).await.unwrap();
    let answer = tokio::time::timeout(SOON, asked).await.unwrap().unwrap();
    assert!(answer.objects.is_empty());
    assert_eq!(
        answer.problem,
        "its agent lists more than 200000 objects, the most that the hub accepts"
    );
}
