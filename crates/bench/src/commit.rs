//! Measures the time from the end of `git push` until the object is in the API servers of four real clusters.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::ConfigMap,
};
use kube::{
    Api, Client,
    api::{WatchEvent, WatchParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};
use tokio::sync::watch;

use crate::{
    fanout::memory,
    report::{Row, Section},
};

const CLUSTERS: [(&str, &str); 4] = [
    ("one", "east"),
    ("two", "east"),
    ("three", "west"),
    ("four", "north"),
];
const COMMITS: usize = 50;
/// The number of other objects in each cluster, so that it is not empty.
const ITEMS: usize = 980;

/// The number of another app's objects that fail in every cluster. Half of them have a field of the wrong type, half
/// wait for a webhook that never answers.
const FAILING: usize = 50;

/// The times that commits took.
#[derive(Default)]
pub(crate) struct Times {
    /// For each commit, the time until the last of the four clusters has the object.
    pub(crate) all: Vec<Duration>,
    /// For each commit and cluster, the time until the cluster has the object.
    pub(crate) each: Vec<Duration>,
}

/// The results of one run.
pub(crate) struct Commits {
    /// The times while nothing fails.
    pub(crate) alone: Times,
    /// The times while the objects of another app fail.
    pub(crate) beside: Times,
    /// The resident memory of the hub at the end, in bytes.
    pub(crate) hub: u64,
    /// The resident memory of each agent at the end, with its objects applied, in bytes.
    pub(crate) agents: Vec<u64>,
    /// The number of objects in each cluster.
    pub(crate) objects: usize,
}

const MARK: &str = "apiVersion: v1
kind: Namespace
metadata: {name: mark}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mark}
data: {n: \"{{ values.n }}\", cluster: {{ cluster.name }}}
";

const LOAD: &str = "apiVersion: v1
kind: Namespace
metadata: {name: load}
{% for item in range(values.items) %}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: item-{{ item }}}
data: {item: \"{{ item }}\", text: \"a few words that make it no empty object\"}
{% endfor %}
";

/// Returns the template of the app that fails. Its webhook is applied after its ConfigMaps, so that these fail only
/// from the app's second version on.
fn failing(port: u16) -> String {
    let half = FAILING / 2;
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: failing}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: failing}}
webhooks:
- name: failing.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 10
  clientConfig: {{url: \"https://127.0.0.1:{port}/\"}}
  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: failing}}}}
  rules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}}]
{{% for item in range({half}) %}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: hangs-{{{{ item }}}}}}
data: {{v: \"{{{{ values.v }}}}\"}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: wrong-{{{{ item }}}}}}
spec:
  replicas: \"three\"
  selector: {{matchLabels: {{app: wrong}}}}
  template:
    metadata: {{labels: {{app: wrong}}}}
    spec: {{containers: [{{name: wrong, image: wrong}}]}}
{{% endfor %}}
"
    )
}

/// Watches the ConfigMap `mark` in one cluster, and publishes its number and when it was seen.
async fn follow(client: Client, seen: watch::Sender<(usize, Instant)>) -> anyhow::Result<()> {
    let marks: Api<ConfigMap> = Api::namespaced(client, "mark");
    loop {
        let params = WatchParams::default().fields("metadata.name=mark");
        let mut events = marks.watch(&params, "0").await?.boxed();
        while let Some(Ok(event)) = events.next().await {
            let at = Instant::now();
            if let WatchEvent::Added(mark) | WatchEvent::Modified(mark) = event {
                let n = mark.data.and_then(|data| data.get("n")?.parse().ok());
                seen.send_replace((n.unwrap_or_default(), at));
            }
        }
    }
}

