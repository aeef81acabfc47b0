//! Commits that try to crash the hub, to fill its memory or to take up its time.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_proto::v1;
use muster_testkit::gitserver::GitRepo;

use crate::{
    agents::Agent,
    fixture::{Hub, document, publish, repository},
};

/// A template that nests a value so deep that dropping it overflows the stack.
const DEEP: &str =
    "{% set n = namespace(v=1) %}{% for i in range(100000) %}{% set n.v = [n.v] %}{% endfor %}";
/// A template whose printing never ends.
const CYCLE: &str = "{% set n = namespace(v=1) %}{% set n.v = n %}{{ n }}";
/// A template with one step that goes through a list that was doubled forty times.
const SLOW: &str = "{% set n = namespace(v=[1]) %}{% for i in range(40) %}{% set n.v = n.v + n.v %}{% endfor %}{{ n.v|list|length }}";

fn app(name: &str, template: &str) -> Vec<(String, String)> {
    let spec = "tier: gold, mode: active-active";
    vec![
        (format!("apps/{name}/app.yaml"), document("App", name, spec)),
        (
            format!("apps/{name}/templates/{name}.yaml"),
            template.to_owned(),
        ),
    ]
}

/// Publishes a commit with these apps and another size of `web`.
fn hostile(repo: &GitRepo, size: u32, apps: &[(&str, &str)]) -> String {
    let mut files: Vec<_> = apps
        .iter()
        .flat_map(|(name, text)| app(name, text))
        .collect();
    files.push(("apps/web/values.yaml".to_owned(), format!("size: {size}\n")));
    publish(repo, "hostile", files)
}

fn without(repo: &GitRepo, subject: &str, apps: &[&str], size: u32) -> String {
    for app in apps {
        repo.git(&["rm", "-rqf", "--ignore-unmatch", &format!("apps/{app}")])
            .unwrap();
    }
    publish(
        repo,
        subject,
        [("apps/web/values.yaml", format!("size: {size}\n"))],
    )
}

/// Waits until the hub has read a commit, whatever the result.
async fn until_seen(hub: &Hub, commit: &str) {
    let seen = |status: &v1::Status| {
        ensure!(status.repo.clone().unwrap_or_default().tip == commit);
        Ok(())
    };
    hub.until("the commit is seen", seen).await;
}

/// Waits until a commit is in force, and returns the message of an app's problem.
async fn told(hub: &Hub, commit: &str, app: &str) -> String {
    let look = |status: &v1::Status| {
        let now = status.repo.clone().unwrap_or_default().commit;
        ensure!(now == commit, "{now} is in force");
        let mut problems = status.problems.iter();
        let problem = problems.find(|problem| problem.app == app);
        Ok(problem.context("it has no problem")?.message.clone())
    };
    hub.until(&format!("what is wrong with {app}"), look).await
}

async fn limited(app: Duration) -> (GitRepo, Hub, Agent) {
    let repo = repository();
    let hub = Hub::with(&repo, |config| {
        config.limits.app = app;
        config.limits.memory = 384 * 1024 * 1024;
    })
    .await;
    let agent = Agent::join(&hub, "eu-1").await;
    (repo, hub, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_crashes_the_worker_is_blocked_and_nothing_else_is() {
    let (repo, hub, agent) = limited(Duration::from_secs(20)).await;
    // A short text that becomes many values.
    let many = format!("[{}]", "1,".repeat(4_000_000));
    let bombs = [("deep", DEEP), ("cycle", CYCLE), ("many", &many)];
    let commit = hostile(&repo, 2, &bombs);
    hub.until_synced(&commit).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    insta::assert_snapshot!(told(&hub, &commit, "deep").await, @"reading and rendering this app crashes the render worker: it nests too deep (stack overflow)");
    let cycle = told(&hub, &commit, "cycle").await;
    assert!(cycle.contains("crashes the render worker"), "{cycle}");
    insta::assert_snapshot!(told(&hub, &commit, "many").await, @"reading and rendering this app crashes the render worker: it needs more memory than the worker may use");
    let ended = hub.count("muster_hub_render_workers_ended_total", "").await;
    assert!(ended >= 3, "{ended}");

    // They are not rendered again with every commit …
    let next = hostile(&repo, 3, &[]);
    hub.until_synced(&next).await;
    let now = hub.count("muster_hub_render_workers_ended_total", "").await;
    assert_eq!(now, ended);
    // … nor by the next process.
    let hub = hub.restart().await;
    hub.until_synced(&next).await;
    let deep = told(&hub, &next, "deep").await;
    assert!(deep.contains("stack overflow"), "{deep}");
    assert_eq!(
        hub.count("muster_hub_render_workers_ended_total", "").await,
        0
    );

    let mended = without(&repo, "mended", &["deep", "cycle", "many"], 4);
    hub.until_synced(&mended).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"4"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_takes_too_long_is_blocked_and_delays_no_later_commit() {
    let (repo, hub, agent) = limited(Duration::from_millis(500)).await;
    let commit = hostile(&repo, 2, &[("slow", SLOW)]);
    hub.until_synced(&commit).await;
    insta::assert_snapshot!(told(&hub, &commit, "slow").await, @"reading and rendering this app takes over 0.5 s of processor time");
    let ended = hub.count("muster_hub_render_workers_ended_total", "").await;
    let next = hostile(&repo, 3, &[]);
    hub.until_synced(&next).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"3"}"#);
    let now = hub.count("muster_hub_render_workers_ended_total", "").await;
    assert_eq!(now, ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_commit_interrupts_one_that_takes_long() {
    let repo = repository();
    let hub = Hub::with(&repo, |config| {
        config.limits.app = Duration::from_secs(3600)
    })
    .await;
    let agent = Agent::join(&hub, "eu-1").await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&first).await;
    let slow = hostile(&repo, 2, &[("slow", SLOW)]);
    until_seen(&hub, &slow).await;
    let mended = without(&repo, "mended", &["slow"], 3);
    hub.until_synced(&mended).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"3"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_while_it_is_interrupted_is_no_trouble() {
    let repo = repository();
    // The worker exits after six seconds (three times the limit), and the newer commit interrupts it after five.
    let hub = Hub::with(&repo, |config| config.limits.app = Duration::from_secs(2)).await;
    let agent = Agent::join(&hub, "eu-1").await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&first).await;
    let slow = hostile(&repo, 2, &[("slow", SLOW)]);
    until_seen(&hub, &slow).await;
    let next = hostile(&repo, 3, &[]);
    hub.until_synced(&next).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"3"}"#);
    told(&hub, &next, "slow").await;
}
