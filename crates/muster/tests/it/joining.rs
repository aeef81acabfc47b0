//! A cluster that has joined stays joined, whichever join token its agent is started with.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    process::Process,
    repository::{self, document},
    wait::eventually,
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(90);
const CLUSTERS: [(&str, &str); 1] = [("one", "west")];

fn publish(fleet: &Fleet, value: &str) -> anyhow::Result<()> {
    let mut files = repository::fleet("joining", "{}", CLUSTERS);
    files.extend([
        (
            "apps/shop/app.yaml".to_owned(),
            document("App", "shop", "{tier: basic, mode: active-active}"),
        ),
        (
            "apps/shop/templates/map.yaml".to_owned(),
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shop, namespace: default}}\n\
                 data: {{v: {value}}}\n"
            ),
        ),
    ]);
    fleet.repo().publish(value, &repository::listed(&files))?;
    Ok(())
}

fn start(fleet: &mut Fleet, name: &str, token: &str) -> anyhow::Result<Process> {
    let mut command = fleet.agent_command("one")?;
    command.env("MUSTER_JOIN_TOKEN", token);
    let log = fleet.directory().join(format!("{name}.log"));
    Process::spawn(name, command, &log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_token_costs_no_identity() -> anyhow::Result<()> {
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    let mut fleet = Fleet::start(options).await?;
    publish(&fleet, "first")?;
    fleet.start_hub().await?;
    let client = fleet.clusters()["one"].client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client, "muster-system");
    let arrives = async |value: &str| {
        eventually(value, LONG, async || {
            let data = maps.get("shop").await?.data.unwrap_or_default();
            ensure!(data["v"] == value, "{data:?}");
            Ok(())
        })
        .await
    };
    let certificate = async || {
        let data = secrets.get("muster-agent-identity").await?.data;
        let mut data = data.context("the identity has no data")?;
        data.remove("certificate.pem")
            .context("the identity has no certificate")
    };
    let token = |fleet: &Fleet| fleet.run(&["cluster", "join-token", "one"]);

    let old = token(&fleet)?;
    let agent = start(&mut fleet, "agent-first", old.trim())?;
    arrives("first").await?;
    let first = certificate().await?;
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());

    // With a new token the agent enrols again.
    let new = token(&fleet)?;
    let agent = start(&mut fleet, "agent-second", new.trim())?;
    publish(&fleet, "second")?;
    arrives("second").await?;
    let second = certificate().await?;
    ensure!(second != first);
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());

    // A rollback brings back the old token. The hub refuses it, because it was used before.
    let agent = start(&mut fleet, "agent-rolled-back", old.trim())?;
    publish(&fleet, "third")?;
    arrives("third").await?;
    ensure!(certificate().await? == second);
    ensure!(
        agent
            .tail()
            .contains("the agent can't join with its join token"),
        "{}",
        agent.tail()
    );
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());

    // The agent does not wait for a hub that does not answer.
    fleet.kill_hub()?;
    let agent = start(&mut fleet, "agent-alone", old.trim())?;
    let patch = json!({"data": {"v": "by hand"}});
    maps.patch("shop", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    arrives("third").await?;
    fleet.start_hub().await?;
    publish(&fleet, "fourth")?;
    arrives("fourth").await?;
    ensure!(certificate().await? == second);
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_through_another_address_than_its_token_names() -> anyhow::Result<()> {
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
    let mut fleet = Fleet::start(options).await?;
    publish(&fleet, "first")?;
    // Nobody listens on this port.
    fleet.set_hub("MUSTER_ADVERTISE", "127.0.0.1:1");
    fleet.start_hub().await?;
    let login = std::fs::read_to_string(fleet.login())?;
    let hub = login.lines().find_map(|line| line.strip_prefix("hub: "));
    let hub = hub.context("the login names no hub")?.to_owned();
    let mut command = fleet.agent_command("one")?;
    command.env("MUSTER_HUB", hub);
    let log = fleet.directory().join("agent.log");
    let agent = Process::spawn("agent", command, &log)?;
    let client = fleet.clusters()["one"].client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    eventually("the app arrives", LONG, async || {
        agent.check()?;
        maps.get("shop").await?;
        Ok(())
    })
    .await?;
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());
    Ok(())
}
