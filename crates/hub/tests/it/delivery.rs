//! Tests delivery from a commit to the clusters: which cluster gets what, and what stays in force if something is
//! broken.

use std::collections::BTreeMap;

use anyhow::ensure;
use muster_model::ids::Role;
use muster_proto::v1;
use muster_testkit::gitserver::GitRepo;

use crate::{
    agents::{Agent, Badge, Memory},
    fixture::{Hub, config_map, document, fleet, publish, repository},
    raw::{Raw, hello},
};

fn numbers(list: [(&str, u64); 3]) -> BTreeMap<String, u64> {
    list.map(|(name, number)| (name.to_owned(), number)).into()
}

fn roles(agent: &Agent) -> BTreeMap<String, Role> {
    let runs = agent.memory.runs().into_iter();
    runs.map(|(app, (role, _))| (app, role)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_reaches_every_cluster_and_changes_only_those_that_it_concerns() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agents = Agent::join_all(&hub).await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&first).await;
    let app = |name: &str, role| (name.to_owned(), role);
    let [eu_1, eu_2, us_1] = &agents;
    assert_eq!(
        roles(eu_1),
        [app("db", Role::Primary), app("web", Role::Active)].into()
    );
    assert_eq!(roles(eu_2), [app("web", Role::Active)].into());
    assert_eq!(
        roles(us_1),
        [app("db", Role::Standby), app("web", Role::Active)].into()
    );
    assert_eq!(eu_1.memory.data("db"), r#"{"role":"primary","size":"1"}"#);
    assert_eq!(us_1.memory.data("db"), r#"{"role":"standby","size":"1"}"#);
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 1), ("eu-2", 1), ("us-1", 1)])
    );
    assert_eq!(eu_1.memory.deliveries(), (1, 2));

    // `db` runs in two clusters: the third keeps its generation, and the others get only that bundle.
    let second = publish(&repo, "a larger db", [("apps/db/values.yaml", "size: 2\n")]);
    hub.until_synced(&second).await;
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 2), ("eu-2", 1), ("us-1", 2)])
    );
    assert_eq!(eu_1.memory.data("db"), r#"{"role":"primary","size":"2"}"#);
    assert_eq!(eu_1.memory.deliveries(), (2, 3));
    assert_eq!(eu_2.memory.deliveries(), (1, 1));

    // One cluster's own value.
    let third = publish(
        &repo,
        "eu-2 is larger",
        [("apps/web/values/eu-2.yaml", "size: 7\n")],
    );
    hub.until_synced(&third).await;
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 2), ("eu-2", 2), ("us-1", 2)])
    );
    assert_eq!(eu_2.memory.data("web"), r#"{"size":"7"}"#);

    // What is removed from the repository is removed from the clusters.
    repo.git(&["rm", "--quiet", "-r", "apps/db"]).unwrap();
    let fourth = publish(&repo, "no db", [("notes.txt", "gone")]);
    hub.until_synced(&fourth).await;
    assert_eq!(roles(eu_1), [app("web", Role::Active)].into());
    assert_eq!(
        hub.wanted().await,
        numbers([("eu-1", 3), ("eu-2", 2), ("us-1", 3)])
    );
}

