//! The fleet record holds who writes: no commit moves a writer, and no restored hub forgets one.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use muster_agent::Cluster as _;
use muster_model::fleet_record::SealedRecord;
use muster_proto::v1;
use muster_store::{Store as _, Txn, backup};
use muster_testkit::gitserver::GitRepo;
use tempfile::TempDir;

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, config_map, copy, document, publish, repository, restored, store_of},
    raw::{Raw, hello},
};

fn head(repo: &GitRepo) -> String {
    repo.git(&["rev-parse", "HEAD"]).unwrap()
}

/// Returns the app's document with this placement.
fn app(name: &str, mode: &str, placement: &str) -> (String, String) {
    let spec = format!("tier: gold, mode: {mode}, placement: {{{placement}}}");
    (
        format!("apps/{name}/app.yaml"),
        document("App", name, &spec),
    )
}

/// Returns the files of the app `queue`, a singleton.
fn queue(placement: &str) -> Vec<(String, String)> {
    let template = config_map("queue", "role: {{ app.role }}, since: \"{{ app.epoch }}\"");
    vec![
        app("queue", "singleton", placement),
        ("apps/queue/templates/queue.yaml".to_owned(), template),
    ]
}

fn writer(status: &v1::Status, app: &str) -> anyhow::Result<v1::Writer> {
    let app = status.apps.iter().find(|found| found.name == app);
    let mut writer = app.and_then(|app| app.writer.clone());
    if let Some(writer) = &mut writer {
        // Where it can move changes with every commit.
        writer.targets.clear();
    }
    writer.ok_or_else(|| anyhow::anyhow!("the app has no writer"))
}

/// Waits until the newest commit was processed and has a problem with this text.
async fn until_problem(hub: &Hub, text: &str) {
    let look = |status: &v1::Status| {
        ensure!(status.problems.iter().any(|p| p.message.contains(text)));
        Ok(())
    };
    hub.until(text, look).await;
}

/// A backup of a hub's store.
struct Backup(TempDir);

impl Backup {
    fn of(hub: &Hub) -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        backup(&hub.config.store_path(), &made.path()).unwrap();
        made
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("backup.db")
    }
}

