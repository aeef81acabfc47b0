//! An agent that is killed at random points ends with exactly the objects of the last generation.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::TryStreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use muster_apply::{GenerationStore, StoredBundle};
use muster_model::bundle::Bundle;
use muster_testkit::process::Process;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, cluster, definition, foo, namespace, stored};

const CHILD: &str = "killed::the_process_that_is_killed";
const DIRECTORY: &str = "MUSTER_TEST_KILLED_DIRECTORY";
const GENERATIONS: u64 = 30;
const NAMESPACES: u64 = 3;
const OBJECTS: u64 = 14;
const GROUP: &str = "killed.example";

/// A random number generator with a fixed seed, so that a failure can be investigated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Returns the bundles of a generation, one for each of two apps. `revisions` holds the generation in which each object
/// got its content.
fn generation(
    number: u64,
    dice: &mut Dice,
    revisions: &mut BTreeMap<String, u64>,
) -> Vec<StoredBundle> {
    let mut objects = [vec![], vec![]];
    for ns in 0..NAMESPACES {
        objects[0].push(namespace(&format!("killed-{ns}")));
    }
    objects[0].push(definition(GROUP, "Namespaced"));
    for i in 0..OBJECTS {
        if dice.roll(3) == 0 {
            continue;
        }
        let (name, ns) = (format!("o{i}"), format!("killed-{}", i % NAMESPACES));
        let revision = revisions.entry(name.clone()).or_insert(number);
        if dice.roll(2) == 0 {
            *revision = number;
        }
        let mut object = if i % 4 == 0 {
            foo(GROUP, &name)
        } else {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                   "data": {"revision": revision.to_string()}})
        };
        if i % 4 == 0 {
            object["spec"]["size"] = (*revision).into();
        }
        object["metadata"]["namespace"] = ns.into();
        objects[usize::try_from(dice.roll(2)).unwrap()].push(object);
    }
    // Only this generation has these objects: an agent that forgets one of them leaves it behind.
    for i in 0..8 {
        let name = format!("only-{number}-{i}");
        objects[1].push(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                               "data": {"revision": number.to_string()}}),
        );
    }
    let [one, two] = objects;
    vec![
        bundle("killed-one", "killed-0", &one),
        bundle("killed-two", "killed-1", &two),
    ]
}

fn write(directory: &Path, number: u64, bundles: &[StoredBundle]) {
    let texts: Vec<_> = bundles
        .iter()
        .map(|b| String::from_utf8(b.bundle().encode()).unwrap())
        .collect();
    let next = directory.join("next");
    std::fs::write(&next, serde_json::to_vec(&(number, texts)).unwrap()).unwrap();
    std::fs::rename(next, directory.join("wanted")).unwrap();
}

fn read(directory: &Path) -> Option<(u64, Vec<StoredBundle>)> {
    let (number, texts): (u64, Vec<String>) =
        serde_json::from_slice(&std::fs::read(directory.join("wanted")).ok()?).unwrap();
    let bundles = texts
        .iter()
        .map(|t| StoredBundle::from_encoded(t.as_bytes()).unwrap())
        .collect();
    Some((number, bundles))
}

