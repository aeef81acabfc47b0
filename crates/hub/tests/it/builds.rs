//! Tests a hub and an agent of different builds. Recorded messages of agents of earlier releases are replayed against
//! this hub, and additional messages of a newer build are ignored. `recorded/README.md` has the rules.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use bytes::{Buf as _, BufMut as _};
use muster_agent::follow;
use muster_proto::{
    VERSION,
    v1::{self, agent_message::Message, hub_message},
};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{
    agents::{Badge, Memory},
    fixture::{Hub, publish, repository},
    raw::{Raw, hello, refusal},
    relay::relay,
};

const CLUSTER: &str = "eu-1";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/recorded")
}

/// Publishes the second commit of every recording.
fn larger(repo: &muster_testkit::gitserver::GitRepo) -> String {
    publish(repo, "larger", [("apps/web/values.yaml", "size: 2\n")])
}

fn objects_request() -> v1::ObjectsRequest {
    v1::ObjectsRequest {
        clusters: vec![CLUSTER.to_owned()],
        ..v1::ObjectsRequest::default()
    }
}

/// Returns the objects that a cluster's agent lists when a person asks.
async fn listed(hub: &Hub) -> Result<v1::ClusterObjects, Status> {
    let mut answers = hub.admin().await.get_objects(objects_request()).await?;
    let answer = answers.get_mut().message().await?;
    answer.ok_or_else(|| Status::not_found("no answer"))
}

