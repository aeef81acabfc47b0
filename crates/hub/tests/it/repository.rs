//! Tests failures of the repository, and how the hub learns of a commit.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use muster_git::RemoteConfig;
use muster_proto::v1;
use muster_testkit::gitserver::HttpsGit;
use ring::hmac;

use crate::{
    agents::{Agent, Badge},
    fixture::{Hub, document, publish, repository},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_force_push_is_followed() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    let second = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_synced(&second).await;
    repo.git(&["reset", "--quiet", "--hard", &first]).unwrap();
    let other = repo
        .commit("another way", &[("apps/web/values.yaml", "size: 3\n")])
        .unwrap();
    repo.force_push().unwrap();
    hub.until_synced(&other).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"3"}"#);
    // Content that ran before still gets a higher number.
    repo.git(&["reset", "--quiet", "--hard", &first]).unwrap();
    repo.force_push().unwrap();
    hub.until_synced(&first).await;
    assert_eq!(
        (agent.memory.generation(), agent.memory.data("web")),
        (4, r#"{"size":"1"}"#.to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_gone_is_reported_and_read_again_when_it_is_back() {
    let repo = repository();
    let hub = Hub::with(&repo, |config| {
        config.interval = Some(Duration::from_millis(200))
    })
    .await;
    let agent = Agent::join(&hub, "eu-2").await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&first).await;
    let aside = repo.root().join("aside.git");
    fs::rename(repo.path(), &aside).unwrap();
    let problem = |status: &v1::Status| {
        let repo = status.repo.clone().unwrap_or_default();
        ensure!(!repo.problem.is_empty());
        Ok(repo)
    };
    let told = hub.until("the failure is shown", problem).await;
    assert_eq!(told.commit, first);
    assert!(told.problem_since > 0 && told.retry_at > 0, "{told:?}");
    // A hub that starts meanwhile has the last good commit in its mirror.
    let hub = hub.restart().await;
    hub.until("the failure is shown again", problem).await;
    hub.until_synced(&first).await;
    assert_eq!(agent.memory.generation(), 1);

    fs::rename(&aside, repo.path()).unwrap();
    let second = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_synced(&second).await;
    assert_eq!(hub.status().await.repo.unwrap().problem, "");
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_wakes_the_hub_for_those_who_know_its_token() {
    let repo = repository();
    let served = HttpsGit::start(&repo.root()).unwrap();
    let hub = Hub::with(&repo, |config| {
        let mut remote = RemoteConfig::new(served.url("fleet.git").parse().unwrap());
        remote.auth.token_file = Some(served.token_file());
        remote.auth.ca_file = Some(served.ca_file());
        config.remote = remote;
        config.interval = Some(Duration::from_secs(3600));
        config.hook_token = Some("open-sesame".to_owned());
        config.hook = Some(config.http);
    })
    .await;
    // The webhook has its own address, so that its callers can be denied access to metrics.
    let (hook, http) = (hub.addresses.hook.unwrap(), hub.addresses.http);
    for (address, method, path) in [(hook, "GET", "/metrics"), (http, "POST", "/hook")] {
        assert_eq!(
            hub.http_at(address, method, path, &[], "").await.0,
            404,
            "{path}"
        );
    }
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_in_force(&first).await;
    let second = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    for headers in [
        &[][..],
        &["X-Muster-Token: open"],
        &["Authorization: Bearer sesame"],
    ] {
        assert_eq!(hub.http("POST", "/hook", headers).await.0, 401);
    }
    assert_eq!(hub.http("GET", "/hook", &[]).await.0, 405);
    assert_eq!(hub.status().await.repo.unwrap().tip, first);
    assert_eq!(
        hub.http("POST", "/hook", &["X-Gitlab-Token: open-sesame"])
            .await
            .0,
        202
    );
    hub.until_in_force(&second).await;
    let third = publish(&repo, "larger", [("apps/web/values.yaml", "size: 3\n")]);
    assert_eq!(
        hub.http("POST", "/hook", &["Authorization: Bearer open-sesame"])
            .await
            .0,
        202
    );
    hub.until_in_force(&third).await;
    // GitHub and Gitea sign their calls.
    let signed = publish(&repo, "signed", [("apps/web/values.yaml", "size: 5\n")]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"open-sesame");
    let body = r#"{"ref": "refs/heads/main"}"#;
    let signature: String = hmac::sign(&key, body.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let header = format!("X-Hub-Signature-256: sha256={signature}");
    for other in ["", r#"{"ref": "refs/heads/other"}"#] {
        let refused = hub.http_with("POST", "/hook", &[&header], other).await;
        assert_eq!(refused.0, 401);
    }
    let large = "x".repeat(3 * 1024 * 1024);
    let refused = hub.http_with("POST", "/hook", &[&header], &large).await;
    assert_eq!(refused.0, 413);
    let taken = hub.http_with("POST", "/hook", &[&header], body).await;
    assert_eq!(taken.0, 202);
    hub.until_in_force(&signed).await;
    // A person can also make the hub read the repository.
    let fourth = publish(&repo, "larger", [("apps/web/values.yaml", "size: 4\n")]);
    hub.admin()
        .await
        .refresh(v1::RefreshRequest {})
        .await
        .unwrap();
    hub.until_in_force(&fourth).await;
}

/// The store can't be written, because an SQLite shell has locked it or the disk is full. The commit waits, and the
/// status shows why until it can be written. It is not rendered again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_cannot_be_written_is_reported_and_retried() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    let first = repo.git(&["rev-parse", "HEAD"]).unwrap();
    hub.until_synced(&first).await;

    let shell = rusqlite::Connection::open(hub.config.store_path()).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    let second = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    let told = |status: &v1::Status| {
        let problem = status
            .problems
            .iter()
            .find(|problem| problem.message.contains("can't come into force"));
        let problem = problem.map(|problem| problem.message.clone());
        problem.context("no problem is shown")
    };
    let problem = hub.until("the failure is shown", told).await;
    assert!(problem.contains(&second[..7]), "{problem}");
    assert_eq!(agent.memory.data("web"), r#"{"size":"1"}"#);
    shell.execute_batch("ROLLBACK").unwrap();
    hub.until_synced(&second).await;

    // A commit that is reverted meanwhile is no longer shown as failed.
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    publish(
        &repo,
        "even larger",
        [("apps/web/values.yaml", "size: 3\n")],
    );
    hub.until("the failure is shown again", told).await;
    repo.git(&["reset", "--quiet", "--hard", &second]).unwrap();
    repo.force_push().unwrap();
    shell.execute_batch("ROLLBACK").unwrap();
    let quiet = |status: &v1::Status| {
        ensure!(told(status).is_err());
        Ok(())
    };
    hub.until("the failure is over", quiet).await;
    hub.until_synced(&second).await;
    assert_eq!(agent.memory.data("web"), r#"{"size":"2"}"#);
    assert!(told(&hub.status().await).is_err());
}

/// Streams renumber the generations of agents that are ahead, while the fleet loop numbers those of new commits.
/// Neither loses what the other has written, and after a restart the hub has a list for each of its generations.
#[tokio::test(flavor = "multi_thread")]
async fn generations_are_numbered_by_one_task_at_a_time() {
    let repo = repository();
    let clusters: Vec<String> = (0..40).map(|n| format!("many-{n}")).collect();
    let documents = clusters.iter().map(|name| {
        let path = format!("regions/eu/{name}.yaml");
        (path, document("Cluster", name, ""))
    });
    let mut last = publish(&repo, "many", documents);
    let mut hub = Hub::new(&repo).await;
    hub.until_in_force(&last).await;
    let mut badges = Vec::new();
    for name in &clusters {
        badges.push(Badge::new(&hub, name).await);
    }
    let mut agents = Vec::new();
    for (n, badge) in badges.into_iter().enumerate() {
        agents.push(Agent::ahead(&hub, badge, 1_000));
        if n % 2 == 0 {
            let values = format!("size: {}\n", n + 10);
            last = publish(&repo, "change", [("apps/web/values.yaml", values.as_str())]);
        }
    }
    hub.until_synced(&last).await;
    for agent in &agents {
        assert_eq!(agent.memory.data("web"), r#"{"size":"48"}"#);
        // No agent had to reconnect.
        assert_eq!(agent.last_end(), "");
    }
    let before = hub.wanted().await;
    assert!(
        clusters.iter().all(|name| before[name] > 1_000),
        "{before:?}"
    );
    hub = hub.restart().await;
    hub.until_synced(&last).await;
    assert_eq!(hub.wanted().await, before);
}
