//! Muster is removed: workloads keep running and nothing of Muster stays. In one cluster the app is removed too.

use muster_e2e::{App, CLUSTERS, Levels, World};
use muster_testkit::repository::document;
use muster_testkit::wait::eventually;

/// The cluster from which the app is removed too.
const EMPTIED: &str = "us-east-1";

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let app = App::saying("without Muster");
    world.serve("The last commit", &app).await?;

    // Remove the app from this cluster in Git first, like any change.
    let mut elsewhere = app.fleet();
    let kept: Vec<&str> = CLUSTERS.map(|(name, _)| name).into_iter().filter(|name| *name != EMPTIED).collect();
    let spec = format!("{{tier: basic, mode: active-active, placement: {{clusters: [{}]}}}}", kept.join(", "));
    elsewhere.insert("apps/hello/app.yaml".to_owned(), document("App", "hello", &spec));
    world.commit("Not in us-east-1 any more", &elsewhere)?;
    world.says(EMPTIED, "protected: Namespace", Levels::COMMIT).await?;
    world.muster(&["app", "approve", "hello", "--yes", "--reason", "the cluster is given back"])?;
    eventually("the app to be gone", Levels::RECOVERY, async || {
        let gone = world.kubectl(EMPTIED, &["get", "namespace", "hello"]);
        anyhow::ensure!(gone.is_err_and(|error| format!("{error:#}").contains("NotFound")));
        Ok(())
    })
    .await?;
    world.synced(Levels::COMMIT).await?;

    for (cluster, _) in CLUSTERS {
        world.helm(cluster, &["uninstall", "muster-agent", "--wait"])?;
        world.kubectl(cluster, &["delete", "namespace", "muster-system", "--timeout=60s"])?;
    }
    world.helm_hub(&["uninstall", "muster-hub", "--wait"])?;
    world.kubectl_hub(&["delete", "namespace", "muster-hub", "--timeout=60s"])?;
    for (cluster, _) in CLUSTERS {
        let traces = left(world, cluster)?;
        let of_apps: Vec<&String> = traces.iter().filter(|object| object.contains(" hello ")).collect();
        anyhow::ensure!(traces.len() == of_apps.len(), "left in {cluster}: {traces:#?}");
        anyhow::ensure!(of_apps.is_empty() == (cluster == EMPTIED), "{cluster}: {of_apps:#?}");
        if cluster != EMPTIED {
            world.serves_in(cluster, &app, Levels::DRIFT).await?;
        }
    }
    Ok(())
}

/// Returns every object of a cluster whose namespace, name or labels contain `muster` or `hello`, as
/// `KIND NAMESPACE NAME`.
fn left(world: &World, cluster: &str) -> anyhow::Result<Vec<String>> {
    let kinds = world.kubectl(cluster, &["api-resources", "--verbs=list", "-o", "name"])?;
    // Events expire by themselves.
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let all = world.get(cluster, &["--all-namespaces", &kinds.join(",")])?;
    let node = world.cluster(cluster)?.node();
    let objects = all["items"].as_array().into_iter().flatten();
    let traces = objects.filter_map(|object| {
        let metadata = &object["metadata"];
        let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let ours = [&namespace, &name, &metadata["labels"].to_string()]
            .into_iter()
            .map(|place| place.replace(&node, ""))
            .any(|place| place.contains("muster") || place.contains("hello"));
        let kind = object["kind"].as_str().unwrap_or_default();
        ours.then(|| format!("{kind} {namespace} {name} "))
    });
    Ok(traces.collect())
}
