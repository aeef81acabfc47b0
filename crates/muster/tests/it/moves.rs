//! Moves of a writer between two real clusters, with a StatefulSet whose pods must be gone first.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(90);
const CLUSTERS: [(&str, &str); 2] = [("one", "west"), ("two", "east")];

const RULE: &str = "stopped: {objects: {db: {apiVersion: apps/v1, kind: StatefulSet, namespace: default, name: db}}, \
    when: objects.db.status.replicas == 0}, carry: {revision: objects.db.status.updateRevision}";

const TEMPLATE: &str = r#"apiVersion: v1
kind: ConfigMap
metadata: {name: db, namespace: default}
data: {role: {{ app.role }}, since: "{{ app.epoch }}"}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: default}
spec:
  serviceName: db
  replicas: {{ 0 if app.role == "fenced" else 1 }}
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: db, image: example.com/db}]
---
{% if app.role == "primary" %}
apiVersion: v1
kind: ConfigMap
metadata: {name: only-primary, namespace: default}
data: {from: "{{ handover.revision if handover.revision is defined else 'nobody' }}"}
{% endif %}
"#;

/// Publishes the fleet. The app `db` depends on the app `base`, which has this object.
fn publish(fleet: &Fleet, base: &str) -> anyhow::Result<()> {
    let mut files = repository::fleet("moves", "{}", CLUSTERS);
    let db = format!(
        "{{tier: basic, mode: active-passive, placement: {{regions: [west, east]}}, dependsOn: [base], writer: {{{RULE}}}}}"
    );
    let base = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: base, namespace: default}}\ndata: {{{base}}}\n"
    );
    files.extend([
        ("apps/db/app.yaml".to_owned(), document("App", "db", &db)),
        ("apps/db/templates/db.yaml".to_owned(), TEMPLATE.to_owned()),
        (
            "apps/base/app.yaml".to_owned(),
            document(
                "App",
                "base",
                "{tier: basic, mode: active-active, namespace: default}",
            ),
        ),
        ("apps/base/manifests/base.yaml".to_owned(), base),
    ]);
    fleet
        .repo()
        .publish("the fleet", &repository::listed(&files))?;
    Ok(())
}

async fn client(fleet: &Fleet, cluster: &str) -> anyhow::Result<Client> {
    fleet.clusters()[cluster].client().await
}

/// Returns the app's role in a cluster.
async fn role(fleet: &Fleet, cluster: &str) -> anyhow::Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client(fleet, cluster).await?, "default");
    let data = maps.get("db").await?.data.unwrap_or_default();
    Ok(data["role"].clone())
}

async fn until_role(fleet: &Fleet, cluster: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(&format!("{cluster} is {wanted}"), LONG, async || {
        let role = role(fleet, cluster).await?;
        ensure!(role == wanted, "it is {role}");
        Ok(())
    })
    .await
}

