//! Moves of writers: one step after the other, each only by what the agents of both sides have shown.

use anyhow::ensure;
use muster_proto::v1;
use muster_store::{Store as _, backup};
use muster_testkit::{gitserver::GitRepo, wait::eventually};
use tonic::Status;

use crate::{
    agents::{Agent, Memory, WriterState},
    fixture::{Hub, SOON, config_map, document, publish, repository, restored},
};

const RULE: &str = "writer: {stopped: {objects: {db: {apiVersion: apps/v1, kind: StatefulSet, name: db}}, \
    when: objects.db.status.replicas == 0}, carry: {at: objects.db.status.at}}";
const TEMPLATE: &str =
    "role: {{ app.role }}, at: \"{{ handover.at if handover.at is defined else '-' }}\"";

/// Returns the files of the app `orders`, whose writer can move.
fn orders(rule: &str, template: &str) -> Vec<(String, String)> {
    let spec =
        format!("tier: gold, mode: active-passive, placement: {{regions: [eu, us]}}, {rule}");
    vec![
        (
            "apps/orders/app.yaml".to_owned(),
            document("App", "orders", &spec),
        ),
        (
            "apps/orders/templates/orders.yaml".to_owned(),
            config_map("orders", template),
        ),
    ]
}

fn data(role: &str, at: &str) -> String {
    format!(r#"{{"at":"{at}","role":"{role}"}}"#)
}

/// A fleet whose app `orders` runs in `eu-1` and `us-1`.
struct Fleet {
    repo: GitRepo,
    hub: Hub,
    eu: Agent,
    us: Agent,
    _other: Agent,
}

impl Fleet {
    async fn new() -> Self {
        let repo = repository();
        let hub = Hub::new(&repo).await;
        let [eu, other, us] = Agent::join_all(&hub).await;
        hub.until_synced(&publish(&repo, "orders", orders(RULE, TEMPLATE)))
            .await;
        assert_eq!(eu.memory.data("orders"), data("primary", "-"));
        assert_eq!(us.memory.data("orders"), data("standby", "-"));
        Self {
            repo,
            hub,
            eu,
            us,
            _other: other,
        }
    }

    async fn order(&self, region: &str) -> Result<v1::MoveAppResponse, Status> {
        order(&self.hub, request(region)).await
    }

    /// Orders a move to the US and waits until the old side is fenced.
    async fn fence(&self) {
        self.order("us").await.unwrap();
        let fenced = |memory: &Memory| memory.data("orders") == data("fenced", "-");
        self.eu.memory.until("the fence", fenced).await;
    }

    async fn until_waits(&self, text: &str) {
        until_waits(&self.hub, text).await;
    }

    /// Waits until the writer is in this cluster and no move is under way.
    async fn until_moved(&self, cluster: &str) {
        until_moved(&self.hub, cluster).await;
    }
}

fn request(region: &str) -> v1::MoveAppRequest {
    v1::MoveAppRequest {
        app: "orders".to_owned(),
        region: region.to_owned(),
        ..v1::MoveAppRequest::default()
    }
}

async fn order(hub: &Hub, request: v1::MoveAppRequest) -> Result<v1::MoveAppResponse, Status> {
    let ordered = hub.admin().await.move_app(request).await?;
    Ok(ordered.into_inner())
}

fn writer(status: &v1::Status) -> v1::Writer {
    let app = status.apps.iter().find(|app| app.name == "orders");
    app.and_then(|app| app.writer.clone()).unwrap()
}

async fn until_waits(hub: &Hub, text: &str) {
    let look = |status: &v1::Status| {
        let moved = writer(status).r#move.unwrap_or_default();
        ensure!(moved.waits.contains(text), "{moved:?}");
        Ok(())
    };
    hub.until(text, look).await;
}

async fn until_moved(hub: &Hub, cluster: &str) {
    let look = |status: &v1::Status| {
        let writer = writer(status);
        ensure!(
            writer.cluster == cluster && writer.r#move.is_none(),
            "{writer:?}"
        );
        Ok(())
    };
    hub.until(&format!("the writer is in {cluster}"), look)
        .await;
}

/// Makes an app healthy or not, and waits until the hub knows it.
async fn sick(hub: &Hub, agent: &Agent, sick: bool) {
    let change = |writer: &mut WriterState| writer.sick = sick;
    agent.memory.writer("orders", change);
    let name = agent.badge.cluster.as_str();
    let health = if sick { "Degraded" } else { "Healthy" };
    let look = |status: &v1::Status| {
        let cluster = status.clusters.iter().find(|c| c.name == name).unwrap();
        let app = cluster.apps.iter().find(|app| app.app == "orders").unwrap();
        ensure!(app.health == health, "{app:?}");
        Ok(())
    };
    hub.until(health, look).await;
}

fn stop(memory: &Memory) {
    memory.writer("orders", |writer| {
        writer.stopped = true;
        writer.carried = "0/3000060".to_owned();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_moves_only_after_the_old_side_has_stopped() {
    let fleet = Fleet::new().await;
    let shown = v1::MoveAppRequest {
        dry_run: true,
        ..request("us")
    };
    let shown = order(&fleet.hub, shown).await.unwrap();
    assert_eq!(
        (shown.from_cluster.as_str(), shown.to_cluster.as_str()),
        ("eu-1", "us-1")
    );
    assert!(shown.refusals.is_empty(), "{shown:?}");
    assert_eq!(fleet.eu.memory.data("orders"), data("primary", "-"));

    sick(&fleet.hub, &fleet.us, true).await;
    let refused = fleet.order("us").await.unwrap_err();
    assert!(refused.message().contains("is not healthy"), "{refused}");
    sick(&fleet.hub, &fleet.us, false).await;
    let refused = fleet.order("mars").await.unwrap_err();
    assert!(
        refused.message().contains("does not let app orders run"),
        "{refused}"
    );
    assert!(fleet.order("eu").await.unwrap().nothing);

    fleet.order("us").await.unwrap();
    let fenced = |memory: &Memory| memory.data("orders") == data("fenced", "-");
    fleet.eu.memory.until("the fence", fenced).await;
    fleet
        .until_waits("eu-1 has not proven that the writer has stopped: it still writes")
        .await;
    assert_eq!(fleet.us.memory.data("orders"), data("standby", "-"));
    // Another order for the same move changes nothing.
    assert!(fleet.order("us").await.unwrap().nothing);

    sick(&fleet.hub, &fleet.us, true).await;
    stop(&fleet.eu.memory);
    let promoted = |memory: &Memory| memory.data("orders") == data("primary", "0/3000060");
    fleet.us.memory.until("the promotion", promoted).await;
    fleet
        .until_waits("the app is not healthy in us-1 yet")
        .await;
    assert_eq!(fleet.eu.memory.data("orders"), data("fenced", "-"));
    let refused = fleet.order("eu").await.unwrap_err();
    assert!(
        refused.message().contains("is not finished yet"),
        "{refused}"
    );

    sick(&fleet.hub, &fleet.us, false).await;
    fleet.until_moved("us-1").await;
    // What was carried over is dropped, and the old side follows.
    let follows = |memory: &Memory| memory.data("orders") == data("standby", "-");
    fleet.eu.memory.until("the old side follows", follows).await;
    let dropped = |memory: &Memory| memory.data("orders") == data("primary", "-");
    fleet.us.memory.until("the value is dropped", dropped).await;
    assert_eq!(writer(&fleet.hub.status().await).epoch, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_ended_before_the_new_side_is_named() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    let ended = fleet.order("eu").await.unwrap();
    assert!(ended.gives_back, "{ended:?}");
    fleet.until_moved("eu-1").await;
    let back = |memory: &Memory| memory.data("orders") == data("primary", "-");
    fleet.eu.memory.until("the role is given back", back).await;
    assert_eq!(fleet.us.memory.data("orders"), data("standby", "-"));
    // A proof that comes too late is none.
    stop(&fleet.eu.memory);
    let refused = eventually("the order is refused", SOON, async || {
        let dry_run = v1::MoveAppRequest {
            dry_run: true,
            ..request("us")
        };
        let shown = order(&fleet.hub, dry_run).await?;
        let text = "where the app is the primary. So it proves nothing";
        ensure!(
            shown.refusals.iter().any(|why| why.contains(text)),
            "{shown:?}"
        );
        Ok(())
    });
    refused.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_something_else_does_not_count() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    fleet.eu.memory.writer("orders", |writer| {
        writer.stopped = true;
        writer.uid = "another".to_owned();
    });
    fleet.until_waits("is not the object that it was").await;
    // A value that would mean something in YAML.
    fleet.eu.memory.writer("orders", |writer| {
        writer.uid = String::new();
        writer.carried = "a\nkind: Secret".to_owned();
    });
    fleet.until_waits("a value that is not allowed").await;
    // Another rule.
    let rule = RULE.replace("== 0", "<= 9");
    publish(&fleet.repo, "another rule", orders(&rule, TEMPLATE));
    fleet.until_waits("`writer` has changed in Git").await;
    assert_eq!(fleet.us.memory.data("orders"), data("standby", "-"));
    // A cluster that joins again is another one.
    publish(&fleet.repo, "the rule of before", orders(RULE, TEMPLATE));
    let Fleet { hub, eu, us, .. } = fleet;
    let (badge, memory) = eu.stop().await;
    drop(badge);
    until_waits(&hub, "the agent of eu-1 is not connected").await;
    stop(&memory);
    let badge = crate::agents::Badge::new(&hub, "eu-1").await;
    memory.join_anew();
    let _eu = Agent::run(hub.address(), badge, memory);
    until_waits(&hub, "eu-1 has joined again since").await;
    assert_eq!(us.memory.data("orders"), data("standby", "-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_started_again_goes_on_with_the_move() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    let Fleet {
        repo,
        hub,
        eu,
        us,
        _other,
    } = fleet;
    let hub = hub.restart().await;
    until_waits(&hub, "eu-1 has not proven").await;
    sick(&hub, &us, true).await;
    stop(&eu.memory);
    until_waits(&hub, "the app is not healthy in us-1 yet").await;
    let hub = hub.restart().await;
    until_waits(&hub, "the app is not healthy in us-1 yet").await;
    sick(&hub, &us, false).await;
    until_moved(&hub, "us-1").await;
    let log = store_of_running(&hub).await;
    for text in [
        "began to move the writer of app orders",
        "has proven that the writer of app orders has stopped",
        "the move of app orders to cluster us-1 is finished",
    ] {
        assert!(
            log.iter().any(|entry| entry.contains(text)),
            "{text}: {log:#?}"
        );
    }
    drop((repo, _other));
}

/// Returns the texts of a hub's audit log.
async fn store_of_running(hub: &Hub) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    backup(
        &hub.config.store_path(),
        &directory.path().join("backup.db"),
    )
    .unwrap();
    let store = muster_store::SqliteStore::open(directory.path().join("backup.db")).unwrap();
    let entries = store.range("audit/").await.unwrap();
    let text = |(_, entry): (String, muster_store::Versioned)| {
        String::from_utf8_lossy(&entry.value).into_owned()
    };
    entries.into_iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_commits_stop_no_move() {
    let fleet = Fleet::new().await;
    fleet.order("us").await.unwrap();
    // The app is broken before it is fenced, and again before the promotion.
    publish(&fleet.repo, "broken", orders(RULE, "role: {{ nothing }}"));
    let fenced = |memory: &Memory| memory.data("orders") == data("fenced", "-");
    fleet.eu.memory.until("the fence", fenced).await;
    publish(
        &fleet.repo,
        "broken as a whole",
        [("fleet.yaml", "nonsense")],
    );
    let hub = &fleet.hub;
    let blocked = |status: &v1::Status| {
        ensure!(
            status
                .problems
                .iter()
                .any(|problem| problem.scope == "fleet")
        );
        Ok(())
    };
    hub.until("the commit is blocked", blocked).await;
    stop(&fleet.eu.memory);
    fleet.until_moved("us-1").await;
    // Nobody waits for the old side any more, so it stays fenced until the commit is mended.
    assert_eq!(fleet.eu.memory.data("orders"), data("fenced", "-"));
    let mended = fleet.repo.git(&["show", "HEAD~1:fleet.yaml"]).unwrap();
    publish(&fleet.repo, "mended", [("fleet.yaml", mended)]);
    publish(&fleet.repo, "the app, too", orders(RULE, TEMPLATE));
    let follows = |memory: &Memory| memory.data("orders") == data("standby", "-");
    fleet.eu.memory.until("the old side follows", follows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_commit_keeps_no_role_from_being_given_back_and_takes_nothing_else_back() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    let broken = "role: {{ nothing }}".to_owned();
    publish(&fleet.repo, "broken", orders(RULE, &broken));
    // Everything else goes on.
    let larger = publish(
        &fleet.repo,
        "larger",
        [("apps/web/values.yaml", "size: 7\n")],
    );
    fleet.hub.until_in_force(&larger).await;
    let whole = [("fleet.yaml", "nonsense")];
    publish(&fleet.repo, "broken as a whole", whole);
    let blocked = |status: &v1::Status| {
        let mut problems = status.problems.iter();
        ensure!(problems.any(|problem| problem.scope == "fleet"));
        Ok(())
    };
    fleet.hub.until("the commit is blocked", blocked).await;
    assert!(fleet.order("eu").await.unwrap().gives_back);
    fleet.until_moved("eu-1").await;
    assert_eq!(fleet.eu.memory.data("orders"), data("primary", "-"));
    assert_eq!(fleet.eu.memory.data("web"), r#"{"size":"7"}"#);
    assert_eq!(fleet.hub.status().await.repo.unwrap().commit, larger);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_renamed_during_its_move_is_moved_under_its_new_name() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    fleet
        .repo
        .git(&["mv", "apps/orders", "apps/sales"])
        .unwrap();
    let rule = format!("{RULE}, formerly: orders");
    let mut renamed = orders(&rule, TEMPLATE);
    for (path, text) in &mut renamed {
        *path = path.replace("apps/orders", "apps/sales");
        *text = text.replace("name: orders}", "name: sales}");
    }
    let commit = publish(&fleet.repo, "renamed", renamed);
    fleet.hub.until_in_force(&commit).await;
    let said = |writer: &mut WriterState| {
        writer.stopped = true;
        writer.carried = "7".to_owned();
    };
    fleet.eu.memory.writer("sales", said);
    let promoted = |memory: &Memory| {
        memory.runs().contains_key("sales") && memory.data("sales") == data("primary", "-")
    };
    fleet
        .us
        .memory
        .until("the move is finished", promoted)
        .await;
    assert!(!fleet.us.memory.runs().contains_key("orders"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_an_app_that_left_git_is_seen_and_can_be_ended() {
    let fleet = Fleet::new().await;
    fleet.fence().await;
    fleet
        .repo
        .git(&["rm", "--quiet", "-r", "apps/orders"])
        .unwrap();
    let commit = publish(
        &fleet.repo,
        "removed",
        [("apps/web/values.yaml", "size: 2\n")],
    );
    fleet.hub.until_in_force(&commit).await;
    fleet.until_waits("eu-1 has not proven").await;
    assert_eq!(fleet.eu.memory.data("orders"), data("fenced", "-"));
    assert!(fleet.order("eu").await.unwrap().gives_back);
    // The app leaves once its move is over.
    let left = |memory: &Memory| !memory.runs().contains_key("orders");
    fleet.eu.memory.until("the app leaves", left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_a_way_out_of_every_step() {
    let fleet = Fleet::new().await;
    let Fleet { hub, eu, us, .. } = &fleet;
    let without_proof = |region: &str| v1::MoveAppRequest {
        without_proof: true,
        reason: "drill".to_owned(),
        ..request(region)
    };
    fleet.fence().await;
    sick(hub, us, true).await;
    stop(&eu.memory);
    fleet
        .until_waits("the app is not healthy in us-1 yet")
        .await;
    // The new side never becomes healthy, so a person moves the writer back. Nothing proves that the new side has stopped.
    assert!(fleet.order("eu").await.is_err());
    eu.memory
        .writer("orders", |writer| *writer = WriterState::default());
    order(hub, without_proof("eu")).await.unwrap();
    let back = |memory: &Memory| memory.data("orders") == data("primary", "-");
    eu.memory.until("the role is given back", back).await;
    fleet
        .until_waits("us-1 has not proven that the writer has stopped")
        .await;
    let moved = writer(&hub.status().await).r#move.unwrap();
    assert!(moved.unproven && moved.promoted, "{moved:?}");
    // It never will, and a person vouches for it.
    assert!(fleet.order("eu").await.unwrap().nothing);
    assert!(order(hub, without_proof("eu")).await.unwrap().vouches);
    fleet.until_moved("eu-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_move_could_follow_is_refused() {
    let fleet = Fleet::new().await;
    let template = "role: {{ app.role }}, at: \"{{ '-' if app.role != 'fenced' else nothing }}\"";
    publish(&fleet.repo, "no fence", orders(RULE, template));
    let refused = |text: &'static str| {
        move |status: &v1::Status| {
            let mut problems = status.problems.iter();
            ensure!(
                problems.any(|problem| problem.message.contains(text)),
                "{:?}",
                status.problems
            );
            Ok(())
        }
    };
    let hub = &fleet.hub;
    hub.until(
        "the refusal",
        refused("in role fenced, which `muster app move` gives it"),
    )
    .await;
    let refusal = fleet.order("us").await.unwrap_err();
    assert!(
        refusal
            .message()
            .contains("the newest commit has a problem with app orders"),
        "{refusal}"
    );
    assert_eq!(fleet.eu.memory.data("orders"), data("primary", "-"));
    // A template that needs a carried value can't be rendered in a failover, where there is none.
    let template = "role: {{ app.role }}, at: \"{{ handover.at }}\"";
    publish(&fleet.repo, "needs a value", orders(RULE, template));
    hub.until("the refusal", refused("`handover.at` is not defined"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_moves_a_writer_without_proof() {
    let fleet = Fleet::new().await;
    let Fleet { hub, eu, us, .. } = &fleet;
    let unproven = v1::MoveAppRequest {
        without_proof: true,
        ..request("us")
    };
    let refused = order(hub, unproven.clone()).await.unwrap_err();
    assert!(refused.message().contains("needs a reason"), "{refused}");
    let reason = "burnt down".to_owned();
    order(hub, v1::MoveAppRequest { reason, ..unproven })
        .await
        .unwrap();
    let promoted = |memory: &Memory| memory.data("orders") == data("primary", "-");
    us.memory.until("the promotion", promoted).await;
    // The old side stays fenced until it has proven, however late, that it has stopped.
    until_waits(hub, "eu-1 has not proven that the writer has stopped").await;
    assert_eq!(eu.memory.data("orders"), data("fenced", "-"));
    let moved = writer(&hub.status().await).r#move.unwrap();
    assert!(moved.unproven && moved.promoted, "{moved:?}");
    stop(&eu.memory);
    until_moved(hub, "us-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_hub_neither_forgets_nor_repeats_a_move() {
    let fleet = Fleet::new().await;
    let directory = tempfile::tempdir().unwrap();
    backup(
        &fleet.hub.config.store_path(),
        &directory.path().join("backup.db"),
    )
    .unwrap();
    fleet.fence().await;
    let Fleet {
        repo,
        hub,
        eu,
        us,
        _other,
    } = fleet;
    let (config, state) = restored(hub, &directory.path().join("backup.db")).await;
    let hub = Hub::start(config, state).await;
    // The agents know of the fence.
    until_waits(&hub, "eu-1 has not proven").await;
    assert_eq!(us.memory.data("orders"), data("standby", "-"));
    stop(&eu.memory);
    until_moved(&hub, "us-1").await;
    let follows = |memory: &Memory| memory.data("orders") == data("standby", "-");
    eu.memory.until("the old side follows", follows).await;
    drop((repo, _other));
}
