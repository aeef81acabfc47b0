//! Objects that fail or hang in one app do not affect other apps.

use http::StatusCode;
use kube::api::DeleteParams;
use muster_apply::{ObjectState, Observed};
use muster_testkit::{
    faults::{Asked, Fault, Verb},
    wait::eventually,
};
use serde_json::json;
use std::time::Duration;

use crate::{
    faults::behind_a_proxy,
    fixture::{Fixture, LONG, bundle, config_map, making, namespace, object, stored},
};

/// Returns true for a PATCH of an object whose name starts with `bad`.
fn bad(asked: &Asked) -> bool {
    asked.verb == Verb::Patch
        && asked
            .name
            .as_ref()
            .is_some_and(|name| name.starts_with("bad"))
}

fn is_applied(observed: &Observed, text: &str) -> bool {
    !observed.bundles.is_empty() && object(observed, text).state == ObjectState::Applied
}

#[tokio::test]
async fn requests_that_hang_delay_no_other_app_and_no_other_generation() {
    let (proxy, fixture) = behind_a_proxy("stuck").await;
    let hang = proxy.spoil(usize::MAX, Fault::Hang, bad);
    let mut applied = fixture.start().await;
    // More objects than the initial limit of concurrent requests.
    let stuck: Vec<_> = (0..100)
        .map(|i| config_map(&format!("bad{i}"), "1"))
        .collect();
    let generation = |number: u64| {
        let value = number.to_string();
        let mut bad = vec![namespace("stuck-a")];
        bad.extend(stuck.iter().cloned());
        let good = [namespace("stuck-b"), config_map("good", &value)];
        let apps = vec![
            bundle("a", "stuck-a", &bad),
            making("b", "stuck-b").of(&good),
        ];
        stored(number, apps)
    };
    for number in 1..=3 {
        applied.applier.set_desired(generation(number).into());
        let observed = applied
            .until(|o| {
                o.generation.is_some_and(|(of, _)| of.0 == number)
                    && is_applied(o, "ConfigMap stuck-b/good")
            })
            .await;
        // The first requests of the other app are still unanswered.
        let a = &observed.bundles[0].counts;
        assert_eq!((a.applied, a.failed), (1, 0), "{number}: {a:?}");
    }
    assert!(hang.times() > 0);
    let live = fixture.config_maps("stuck-b").get("good").await.unwrap();
    assert_eq!(live.data["data"]["v"], "3");
    proxy.heal();
    applied.until(|o| o.bundles[0].counts.applied == 101).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_failed_object_is_retried_after_a_commit_but_not_after_changes_of_other_objects() {
    let (proxy, mut fixture) = behind_a_proxy("own").await;
    // The back-off is so long that nothing is retried because of it.
    fixture.config.first_retry = Duration::from_secs(3_600);
    fixture.config.longest_retry = Duration::from_secs(3_600);
    let error = Fault::status(
        StatusCode::INTERNAL_SERVER_ERROR,
        "InternalError",
        "failed to create typed patch object",
    );
    let failed = proxy.spoil(usize::MAX, error, bad);
    let mut applied = fixture.start().await;
    let generation = |number, value| {
        let bad = [namespace("own-a"), config_map("bad", "1")];
        let good = [namespace("own-b"), config_map("good", value)];
        let apps = vec![bundle("a", "own-a", &bad), bundle("b", "own-b", &good)];
        stored(number, apps)
    };
    let observed = applied.settle(generation(1, "1")).await;
    let is_told = |observed: &Observed| {
        let bad = object(observed, "ConfigMap own-a/bad").state;
        assert!(
            matches!(&bad, ObjectState::Failed(message) if message.contains("typed patch")),
            "{bad:?}"
        );
    };
    is_told(&observed);
    let tried = failed.times();

    // Changes of other objects cause no retry, and the failure is still reported.
    let maps = fixture.config_maps("own-b");
    for _ in 0..3 {
        let uid = maps.get("good").await.unwrap().metadata.uid;
        maps.delete("good", &DeleteParams::default()).await.unwrap();
        let observed = applied
            .until(|o| {
                let good = object(o, "ConfigMap own-b/good");
                good.state == ObjectState::Applied && good.uid.is_some() && good.uid != uid
            })
            .await;
        is_told(&observed);
    }
    assert_eq!(failed.times(), tried);

    // A commit causes a retry, a moment after the objects that it changes are applied.
    let observed = applied.settle(generation(2, "2")).await;
    is_told(&observed);
    eventually("the object is retried", LONG, async || {
        anyhow::ensure!(failed.times() > tried);
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_failing_object_that_somebody_changes_is_tried_at_once() {
    let (proxy, mut fixture) = behind_a_proxy("repair").await;
    let people = Fixture::new("repair-people").await;
    // The back-off alone would retry the object only after an hour.
    fixture.config.first_retry = Duration::from_secs(3_600);
    fixture.config.longest_retry = Duration::from_secs(3_600);
    let mut applied = fixture.start().await;
    let generation = |number, value| {
        let objects = [namespace("repair-a"), config_map("bad", value)];
        stored(number, vec![bundle("a", "repair-a", &objects)])
    };
    applied.settle(generation(1, "1")).await;
    applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    let refusal = Fault::status(StatusCode::FORBIDDEN, "Forbidden", "its label is missing");
    proxy.spoil(usize::MAX, refusal, bad);
    let observed = applied.settle(generation(2, "2")).await;
    let text = "ConfigMap repair-a/bad";
    let state = object(&observed, text).state;
    assert!(matches!(state, ObjectState::Failed(_)), "{state:?}");
    proxy.heal();
    let label = json!({"metadata": {"labels": {"team": "web"}}});
    people
        .edit_as(
            "kubectl-label",
            "v1",
            "ConfigMap",
            ("repair-a", "bad"),
            &label,
        )
        .await;
    applied.until(|o| is_applied(o, text)).await;
    let live = people.get("v1", "ConfigMap", "repair-a", "bad").await;
    assert_eq!(live["data"]["v"], "2");
    applied.applier.stop().await;
}

/// An annotation that a person sets on an object takes effect even if the watch of its kind has never listed it.
#[tokio::test]
async fn a_watch_that_hangs_is_no_reason_to_overwrite_what_is_to_be_left_alone() {
    let service = |name: &str, port: u16| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"ports": [{"port": port}]},
        })
    };
    let desired = |number: u64, port: u16| {
        let objects = [
            namespace("blind-a"),
            service("one", port),
            service("two", port),
        ];
        stored(number, vec![bundle("a", "blind-a", &objects)])
    };
    let (proxy, fixture) = behind_a_proxy("blind").await;
    let mut applied = fixture.start().await;
    applied.settle(desired(1, 80)).await;
    applied.applier.stop().await;
    let patch = json!({
        "metadata": {"annotations": {"muster.dev/reconcile": "disabled"}},
        "spec": {"ports": [{"port": 9}]},
    });
    fixture
        .edit_as("kubectl-edit", "v1", "Service", ("blind-a", "one"), &patch)
        .await;

    let hang = proxy.spoil(usize::MAX, Fault::Hang, |asked| {
        asked.resource == "services" && matches!(asked.verb, Verb::List | Verb::Watch)
    });
    let mut applied = fixture.start().await;
    let observed = applied.settle(desired(2, 81)).await;
    assert!(hang.times() > 0);
    let state = object(&observed, "Service blind-a/one").state;
    assert!(matches!(state, ObjectState::LeftAlone(_)), "{state:?}");
    let port = async |name| {
        fixture.get("v1", "Service", "blind-a", name).await["spec"]["ports"][0]["port"].clone()
    };
    assert_eq!(
        (port("one").await, port("two").await),
        (json!(9), json!(81))
    );
    applied.applier.stop().await;
}
