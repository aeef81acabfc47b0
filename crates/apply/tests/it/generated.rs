//! A property test: whatever exists in the cluster, whatever two generations contain, and however often the applier
//! is restarted, the cluster ends with exactly the desired objects, and objects outside the inventory are not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kube::api::{ListParams, PostParams};
use muster_apply::{APP_LABEL, StoredGeneration};
use muster_model::policy::Conflicts;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::json;

use crate::fixture::{Fixture, making, namespace, stored};

const CASES: u32 = 12;
const NAMES: u8 = 10;

/// The desired objects by name, each with its app (true for the second) and its content.
type DesiredObject = BTreeMap<u8, (bool, u8)>;

#[derive(Debug, Clone)]
struct Case {
    /// The objects that others created before, by name; true if the object has Muster's app label.
    theirs: BTreeMap<u8, bool>,
    generations: [DesiredObject; 2],
    /// The interrupted runs of the applier in each generation: after how many milliseconds each of them is stopped.
    interruptions: [Vec<u8>; 2],
}

fn case() -> impl Strategy<Value = Case> {
    let desired = || proptest::collection::btree_map(0..NAMES, (any::<bool>(), 0..3_u8), 0..10);
    let interruptions = || proptest::collection::vec(0..60_u8, 0..4);
    let theirs = proptest::collection::btree_map(0..NAMES, any::<bool>(), 0..6);
    (
        theirs,
        desired(),
        desired(),
        interruptions(),
        interruptions(),
    )
        .prop_map(|(theirs, a, b, i, j)| Case {
            theirs,
            generations: [a, b],
            interruptions: [i, j],
        })
}

fn generation(number: u64, ns: &str, desired: &DesiredObject) -> StoredGeneration {
    let app = |second: bool| {
        let maps = desired.iter().filter(|(_, (of, _))| *of == second).map(|(name, (_, content))| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{name}")},
                "data": {"v": content.to_string()},
            })
        });
        let maps: Vec<_> = maps.collect();
        let name = if second { "second" } else { "first" };
        making(name, ns)
            .policy(|policy| policy.conflicts = Conflicts::Take)
            .of(&maps)
    };
    let base = making("base", ns).of(&[namespace(ns)]);
    let mut stored = stored(number, vec![base, app(false), app(true)]);
    // An app without objects is left out: a bundle that renders to nothing would need an approval.
    stored
        .bundles
        .retain(|bundle| !bundle.bundle().objects.is_empty());
    stored
}

async fn check_property(fixture: &Fixture, case: &Case) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let ns = format!("generated-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let fixture = fixture.part(&ns);
    let namespaces = fixture.api("v1", "Namespace", None);
    let plain = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
    let plain = serde_json::from_value(plain).unwrap();
    namespaces
        .create(&PostParams::default(), &plain)
        .await
        .unwrap();
    let maps = fixture.config_maps(&ns);
    for (name, labelled) in &case.theirs {
        let labels = if *labelled {
            json!({APP_LABEL: "first"})
        } else {
            json!({})
        };
        let theirs = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("m{name}"), "labels": labels}, "data": {"v": "theirs"},
        });
        let theirs = serde_json::from_value(theirs).unwrap();
        maps.create(&PostParams::default(), &theirs).await.unwrap();
    }
    let live = async || {
        let list = maps.list(&ListParams::default()).await.unwrap();
        let ours = list
            .into_iter()
            .filter(|map| map.metadata.name.as_deref() != Some("kube-root-ca.crt"));
        ours.map(|map| {
            let (name, version) = (map.metadata.name.unwrap(), map.metadata.resource_version);
            (
                name,
                (map.data["data"]["v"].as_str().unwrap().to_owned(), version),
            )
        })
        .collect::<BTreeMap<_, _>>()
    };
    let before = live().await;

    for (number, (desired, interruptions)) in
        (1..).zip(case.generations.iter().zip(&case.interruptions))
    {
        let stored = generation(number, &ns, desired);
        for after in interruptions {
            let applied = fixture.start().await;
            applied.applier.set_desired(Arc::new(stored.clone()));
            // The pause is part of the generated test case; it does not wait for any condition.
            tokio::time::sleep(Duration::from_millis(u64::from(*after))).await;
            applied.applier.stop().await;
        }
        let mut applied = fixture.start().await;
        applied.settle(stored).await;
        applied
            .until(|o| {
                o.leftovers.is_empty()
                    && o.bundles.iter().all(|b| b.counts.applied == b.counts.total)
            })
            .await;
        applied.applier.stop().await;
    }

    let after = live().await;
    let [first, last] = &case.generations;
    let names: BTreeSet<u8> = (0..NAMES).collect();
    for name in names {
        let key = format!("m{name}");
        let is = after.get(&key);
        match last.get(&name) {
            Some((_, content)) => {
                assert_eq!(
                    is.map(|(v, _)| v.clone()),
                    Some(content.to_string()),
                    "{key}"
                );
            }
            None if first.contains_key(&name) => assert_eq!(is, None, "{key}"),
            // This object never belonged to Muster: even its resource version is unchanged.
            None => assert_eq!(is, before.get(&key), "{key}"),
        }
    }
    // The same desired state causes no further writes.
    let mut applied = fixture.start().await;
    let writes = fixture.requests.writes();
    applied.settle(generation(3, &ns, last)).await;
    assert_eq!(fixture.requests.writes(), writes);
    applied.applier.stop().await;
}

#[test]
fn any_two_generations_on_any_cluster_end_with_exactly_what_is_wanted() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let fixture = runtime.block_on(Fixture::new("generated"));
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&case(), |case| {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(check_property(&fixture, &case));
            }));
            done.map_err(|_| TestCaseError::fail("see above"))
        })
        .unwrap();
}
