//! Which objects wait for which others, and which never wait.

use std::sync::Arc;

use muster_apply::ObjectState;
use muster_plan::health::Health;
use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, config_map, making, namespace, object, stored};

fn job(name: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "annotations": {"muster.dev/phase": phase}},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "work", "image": "work:1"}],
        }}},
    })
}

fn deployment(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": image}]},
            },
        },
    })
}

/// Returns a Deployment whose pods can never be scheduled.
fn stuck(name: &str) -> Value {
    let mut stuck = deployment(name, "web:1");
    stuck["spec"]["template"]["spec"]["nodeSelector"] = json!({"no-such": "node"});
    stuck
}

#[tokio::test]
async fn a_job_runs_before_its_app_and_again_when_the_app_changes() {
    let fixture = Fixture::new("before").await;
    let mut applied = fixture.start().await;
    let objects = |image| {
        [
            namespace("before-a"),
            config_map("settings", "1"),
            job("migrate", "before"),
            deployment("web", image),
            job("report", "after"),
        ]
    };
    let desired = |number, image| stored(number, vec![bundle("a", "before-a", &objects(image))]);
    applied.applier.set_desired(Arc::new(desired(1, "web:1")));
    let applied_all = |o: &muster_apply::Observed| {
        o.settled && o.bundles.len() == 1 && o.bundles[0].counts.healthy == 5
    };
    applied.until(applied_all).await;
    let created = |live: Value| {
        live["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let done = fixture.get("batch/v1", "Job", "before-a", "migrate").await;
    let completed = done["status"]["completionTime"]
        .as_str()
        .unwrap()
        .to_owned();
    let web = created(
        fixture
            .get("apps/v1", "Deployment", "before-a", "web")
            .await,
    );
    assert!(completed <= web, "{completed} {web}");
    let after = created(fixture.get("batch/v1", "Job", "before-a", "report").await);
    assert!(web <= after, "{web} {after}");

    applied.applier.set_desired(Arc::new(desired(2, "web:2")));
    applied
        .until(|o| applied_all(o) && o.generation.is_some_and(|(g, _)| g.0 == 2))
        .await;
    let again = fixture.get("batch/v1", "Job", "before-a", "migrate").await;
    assert_ne!(again["metadata"]["uid"], done["metadata"]["uid"]);

    // The same bundle in a new generation runs no Job again.
    applied.settle(desired(3, "web:2")).await;
    let writes = fixture.requests.writes();
    applied.settle(desired(4, "web:2")).await;
    assert_eq!(fixture.requests.writes(), writes);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_job_that_fails_delays_only_its_own_app_until_it_is_fixed() {
    let fixture = Fixture::new("jobfail").await;
    let mut applied = fixture.start().await;
    let mut broken = job("migrate", "before");
    broken["spec"]["activeDeadlineSeconds"] = json!(1);
    broken["spec"]["template"]["spec"]["nodeSelector"] = json!({"no-such": "node"});
    let app = |job: Value| {
        bundle(
            "a",
            "jobfail-a",
            &[namespace("jobfail-a"), job, deployment("web", "web:1")],
        )
    };
    let other = bundle("b", "jobfail-a", &[deployment("other", "web:1")]);
    applied
        .applier
        .set_desired(Arc::new(stored(1, vec![app(broken), other.clone()])));
    let observed = applied
        .until(|o| {
            o.bundles.len() == 2
                && {
                    let web = object(o, "Deployment.apps jobfail-a/web").state;
                    matches!(web, ObjectState::Waiting(m) if m.contains("Job.batch jobfail-a/migrate"))
                }
                && object(o, "Deployment.apps jobfail-a/other").state == ObjectState::Applied
                // Wait until the Job controller is done with this Job. If the Job is replaced while its pods
                // are being created, the next Job of the same name is delayed for minutes.
                && object(o, "Job.batch jobfail-a/migrate").health == Health::Degraded
        })
        .await;
    assert_eq!(observed.bundles[1].counts.failed, 0);
    applied.applier.set_desired(Arc::new(stored(
        2,
        vec![app(job("migrate", "before")), other],
    )));
    applied
        .until(|o| object(o, "Deployment.apps jobfail-a/web").state == ObjectState::Applied)
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_app_waits_until_what_it_depends_on_is_healthy() {
    let fixture = Fixture::new("depends").await;
    let mut applied = fixture.start().await;
    let db = |object: Value| bundle("db", "depends-a", &[namespace("depends-a"), object]);
    let web = || {
        making("web", "depends-a")
            .after(&["db"])
            .of(&[config_map("web", "1")])
    };
    let observed = applied
        .settle(stored(1, vec![db(stuck("db")), web()]))
        .await;
    let ObjectState::Waiting(message) = object(&observed, "ConfigMap depends-a/web").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains("app db: waiting for Deployment.apps depends-a/db"),
        "{message}"
    );
    // The fix replaces the bad commit without delay.
    applied.applier.set_desired(Arc::new(stored(
        2,
        vec![db(deployment("db", "db:1")), web()],
    )));
    applied
        .until(|o| object(o, "ConfigMap depends-a/web").state == ObjectState::Applied)
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_burst_of_commits_ends_at_the_last_without_working_through_the_others() {
    let fixture = Fixture::new("burst").await;
    let mut applied = fixture.start().await;
    let base = bundle("base", "burst-a", &[namespace("burst-a"), stuck("db")]);
    let app = |number: u64| {
        let maps: Vec<Value> = (0..20)
            .map(|i| config_map(&format!("m{i}"), &number.to_string()))
            .collect();
        bundle("a", "burst-a", &maps)
    };
    applied.settle(stored(1, vec![base.clone(), app(1)])).await;
    let writes = fixture.requests.writes();
    for number in 2..=21 {
        applied
            .applier
            .set_desired(Arc::new(stored(number, vec![base.clone(), app(number)])));
    }
    applied
        .until(|o| o.settled && o.generation.is_some_and(|(g, _)| g.0 == 21))
        .await;
    let live = fixture.get("v1", "ConfigMap", "burst-a", "m19").await;
    assert_eq!(live["data"]["v"], "21");
    // Applying all 20 generations would have cost 20 writes each.
    let writes = fixture.requests.writes() - writes;
    assert!(writes < 120, "{writes} writes");
    applied.applier.stop().await;
}