/// Runs an agent's whole stream through a relay, with two commits and a question about its objects. Returns the agent's
/// messages.
async fn stream(babbles: bool) -> (Hub, Vec<v1::AgentMessage>) {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, CLUSTER).await;
    let (channel, said) = relay(&hub, &badge, babbles).await;
    let memory = Memory::with_objects(vec![v1::ObjectState {
        app: "web".to_owned(),
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: "web".to_owned(),
        state: "Applied".to_owned(),
        ..v1::ObjectState::default()
    }]);
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (stop, cluster) = (stop.clone(), badge.cluster.clone());
        async move {
            follow(
                channel,
                &cluster,
                1,
                memory.as_ref(),
                &stop,
                &tokio::sync::Notify::new(),
                || {},
            )
            .await
        }
    });
    let until_synced = async |commit: &str| {
        let look = |status: &v1::Status| {
            let now = status.repo.clone().unwrap_or_default().commit;
            let cluster = status.clusters.iter().find(|c| c.name == CLUSTER);
            let synced = cluster.is_some_and(|c| c.state() == v1::ClusterState::Synced);
            ensure!(now == commit && synced);
            Ok(())
        };
        hub.until("the cluster is in sync", look).await;
    };
    until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap()).await;
    assert_eq!(listed(&hub).await.unwrap().objects.len(), 1);
    until_synced(&larger(&repo)).await;
    stop.cancel();
    following.await.unwrap().unwrap();
    let said = said.lock().unwrap().clone();
    (hub, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_only_newer_builds_know_disturb_nobody() {
    // A member of the oneof and a field of a message that this build does not know.
    let unknown = v1::AgentMessage::decode(&[0x7a, 0x02, 0x08, 0x01][..]).unwrap();
    assert_eq!(unknown, v1::AgentMessage { message: None });
    let hello = v1::Hello::decode(&[0x08, 0x02, 0xa2, 0x06, 0x01, 0x07][..]).unwrap();
    assert_eq!(hello.protocol, 2);

    let (hub, _) = stream(true).await;
    assert_eq!(hub.count("muster_hub_refused_total", "").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_protocol_is_told_what_to_do() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, CLUSTER).await;
    for (protocol, version) in [(1, "0.0.9"), (3, "0.2.0")] {
        let other = v1::Hello {
            protocol,
            version: version.to_owned(),
            ..hello(&badge)
        };
        let refused = refusal(&hub, &badge, Message::Hello(other)).await;
        assert_eq!(refused.code(), Code::FailedPrecondition);
        for part in [version, VERSION, "upgrade the older one"] {
            assert!(refused.message().contains(part), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "overwrites the recording of this release with the messages of this build's agent"]
async fn record() {
    let (_, said) = stream(false).await;
    let mut bytes = Vec::new();
    for message in said {
        bytes.put_slice(&message.encode_length_delimited_to_vec());
    }
    let release = VERSION.rsplit_once('.').unwrap().0;
    let folder = folder().join(format!("v{release}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("agent.bin"), bytes).unwrap();
}

fn read(file: &Path) -> Vec<v1::AgentMessage> {
    let mut bytes = &std::fs::read(file).unwrap()[..];
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        messages.push(v1::AgentMessage::decode_length_delimited(&mut bytes).unwrap());
    }
    messages
}

/// Returns the apps of a recording by the hashes that their bundles had then.
fn apps_of(messages: &[v1::AgentMessage]) -> HashMap<Vec<u8>, String> {
    let reports = messages
        .iter()
        .filter_map(|message| match &message.message {
            Some(Message::Report(report)) => Some(&report.apps),
            _ => None,
        });
    reports
        .flatten()
        .map(|app| (app.hash.clone(), app.app.clone()))
        .collect()
}

/// The generation that this hub offered last. It replaces the one that the recorded hub had offered.
#[derive(Default)]
struct Offered(v1::Generation);

impl Offered {
    fn hash(&self, app: &str) -> Vec<u8> {
        let bundle = self.0.bundles.iter().find(|bundle| bundle.app == app);
        bundle.unwrap().hash.clone()
    }

    fn report(&self, report: &mut v1::Report) {
        if report.generation == 0 {
            return;
        }
        report.generation = self.0.number;
        report.content.clone_from(&self.0.content);
        for app in &mut report.apps {
            app.hash = self.hash(&app.app);
        }
    }
}

/// Waits for the next message of the hub that `wanted` accepts.
async fn hear<T>(raw: &mut Raw, wanted: impl Fn(hub_message::Message) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(raw.next().await.unwrap()) {
            return found;
        }
    }
}

/// Replays a recording against a new hub. Returns the hub with the commit that should be in force.
async fn replay(messages: Vec<v1::AgentMessage>) -> (Hub, String) {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, CLUSTER).await;
    let apps = apps_of(&messages);
    let mut commit = repo.git(&["rev-parse", "HEAD"]).unwrap();
    let mut offered = Offered::default();
    let mut messages = messages.into_iter().filter_map(|message| message.message);
    let first = messages.next().unwrap();
    let mut raw = Raw::open(&hub, &badge, first).await.unwrap();
    raw.welcome().await;
    for mut message in messages {
        let mut asking = None;
        match &mut message {
            Message::Need(need) => {
                if offered.0.number > 0 {
                    commit = larger(&repo);
                }
                offered.0 = hear(&mut raw, |message| match message {
                    hub_message::Message::Generation(generation) => Some(generation),
                    _ => None,
                })
                .await;
                need.generation = offered.0.number;
                for hash in &mut need.hashes {
                    *hash = offered.hash(&apps[hash]);
                }
            }
            Message::Report(report) => offered.report(report),
            Message::Objects(list) => {
                let mut admin = hub.admin().await;
                asking = Some(tokio::spawn(async move {
                    let mut answers = admin.get_objects(objects_request()).await?;
                    answers.get_mut().message().await
                }));
                list.request = hear(&mut raw, |message| match message {
                    hub_message::Message::ListObjects(question) => Some(question.request),
                    _ => None,
                })
                .await;
            }
            Message::Hello(_) | Message::Record(_) => {
                panic!("no recorded stream has this message here")
            }
        }
        let mut missing = match &message {
            Message::Need(need) => need.hashes.len(),
            _ => 0,
        };
        let message = Some(message);
        raw.say.send(v1::AgentMessage { message }).await.unwrap();
        while missing > 0 {
            let last = hear(&mut raw, |message| match message {
                hub_message::Message::Blob(piece) => Some(piece.last),
                _ => None,
            });
            missing -= usize::from(last.await);
        }
        if let Some(asking) = asking {
            let answer = asking.await.unwrap().unwrap().unwrap();
            assert!(answer.problem.is_empty() && !answer.objects.is_empty());
        }
    }
    let look = |status: &v1::Status| {
        let now = status.repo.clone().unwrap_or_default().commit;
        let cluster = status.clusters.iter().find(|c| c.name == CLUSTER);
        let state = cluster.map(v1::ClusterStatus::state);
        ensure!(now == commit && state == Some(v1::ClusterState::Synced));
        Ok(())
    };
    hub.until("the recorded agent is in sync", look).await;
    drop(raw);
    (hub, commit)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_of_earlier_releases_said_brings_their_clusters_in_sync() {
    let mut replayed = 0;
    for release in std::fs::read_dir(folder()).unwrap() {
        let file = release.unwrap().path().join("agent.bin");
        if !file.exists() {
            continue;
        }
        let messages = read(&file);
        let needs = messages
            .iter()
            .filter(|message| matches!(message.message, Some(Message::Need(_))));
        assert_eq!(needs.count(), 2, "{}", file.display());
        let (hub, _) = replay(messages).await;
        let refused = hub.count("muster_hub_refused_total", "").await;
        assert_eq!(refused, 0, "{}", file.display());
        replayed += 1;
    }
    assert!(replayed > 0);
}
