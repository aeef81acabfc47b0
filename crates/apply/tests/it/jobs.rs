//! Jobs that Kubernetes deletes after they have finished.

use kube::api::{DeleteParams, Patch, PatchParams};
use muster_apply::Observed;
use muster_plan::health::Health;
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, config_map, namespace, object, stored};

fn job(name: &str, ttl: Option<u32>) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "work", "image": "work:1"}],
        }}},
    });
    if let Some(ttl) = ttl {
        job["spec"]["ttlSecondsAfterFinished"] = ttl.into();
    }
    job
}

fn health(observed: &Observed, text: &str) -> Health {
    object(observed, text).health
}

async fn until_gone(fixture: &Fixture, namespace: &str, name: &str) {
    let jobs = fixture.api("batch/v1", "Job", Some(namespace));
    eventually("the Job is deleted", LONG, async || {
        anyhow::ensure!(jobs.get_opt(name).await?.is_none());
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_job_that_is_deleted_as_soon_as_it_has_completed_is_healthy() {
    let fixture = Fixture::new("ttldone").await;
    let mut applied = fixture.start().await;
    let objects = [
        namespace("ttldone-a"),
        job("once", Some(0)),
        config_map("c", "1"),
    ];
    applied
        .settle(stored(1, vec![bundle("a", "ttldone-a", &objects)]))
        .await;
    let text = "Job.batch ttldone-a/once";
    until_gone(&fixture, "ttldone-a", "once").await;
    applied
        .until(|o| o.settled && o.bundles[0].counts.healthy == 3)
        .await;
    // A new process does not run it again, either.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let before = fixture.requests.writes();
    applied
        .settle(stored(2, vec![bundle("a", "ttldone-a", &objects)]))
        .await;
    let observed = applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    assert_eq!(health(&observed, text), Health::Healthy);
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_job_that_failed_and_is_removed_stays_failed() {
    let fixture = Fixture::new("ttlfail").await;
    let mut applied = fixture.start().await;
    // Its pod can never be scheduled, so the Job fails when its deadline passes.
    let mut failing = job("fails", Some(0));
    failing["spec"]["template"]["spec"]["nodeSelector"] = json!({"there": "is-none"});
    failing["spec"]["activeDeadlineSeconds"] = 1.into();
    let objects = [namespace("ttlfail-a"), failing];
    applied
        .settle(stored(1, vec![bundle("a", "ttlfail-a", &objects)]))
        .await;
    let text = "Job.batch ttlfail-a/fails";
    until_gone(&fixture, "ttlfail-a", "fails").await;
    let observed = applied
        .until(|o| {
            o.settled && object(o, text).uid.is_none() && health(o, text) == Health::Degraded
        })
        .await;
    let message = object(&observed, text).message.unwrap();
    assert!(message.contains("DeadlineExceeded"), "{message}");
    let jobs = fixture.api("batch/v1", "Job", Some("ttlfail-a"));
    assert!(jobs.get_opt("fails").await.unwrap().is_none());
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_job_that_a_person_deletes_before_it_has_ended_comes_back() {
    let fixture = Fixture::new("ttlback").await;
    let mut applied = fixture.start().await;
    let mut suspended = job("waits", Some(0));
    suspended["spec"]["suspend"] = true.into();
    let objects = [namespace("ttlback-a"), suspended];
    applied
        .settle(stored(1, vec![bundle("a", "ttlback-a", &objects)]))
        .await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let jobs = fixture.api("batch/v1", "Job", Some("ttlback-a"));
    let old = jobs.get("waits").await.unwrap().metadata.uid;
    jobs.delete("waits", &DeleteParams::background())
        .await
        .unwrap();
    let none = json!({"metadata": {"finalizers": null}});
    let patch = Patch::Merge(&none);
    let _ = jobs.patch("waits", &PatchParams::default(), &patch).await;
    eventually("the Job is recreated", LONG, async || {
        let new = jobs.get("waits").await?.metadata.uid;
        anyhow::ensure!(new != old);
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}
