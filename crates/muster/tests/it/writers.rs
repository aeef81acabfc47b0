//! Who writes: with real hubs, agents and API servers, and the command line as people use it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};

const LONG: Duration = Duration::from_secs(90);
const CLUSTERS: [(&str, &str); 2] = [("one", "west"), ("two", "east")];

const TEMPLATE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: db, namespace: default}\n\
    data: {role: {{ app.role }}, since: \"{{ app.epoch }}\", size: \"{{ values.size }}\"}\n";

/// Publishes a fleet of these clusters, in which the app `db` prefers these regions.
fn publish(
    fleet: &Fleet,
    clusters: &[(&str, &str)],
    regions: &str,
    size: u32,
) -> anyhow::Result<()> {
    let mut files = repository::fleet("writers", "{}", clusters.iter().copied());
    let spec =
        format!("{{tier: basic, mode: active-passive, placement: {{regions: [{regions}]}}}}");
    files.extend([
        ("apps/db/app.yaml".to_owned(), document("App", "db", &spec)),
        ("apps/db/values.yaml".to_owned(), format!("size: {size}\n")),
        ("apps/db/templates/db.yaml".to_owned(), TEMPLATE.to_owned()),
    ]);
    fleet
        .repo()
        .publish(&format!("size {size}"), &repository::listed(&files))?;
    Ok(())
}

/// Waits until the app has this role, epoch and size in a cluster.
async fn until(fleet: &Fleet, cluster: &str, wanted: (&str, &str, u32)) -> anyhow::Result<()> {
    let client = fleet.clusters()[cluster].client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    eventually(&format!("{wanted:?} in {cluster}"), LONG, async || {
        let data = maps.get("db").await?.data.unwrap_or_default();
        let (role, since, size) = wanted;
        let is = data["role"] == role && data["since"] == since && data["size"] == size.to_string();
        ensure!(is, "{data:?}");
        Ok(())
    })
    .await
}

fn writer(fleet: &Fleet) -> anyhow::Result<(String, u64)> {
    let status = fleet.status()?;
    let writer = &status["apps"][0]["writer"];
    let cluster = writer["cluster"].as_str().context("there is no writer")?;
    Ok((
        cluster.to_owned(),
        writer["epoch"].as_u64().unwrap_or_default(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_stays_where_it_is_whatever_happens_to_the_hub_and_in_git() -> anyhow::Result<()> {
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    let mut fleet = Fleet::start(options).await?;
    publish(&fleet, &CLUSTERS, "west, east", 1)?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    until(&fleet, "one", ("primary", "1", 1)).await?;
    until(&fleet, "two", ("standby", "1", 1)).await?;
    let list = fleet.run(&["get", "apps"])?;
    ensure!(list.contains("WRITER") && list.contains("one"), "{list}");

    // Git prefers the other region, and the hub is killed meanwhile.
    publish(&fleet, &CLUSTERS, "east, west", 2)?;
    fleet.kill_hub()?;
    fleet.start_hub().await?;
    until(&fleet, "one", ("primary", "1", 2)).await?;
    until(&fleet, "two", ("standby", "1", 2)).await?;

    // A backup from before the writer's cluster is lost.
    let backup = fleet.directory().join("hub.backup");
    let backup = backup.to_str().context("the path is not UTF-8")?.to_owned();
    let state = fleet.state_dir().to_string_lossy().into_owned();
    fleet.run(&["hub", "backup", &backup, "--state-dir", &state])?;
    ensure!(writer(&fleet)? == ("one".to_owned(), 1));

    // A stolen key: the cluster is cut off and keeps its writer.
    let said = fleet.run(&["cluster", "remove", "one"])?;
    ensure!(said.contains("still holds the writer of db"), "{said}");
    publish(&fleet, &CLUSTERS, "east, west", 3)?;
    until(&fleet, "two", ("standby", "1", 3)).await?;

    // The cluster is lost. A commit alone does not promote the other one.
    let lose = [
        "cluster",
        "remove",
        "one",
        "--override",
        "writers",
        "--reason",
        "the site burnt down",
    ];
    let said = fleet.try_run(&lose)?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(
        !said.status.success() && text.contains("is still in the fleet repository"),
        "{text}"
    );
    fleet.repo().git(&["rm", "--quiet", "-r", "regions/west"])?;
    publish(&fleet, &CLUSTERS[1..], "east", 4)?;
    eventually("the commit is blocked", LONG, async || {
        let said = fleet.try_run(&["status"])?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(text.contains("it holds the writer of db"), "{text}");
        Ok(())
    })
    .await?;
    fleet.run(&lose)?;
    until(&fleet, "two", ("primary", "3", 4)).await?;
    ensure!(writer(&fleet)? == ("two".to_owned(), 3));

    // The hub is restored from the backup, which has the writer in the lost cluster. Its agent knows better.
    fleet.stop_hub()?;
    fleet.run(&["hub", "restore", &backup, "--state-dir", &state])?;
    fleet.start_hub().await?;
    publish(&fleet, &CLUSTERS[1..], "east", 5)?;
    until(&fleet, "two", ("primary", "3", 5)).await?;
    ensure!(writer(&fleet)? == ("two".to_owned(), 3));
    Ok(())
}
