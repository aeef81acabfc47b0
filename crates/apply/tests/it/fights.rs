//! Other clients that repeatedly undo what Muster applies.

use std::time::Duration;

use futures::StreamExt as _;
use kube::{
    api::{DeleteParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use muster_apply::{ObjectState, Observed};
use muster_testkit::{
    faults::{Asked, Fault, Hold, Verb},
    wait::eventually,
};
use serde_json::json;

use crate::{
    faults::behind_a_proxy,
    fixture::{Fixture, LONG, bundle, config_map, namespace, object, stored},
};

fn failure(observed: &Observed, text: &str) -> Option<String> {
    match object(observed, text).state {
        ObjectState::Failed(message) => Some(message),
        _ => None,
    }
}

#[tokio::test]
async fn an_object_that_is_deleted_before_the_answer_to_its_apply_is_recreated() {
    let (proxy, fixture) = behind_a_proxy("early").await;
    let hold = Hold::default();
    proxy.spoil(1, Fault::Held(hold.clone()), |asked: &Asked| {
        asked.verb == Verb::Patch && asked.name.as_deref() == Some("a")
    });
    let mut applied = fixture.start().await;
    let objects = [namespace("early-a"), config_map("a", "1")];
    applied
        .applier
        .set_desired(stored(1, vec![bundle("a", "early-a", &objects)]).into());
    let text = "ConfigMap early-a/a";
    let seen =
        |observed: &Observed| !observed.bundles.is_empty() && object(observed, text).uid.is_some();
    applied.until(seen).await;
    let maps = fixture.config_maps("early-a");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    applied.until(|o| !seen(o)).await;
    hold.release();
    let observed = applied
        .until(|o| seen(o) && object(o, text).state == ObjectState::Applied)
        .await;
    let live = maps.get("a").await.unwrap();
    assert_eq!(live.metadata.uid, object(&observed, text).uid);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_the_garbage_collector_deletes_is_reported_and_exists_once_git_is_fixed() {
    let fixture = Fixture::new("orphan").await;
    let mut applied = fixture.start().await;
    let mut stale = config_map("stale", "1");
    stale["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "gone",
        "uid": "11111111-2222-3333-4444-555555555555",
    }]);
    let objects = [namespace("orphan-a"), stale, config_map("other", "1")];
    applied
        .applier
        .set_desired(stored(1, vec![bundle("a", "orphan-a", &objects)]).into());
    let text = "ConfigMap orphan-a/stale";
    let told = |o: &Observed| !o.bundles.is_empty() && failure(o, text).is_some();
    let observed = applied.until(told).await;
    let message = failure(&observed, text).unwrap();
    assert!(message.contains("has deleted this 4 times"), "{message}");
    assert!(message.contains("ownerReferences"), "{message}");
    assert_eq!(observed.bundles[0].counts.failed, 1);
    assert_eq!(
        object(&observed, "ConfigMap orphan-a/other").state,
        ObjectState::Applied
    );

    let objects = [
        namespace("orphan-a"),
        config_map("stale", "1"),
        config_map("other", "1"),
    ];
    applied
        .settle(stored(2, vec![bundle("a", "orphan-a", &objects)]))
        .await;
    let is_well = |o: &Observed| {
        let object = object(o, text);
        object.state == ObjectState::Applied && object.uid.is_some()
    };
    let observed = applied.until(is_well).await;
    let live = fixture.config_maps("orphan-a").get("stale").await.unwrap();
    assert_eq!(live.metadata.uid, object(&observed, text).uid);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_any_client_deletes_at_once_is_there_when_it_stops() {
    let fixture = Fixture::new("deleted").await;
    fixture.create(&namespace("deleted-a")).await;
    let maps = fixture.config_maps("deleted-a");
    let rival = tokio::spawn({
        let maps = maps.clone();
        async move {
            let config = watcher::Config::default().fields("metadata.name=a");
            let mut events = std::pin::pin!(watcher(maps.clone(), config).touched_objects());
            let mut deleted = 0;
            while deleted < 8 {
                let event = events.next().await.expect("the watch continues");
                let there = event.is_ok_and(|map| map.metadata.deletion_timestamp.is_none());
                let gone = async || maps.delete("a", &DeleteParams::default()).await.is_ok();
                deleted += usize::from(there && gone().await);
            }
        }
    });
    let mut applied = fixture.start().await;
    let objects = [namespace("deleted-a"), config_map("a", "1")];
    applied
        .applier
        .set_desired(stored(1, vec![bundle("a", "deleted-a", &objects)]).into());
    let text = "ConfigMap deleted-a/a";
    let told = |o: &Observed| !o.bundles.is_empty() && failure(o, text).is_some();
    applied.until(told).await;
    tokio::time::timeout(LONG, rival)
        .await
        .expect("the object is created often enough")
        .unwrap();
    // In the end the object exists, and the fight is over.
    let is_well = |o: &Observed| {
        let object = object(o, text);
        object.state == ObjectState::Applied && object.uid.is_some()
    };
    let observed = applied.until(is_well).await;
    let live = maps.get("a").await.unwrap();
    assert_eq!(live.metadata.uid, object(&observed, text).uid);
    applied.applier.stop().await;
}

#[tokio::test]
async fn who_undoes_a_field_is_named_for_as_long_as_it_lasts() {
    let fixture = Fixture::new("rival").await;
    let mut applied = fixture.start().await;
    let objects = [namespace("rival-a"), config_map("a", "ours")];
    applied
        .settle(stored(1, vec![bundle("a", "rival-a", &objects)]))
        .await;
    let maps = fixture.config_maps("rival-a");
    let rival = tokio::spawn({
        let maps = maps.clone();
        async move {
            let theirs = json!({"data": {"v": "theirs"}});
            let params = WatchParams::default().fields("metadata.name=a");
            let rival = kube::api::PatchParams {
                field_manager: Some("rival".to_owned()),
                ..Default::default()
            };
            let mut events = std::pin::pin!(maps.watch(&params, "0").await.unwrap());
            while let Some(Ok(event)) = events.next().await {
                let (WatchEvent::Added(map) | WatchEvent::Modified(map)) = event else {
                    continue;
                };
                if map.data["data"]["v"] == "ours" {
                    let patch = kube::api::Patch::Merge(&theirs);
                    maps.patch("a", &rival, &patch).await.unwrap();
                }
            }
        }
    });
    let text = "ConfigMap rival-a/a";
    let observed = applied.until(|o| failure(o, text).is_some()).await;
    let message = failure(&observed, text).unwrap();
    assert!(
        message.contains("rival has undone this 4 times"),
        "{message}"
    );
    assert!(
        message.contains(r#".data.v is "theirs", should be "ours""#),
        "{message}"
    );
    rival.abort();
    applied.until(|o| failure(o, text).is_none()).await;
    let live = maps.get("a").await.unwrap();
    assert_eq!(live.data["data"]["v"], "ours");
    applied.applier.stop().await;
}

#[tokio::test]
async fn the_rules_of_an_aggregated_role_are_left_to_kubernetes() {
    let fixture = Fixture::new("sum").await;
    let role = |name: &str, rest: serde_json::Value| {
        let mut role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
        });
        for (field, value) in rest.as_object().unwrap() {
            role[field] = value.clone();
        }
        role
    };
    let objects = |verb: &str| {
        let labels = json!({"sum.example.com/part": "true"});
        let mut part = role(
            "sum-part",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]}),
        );
        part["metadata"]["labels"] = labels.clone();
        let selectors = json!([{"matchLabels": labels}]);
        let sum = json!({"aggregationRule": {"clusterRoleSelectors": selectors}, "rules": []});
        [role("sum-all", sum), part]
    };
    let api = fixture.api("rbac.authorization.k8s.io/v1", "ClusterRole", None);
    let summed = async |verb: &str| {
        eventually("the rules are aggregated", LONG, async || {
            let live = api.get("sum-all").await?;
            anyhow::ensure!(live.data["rules"][0]["verbs"][0] == verb, "{live:?}");
            Ok(())
        })
        .await
        .unwrap();
    };
    let mut applied = fixture.start().await;
    applied
        .settle(stored(1, vec![bundle("a", "sum-a", &objects("get"))]))
        .await;
    summed("get").await;
    let before = fixture.requests.writes();
    applied
        .settle(stored(2, vec![bundle("a", "sum-a", &objects("list"))]))
        .await;
    summed("list").await;
    let observed = applied.until(|o| o.bundles[0].counts.healthy == 2).await;
    assert!(observed.bundles[0].drifts.is_empty(), "{observed:#?}");
    // One write changes the ClusterRole `sum-part`, and two change the inventory before and after it.
    assert_eq!(fixture.requests.writes() - before, 3);
    applied.applier.stop().await;
}