#[test]
#[ignore = "it is the child of the test below, which starts it"]
fn the_process_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let directory = Path::new(&directory);
        let kubeconfig = std::fs::read_to_string(directory.join("kubeconfig")).unwrap();
        let fixture = Fixture::of_kubeconfig("killed", &kubeconfig).await;
        let mut store = GenerationStore::new(fixture.client.clone(), &fixture.config.namespace);
        let loaded = store.load().await.unwrap();
        let applied = fixture.start().await;
        let mut in_force = loaded.as_ref().map_or(0, |stored| stored.generation.0);
        if let Some(loaded) = loaded {
            applied.applier.set_desired(Arc::new(loaded));
        }
        loop {
            if let Some((number, bundles)) = read(directory)
                && number > in_force
            {
                let stored = stored(number, bundles);
                store.save(&stored).await.unwrap();
                applied.applier.set_desired(Arc::new(stored));
                store.sweep().await.unwrap();
                in_force = number;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
}

/// All revisions of each ConfigMap of this test, by UID, in the order of the watch events.
type Revisions = Arc<Mutex<HashMap<String, Vec<u64>>>>;

async fn record(fixture: &Fixture) -> (Revisions, tokio::task::JoinHandle<()>) {
    let revisions = Revisions::default();
    let seen = revisions.clone();
    let maps = fixture.api("v1", "ConfigMap", None);
    let task = tokio::spawn(async move {
        let config = watcher::Config::default().labels(muster_apply::APP_LABEL);
        let events = watcher::watcher(maps, config)
            .default_backoff()
            .applied_objects();
        let each = events.try_for_each(|object| {
            let ours = object
                .metadata
                .namespace
                .is_some_and(|ns| ns.starts_with("killed-"));
            if let Some(revision) = object.data["data"]["revision"].as_str().filter(|_| ours) {
                let uid = object.metadata.uid.unwrap_or_default();
                let revision = revision.parse().unwrap();
                seen.lock().unwrap().entry(uid).or_default().push(revision);
            }
            futures::future::ok(())
        });
        let _ = each.await;
    });
    (revisions, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_it_ends_with_the_last_generation() {
    let cluster = cluster().await;
    let fixture = Fixture::new("killed").await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = cluster.kubeconfig().unwrap();
    std::fs::write(directory.path().join("kubeconfig"), kubeconfig).unwrap();
    let (history, recorder) = record(&fixture).await;

    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([CHILD, "--exact", "--ignored", "--nocapture"]);
        command.env(DIRECTORY, directory.path());
        Process::spawn("child", command, &directory.path().join("log")).unwrap()
    };
    let mut dice = Dice(4);
    let mut revisions = BTreeMap::new();
    let mut desired = vec![];
    for number in 1..=GENERATIONS {
        desired = generation(number, &mut dice, &mut revisions);
        write(directory.path(), number, &desired);
        let child = start();
        // The kill may happen at any point.
        tokio::time::sleep(Duration::from_millis(20 + dice.roll(400))).await;
        child.check().expect("the child runs until it is killed");
        child.kill().unwrap();
    }

    // This process is the last agent, and is not killed.
    let mut store = GenerationStore::new(fixture.client.clone(), &fixture.config.namespace);
    let before = store.load().await.unwrap();
    assert!(before.is_some_and(|stored| stored.generation.0 <= GENERATIONS));
    let last = stored(GENERATIONS, desired.clone());
    store.save(&last).await.unwrap();
    let mut applied = fixture.start().await;
    applied.settle(last).await;
    let observed = applied.until(|o| o.leftovers.is_empty()).await;
    let all = observed.bundles.iter().map(|b| b.counts);
    assert!(
        all.clone().all(|counts| counts.applied == counts.total),
        "{observed:#?}"
    );
    applied.applier.stop().await;

    // Exactly the desired objects exist, with their content.
    let mut expected = BTreeMap::new();
    for bundle in &desired {
        let Bundle { header, objects } = bundle.bundle().as_ref();
        for object in objects {
            if ["Namespace", "CustomResourceDefinition"].contains(&object.id.gvk.kind.as_str()) {
                continue;
            }
            let mut id = object.id.clone();
            id.namespace.get_or_insert_with(|| header.namespace.clone());
            let value: Value = serde_json::from_str(&object.json).unwrap();
            let content = if value["data"].is_null() {
                &value["spec"]
            } else {
                &value["data"]
            };
            expected.insert(id.to_string(), content.clone());
        }
    }
    let mut live = BTreeMap::new();
    for (api, kind, field) in [
        ("v1", "ConfigMap", "data"),
        (&format!("{GROUP}/v1"), "Foo", "spec"),
    ] {
        for ns in 0..NAMESPACES {
            let ns = format!("killed-{ns}");
            for object in fixture
                .api(api, kind, Some(&ns))
                .list(&Default::default())
                .await
                .unwrap()
            {
                let name = object.metadata.name.unwrap();
                if name != "kube-root-ca.crt" {
                    let kind = if kind == "Foo" {
                        format!("Foo.{GROUP}")
                    } else {
                        kind.to_owned()
                    };
                    live.insert(format!("{kind} {ns}/{name}"), object.data[field].clone());
                }
            }
        }
    }
    assert_eq!(live, expected);

    // No object ever went back to an older revision.
    muster_testkit::wait::eventually("the watch has seen the newest revision", LONG, async || {
        let last = |(_, revisions): (&String, &Vec<u64>)| revisions.last().copied();
        let newest = history.lock().unwrap().iter().filter_map(last).max();
        anyhow::ensure!(
            newest
                == revisions
                    .values()
                    .copied()
                    .filter(|r| *r <= GENERATIONS)
                    .max()
        );
        Ok(())
    })
    .await
    .unwrap();
    recorder.abort();
    for (uid, revisions) in history.lock().unwrap().iter() {
        assert!(
            revisions.is_sorted(),
            "{uid} went back to an older revision: {revisions:?}"
        );
    }
}