/// Runs the benchmark.
pub(crate) async fn run(muster: PathBuf, commits: usize) -> anyhow::Result<Commits> {
    let mut fleet = Fleet::start(FleetOptions::new(muster, &CLUSTERS)).await?;
    let mut files = repository::fleet("commits", "{}", CLUSTERS);
    for (app, values, template) in [
        ("mark", "n: 0\n".to_owned(), MARK),
        ("load", format!("items: {ITEMS}\n"), LOAD),
    ] {
        files.extend([
            (
                format!("apps/{app}/app.yaml"),
                document("App", app, "{tier: basic, mode: active-active}"),
            ),
            (format!("apps/{app}/values.yaml"), values),
            (
                format!("apps/{app}/templates/all.yaml"),
                template.to_owned(),
            ),
        ]);
    }
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    eventually(
        "all clusters to be in sync",
        Duration::from_secs(300),
        async || {
            let status = fleet.status()?;
            ensure!(status["synced"] == true, "{status}");
            Ok(())
        },
    )
    .await?;
    let mut followers = tokio::task::JoinSet::new();
    let mut marks = Vec::new();
    for cluster in fleet.clusters().values() {
        let (sender, seen) = watch::channel((0, Instant::now()));
        followers.spawn(follow(cluster.client().await?, sender));
        marks.push(seen);
    }
    let alone = push(&fleet, &mut marks, 1..=commits).await?;

    // The webhook accepts connections and never answers.
    let webhook = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let template = failing(webhook.local_addr()?.port());
    let app = document("App", "failing", "{tier: basic, mode: active-active}");
    fleet.repo().publish(
        "an app that fails",
        &[
            ("apps/failing/app.yaml", &app),
            ("apps/failing/values.yaml", "v: 1\n"),
            ("apps/failing/templates/all.yaml", &template),
        ],
    )?;
    for cluster in fleet.clusters().values() {
        let hooks: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client().await?);
        eventually(
            "the webhook configuration",
            Duration::from_secs(60),
            async || hooks.get("failing").await.map(drop).map_err(Into::into),
        )
        .await?;
    }
    let version = [("apps/failing/values.yaml", "v: 2\n")];
    fleet.repo().publish("from now on it hangs", &version)?;
    let beside = push(&fleet, &mut marks, commits + 1..=2 * commits).await?;
    drop(webhook);

    let (hub, _) = memory(fleet.hub()?.pid())?;
    let agents = CLUSTERS.map(|(name, _)| fleet.agent(name).and_then(|agent| memory(agent.pid())));
    let agents = agents
        .into_iter()
        .map(|agent| Ok(agent?.0))
        .collect::<anyhow::Result<_>>()?;
    Ok(Commits {
        alone,
        beside,
        hub,
        agents,
        objects: ITEMS + 3,
    })
}

/// Pushes commits one after the other and measures the time until each cluster has them.
async fn push(
    fleet: &Fleet,
    marks: &mut [watch::Receiver<(usize, Instant)>],
    numbers: std::ops::RangeInclusive<usize>,
) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for n in numbers {
        fleet.repo().publish(
            &format!("commit {n}"),
            &[("apps/mark/values.yaml", &format!("n: {n}\n"))],
        )?;
        let pushed = Instant::now();
        let arrived = futures::stream::iter(marks.iter_mut()).then(async |mark| {
            let seen =
                tokio::time::timeout(Duration::from_secs(60), mark.wait_for(|(m, _)| *m == n))
                    .await;
            let (_, at) = *seen.context("the commit did not arrive in a minute")??;
            anyhow::Ok(at.saturating_duration_since(pushed))
        });
        let arrived: Vec<Duration> = arrived.try_collect().await?;
        times
            .all
            .push(arrived.iter().max().copied().unwrap_or_default());
        times.each.extend(arrived);
    }
    Ok(times)
}

/// Runs the benchmark and returns its section of the report.
pub(crate) fn measure(_: u32) -> anyhow::Result<Section> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(run(crate::machine::muster()?, COMMITS))?;
    let milliseconds = |times: &[Duration]| times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    let mebibytes = |bytes: &u64| *bytes as f64 / 1_048_576.0;
    let last = Row::new(
        "push to the last of four clusters",
        "ms",
        milliseconds(&found.alone.all),
    );
    let beside = Row::new(
        format!("push to the last of four clusters, with {FAILING} failing objects of another app"),
        "ms",
        milliseconds(&found.beside.all),
    );
    let beside = Row {
        ratio: Some(beside.spread.median / last.spread.median),
        ..beside
    };
    let rows = vec![
        last,
        beside,
        Row::new("push to a cluster", "ms", milliseconds(&found.alone.each)),
        Row::new(
            "hub with its worker, resident memory",
            "MiB",
            vec![mebibytes(&found.hub)],
        ),
        Row::new(
            "agent, resident memory",
            "MiB",
            found.agents.iter().map(mebibytes).collect(),
        ),
    ];
    let notes = vec![
        format!(
            "{COMMITS} commits. The time starts when `git push` returns and ends when a watch on the API server of each of four real clusters shows the object. The hub watches a local path."
        ),
        format!(
            "Of the {FAILING} failing objects in each cluster, half have a field of the wrong type and half wait for a webhook that never answers. After each commit they are tried again, a moment later. The last column of that row is its median divided by the median of the first row."
        ),
        format!(
            "Each cluster has {} objects. API servers, etcds, hub, agents and the benchmark share the machine.",
            found.objects
        ),
    ];
    Ok(Section::new("commit", "Commit to applied", rows, notes))
}
