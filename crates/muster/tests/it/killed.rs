//! Hub and agents are killed with SIGKILL at random moments during thirty commits. In the end every cluster is exactly
//! at the last commit, no object is orphaned, and no object was ever set back to an older commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
    core::DynamicObject,
    discovery::ApiResource,
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const COMMITS: usize = 30;
const CLUSTERS: [(&str, &str); 3] = [("one", "east"), ("two", "east"), ("three", "west")];

/// The random history of the fleet repository, with the items that each app has now.
struct Story {
    random: StdRng,
    apps: BTreeMap<&'static str, BTreeSet<u8>>,
    commit: usize,
}

const TEMPLATE: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: {{ app.name }}, annotations: {muster.dev/prune: enabled}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: counter, namespace: {{ app.name }}}
data: {n: "{{ values.n }}", cluster: {{ cluster.name }}}
{% for item in values.items %}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: item-{{ item }}, namespace: {{ app.name }}}
data: {n: "{{ values.n }}"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: item-{{ item }}, namespace: {{ app.name }}}
{% endfor %}
"#;

impl Story {
    fn first(fleet: &Fleet, random: StdRng) -> anyhow::Result<Self> {
        let files = repository::fleet("killed", "{prune: {objects: 1000}}", CLUSTERS);
        fleet.repo().publish("begin", &repository::listed(&files))?;
        Ok(Self {
            random,
            apps: BTreeMap::new(),
            commit: 0,
        })
    }

    /// Publishes one more commit, which adds and removes items and apps.
    fn next(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        self.commit += 1;
        let mut message = format!("commit {}\n\n", self.commit);
        for app in ["alpha", "beta", "gamma"] {
            let folder = fleet.repo().work().join("apps").join(app);
            if self.random.random_ratio(1, 12) && self.apps.remove(app).is_some() {
                std::fs::remove_dir_all(&folder)?;
                // Without this trailer the deletion would be pending approval.
                message.push_str(&format!("Muster-Prune: {app}\n"));
                continue;
            }
            let random = &mut self.random;
            let items = self.apps.entry(app).or_default();
            for _ in 0..random.random_range(1..5) {
                let item = random.random_range(0..12);
                if !items.remove(&item) {
                    items.insert(item);
                }
            }
            let items: Vec<&u8> = items.iter().collect();
            let values = format!("n: {}\nitems: {items:?}\n", self.commit);
            std::fs::create_dir_all(folder.join("templates"))?;
            std::fs::write(
                folder.join("app.yaml"),
                document("App", app, "{tier: basic, mode: active-active}"),
            )?;
            std::fs::write(folder.join("templates/all.yaml"), TEMPLATE)?;
            std::fs::write(folder.join("values.yaml"), values)?;
        }
        fleet.repo().publish(&message, &[])?;
        Ok(())
    }
}

/// Objects of a cluster: the data of each, by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), serde_json::Value>;

/// Returns the desired state of a cluster at the newest commit.
fn wanted(fleet: &Fleet, cluster: &str) -> anyhow::Result<Objects> {
    let work = fleet.repo().work();
    let list = fleet.run(&[
        "render",
        &work.to_string_lossy(),
        "--cluster",
        cluster,
        "-o",
        "json",
    ])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let items = list["items"]
        .as_array()
        .context("the output has no list of objects")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .map(|item| {
            let meta = &item["metadata"];
            (
                (
                    text(&item["kind"]),
                    text(&meta["namespace"]),
                    text(&meta["name"]),
                ),
                item["data"].clone(),
            )
        })
        .collect())
}

/// Returns all objects in a cluster that Muster has applied and that still exist.
async fn found(client: &Client) -> anyhow::Result<Objects> {
    let mut objects = Objects::new();
    for kind in [
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Namespace>(&()),
        ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()),
    ] {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        for object in api.list(&ListParams::default()).await? {
            let fields = object.metadata.managed_fields.unwrap_or_default();
            let applied = fields.iter().any(|f| {
                f.manager.as_deref() == Some("muster") && f.operation.as_deref() == Some("Apply")
            });
            let namespace = object.metadata.namespace.unwrap_or_default();
            if applied && namespace != "muster-system" {
                let name = object.metadata.name.unwrap_or_default();
                objects.insert(
                    (kind.kind.clone(), namespace, name),
                    object.data["data"].clone(),
                );
            }
        }
    }
    Ok(objects)
}

