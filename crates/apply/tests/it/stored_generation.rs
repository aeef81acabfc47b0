//! The generation that the agent stores in the cluster.

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use muster_apply::{GenerationStore, GenerationStoreError, StoredGeneration};
use serde_json::json;

use crate::fixture::{Fixture, bundle, config_map, stored};

fn content(stored: &StoredGeneration) -> Vec<Vec<u8>> {
    stored.bundles.iter().map(|b| b.bundle().encode()).collect()
}

/// Returns text that hardly compresses, so that it takes several Secrets.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn a_generation_survives_its_agent() {
    let fixture = Fixture::new("kept").await;
    let namespace = &fixture.config.namespace;
    let open = || GenerationStore::new(fixture.client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(fixture.client.clone(), namespace);
    assert!(open().load().await.unwrap().is_none());

    // One bundle of 3 MB and a small one.
    let large: Vec<_> = (0..3)
        .map(|i| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("l{i}")},
               "data": {"v": noise(1_000_000 + i)}})
        })
        .collect();
    let large = bundle("large", "x", &large);
    let small = bundle("small", "x", &[config_map("a", "1")]);
    let first = stored(5, vec![large.clone(), small]);
    let mut store = open();
    store.save(&first).await.unwrap();
    let loaded = open().load().await.unwrap().unwrap();
    assert_eq!(
        (loaded.generation, loaded.hash),
        (first.generation, first.hash)
    );
    assert_eq!(
        (&loaded.term, &loaded.incarnation),
        (&first.term, &first.incarnation)
    );
    assert_eq!(content(&loaded), content(&first));

    // An unchanged bundle is not written again: the two writes are one piece and the pointer.
    let before = fixture.requests.writes();
    let second = stored(
        6,
        vec![large, bundle("small", "x", &[config_map("a", "2")])],
    );
    store.save(&second).await.unwrap();
    assert_eq!(fixture.requests.writes() - before, 2);
    store.sweep().await.unwrap();
    let pieces = secrets
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .len();
    let mut again = open();
    assert_eq!(
        content(&again.load().await.unwrap().unwrap()),
        content(&second)
    );
    again.sweep().await.unwrap();
    assert_eq!(
        secrets
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        pieces
    );

    // An older generation, and other content under the same number, are refused even by a store that has loaded
    // nothing.
    let mut blind = open();
    for older in [first, stored(6, vec![])] {
        assert!(matches!(
            blind.save(&older).await,
            Err(GenerationStoreError::Refused { .. })
        ));
    }
    assert_eq!(
        open().load().await.unwrap().unwrap().generation,
        second.generation
    );

    // The slower of two processes is refused: it offers generation 7 after it has loaded generation 6, but the other
    // process has stored generation 8 in the meantime.
    let mut slow = open();
    slow.load().await.unwrap();
    store.save(&stored(8, vec![])).await.unwrap();
    assert!(matches!(
        slow.save(&stored(7, vec![])).await,
        Err(GenerationStoreError::Refused { .. })
    ));

    // A missing piece is detected, and the error still has the number of the generation.
    store.save(&stored(9, second.bundles)).await.unwrap();
    let piece = secrets
        .list(&ListParams::default().labels("muster.dev/bundle"))
        .await
        .unwrap();
    let name = piece.items[0].metadata.name.clone().unwrap();
    secrets
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    match open().load().await {
        Err(GenerationStoreError::DamagedBundle { pointer, .. }) => {
            assert_eq!(pointer.generation.0, 9)
        }
        other => panic!("{other:?}"),
    }
}
