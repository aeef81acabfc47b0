//! Objects are created, changed, moved between apps and deleted.

use muster_apply::ObjectState;
use muster_plan::health::Health;
use serde_json::json;

use crate::fixture::{Fixture, bundle, config_map, making, namespace, object, stored};

#[tokio::test]
async fn objects_come_change_move_and_go() {
    let fixture = Fixture::new("life").await;
    let mut applied = fixture.start().await;
    let one = |objects: &[serde_json::Value]| {
        let all = [&[namespace("life-a")], objects].concat();
        bundle("one", "life-a", &all)
    };
    let maps = fixture.config_maps("life-a");

    let observed = applied
        .settle(stored(
            1,
            vec![one(&[config_map("a", "1"), config_map("b", "1")])],
        ))
        .await;
    assert_eq!(
        object(&observed, "ConfigMap life-a/a").state,
        ObjectState::Applied
    );
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["life-a/a", "life-a/b"]
    );
    let moved = maps.get("b").await.unwrap().metadata.uid;

    // `b` moves to the other app, `a` changes, and `c` is new.
    let two = bundle(
        "two",
        "life-a",
        &[config_map("b", "1"), config_map("c", "1")],
    );
    applied
        .settle(stored(2, vec![one(&[config_map("a", "2")]), two.clone()]))
        .await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["life-a/a", "life-a/b", "life-a/c"]
    );
    assert_eq!(maps.get("a").await.unwrap().data["data"], json!({"v": "2"}));
    let b = maps.get("b").await.unwrap();
    assert_eq!(b.metadata.uid, moved);
    assert_eq!(b.metadata.labels.unwrap()[muster_apply::APP_LABEL], "two");

    let observed = applied.settle(stored(3, vec![one(&[]), two])).await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["life-a/b", "life-a/c"]
    );
    assert_eq!(observed.leftovers, []);

    // The deletion of the namespace takes a while.
    applied.settle(stored(4, vec![])).await;
    applied
        .until(|observed| observed.leftovers.is_empty())
        .await;
    assert_eq!(fixture.live("v1", "Namespace").await, Vec::<String>::new());
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_broken_object_is_reported_and_the_rest_goes_on() {
    let fixture = Fixture::new("broken").await;
    let mut applied = fixture.start().await;
    let mut broken = config_map("broken", "1");
    broken["dada"] = json!({});
    let objects = [namespace("broken-a"), broken, config_map("good", "1")];
    let lonely = bundle("lonely", "broken-nowhere", &[config_map("lonely", "1")]);
    let observed = applied
        .settle(stored(1, vec![bundle("a", "broken-a", &objects), lonely]))
        .await;
    let ObjectState::Failed(message) = object(&observed, "ConfigMap broken-a/broken").state else {
        panic!("{observed:#?}");
    };
    assert!(message.contains("dada"), "{message}");
    let ObjectState::Failed(message) = object(&observed, "ConfigMap broken-nowhere/lonely").state
    else {
        panic!("{observed:#?}");
    };
    assert!(message.contains("broken-nowhere"), "{message}");
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["broken-a/good"]);

    // The next generation has the fix.
    let objects = [
        namespace("broken-a"),
        config_map("broken", "1"),
        config_map("good", "1"),
    ];
    applied
        .settle(stored(2, vec![bundle("a", "broken-a", &objects)]))
        .await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["broken-a/broken", "broken-a/good"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_workload_becomes_healthy() {
    let fixture = Fixture::new("work").await;
    let mut applied = fixture.start().await;
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "nginx:1.29"}]},
            },
        },
    });
    let objects = [namespace("work-a"), config_map("settings", "1"), deployment];
    let web = making("web", "work-a").after(&["base"]).of(&objects);
    applied.settle(stored(1, vec![web])).await;
    let observed = applied
        .until(|o| o.bundles.iter().all(|b| b.health == Health::Healthy))
        .await;
    assert_eq!(observed.bundles[0].counts.healthy, 3);
    let live = fixture
        .api("apps/v1", "Deployment", Some("work-a"))
        .get("web")
        .await
        .unwrap();
    assert_eq!(
        object(&observed, "Deployment.apps work-a/web").uid,
        live.metadata.uid
    );
    applied.applier.stop().await;
}
