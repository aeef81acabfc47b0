//! Tests an agent that does not read its stream.

use anyhow::ensure;
use muster_proto::v1::{self, agent_message::Message};
use rand::RngExt as _;

use crate::{
    agents::{Agent, Badge},
    fixture::{Hub, SOON, config_map, publish, repository},
    raw::{Raw, hello},
};

/// Returns text that hardly compresses.
fn noise(bytes: usize) -> String {
    let mut random = rand::rng();
    let letter = |_| char::from(random.sample(rand::distr::Alphanumeric));
    (0..bytes).map(letter).collect()
}

/// Returns three manifests of 1.2 MB.
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
    let asked = hub.ask_for_objects("eu-1").await;
    let Ok(v1::hub_message::Message::ListObjects(list)) = deaf.next().await else {
        panic!("no question");
    };
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
    // From here on it reads nothing, but sends a lot.
    let object = v1::ObjectState {
        message: "m".repeat(1_000),
        ..v1::ObjectState::default()
    };
    for part in 1..=6 {
        let objects = v1::ObjectList {
            request: list.request,
            objects: vec![object.clone(); 500],
            last: part == 6,
        };
        let message = Some(Message::Objects(objects));
        deaf.say.send(v1::AgentMessage { message }).await.unwrap();
    }
    let answer = tokio::time::timeout(SOON, asked).await.unwrap().unwrap();
    assert_eq!((answer.problem.as_str(), answer.objects.len()), ("", 3_000));

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
    // The hub still reads its messages.
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
    muster_testkit::wait::eventually("two streams", SOON, async || {
        ensure!(hub.count("muster_hub_agents_connected", "").await == 2);
        Ok(())
    })
    .await
    .unwrap();
}