#[tokio::test]
async fn while_a_fight_rests_what_the_rival_does_costs_no_request() {
    let rival = Fixture::new("pause-rival").await;
    let mut fixture = Fixture::new("pause").await;
    // After three immediate corrections, the next one waits for longer than the test takes.
    fixture.config.first_retry = Duration::from_secs(3_600);
    fixture.config.longest_fight = Duration::from_secs(3_600);
    let mut applied = fixture.start().await;
    let objects = [
        namespace("pause-a"),
        config_map("a", "ours"),
        config_map("b", "ours"),
    ];
    applied
        .settle(stored(1, vec![bundle("a", "pause-a", &objects)]))
        .await;
    let maps = rival.config_maps("pause-a");
    let edit = async |name: &str, value: &str| {
        let patch = json!({"data": {"v": value}});
        rival
            .edit_as("rival", "v1", "ConfigMap", ("pause-a", name), &patch)
            .await;
    };
    let is_ours = async |name: &str| {
        eventually("the object is corrected", LONG, async || {
            let live = maps.get(name).await?;
            anyhow::ensure!(live.data["data"]["v"] == "ours");
            Ok(())
        })
        .await
        .unwrap();
    };
    for _ in 0..3 {
        edit("a", "theirs").await;
        is_ours("a").await;
    }
    edit("a", "theirs").await;
    let text = "ConfigMap pause-a/a";
    applied.until(|o| failure(o, text).is_some()).await;

    let requests = || fixture.requests.reads() + fixture.requests.writes();
    let before = requests();
    for n in 0..50 {
        edit("a", &format!("theirs {n}")).await;
    }
    // The watch sees this change after all the others.
    edit("b", "theirs").await;
    is_ours("b").await;
    applied.until(|o| o.bundles[0].counts.applied == 2).await;
    // `b` costs a few requests: to read it, to find the difference, to apply it, and to create an Event.
    let asked = requests() - before;
    assert!(asked <= 8, "{asked} requests");
    assert!(failure(&applied.applier.observed().borrow(), text).is_some());

    // New content from Git is applied without a pause.
    let objects = [
        namespace("pause-a"),
        config_map("a", "new"),
        config_map("b", "ours"),
    ];
    applied
        .settle(stored(2, vec![bundle("a", "pause-a", &objects)]))
        .await;
    assert_eq!(maps.get("a").await.unwrap().data["data"]["v"], "new");
    applied.applier.stop().await;
}
