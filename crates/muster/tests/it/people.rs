//! What people do to a running fleet: they delete too much, change objects by hand, and lose their hub.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(90);
const CLUSTERS: [(&str, &str); 1] = [("one", "west")];

const TEMPLATE: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: shop}
{% for item in values.items %}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: item-{{ item }}, labels: {people: test}}
data: {v: "1"}
{% endfor %}
"#;

fn publish(fleet: &Fleet, subject: &str, items: usize) -> anyhow::Result<()> {
    let items: Vec<String> = (0..items).map(|i| i.to_string()).collect();
    let mut files = repository::fleet("people", "{prune: {objects: 3, percent: 10}}", CLUSTERS);
    let app = document("App", "shop", "{tier: basic, mode: active-active}");
    let values = format!("items: [{}]\n", items.join(", "));
    files.extend([
        ("apps/shop/app.yaml".to_owned(), app),
        ("apps/shop/values.yaml".to_owned(), values),
        (
            "apps/shop/templates/all.yaml".to_owned(),
            TEMPLATE.to_owned(),
        ),
    ]);
    fleet.repo().publish(subject, &repository::listed(&files))?;
    Ok(())
}

async fn items(maps: &Api<ConfigMap>) -> anyhow::Result<usize> {
    Ok(maps
        .list(&ListParams::default().labels("people=test"))
        .await?
        .items
        .len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_deleted_only_when_a_person_says_so_and_drift_is_reverted_without_a_hub()
-> anyhow::Result<()> {
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    let mut fleet = Fleet::start(options).await?;
    publish(&fleet, "twelve items", 12)?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    let client = fleet.clusters()["one"].client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "shop");
    eventually("all items to exist", LONG, async || {
        let number = items(&maps).await?;
        ensure!(number == 12, "{number} items");
        Ok(())
    })
    .await?;

    publish(&fleet, "a generator that lost its input", 1)?;
    eventually("the deletion to be pending approval", LONG, async || {
        // `muster status` fails while something is pending approval.
        let status = fleet.try_run(&["status"])?;
        let text = String::from_utf8_lossy(&status.stdout);
        ensure!(
            !status.status.success() && text.contains("muster app approve shop"),
            "{text}"
        );
        Ok(())
    })
    .await?;
    ensure!(
        items(&maps).await? == 12,
        "something was deleted without approval"
    );
    let shown = fleet.run(&["app", "approve", "shop", "--dry-run"])?;
    ensure!(
        shown.contains("11 of its 13 objects would be deleted"),
        "{shown}"
    );
    ensure!(items(&maps).await? == 12, "a dry run deleted something");
    fleet.run(&[
        "app",
        "approve",
        "shop",
        "--yes",
        "--reason",
        "the season is over",
    ])?;
    eventually("the approved objects to be deleted", LONG, async || {
        let number = items(&maps).await?;
        ensure!(number == 1, "{number} items");
        Ok(())
    })
    .await?;
    fleet.run(&["status", "--wait"])?;

    // Without a hub, a new agent process continues with the records that are stored in its cluster.
    fleet.kill_hub()?;
    fleet.kill_agent("one")?;
    let patch = json!({"data": {"v": "by hand"}});
    maps.patch("item-0", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    fleet.start_agent("one")?;
    let is_whole = async || {
        let data = maps.get("item-0").await?.data.unwrap_or_default();
        ensure!(data.get("v").is_some_and(|v| v == "1"), "{data:?}");
        Ok(())
    };
    eventually("the change by hand to be reverted", LONG, is_whole).await?;
    maps.delete("item-0", &DeleteParams::default()).await?;
    eventually("the deleted object to be recreated", LONG, is_whole).await?;

    // Once the hub is back, the fleet is in sync and the status shows the drift.
    fleet.start_hub().await?;
    fleet.run(&["status", "--wait"])?;
    let status = fleet.run(&["status", "--app", "shop"])?;
    ensure!(status.contains("it was deleted"), "{status}");

    // `status --wait` ends early if the newest commit has mistakes and everything else is done.
    let broken = [("apps/shop/values.yaml", "items: [1")];
    fleet.repo().publish("broken", &broken)?;
    let waited = fleet.try_run(&["status", "--wait=1h"])?;
    let said = String::from_utf8_lossy(&waited.stderr);
    ensure!(waited.status.code() == Some(1), "{waited:?}");
    ensure!(said.contains("the newest commit has problems"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_hold_data_is_recreated_when_a_person_has_seen_what_is_lost() -> anyhow::Result<()>
{
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    let mut fleet = Fleet::start(options).await?;
    let files = |kind: &str| {
        let mut files = repository::fleet("data", "{}", CLUSTERS);
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: data, namespace: default}}\n\
             type: example.com/{kind}\nstringData: {{key: value}}\n"
        );
        files.extend([
            (
                "apps/shop/app.yaml".to_owned(),
                document("App", "shop", "{tier: basic, mode: active-active}"),
            ),
            ("apps/shop/templates/secret.yaml".to_owned(), secret),
        ]);
        files
    };
    fleet
        .repo()
        .publish("begin", &repository::listed(&files("one")))?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    let client = fleet.clusters()["one"].client().await?;
    let secrets: Api<Secret> = Api::namespaced(client, "default");
    let uid = async || {
        anyhow::Ok(
            secrets
                .get_opt("data")
                .await?
                .and_then(|secret| secret.uid()),
        )
    };
    eventually("the Secret to exist", LONG, async || {
        ensure!(uid().await?.is_some());
        Ok(())
    })
    .await?;
    let old = uid().await?;
    fleet
        .repo()
        .publish("another type", &repository::listed(&files("two")))?;
    let dry = ["app", "approve", "shop", "--dry-run"];
    eventually("the recreation to be pending approval", LONG, async || {
        let shown = String::from_utf8(fleet.try_run(&dry)?.stdout)?;
        ensure!(
            shown.contains("1 object in one would be deleted and recreated"),
            "{shown}"
        );
        ensure!(
            shown.contains("type can't be changed: field is immutable"),
            "{shown}"
        );
        ensure!(
            shown.contains("would lose the keys that others have written"),
            "{shown}"
        );
        Ok(())
    })
    .await?;
    let status = String::from_utf8(fleet.try_run(&["status"])?.stdout)?;
    ensure!(
        status.contains("is pending approval to be recreated"),
        "{status}"
    );
    ensure!(uid().await? == old);
    fleet.run(&["app", "approve", "shop", "--yes"])?;
    eventually("the Secret to be recreated", LONG, async || {
        let now = uid().await?;
        ensure!(now.is_some() && now != old, "{now:?}");
        Ok(())
    })
    .await?;
    fleet.run(&["status", "--wait"])?;
    let status = fleet.run(&["status", "--app", "shop"])?;
    ensure!(status.contains("recreated"), "{status}");
    Ok(())
}