fn held(status: &v1::Status) -> Vec<&str> {
    let held = status.apps.iter().filter(|app| app.held);
    held.map(|app| app.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_app_stays_as_it_was_while_the_others_move_on() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, _us_1] = Agent::join_all(&hub).await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;

    let broken = publish(
        &repo,
        "web breaks, db grows",
        [
            ("apps/web/values.yaml", "sizze: 5\n"),
            ("apps/db/values.yaml", "size: 2\n"),
        ],
    );
    hub.until_synced(&broken).await;
    let status = hub.status().await;
    assert_eq!(held(&status), ["web"]);
    let problems: Vec<_> = status
        .problems
        .iter()
        .map(|p| (p.app.as_str(), p.file.as_str(), p.line))
        .collect();
    assert_eq!(problems, [("web", "apps/web/templates/web.yaml", 4)]);
    assert_eq!(eu_1.memory.data("web"), r#"{"size":"1"}"#);
    assert_eq!(eu_1.memory.data("db"), r#"{"role":"primary","size":"2"}"#);
    assert_eq!(eu_2.memory.generation(), 1);

    // A hub that starts with a broken head has the last good bundle in its store.
    let hub = hub.restart().await;
    hub.until_in_force(&broken).await;
    hub.until_synced(&broken).await;
    assert_eq!(held(&hub.status().await), ["web"]);
    assert_eq!((eu_1.memory.generation(), eu_2.memory.generation()), (2, 1));

    // Now web's `app.yaml` is broken too, and db still gets its update.
    let worse = publish(
        &repo,
        "worse",
        [
            ("apps/web/app.yaml", "apiVersion: [\n"),
            ("apps/db/values.yaml", "size: 3\n"),
        ],
    );
    hub.until_synced(&worse).await;
    assert_eq!(eu_1.memory.data("web"), r#"{"size":"1"}"#);
    assert_eq!(eu_1.memory.data("db"), r#"{"role":"primary","size":"3"}"#);
    let hub = hub.restart().await;
    hub.until_synced(&worse).await;
    assert_eq!(eu_2.memory.generation(), 1);

    let mut mended = fleet();
    mended.insert("apps/web/values.yaml".to_owned(), "size: 5\n".to_owned());
    let mended = publish(&repo, "mended", mended);
    hub.until_synced(&mended).await;
    assert_eq!(hub.status().await.problems, []);
    assert_eq!(eu_2.memory.data("web"), r#"{"size":"5"}"#);
    assert_eq!(eu_2.memory.generation(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_region_blocks_the_whole_commit() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-1").await;
    let good = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&good).await;
    let files = [
        ("regions/eu/region.yaml", document("Region", "eu", "")),
        ("apps/web/values.yaml", "size: 2\n".to_owned()),
    ];
    let bad = publish(&repo, "a region without a place", files);
    let told = |status: &v1::Status| {
        let repo = status.repo.clone().unwrap_or_default();
        let of_files = status
            .problems
            .iter()
            .filter(|problem| !problem.file.is_empty());
        let of_files: Vec<_> = of_files.cloned().collect();
        ensure!(repo.tip == bad && repo.processed == bad && !of_files.is_empty());
        Ok((repo.commit, of_files))
    };
    let (commit, problems) = hub.until("the problem is shown", told).await;
    assert_eq!(commit, good);
    assert_eq!(problems.len(), 1);
    assert_eq!(
        (problems[0].scope.as_str(), problems[0].file.as_str()),
        ("fleet", "regions/eu/region.yaml")
    );
    // The same after a restart, where the broken commit is all that the hub sees.
    let hub = hub.restart().await;
    let (commit, again) = hub.until("the problem is shown again", told).await;
    assert_eq!((commit, again), (good, problems));
    assert_eq!(
        (agent.memory.generation(), agent.memory.data("web")),
        (1, r#"{"size":"1"}"#.to_owned())
    );

    let region = fleet().remove("regions/eu/region.yaml").unwrap();
    let mended = publish(&repo, "mended", [("regions/eu/region.yaml", region)]);
    hub.until_synced(&mended).await;
    assert_eq!(hub.status().await.repo.unwrap().processed, mended);
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_another_app_is_not_taken_over() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    let shared = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web, namespace: web}\ndata: {from: copy}\n";
    let both = publish(
        &repo,
        "a second app with web's object",
        [
            (
                "apps/copy/app.yaml",
                document("App", "copy", "tier: gold, mode: active-active"),
            ),
            ("apps/copy/templates/web.yaml", shared.to_owned()),
            ("apps/web/values.yaml", "size: 2\n".to_owned()),
        ],
    );
    hub.until_in_force(&both).await;
    let status = hub.status().await;
    let told: Vec<_> = status.problems.iter().map(|p| p.app.as_str()).collect();
    assert_eq!(told, ["copy"], "{:?}", status.problems);
    // Both changed in one commit. The app that already ran gets its update; the new one is not delivered.
    hub.until_synced(&both).await;
    assert!(agent.memory.runs().keys().eq(["web"]));
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);

    let apart = config_map("copy", "from: copy");
    let apart = publish(&repo, "apart", [("apps/copy/templates/web.yaml", apart)]);
    hub.until_synced(&apart).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    assert_eq!(agent.memory.data("copy"), r#"{"from":"copy"}"#);
    assert_eq!(held(&hub.status().await), Vec::<&str>::new());
    // Later an app that already runs claims the object: that app stays at its last good bundle.
    let again = publish(&repo, "again", [("apps/copy/templates/web.yaml", shared)]);
    hub.until_synced(&again).await;
    assert_eq!(held(&hub.status().await), ["copy"]);
    assert_eq!(agent.memory.data("copy"), r#"{"from":"copy"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_hub_sends_nothing_again() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let [eu_1, eu_2, us_1] = Agent::join_all(&hub).await;
    let commit = publish(&repo, "larger", [("apps/db/values.yaml", "size: 2\n")]);
    hub.until_synced(&commit).await;
    let (wanted, before) = (hub.wanted().await, eu_1.memory.deliveries());
    let (badge, memory) = us_1.stop().await;

    let hub = hub.restart().await;
    hub.until_in_force(&commit).await;
    assert_eq!(hub.wanted().await, wanted);
    // The restarted hub recognizes, by its digest, the observed state that was reported before the restart.
    let mut first = hello(&badge);
    first.report = muster_agent::Cluster::level(memory.as_ref())
        .borrow()
        .digest()
        .0
        .to_vec();
    let welcome = Raw::hello(&hub, &badge, first.clone())
        .await
        .unwrap()
        .welcome()
        .await;
    assert!(welcome.report_known);
    first.report = vec![0; 32];
    let welcome = Raw::hello(&hub, &badge, first)
        .await
        .unwrap()
        .welcome()
        .await;
    assert!(!welcome.report_known);

    let _us_1 = Agent::run(hub.address(), badge, memory);
    hub.until_synced(&commit).await;
    assert_eq!(hub.wanted().await, wanted);
    assert_eq!(eu_1.memory.deliveries(), before);
    assert_eq!(eu_2.memory.deliveries(), (1, 1));
    assert_eq!(hub.count("muster_hub_messages_sent_total", "Blob").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_leaves_the_fleet_and_comes_back_goes_on() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&repo.git(&["rev-parse", "HEAD"]).unwrap())
        .await;
    repo.git(&["rm", "--quiet", "regions/eu/eu-2.yaml"])
        .unwrap();
    for size in 2..5 {
        let commit = publish(
            &repo,
            "without eu-2",
            [("apps/web/values.yaml", format!("size: {size}\n"))],
        );
        hub.until_in_force(&commit).await;
    }
    let hub = hub.restart().await;
    // Leaving the fleet deletes nothing: its objects stay.
    assert_eq!(agent.memory.data("web"), r#"{"size":"1"}"#);
    let back = publish(
        &repo,
        "with eu-2",
        [("regions/eu/eu-2.yaml", document("Cluster", "eu-2", ""))],
    );
    hub.until_synced(&back).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"4"}"#);
    assert!(agent.memory.generation() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_was_never_good_is_reported_and_then_begins() {
    let repo = GitRepo::new().unwrap();
    let hub = Hub::new(&repo).await;
    let empty = |status: &v1::Status| {
        let repo = status.repo.clone().unwrap_or_default();
        ensure!(!repo.problem.is_empty());
        Ok(repo.problem)
    };
    let problem = hub.until("an empty repository is shown", empty).await;
    assert!(
        problem.ends_with("has no commit yet; push one"),
        "{problem}"
    );
    let badge = Badge::new(&hub, "eu-2").await;
    let agent = Agent::run(hub.address(), badge, Memory::new());
    let mut files = fleet();
    files.remove("fleet.yaml");
    publish(&repo, "no fleet", files);
    let told = |status: &v1::Status| {
        let mut problems = status.problems.iter();
        let problem = problems.find(|problem| !problem.file.is_empty());
        let message = problem.map(|problem| problem.message.clone());
        message.ok_or_else(|| anyhow::anyhow!("no problem"))
    };
    insta::assert_snapshot!(hub.until("what is missing is shown", told).await, @"there is no fleet.yaml");
    assert_eq!(agent.memory.generation(), 0);
    let good = publish(&repo, "a fleet", fleet());
    agent
        .memory
        .until("a generation", |memory| memory.generation() == 1)
        .await;
    hub.until_synced(&good).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"1"}"#);
    assert_eq!(hub.status().await.problems, []);
}
