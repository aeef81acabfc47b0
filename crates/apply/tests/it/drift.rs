//! What others do to the objects.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::fixture::{Fixture, LONG, bundle, config_map, kept, namespace};

#[tokio::test]
async fn a_deleted_object_comes_back() {
    let fixture = Fixture::new("drift").await;
    let mut applied = fixture.start().await;
    let objects = [
        namespace("drift-a"),
        config_map("a", "1"),
        config_map("b", "1"),
    ];
    let wanted = kept(1, vec![bundle("a", "drift-a", &objects)]);
    applied.settle(wanted).await;
    let maps = fixture.config_maps("drift-a");
    let old = maps.get("a").await.unwrap().metadata.uid;
    let b = maps.get("b").await.unwrap().metadata;
    // All are seen before anything happens to them.
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let observed = applied
        .until(|o| {
            o.bundles[0]
                .objects
                .iter()
                .any(|o| o.id.name == "a" && o.uid.is_some() && o.uid != old)
        })
        .await;
    let new = maps.get("a").await.unwrap().metadata.uid;
    assert_eq!(observed.bundles[0].objects[1].uid, new);

    // A label that somebody takes away comes back, on the same object.
    let patch = json!({"metadata": {"labels": {muster_apply::APP_LABEL: null}}});
    maps.patch("b", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    muster_testkit::wait::eventually("the label is back", LONG, async || {
        let live = maps.get("b").await?.metadata;
        anyhow::ensure!(live.uid == b.uid);
        anyhow::ensure!(
            live.labels
                .is_some_and(|l| l.contains_key(muster_apply::APP_LABEL))
        );
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_vanished_while_the_agent_was_away_comes_back() {
    let fixture = Fixture::new("away").await;
    let objects = [
        namespace("away-a"),
        config_map("a", "1"),
        config_map("b", "1"),
    ];
    let wanted = kept(1, vec![bundle("a", "away-a", &objects)]);
    let mut applied = fixture.start().await;
    applied.settle(wanted.clone()).await;
    applied.applier.stop().await;

    let maps = fixture.config_maps("away-a");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let mut applied = fixture.start().await;
    applied.settle(wanted).await;
    applied.until(|o| o.bundles[0].counts.healthy == 3).await;
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["away-a/a", "away-a/b"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_that_somebody_put_in_place_of_ours_is_not_pruned() {
    let fixture = Fixture::new("theirs").await;
    let objects = [namespace("theirs-a"), config_map("a", "1")];
    let mut applied = fixture.start().await;
    applied
        .settle(kept(1, vec![bundle("a", "theirs-a", &objects)]))
        .await;
    applied.applier.stop().await;

    let maps = fixture.config_maps("theirs-a");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let theirs = serde_json::from_value(config_map("a", "theirs")).unwrap();
    maps.create(&PostParams::default(), &theirs).await.unwrap();
    let mut applied = fixture.start().await;
    applied
        .settle(kept(2, vec![bundle("a", "theirs-a", &objects[..1])]))
        .await;
    assert_eq!(
        maps.get("a").await.unwrap().data["data"],
        json!({"v": "theirs"})
    );
    applied.applier.stop().await;
}
