//! Agents that do not keep up, and much to say in both directions at once.

use anyhow::ensure;
use muster_proto::v1::{self, agent_message::Message};
use rand::RngExt as _;

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, config_map, publish, repository},
    raw::{Raw, hello},
};

/// Text that does not compress.
fn noise(bytes: usize) -> String {
    let mut random = rand::rng();
    (0..bytes)
        .map(|_| char::from(random.random_range(b'a'..=b'z')))
        .collect()
}

/// Three manifests of 1.2 MB.
fn large() -> Vec<(String, String)> {
    let file = |i| {
        let name = format!("noise-{i}");
        let text = config_map(&name, &format!("noise: {}", noise(1_200_000)));
        (format!("apps/web/manifests/{name}.yaml"), text)
    };
    (0..3).map(file).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_listen_holds_up_nobody_and_can_be_removed() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let first = publish(&repo, "large", large());
    hub.until_in_force(&first).await;
    let badge = Badge::new(&hub, "eu-1").await;
    let mut deaf = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    deaf.welcome().await;
    let generation = deaf.generation().await;
    let need = v1::Need {
        generation: generation.number,
        hashes: generation
            .bundles
            .iter()
            .map(|bundle| bundle.hash.clone())
            .collect(),
    };
    let message = Some(Message::Need(need));
    deaf.say.send(v1::AgentMessage { message }).await.unwrap();
    // It takes nothing from here on.
    let others = [
        Agent::join(&hub, "eu-2").await,
        Agent::join(&hub, "us-1").await,
    ];
    let second = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_in_force(&second).await;
    for other in &others {
        other
            .memory
            .until("the newest commit", |memory| {
                memory.runs().get("web").is_some_and(|(_, objects)| {
                    objects.iter().any(|json| json.contains(r#""size":"2""#))
                })
            })
            .await;
    }
    // What it says is heard all the same.
    let report = v1::Report {
        problems: vec!["I can't hear you".to_owned()],
        ..v1::Report::default()
    };
    let message = Some(Message::Report(report));
    deaf.say.send(v1::AgentMessage { message }).await.unwrap();
    let heard = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-1").unwrap();
        ensure!(cluster.problems == ["I can't hear you"]);
        Ok(())
    };
    hub.until("its report", heard).await;
    assert_eq!(hub.count("muster_hub_agents_connected", "").await, 3);
    hub.remove("eu-1").await;
    let gone = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-1").unwrap();
        ensure!(!cluster.connected);
        Ok(())
    };
    hub.until("its stream is ended", gone).await;
    muster_testkit::wait::eventually("two streams", crate::fixture::SOON, async || {
        ensure!(hub.count("muster_hub_agents_connected", "").await == 2);
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn much_to_say_in_both_directions_does_not_stop_either() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let object = |i| v1::ObjectState {
        app: "web".to_owned(),
        name: format!("object-{i}"),
        message: "m".repeat(500),
        ..v1::ObjectState::default()
    };
    let objects: Vec<_> = (0..4_000).map(object).collect();
    let badge = Badge::new(&hub, "eu-1").await;
    let agent = Agent::run(hub.address(), badge, Memory::with_objects(objects));
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let mut asking = Vec::new();
    for round in 0..4 {
        let commit = publish(&repo, &format!("large {round}"), large());
        for _ in 0..4 {
            let mut admin = hub.admin().await;
            asking.push(tokio::spawn(async move {
                let request = v1::ObjectsRequest {
                    clusters: vec!["eu-1".to_owned()],
                    app: String::new(),
                };
                let mut answers = admin.get_objects(request).await.unwrap().into_inner();
                answers.message().await.unwrap().unwrap()
            }));
        }
        hub.until_in_force(&commit).await;
    }
    for asked in asking {
        let answer = asked.await.unwrap();
        assert_eq!((answer.problem.as_str(), answer.objects.len()), ("", 4_000));
    }
    let wanted = hub.wanted().await["eu-1"];
    agent
        .memory
        .until("the last commit", |memory| memory.generation() == wanted)
        .await;
}
