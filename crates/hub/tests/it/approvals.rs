//! Tests that an approval is for exactly one pending set in one cluster, and for nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use muster_model::{ids::ContentHash, policy::PruneOrders};
use muster_proto::v1;
use muster_store::{SqliteStore, Store as _, backup};
use muster_testkit::{gitserver::GitRepo, wait::eventually};
use tonic::{Code, Status};

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, SOON, document, fleet, publish, repository, restored, store_of},
};

fn head(repo: &GitRepo) -> String {
    repo.git(&["rev-parse", "HEAD"]).unwrap()
}

fn sets<const N: usize>(sets: [ContentHash; N]) -> BTreeSet<ContentHash> {
    sets.into()
}

async fn approve(hub: &Hub, cluster: &str, app: &str, set: ContentHash) -> Result<(), Status> {
    let request = v1::ApproveSetRequest {
        cluster: cluster.to_owned(),
        app: app.to_owned(),
        set: set.0.to_vec(),
        reason: "the old shards".to_owned(),
    };
    hub.admin().await.approve_set(request).await.map(|_| ())
}

/// Waits until the hub knows that this set of an app is pending approval in a cluster.
async fn until_held(hub: &Hub, cluster: &str, app: &str, set: ContentHash) -> v1::ClusterApp {
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == cluster);
        let app = cluster.and_then(|cluster| cluster.apps.iter().find(|a| a.app == app));
        let app = app.context("no such app there")?;
        ensure!(app.holds.iter().any(|hold| hold.set == set.0));
        Ok(app.clone())
    };
    hub.until("a set is pending approval", look).await
}

async fn until_released(hub: &Hub, cluster: &str) {
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == cluster);
        ensure!(cluster.is_some_and(|c| c.state() == v1::ClusterState::Synced));
        Ok(())
    };
    hub.until("nothing is pending approval any more", look)
        .await;
}

async fn until_generation(agent: &Agent, generation: u64) {
    let what = format!("generation {generation}");
    agent
        .memory
        .until(&what, |memory| memory.generation() == generation)
        .await;
}

fn numbers(list: [(&str, u64); 3]) -> BTreeMap<String, u64> {
    list.map(|(name, number)| (name.to_owned(), number)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_reaches_its_cluster_and_no_other() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let there = eu_1.memory.hold("web", "old shards");
    let elsewhere = us_1.memory.hold("web", "other shards");
    let app = until_held(&hub, "eu-1", "web", there).await;
    assert_eq!(app.state(), v1::ClusterState::Failing);
    assert_eq!(app.holds[0].count, 3);
    let status = hub.status().await;
    let cluster = status.clusters.iter().find(|c| c.name == "eu-1").unwrap();
    assert_eq!(cluster.state(), v1::ClusterState::Failing);

    approve(&hub, "eu-1", "web", there).await.unwrap();
    until_generation(&eu_1, 2).await;
    assert_eq!(eu_1.memory.approved(), sets([there]));
    let wanted = numbers([("eu-1", 2), ("eu-2", 1), ("us-1", 1)]);
    assert_eq!(hub.wanted().await, wanted);
    // No bundle was sent again.
    assert_eq!(eu_1.memory.deliveries(), (2, 2));
    until_released(&hub, "eu-1").await;

    // A completed approval does not cause a new generation, and the next one does not contain it.
    let db = publish(&repo, "eu-2", [("apps/web/values/eu-2.yaml", "size: 7\n")]);
    until_generation(&eu_2, 2).await;
    hub.until_in_force(&db).await;
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 2), ("eu-2", 2), ("us-1", 1)])
    );
    let hub = hub.restart().await;
    publish(&repo, "db", [("apps/db/values.yaml", "size: 2\n")]);
    until_generation(&eu_1, 3).await;
    assert!(eu_1.memory.approved().is_empty());
    // The set in the other cluster is still pending.
    until_generation(&us_1, 2).await;
    assert!(us_1.memory.approved().is_empty());
    until_held(&hub, "us-1", "web", elsewhere).await;

    let (config, _state) = hub.stop().await;
    let store = store_of(&config).await;
    assert_eq!(store.keys("approval/").await.unwrap(), []);
    let told = format!(
        r#""local": "approved to delete the set {} of app web in cluster eu-1: the old shards""#,
        there.short()
    );
    let audit = audit(&store).await.into_iter();
    assert_eq!(
        audit
            .filter(|entry| entry.contains("approved"))
            .collect::<Vec<_>>(),
        [told]
    );
}

