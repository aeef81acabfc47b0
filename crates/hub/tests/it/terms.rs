//! Tests hubs that run on restored or copied stores: numbers only grow, and no agent is refused for ever.

use anyhow::ensure;
use muster_agent::Cluster as _;
use muster_hub::HubConfig;
use muster_model::policy::PruneBudget;
use muster_pki::TermKey;
use muster_proto::v1;
use muster_store::backup;
use muster_testkit::gitserver::GitRepo;

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, ca_of, config_map, copy, document, publish, repository, restored},
    raw::{Raw, hello},
};

fn head(repo: &GitRepo) -> String {
    repo.git(&["rev-parse", "HEAD"]).unwrap()
}

/// Restarts the hub, and returns it with the key that proves its fleet's terms.
pub(crate) async fn term_key(hub: Hub) -> (Hub, TermKey) {
    let grpc = hub.addresses.grpc;
    let (mut config, state) = hub.stop().await;
    config.listen = grpc;
    let key = ca_of(&config).await.term_key();
    (Hub::start(config, state).await, key)
}

async fn term(hub: &Hub, badge: &Badge, known: Option<v1::Term>, incarnation: &str) -> v1::Welcome {
    let first = v1::Hello {
        term: known,
        incarnation: incarnation.to_owned(),
        ..hello(badge)
    };
    Raw::hello(hub, badge, first).await.unwrap().welcome().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_catches_up_with_its_agents() {
    let repo = repository();
    let mut hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();

    // Three commits and three terms later …
    for size in 2..5 {
        let commit = publish(
            &repo,
            "larger",
            [("apps/web/values.yaml", format!("size: {size}\n"))],
        );
        hub.until_synced(&commit).await;
        hub = hub.restart().await;
    }
    hub.until_synced(&head(&repo)).await;
    for agent in [&eu_1, &eu_2, &us_1] {
        let newest = |memory: &Memory| memory.known().term.number == 4;
        agent.memory.until("the newest term", newest).await;
    }
    let before = eu_1.memory.known();
    assert_eq!(eu_1.memory.generation(), 4);
    let (config, state) = restored(hub, &kept).await;
    // … and one more commit while no hub runs.
    let last = publish(&repo, "db", [("apps/db/values.yaml", "size: 9\n")]);
    let hub = Hub::start(config, state).await;
    hub.until_synced(&last).await;
    // Nothing is deleted without approval until a person has confirmed the state.
    let suspects = |status: &v1::Status| {
        let problems = status.problems.iter().map(|problem| &problem.message);
        problems
            .filter(|text| text.contains("nothing is deleted without approval"))
            .count()
    };
    assert_eq!(
        suspects(&hub.status().await),
        4,
        "{:#?}",
        hub.status().await
    );
    let nothing = PruneBudget {
        objects: 0,
        percent: 0,
    };
    assert_eq!(eu_1.memory.orders().budget, nothing);
    let hub = hub.restart().await;
    hub.until_synced(&last).await;
    assert_eq!(suspects(&hub.status().await), 4);
    let ask = |dry_run| v1::ConfirmStateRequest {
        dry_run,
        reason: "looked".to_owned(),
    };
    let shown = hub.admin().await.confirm_state(ask(true)).await.unwrap();
    assert_eq!(shown.into_inner().suspicions.len(), 4);
    assert_eq!(suspects(&hub.status().await), 4);
    hub.admin().await.confirm_state(ask(false)).await.unwrap();
    for agent in [&eu_1, &eu_2, &us_1] {
        let usual = |memory: &Memory| memory.orders().budget == PruneBudget::default();
        agent.memory.until("the usual budget", usual).await;
    }
    hub.until_synced(&last).await;
    assert_eq!(suspects(&hub.status().await), 0);
    assert_eq!(eu_1.memory.data("db"), r#"{"role":"primary","size":"9"}"#);
    assert_eq!(eu_2.memory.data("web"), r#"{"size":"4"}"#);
    for agent in [&eu_1, &eu_2, &us_1] {
        let known = agent.memory.known();
        assert!(known.term.number > before.term.number, "{known:?}");
        assert_ne!(known.incarnation, before.incarnation);
        assert!(agent.memory.generation() > 4);
    }
    // Delivery continues, also after another restart.
    let hub = hub.restart().await;
    let next = publish(&repo, "web", [("apps/web/values.yaml", "size: 5\n")]);
    hub.until_synced(&next).await;
    assert_eq!(us_1.memory.data("web"), r#"{"size":"5"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_a_restore_is_void() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let token = hub.token("eu-1").await;
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();
    let (config, state) = restored(hub, &kept).await;
    let _hub = Hub::start(config, state).await;
    let csr = muster_pki::Key::generate().unwrap().request().unwrap();
    assert!(crate::agents::enrol_with(&token, &csr).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hubs_on_copies_of_one_store_one_steps_down() {
    let repo = repository();
    let first = Hub::new(&repo).await;
    let agent = Agent::join(&first, "eu-2").await;
    first.until_synced(&head(&repo)).await;
    let (badge, memory) = agent.stop().await;
    let grpc = first.addresses.grpc;
    let (mut config, state) = first.stop().await;
    config.listen = grpc;
    let scratch = tempfile::tempdir().unwrap();
    copy(&config.state_dir, scratch.path());
    // Both take the same number.
    let first = Hub::start(config.clone(), state).await;
    let mut other = HubConfig {
        state_dir: scratch.path().to_owned(),
        ..config
    };
    other.listen.set_port(0);
    let second = Hub::start(other, None).await;

    let agent = Agent::run(first.address(), badge, memory);
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    first.until_synced(&commit).await;
    second.until_in_force(&commit).await;
    let (badge, memory) = agent.stop().await;
    let agent = Agent::run(second.address(), badge, memory);
    let told = |status: &v1::Status| {
        let problem = status
            .problems
            .first()
            .map(|problem| problem.message.clone());
        let problem = problem.unwrap_or_default();
        ensure!(problem.contains("stepped down"));
        Ok(problem)
    };
    insta::assert_snapshot!(second.until("it has stepped down", told).await, @"this hub has stepped down: another hub leads with a copy of its store");
    // The hub that stepped down still observes, but delivers nothing.
    let next = publish(
        &repo,
        "larger still",
        [("apps/web/values.yaml", "size: 3\n")],
    );
    first.until_in_force(&next).await;
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-2").unwrap();
        ensure!(cluster.connected && status.repo.clone().unwrap_or_default().tip == next);
        Ok(())
    };
    second.until("it sees the commit and the agent", look).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    let (badge, memory) = agent.stop().await;
    let agent = Agent::run(first.address(), badge, memory);
    first.until_synced(&next).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"3"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_with_a_newer_term_lead_to_one_new_term() {
    let repo = repository();
    let (hub, key) = term_key(Hub::new(&repo).await).await;
    let badges = [
        Badge::new(&hub, "eu-1").await,
        Badge::new(&hub, "eu-2").await,
        Badge::new(&hub, "us-1").await,
    ];
    let newer = v1::Term {
        number: 41,
        nonce: 5,
        proof: key.prove(41, 5, "another store").to_vec(),
    };
    let welcomes = badges
        .iter()
        .map(|badge| term(&hub, badge, Some(newer.clone()), "another store"));
    let welcomes = futures::future::join_all(welcomes).await;
    let terms: Vec<u64> = welcomes
        .iter()
        .map(|w| w.term.as_ref().unwrap().number)
        .collect();
    assert_eq!(terms, [42, 42, 42]);
    // An agent that shows the hub's own term does not make the hub take a new one.
    let own = welcomes[0].term.clone();
    let again = term(&hub, &badges[0], own.clone(), &welcomes[0].incarnation).await;
    assert_eq!(again.term, own);
    let agent = Agent::run(hub.address(), badges[0].clone(), Memory::new());
    agent
        .memory
        .until("delivery continues", |memory| memory.generation() > 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_hub_does_not_remember_is_left_alone() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-1").await;
    hub.until_synced(&head(&repo)).await;
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();
    // An app that was added after the backup, and is broken when the backup is restored.
    let spec = "tier: gold, mode: active-active";
    let files = [
        ("apps/late/app.yaml", document("App", "late", spec)),
        ("apps/late/templates/late.yaml", config_map("late", "a: b")),
    ];
    let commit = publish(&repo, "late", files);
    hub.until_synced(&commit).await;
    assert_eq!(agent.memory.data("late"), r#"{"a":"b"}"#);
    let (config, state) = restored(hub, &kept).await;
    let broken = [("apps/late/templates/late.yaml", "{{ nothing }}")];
    publish(&repo, "broken", broken);
    let hub = Hub::start(config, state).await;
    let unknown = |memory: &Memory| memory.orders().unknown.contains("late");
    agent.memory.until("it is left alone", unknown).await;
    // That lasts until the app is repaired, even after a person has confirmed the state.
    let confirm = v1::ConfirmStateRequest::default();
    hub.admin().await.confirm_state(confirm).await.unwrap();
    let usual = |memory: &Memory| memory.orders().budget == PruneBudget::default();
    agent.memory.until("the usual budget", usual).await;
    let status = hub.status().await;
    assert!(status.problems.iter().any(|problem| problem.app == "late"));
    let files = [("apps/late/templates/late.yaml", config_map("late", "a: c"))];
    let mended = publish(&repo, "mended", files);
    hub.until_synced(&mended).await;
    assert_eq!(agent.memory.data("late"), r#"{"a":"c"}"#);
    assert!(agent.memory.orders().unknown.is_empty());
}