const PRIMARY: &str = r#"{"role":"primary","size":"1"}"#;
const STANDBY: &str = r#"{"role":"standby","size":"1"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn no_commit_moves_or_doubles_a_writer() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let first = writer(&hub.status().await, "db").unwrap();
    assert_eq!(
        (first.cluster.as_str(), first.region.as_str(), first.epoch),
        ("eu-1", "eu", 1)
    );
    let unmoved = || {
        assert_eq!(eu_1.memory.data("db"), PRIMARY);
        assert_eq!(us_1.memory.data("db"), STANDBY);
        assert!(!eu_2.memory.runs().contains_key("db"));
    };
    unmoved();

    // Regions in another order, and a cluster whose name sorts first.
    let commit = publish(
        &repo,
        "order",
        [app("db", "active-passive", "regions: [us, eu]")],
    );
    hub.until_synced(&commit).await;
    unmoved();
    let before = (
        "regions/eu/a-1.yaml".to_owned(),
        document("Cluster", "a-1", ""),
    );
    hub.until_synced(&publish(&repo, "a-1", [before])).await;
    unmoved();

    // A placement that no longer fits, and another mode, block the app.
    publish(
        &repo,
        "away",
        [app("db", "active-passive", "regions: [us]")],
    );
    until_problem(&hub, "`placement` does not fit cluster `eu-1` any more").await;
    publish(&repo, "everywhere", [app("db", "active-active", "")]);
    until_problem(&hub, "`mode` can't become active-active").await;
    unmoved();
    let status = hub.status().await;
    assert!(
        status.apps.iter().any(|app| app.name == "db" && app.held),
        "{status:#?}"
    );

    // A commit without the cluster is blocked as a whole, also after a restart.
    repo.git(&["rm", "--quiet", "regions/eu/eu-1.yaml"])
        .unwrap();
    publish(&repo, "without", [app("db", "active-passive", "")]);
    until_problem(
        &hub,
        "there is no cluster `eu-1` any more, but it holds the writer of db",
    )
    .await;
    let hub = hub.restart().await;
    until_problem(
        &hub,
        "there is no cluster `eu-1` any more, but it holds the writer of db",
    )
    .await;
    unmoved();
    assert_eq!(writer(&hub.status().await, "db").unwrap(), first);

    // A singleton keeps its holder, and gets a standby again.
    let back = (
        "regions/eu/eu-1.yaml".to_owned(),
        document("Cluster", "eu-1", ""),
    );
    let commit = publish(&repo, "alone", [back, app("db", "singleton", "")]);
    hub.until_synced(&commit).await;
    assert_eq!(eu_1.memory.data("db"), PRIMARY);
    assert_eq!(writer(&hub.status().await, "db").unwrap(), first);
    let commit = publish(&repo, "again", [app("db", "active-passive", "")]);
    hub.until_synced(&commit).await;
    unmoved();
    assert_eq!(hub.status().await.epoch, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_app_keeps_its_writer() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agents = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    repo.git(&["mv", "apps/db", "apps/store"]).unwrap();
    let spec = "tier: gold, mode: active-passive, formerly: db, placement: {regions: [us, eu]}";
    let renamed = ("apps/store/app.yaml", document("App", "store", spec));
    hub.until_synced(&publish(&repo, "renamed", [renamed]))
        .await;
    assert_eq!(agents[0].memory.data("store"), PRIMARY);
    assert_eq!(agents[2].memory.data("store"), STANDBY);
    let status = hub.status().await;
    let writer = writer(&status, "store").unwrap();
    assert_eq!(
        (writer.cluster.as_str(), writer.epoch, status.epoch),
        ("eu-1", 1, 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_comes_back_has_its_writer_until_nothing_is_left_of_it() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, ..] = Agent::join_all(&hub).await;
    hub.until_synced(&publish(&repo, "queue", queue("clusters: [eu-1, us-1]")))
        .await;
    assert_eq!(
        eu_1.memory.data("queue"),
        r#"{"role":"primary","since":"2"}"#
    );

    // While the cluster still has something of it, it comes back to where it was.
    eu_1.memory.hold("queue", "something");
    std::fs::remove_dir_all(repo.work().join("apps/queue")).unwrap();
    let gone = publish(&repo, "gone", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_in_force(&gone).await;
    let here = |memory: &Memory| !memory.runs().contains_key("queue");
    eu_1.memory.until("the app has left", here).await;
    let other = publish(&repo, "other", queue("clusters: [us-1]"));
    hub.until_in_force(&other).await;
    until_problem(&hub, "does not fit cluster `eu-1` any more").await;
}

/// Removes the cluster `eu-1`.
async fn remove_from(
    hub: &Hub,
    lose_writers: bool,
    reason: &str,
) -> Result<v1::RemoveClusterResponse, tonic::Status> {
    let request = v1::RemoveClusterRequest {
        cluster: "eu-1".to_owned(),
        lose_writers,
        reason: reason.to_owned(),
    };
    let removed = hub.admin().await.remove_cluster(request).await?;
    Ok(removed.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_cluster_keeps_its_writers_until_a_person_answers_for_it() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [_eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let remove = async |lose_writers, reason: &str| remove_from(&hub, lose_writers, reason).await;
    let refused = remove(true, " ").await.unwrap_err();
    assert!(refused.message().contains("needs a reason"), "{refused}");
    let refused = remove(true, "burnt down").await.unwrap_err();
    assert!(
        refused
            .message()
            .contains("is still in the fleet repository"),
        "{refused}"
    );
    assert_eq!(us_1.memory.data("db"), STANDBY);

    repo.git(&["rm", "--quiet", "regions/eu/eu-1.yaml"])
        .unwrap();
    let placement = app("db", "active-passive", "regions: [us, eu]");
    let without = publish(&repo, "without", [placement]);
    until_problem(&hub, "there is no cluster `eu-1` any more").await;
    // Its certificates can always be revoked, as after a theft. That moves no writer.
    let removed = remove(false, "").await.unwrap();
    assert_eq!(
        (removed.revoked, removed.writers),
        (1, vec!["db".to_owned()])
    );
    let hub = hub.restart().await;
    until_problem(&hub, "there is no cluster `eu-1` any more").await;
    assert_eq!(us_1.memory.data("db"), STANDBY);
    let removed = remove_from(&hub, true, "burnt down").await.unwrap();
    assert_eq!((removed.revoked, removed.writers), (0, vec![]));
    // The clusters already ran this commit, with the writer held. It is worked once more.
    let placed = |status: &v1::Status| {
        let writer = writer(status, "db")?;
        ensure!(writer.cluster == "us-1" && writer.epoch == 3);
        Ok(())
    };
    hub.until("the first candidate that is left writes", placed)
        .await;
    let promoted = |memory: &Memory| memory.data("db") == PRIMARY;
    us_1.memory.until("the promotion", promoted).await;
    hub.until_synced(&without).await;
    assert_eq!(eu_2.memory.data("db"), STANDBY);
    // A cluster without writers needs no override.
    assert_eq!(hub.remove("eu-2").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_hub_takes_over_the_newer_record_of_its_agents() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let backup = Backup::of(&hub);

    // After the backup, the queue gets its writer in the US. Then Git prefers the EU.
    hub.until_synced(&publish(&repo, "queue", queue("regions: [us, eu]")))
        .await;
    let last = publish(&repo, "prefers the EU", queue("regions: [eu, us]"));
    hub.until_synced(&last).await;
    let role = r#"{"role":"primary","since":"2"}"#;
    assert_eq!(us_1.memory.data("queue"), role);
    let (eu_1, eu_2, us_1) = (eu_1.stop().await, eu_2.stop().await, us_1.stop().await);

    let (config, state) = restored(hub, &backup.path()).await;
    let hub = Hub::start(config, state).await;
    // The hub knows nothing of the queue, and places it nowhere before it has heard every cluster.
    until_problem(&hub, "this app gets no writer now").await;
    hub.until_in_force(&last).await;
    assert!(writer(&hub.status().await, "queue").is_err());
    // Any agent has the whole record.
    let eu_2 = Agent::run(hub.address(), eu_2.0, eu_2.1);
    let look = |status: &v1::Status| {
        let writer = writer(status, "queue")?;
        ensure!(writer.cluster == "us-1" && writer.epoch == 2 && status.epoch == 2);
        Ok(())
    };
    hub.until("the record is taken over", look).await;
    let eu_1 = Agent::run(hub.address(), eu_1.0, eu_1.1);
    let us_1 = Agent::run(hub.address(), us_1.0, us_1.1);
    hub.until_synced(&last).await;
    assert_eq!(us_1.memory.data("queue"), role);
    assert!(!eu_1.memory.runs().contains_key("queue"));
    assert!(!eu_2.memory.runs().contains_key("queue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_answers_for_clusters_that_a_restored_hub_does_not_hear() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let backup = Backup::of(&hub);
    drop(us_1.stop().await);
    let (config, state) = restored(hub, &backup.path()).await;
    let hub = Hub::start(config, state).await;
    publish(&repo, "queue", queue("regions: [eu, us]"));
    until_problem(&hub, "cluster us-1 may know who writes but was not heard").await;
    // Everything else is delivered.
    let larger = publish(&repo, "larger", [("apps/web/values.yaml", "size: 3\n")]);
    hub.until_in_force(&larger).await;
    let new = |memory: &Memory| memory.data("web") == r#"{"size":"3"}"#;
    eu_1.memory.until("the new size", new).await;
    eu_2.memory.until("the new size", new).await;
    let ask = |dry_run| v1::ConfirmStateRequest {
        dry_run,
        reason: "us-1 has burnt down".to_owned(),
    };
    let shown = hub
        .admin()
        .await
        .confirm_state(ask(true))
        .await
        .unwrap()
        .into_inner();
    let names = |text: &String| text.contains("not heard") && text.contains("us-1");
    assert!(shown.suspicions.iter().any(names), "{shown:?}");
    hub.admin().await.confirm_state(ask(false)).await.unwrap();
    let placed = |memory: &Memory| memory.data("queue") == r#"{"role":"primary","since":"2"}"#;
    eu_1.memory.until("the queue is placed", placed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_sent_once_and_believed_only_with_its_proof() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let badge = Badge::new(&hub, "us-1").await;
    hub.until_in_force(&head(&repo)).await;
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let first = raw.generation().await;
    let record: SealedRecord = first.record.clone().unwrap().try_into().unwrap();
    assert_eq!(record.epoch.0, first.epoch);
    assert_eq!(
        record.read().unwrap().writers["db"].cluster.as_str(),
        "eu-1"
    );
    publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    let second = raw.generation().await;
    assert!(second.record.is_none() && second.epoch == first.epoch);
    drop(raw);

    // An agent that has the record is not sent it again. One that lacks only the record is sent it.
    let has = |record: &SealedRecord| v1::Hello {
        epoch: record.epoch.0,
        record: record.id().hash.0.to_vec(),
        ..hello(&badge)
    };
    let mut raw = Raw::hello(&hub, &badge, has(&record)).await.unwrap();
    raw.welcome().await;
    assert!(raw.generation().await.record.is_none());
    drop(raw);
    let lacks = v1::Hello {
        generation: second.number,
        content: second.content.clone(),
        ..hello(&badge)
    };
    let mut raw = Raw::hello(&hub, &badge, lacks).await.unwrap();
    raw.welcome().await;
    let again = raw.generation().await;
    assert_eq!(
        (again.number, again.record),
        (second.number, first.record.clone())
    );
    drop(raw);

    // Somebody with an agent's certificate makes itself the holder.
    let mut forged = record.read().unwrap();
    forged.epoch = forged.epoch.next();
    for writer in forged.writers.values_mut() {
        writer.cluster = badge.cluster.clone();
    }
    let before = hub.status().await;
    for proof in [record.proof, [0; 32]] {
        let forged = SealedRecord::new(&forged, |_| proof);
        let mut raw = Raw::hello(&hub, &badge, has(&forged)).await.unwrap();
        raw.welcome().await;
        let asked = raw.next().await.unwrap();
        assert!(
            matches!(asked, v1::hub_message::Message::ShowRecord(_)),
            "{asked:?}"
        );
        let message = Some(v1::agent_message::Message::Record((&forged).into()));
        raw.say.send(v1::AgentMessage { message }).await.unwrap();
        let end = raw.next().await.unwrap_err();
        assert!(
            end.message().contains("which no hub of this fleet wrote"),
            "{end}"
        );
    }
    let after = hub.status().await;
    assert_eq!((after.epoch, &after.apps), (before.epoch, &before.apps));
    assert!(hub.refused("foreign_record").await >= 2);
    let us = after
        .clusters
        .iter()
        .find(|cluster| cluster.name == "us-1")
        .unwrap();
    assert!(
        us.problems
            .iter()
            .any(|p| p.contains("no hub of this fleet wrote")),
        "{us:#?}"
    );

    // A record of another fleet changes nothing either, if the agent says that it is from an earlier enrolment.
    let foreign = SealedRecord::new(&forged, |_| [0; 32]);
    let newer = v1::Hello {
        foreign_record: true,
        ..has(&foreign)
    };
    let mut raw = Raw::hello(&hub, &badge, newer).await.unwrap();
    raw.welcome().await;
    raw.next().await.unwrap();
    let message = Some(v1::agent_message::Message::Record((&foreign).into()));
    raw.say.send(v1::AgentMessage { message }).await.unwrap();
    assert_eq!(raw.generation().await.epoch, before.epoch);
    drop(raw);

    // An agent that does not show its record is not served.
    let mut raw = Raw::hello(&hub, &badge, has(&foreign)).await.unwrap();
    raw.welcome().await;
    raw.next().await.unwrap();
    let end = raw.next().await.unwrap_err();
    assert!(
        end.message().contains("does not show its fleet record"),
        "{end}"
    );

    // A record that nobody asked for ends the stream, too.
    let mut raw = Raw::hello(&hub, &badge, hello(&badge)).await.unwrap();
    raw.welcome().await;
    let message = Some(v1::agent_message::Message::Record((&record).into()));
    raw.say.send(v1::AgentMessage { message }).await.unwrap();
    while let Ok(message) = raw.next().await {
        assert!(
            matches!(message, v1::hub_message::Message::Generation(_)),
            "{message:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_an_earlier_release_gets_its_record_from_what_the_clusters_run() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, _, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let grpc = hub.addresses.grpc;
    let (mut config, state) = hub.stop().await;
    config.listen = grpc;
    let store = store_of(&config).await;
    store
        .commit(Txn::new().delete("fleet/record"))
        .await
        .unwrap();
    drop(store);
    let commit = publish(
        &repo,
        "order",
        [app("db", "active-passive", "regions: [us, eu]")],
    );
    let hub = Hub::start(config, state).await;
    hub.until_synced(&commit).await;
    assert_eq!(
        (eu_1.memory.data("db"), us_1.memory.data("db")),
        (PRIMARY.to_owned(), STANDBY.to_owned())
    );
    let writer = writer(&hub.status().await, "db").unwrap();
    assert_eq!(
        (writer.cluster.as_str(), writer.by.as_str()),
        ("eu-1", "hub")
    );
    assert_eq!(eu_1.memory.known().record.unwrap().epoch.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_a_lower_number_is_not_lost_after_a_restore() {
    let repo = repository();
    let hub = Hub::with(&repo, |config| config.heard_within = Duration::ZERO).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let backup = Backup::of(&hub);
    // The queue is placed after the backup, and only one cluster learns of it.
    let (eu_1, eu_2) = (eu_1.stop().await, eu_2.stop().await);
    let queued = publish(&repo, "queue", queue("regions: [us, eu]"));
    hub.until_in_force(&queued).await;
    let role = r#"{"role":"primary","since":"2"}"#;
    let placed = |memory: &Memory| memory.data("queue") == role;
    us_1.memory.until("the queue", placed).await;
    let us_1 = us_1.stop().await;

    // The restored hub renames an app twice meanwhile, so its epoch is higher than that of the record which it lacks.
    let (config, state) = restored(hub, &backup.path()).await;
    let hub = Hub::start(config, state).await;
    let eu_1 = Agent::run(hub.address(), eu_1.0, eu_1.1);
    let eu_2 = Agent::run(hub.address(), eu_2.0, eu_2.1);
    publish(&repo, "prefers the EU", queue("regions: [eu, us]"));
    for (old, new) in [("db", "store"), ("store", "ledger")] {
        let (from, to) = (format!("apps/{old}"), format!("apps/{new}"));
        repo.git(&["mv", &from, &to]).unwrap();
        let spec = format!("tier: gold, mode: active-passive, formerly: {old}, namespace: db");
        let document = (format!("{to}/app.yaml"), document("App", new, &spec));
        hub.until_in_force(&publish(&repo, new, [document])).await;
    }
    assert!(hub.status().await.epoch > 2);
    assert!(writer(&hub.status().await, "queue").is_err());
    let us_1 = Agent::run(hub.address(), us_1.0, us_1.1);
    hub.until_synced(&head(&repo)).await;
    let queue = writer(&hub.status().await, "queue").unwrap();
    assert_eq!((queue.cluster.as_str(), queue.epoch), ("us-1", 2));
    assert_eq!(us_1.memory.data("queue"), role);
    assert_eq!(eu_1.memory.data("ledger"), PRIMARY);
    assert!(!eu_1.memory.runs().contains_key("queue") && !eu_2.memory.runs().contains_key("queue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_joins_again_still_shows_what_it_knows() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    let backup = Backup::of(&hub);
    hub.until_synced(&publish(&repo, "queue", queue("regions: [us, eu]")))
        .await;
    let last = publish(&repo, "prefers the EU", queue("regions: [eu, us]"));
    hub.until_synced(&last).await;
    drop((eu_1.stop().await, eu_2.stop().await));
    let (_, memory) = us_1.stop().await;
    let (config, state) = restored(hub, &backup.path()).await;
    let hub = Hub::start(config, state).await;
    memory.join_anew();
    let us_1 = Agent::run(hub.address(), Badge::new(&hub, "us-1").await, memory);
    let look = |status: &v1::Status| {
        let writer = writer(status, "queue")?;
        ensure!(writer.cluster == "us-1" && writer.epoch == 2);
        Ok(())
    };
    hub.until("the record is taken over", look).await;
    hub.until_in_force(&last).await;
    assert_eq!(
        us_1.memory.data("queue"),
        r#"{"role":"primary","since":"2"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_rolled_back_without_a_word_places_nothing_before_its_clusters_are_heard()
{
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [_eu_1, _eu_2, us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&head(&repo)).await;
    // A snapshot of the volume, which no Muster command made.
    let grpc = hub.addresses.grpc;
    let (mut config, state) = hub.stop().await;
    config.listen = grpc;
    let snapshot = tempfile::tempdir().unwrap();
    copy(&config.state_dir, snapshot.path());
    let hub = Hub::start(config, state).await;
    hub.until_synced(&publish(&repo, "queue", queue("regions: [us, eu]")))
        .await;
    let last = publish(&repo, "prefers the EU", queue("regions: [eu, us]"));
    hub.until_synced(&last).await;
    let us_1 = us_1.stop().await;

    let (config, state) = hub.stop().await;
    std::fs::remove_dir_all(&config.state_dir).unwrap();
    copy(snapshot.path(), &config.state_dir);
    let hub = Hub::start(config, state).await;
    let us_1 = Agent::run(hub.address(), us_1.0, us_1.1);
    // The agents have seen another hub's term of the same number. A person decides that this hub is the one.
    until_problem(&hub, "this hub has stepped down").await;
    assert!(writer(&hub.status().await, "queue").is_err());
    let hub = hub.restart().await;
    let taken = |status: &v1::Status| {
        let writer = writer(status, "queue")?;
        ensure!(writer.cluster == "us-1" && writer.epoch == 2);
        Ok(())
    };
    hub.until("the record is taken over", taken).await;
    hub.until_synced(&last).await;
    assert_eq!(
        us_1.memory.data("queue"),
        r#"{"role":"primary","since":"2"}"#
    );
}