/// Returns the entries of the audit log, in order.
async fn audit(store: &SqliteStore) -> Vec<String> {
    let entries = store.range("audit/").await.unwrap();
    let text = |entry: &[u8]| {
        let entry: serde_json::Value = serde_json::from_slice(entry).unwrap();
        format!("{}: {}", entry["who"], entry["what"])
    };
    entries
        .iter()
        .map(|(_, entry)| text(&entry.value))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn recreations_are_in_the_audit_log_once_each() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&head(&repo)).await;
    let database = "Database.example.org web/main";
    let set = agent.memory.hold_recreation("web", database);
    until_held(&hub, "eu-2", "web", set).await;
    approve(&hub, "eu-2", "web", set).await.unwrap();
    until_generation(&agent, 2).await;
    let recreated = async |hub: &Hub| {
        let waiting = eventually("the recreation is reported", SOON, async || {
            // The status of a whole fleet leaves drifts out.
            let request = v1::StatusRequest {
                apps: vec!["web".to_owned()],
                ..v1::StatusRequest::default()
            };
            let status = hub.admin().await.get_status(request).await?.into_inner();
            let cluster = status.clusters.iter().find(|c| c.name == "eu-2");
            let cluster = cluster.context("no cluster")?;
            ensure!(cluster.state() != v1::ClusterState::Offline);
            let drifts = cluster.apps.iter().flat_map(|app| &app.drifts);
            ensure!(drifts.count() == 1);
            Ok(())
        });
        waiting.await.unwrap();
    };
    agent.memory.recreated("web", database);
    recreated(&hub).await;
    // Agents report it again whenever they reconnect, and the hub remembers what was reported.
    let (badge, memory) = agent.stop().await;
    let agent = Agent::run(hub.address(), Arc::clone(&badge), memory);
    recreated(&hub).await;
    let hub = hub.restart().await;
    let (_, memory) = agent.stop().await;
    let agent = Agent::run(hub.address(), badge, memory);
    recreated(&hub).await;
    agent.stop().await;

    let (config, _state) = hub.stop().await;
    let audit = audit(&store_of(&config).await).await.into_iter();
    assert_eq!(
        audit
            .filter(|entry| entry.contains(database))
            .collect::<Vec<_>>(),
        [
            format!(
                r#""local": "approved to recreate {database} of app web in cluster eu-2: the old shards""#
            ),
            format!(
                r#""agent of cluster eu-2": "recreated {database} of app web: spec.engine can't be changed""#
            ),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_pending_approval_now_can_be_approved() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, _eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let shown = eu_1.memory.hold("web", "three objects");
    until_held(&hub, "eu-1", "web", shown).await;
    let now = eu_1.memory.hold("web", "and a fourth");
    until_held(&hub, "eu-1", "web", now).await;
    let elsewhere = us_1.memory.hold("db", "a volume");
    until_held(&hub, "us-1", "db", elsewhere).await;

    let mut told = String::new();
    for (cluster, app, set) in [
        ("eu-1", "web", shown),
        ("eu-1", "db", now),
        ("eu-1", "wiki", now),
        ("us-1", "db", now),
        ("eu-9", "web", now),
    ] {
        let refused = approve(&hub, cluster, app, set).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        told.push_str(&format!("{cluster} {app}: {}\n", refused.message()));
    }
    insta::assert_snapshot!(told, @r"
    eu-1 web: what is pending approval for app web in cluster eu-1 has changed since you were shown it; look again
    eu-1 db: nothing of app db is pending approval in cluster eu-1; look again
    eu-1 wiki: nothing of app wiki is pending approval in cluster eu-1; look again
    us-1 db: what is pending approval for app db in cluster us-1 has changed since you were shown it; look again
    eu-9 web: cluster eu-9 has no agent that could delete anything
    ");
    let request = v1::ApproveSetRequest {
        cluster: "eu-1".to_owned(),
        app: "web".to_owned(),
        set: vec![1, 2],
        ..v1::ApproveSetRequest::default()
    };
    let refused = hub.admin().await.approve_set(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 1), ("eu-2", 1), ("us-1", 1)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sets_of_a_cluster_are_approved_one_after_the_other() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "eu-1").await;
    let agent = Agent::run(hub.address(), badge, Memory::new());
    until_generation(&agent, 1).await;
    let (web, db) = (agent.memory.hold("web", "a"), agent.memory.hold("db", "b"));
    until_held(&hub, "eu-1", "web", web).await;
    until_held(&hub, "eu-1", "db", db).await;
    // The agent is disconnected, so its report is about the generation before the first approval.
    let (badge, memory) = agent.stop().await;
    approve(&hub, "eu-1", "web", web).await.unwrap();
    let wanted = async |number: u64| {
        let look = |status: &v1::Status| {
            let cluster = status.clusters.iter().find(|c| c.name == "eu-1");
            ensure!(cluster.is_some_and(|c| c.wanted == number));
            Ok(())
        };
        hub.until("another generation", look).await;
    };
    wanted(2).await;
    approve(&hub, "eu-1", "db", db).await.unwrap();
    wanted(3).await;
    let agent = Agent::run(hub.address(), badge, memory);
    until_generation(&agent, 3).await;
    assert_eq!(agent.memory.approved(), sets([web, db]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_does_not_wait_for_a_broken_commit() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    let good = head(&repo);
    hub.until_synced(&good).await;
    let files = [
        ("regions/eu/region.yaml", document("Region", "eu", "")),
        ("apps/web/values.yaml", "size: 2\n".to_owned()),
    ];
    publish(&repo, "a region without a place", files);
    let told = |status: &v1::Status| {
        ensure!(!status.problems.is_empty());
        Ok(())
    };
    hub.until("the problem is shown", told).await;
    let set = agent.memory.hold("web", "a");
    until_held(&hub, "eu-2", "web", set).await;
    approve(&hub, "eu-2", "web", set).await.unwrap();
    until_generation(&agent, 2).await;
    assert_eq!(agent.memory.approved(), sets([set]));
    assert_eq!(agent.memory.data("web"), r#"{"size":"1"}"#);
    let status = hub.status().await;
    assert_eq!(status.repo.unwrap().commit, good);
    assert_eq!(status.problems.len(), 1);
    // Delivery continues.
    until_released(&hub, "eu-2").await;
    let region = fleet().remove("regions/eu/region.yaml").unwrap();
    let mended = publish(&repo, "mended", [("regions/eu/region.yaml", region)]);
    hub.until_synced(&mended).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    assert!(agent.memory.approved().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_from_before_a_restore_is_void() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&head(&repo)).await;
    let set = agent.memory.hold("web", "a");
    until_held(&hub, "eu-2", "web", set).await;
    let (badge, memory) = agent.stop().await;
    approve(&hub, "eu-2", "web", set).await.unwrap();
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-2").unwrap();
        ensure!(cluster.wanted == 2);
        Ok(())
    };
    hub.until("a generation with the approval", look).await;
    let scratch = tempfile::tempdir().unwrap();
    let kept = scratch.path().join("backup.db");
    backup(&hub.config.store_path(), &kept).unwrap();
    let (config, state) = restored(hub, &kept).await;
    // The repository is moved away, so that only the store knows what the cluster should run.
    let away = repo.path().with_extension("away");
    std::fs::rename(repo.path(), &away).unwrap();
    std::fs::remove_dir_all(config.state_dir.join("mirror")).unwrap();
    let hub = Hub::start(config, state).await;
    let agent = Agent::run(hub.address(), badge, memory);
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == "eu-2").unwrap();
        ensure!(cluster.connected);
        let problems = status.problems.iter();
        let told = problems.map(|problem| problem.message.clone());
        Ok(told.collect::<Vec<_>>().join("\n"))
    };
    let told = hub.until("its agent is connected", look).await;
    assert!(told.contains("delivers nothing until it has"), "{told}");
    assert_eq!(agent.memory.generation(), 1);
    std::fs::rename(&away, repo.path()).unwrap();
    let generation = |agent: &Agent| agent.memory.generation();
    agent
        .memory
        .until("a generation", |memory| memory.generation() > 1)
        .await;
    assert!(agent.memory.approved().is_empty());
    // The set is pending again, and can be approved again.
    until_held(&hub, "eu-2", "web", set).await;
    let before = generation(&agent);
    let again = eventually("it is approved", SOON, async || {
        Ok(approve(&hub, "eu-2", "web", set).await?)
    });
    again.await.unwrap();
    until_generation(&agent, before + 1).await;
    assert_eq!(agent.memory.approved(), sets([set]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_leaves_by_its_placement_or_a_commit_message_and_else_needs_approval() {
    let repo = repository();
    let app = |placement: &str| {
        let spec = format!("tier: gold, mode: active-active{placement}");
        [
            (
                "apps/extra/app.yaml".to_owned(),
                document("App", "extra", &spec),
            ),
            (
                "apps/extra/templates/a.yaml".to_owned(),
                crate::fixture::config_map("extra", "a: b"),
            ),
        ]
    };
    publish(&repo, "an app", app(""));
    let hub = Hub::new(&repo).await;
    let [eu_1, _eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let leaving = PruneOrders::leaving(&"extra".parse().unwrap());

    // Its placement no longer contains a region, so it may be deleted there.
    let commit = publish(&repo, "elsewhere", app(", placement: {regions: [eu]}"));
    hub.until_in_force(&commit).await;
    until_generation(&us_1, 2).await;
    assert_eq!(us_1.memory.approved(), sets([leaving]));
    assert!(eu_1.memory.approved().is_empty());

    // Its folder is gone, and no commit message says that this is intended.
    std::fs::remove_dir_all(repo.work().join("apps/extra")).unwrap();
    publish(&repo, "a script that lost its input", [("note", "1")]);
    until_generation(&eu_1, 2).await;
    assert!(eu_1.memory.approved().is_empty());

    // It comes back. Then a commit message allows its deletion, also if that is not the last commit of the push.
    publish(&repo, "back again", app(""));
    until_generation(&eu_1, 3).await;
    std::fs::remove_dir_all(repo.work().join("apps/extra")).unwrap();
    let said = "extra is retired\n\nNobody uses it.\n\nMuster-Prune: extra";
    repo.commit(said, &[]).unwrap();
    publish(&repo, "another commit of the same push", [("note", "2")]);
    until_generation(&eu_1, 4).await;
    assert_eq!(eu_1.memory.approved(), sets([leaving]));
    // A later commit does not revoke that, and a later app of that name is a new app.
    publish(&repo, "back once more", app(""));
    until_generation(&eu_1, 5).await;
    assert!(eu_1.memory.approved().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_not_approved_while_another_app_holds_something_in_it() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, ..] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let space = eu_1
        .memory
        .hold_objects("web", "space", &["Namespace shards"]);
    let claim = eu_1
        .memory
        .hold_objects("db", "claim", &["PersistentVolumeClaim shards/data"]);
    until_held(&hub, "eu-1", "web", space).await;
    until_held(&hub, "eu-1", "db", claim).await;
    let refused = approve(&hub, "eu-1", "web", space).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "deleting Namespace shards would also delete PersistentVolumeClaim shards/data, which is pending \
         approval for app db in cluster eu-1; approve that first"
    );
    approve(&hub, "eu-1", "db", claim).await.unwrap();
}
