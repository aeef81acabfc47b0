//! Unchanged objects cause no writes.

use crate::fixture::{Fixture, bundle, config_map, namespace, stored};

#[tokio::test]
async fn an_unchanged_generation_writes_nothing() {
    let fixture = Fixture::new("quiet").await;
    let mut applied = fixture.start().await;
    let mut objects = vec![namespace("quiet-a")];
    objects.extend((0..50).map(|i| config_map(&format!("c{i}"), "1")));
    let bundles = vec![bundle("a", "quiet-a", &objects)];
    applied.settle(stored(1, bundles.clone())).await;
    applied.until(|o| o.bundles[0].counts.healthy == 51).await;

    let before = fixture.requests.writes();
    applied.settle(stored(2, bundles.clone())).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.applier.stop().await;

    // A new process writes nothing, either.
    let mut applied = fixture.start().await;
    applied.settle(stored(2, bundles.clone())).await;
    applied.until(|o| o.bundles[0].counts.healthy == 51).await;
    assert_eq!(fixture.requests.writes() - before, 0);

    // One changed object costs three writes: its apply, and the inventory before and after it.
    objects[7] = config_map("c6", "2");
    applied
        .settle(stored(3, vec![bundle("a", "quiet-a", &objects)]))
        .await;
    assert_eq!(fixture.requests.writes() - before, 3);

    // A resync applies every object again.
    applied.applier.resync();
    let desired = before + 3 + 51;
    muster_testkit::wait::eventually(
        "every object is applied again",
        crate::fixture::LONG,
        async || {
            anyhow::ensure!(fixture.requests.writes() >= desired);
            Ok(())
        },
    )
    .await
    .unwrap();
    applied.applier.stop().await;
}