/// Waits until the status says what the move waits for.
async fn until_waits(fleet: &Fleet, text: &str) -> anyhow::Result<()> {
    eventually(text, LONG, async || {
        let status = fleet.try_run(&["status"])?;
        let shown = String::from_utf8_lossy(&status.stdout).into_owned();
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(shown.contains(text) && !status.status.success(), "{shown}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_moves_there_and_back_whoever_is_killed() -> anyhow::Result<()> {
    let mut options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    options.nodes = 1;
    let mut fleet = Fleet::start(options).await?;
    publish(&fleet, "a: b")?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    until_role(&fleet, "one", "primary").await?;
    until_role(&fleet, "two", "standby").await?;
    fleet.run(&["status", "--wait", "90s"])?;

    // The agent looks again in a moment.
    eventually("the plan", LONG, async || {
        let plan = fleet.run(&["app", "move", "db", "--to", "east", "--dry-run"])?;
        ensure!(
            plan.contains("Move the writer of db from one (west) to two (east)")
                && plan.contains("says now: `when` is false"),
            "{plan}"
        );
        Ok(())
    })
    .await?;
    let refused = fleet.try_run(&["app", "move", "base", "--to", "east"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("has no writer"),
        "{said}"
    );

    // What holds up other changes holds up no fence: an app that this one depends on is broken, and a person has
    // disabled `reconcile`. The pod stays, though, as on a node that is slow to end it.
    publish(&fleet, "\"not a key\": b")?;
    until_waits(&fleet, "base fails in one").await?;
    let sets: Api<StatefulSet> = Api::namespaced(client(&fleet, "one").await?, "default");
    let pods: Api<Pod> = Api::namespaced(client(&fleet, "one").await?, "default");
    let params = PatchParams::default();
    let disabled = json!({"metadata": {"annotations": {"muster.dev/reconcile": "disabled"}}});
    sets.patch("db", &params, &Patch::Merge(disabled)).await?;
    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    pods.patch("db-0", &params, &Patch::Merge(held)).await?;
    fleet.run(&[
        "app",
        "move",
        "db",
        "--to",
        "east",
        "--no-wait",
        "--reason",
        "drill",
    ])?;
    until_role(&fleet, "one", "fenced").await?;
    until_waits(
        &fleet,
        "one has not proven that the writer has stopped: `when` is false",
    )
    .await?;
    ensure!(sets.get("db").await?.spec.and_then(|spec| spec.replicas) == Some(0));
    let list = fleet.run(&["get", "apps"])?;
    ensure!(list.contains("one → two (fencing)"), "{list}");

    // Everybody is killed, and the move goes on.
    fleet.kill_hub()?;
    for cluster in ["one", "two"] {
        fleet.kill_agent(cluster)?;
    }
    fleet.start_hub().await?;
    fleet.start_agents()?;
    until_waits(
        &fleet,
        "one has not proven that the writer has stopped: `when` is false",
    )
    .await?;
    ensure!(role(&fleet, "two").await? == "standby");
    let free = json!({"metadata": {"finalizers": null}});
    pods.patch("db-0", &params, &Patch::Merge(free)).await?;
    let said = fleet.run(&["app", "move", "db", "--to", "east"])?;
    ensure!(
        said.contains("finished: two is the primary since epoch"),
        "{said}"
    );
    ensure!(role(&fleet, "two").await? == "primary");
    // Following is no part of the move, and waits for the broken app.
    publish(&fleet, "a: b")?;
    until_role(&fleet, "one", "standby").await?;
    // An object of the primary alone has gone with the role.
    let maps: Api<ConfigMap> = Api::namespaced(client(&fleet, "one").await?, "default");
    ensure!(maps.get_opt("only-primary").await?.is_none());

    // There and back, with a hub that is killed again and again.
    let enabled = json!({"metadata": {"annotations": {"muster.dev/reconcile": null}}});
    sets.patch("db", &params, &Patch::Merge(enabled)).await?;
    fleet.run(&["status", "--wait", "90s"])?;
    for (round, (region, cluster)) in [("west", "one"), ("east", "two"), ("west", "one")]
        .into_iter()
        .enumerate()
    {
        eventually("the move begins", LONG, async || {
            fleet.run(&["app", "move", "db", "--to", region, "--no-wait"])
        })
        .await?;
        for kill in 0..3_u64 {
            tokio::time::sleep(Duration::from_millis(150 * (round as u64 + kill))).await;
            fleet.kill_hub()?;
            let roles = (role(&fleet, "one").await?, role(&fleet, "two").await?);
            ensure!(roles != ("primary".to_owned(), "primary".to_owned()));
            fleet.start_hub().await?;
        }
        eventually("the move ends", LONG, async || {
            fleet.run(&["app", "move", "db", "--to", region])
        })
        .await?;
        until_role(&fleet, cluster, "primary").await?;
    }
    let status = fleet.status()?;
    let apps = status["apps"].as_array().context("there are no apps")?;
    let writer = apps.iter().find(|app| app["name"] == "db");
    let writer = writer.context("there is no db")?["writer"].clone();
    ensure!(
        writer["cluster"] == "one" && writer["move"].is_null(),
        "{writer}"
    );
    Ok(())
}