/// Watches the counters of a cluster and records each time that one decreases.
async fn watch_counters(client: Client, cluster: &'static str, backwards: Arc<Mutex<Vec<String>>>) {
    let counters: Api<ConfigMap> = Api::all(client);
    let mut highest: BTreeMap<String, (String, u64)> = BTreeMap::new();
    loop {
        let params = WatchParams::default().fields("metadata.name=counter");
        let Ok(events) = counters.watch(&params, "0").await else {
            continue;
        };
        let mut events = events.boxed();
        while let Some(Ok(event)) = events.next().await {
            let (WatchEvent::Added(counter) | WatchEvent::Modified(counter)) = event else {
                continue;
            };
            let namespace = counter.metadata.namespace.unwrap_or_default();
            let uid = counter.metadata.uid.unwrap_or_default();
            let n = counter
                .data
                .and_then(|data| data.get("n")?.parse().ok())
                .unwrap_or_default();
            let last = highest.entry(namespace.clone()).or_default();
            // A restarted watch may report an object again, but with the same counter.
            if n < last.1 {
                let step = format!(
                    "{cluster}/{namespace}: {} after {} ({} {uid})",
                    n, last.1, last.0
                );
                backwards
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(step);
            }
            *last = (uid, n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_every_cluster_ends_at_the_last_commit() -> anyhow::Result<()> {
    let seed = std::env::var("MUSTER_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("MUSTER_SEED={seed} runs the same kills again");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet =
        Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS)).await?;
    let mut story = Story::first(&fleet, StdRng::seed_from_u64(seed ^ 1))?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    let backwards = Arc::new(Mutex::new(Vec::new()));
    let mut watchers = tokio::task::JoinSet::new();
    for (name, _) in CLUSTERS {
        let client = fleet.clusters()[name].client().await?;
        watchers.spawn(watch_counters(client, name, Arc::clone(&backwards)));
    }
    let mut kills = 0;
    for _ in 0..COMMITS {
        story.next(&fleet)?;
        for _ in 0..random.random_range(0..3) {
            // The kill comes at a random moment within the time that a commit takes to arrive.
            tokio::time::sleep(Duration::from_millis(random.random_range(5..400))).await;
            kills += 1;
            match random.random_range(0..=CLUSTERS.len()) {
                0 => {
                    fleet.kill_hub()?;
                    fleet.start_hub().await?;
                }
                n => {
                    let (cluster, _) = CLUSTERS[n - 1];
                    fleet.kill_agent(cluster)?;
                    fleet.start_agent(cluster)?;
                }
            }
        }
    }
    println!("{COMMITS} commits, {kills} kills");
    for (name, _) in CLUSTERS {
        let client = fleet.clusters()[name].client().await?;
        let wanted = wanted(&fleet, name)?;
        ensure!(!wanted.is_empty(), "the last commit has no objects");
        let what = format!("cluster {name} to be at the last commit");
        let settled = eventually(&what, Duration::from_secs(120), async || {
            let found = found(&client).await?;
            let missing: Vec<_> = wanted
                .iter()
                .filter(|(key, data)| found.get(*key) != Some(data))
                .collect();
            let orphans: Vec<_> = found
                .keys()
                .filter(|key| !wanted.contains_key(*key))
                .collect();
            ensure!(
                missing.is_empty() && orphans.is_empty(),
                "missing or different {missing:?}, orphaned {orphans:?}"
            );
            Ok(())
        });
        if let Err(error) = settled.await {
            println!("agent of {name}:\n{}", fleet.agent(name)?.tail());
            println!("hub:\n{}", fleet.hub()?.tail());
            println!("status:\n{:#}", fleet.status()?);
            return Err(error);
        }
    }
    watchers.shutdown().await;
    let backwards = backwards
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    ensure!(backwards.is_empty(), "applied backwards: {backwards:#?}");
    Ok(())
}
