//! An agent whose stored records are damaged or can't be loaded stays connected to its hub: the status shows the
//! problem, and a newer generation from the hub is still received.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use muster_testkit::{
    faults::{Fault, FaultProxy, Verb},
    process::Process,
    wait::eventually,
};

use crate::{resting::says, rolling::Rolling};

const NAMESPACE: &str = "muster-system";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_inventory_is_reported_and_nothing_is_changed_without_it() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    rolling.fleet.stop_agent("one")?;
    let maps: Api<ConfigMap> = Api::namespaced(rolling.client.clone(), NAMESPACE);
    let label = ListParams::default().labels("muster.dev/inventory");
    let good = maps.list(&label).await?.items;
    let good = good
        .first()
        .context("the agent has stored no inventory")?
        .clone();
    let mut bad = good.clone();
    for data in bad.binary_data.iter_mut().flatten() {
        *data.1 = ByteString(b"something else".to_vec());
    }
    let name = good.metadata.name.clone().unwrap_or_default();
    maps.replace(&name, &PostParams::default(), &bad).await?;

    rolling.fleet.start_agent("one")?;
    let commit = rolling
        .fleet
        .repo()
        .publish("2", &[("apps/moving/values.yaml", "n: 2\n")])?;
    says(&rolling, &["inventory", &name, "damaged"]).await?;
    eventually(
        "the hub to offer the commit",
        Duration::from_secs(30),
        async || {
            let status = rolling.fleet.status()?;
            ensure!(
                status["repo"]["commit"] == commit.as_str() && status["synced"] == false,
                "{status}"
            );
            Ok(())
        },
    )
    .await?;
    let live: Api<ConfigMap> = Api::namespaced(rolling.client.clone(), "default");
    let data = live.get("moving").await?.data.unwrap_or_default();
    ensure!(data.get("n").is_some_and(|n| n == "1"), "{data:?}");

    let mut again = maps.get(&name).await?;
    again.binary_data = good.binary_data;
    maps.replace(&name, &PostParams::default(), &again).await?;
    rolling.until_applied(2).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    rolling.fleet.stop_agent("one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_of_the_generation_is_reported_until_a_person_deletes_it()
-> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    rolling.fleet.stop_agent("one")?;
    let secrets: Api<Secret> = Api::namespaced(rolling.client.clone(), NAMESPACE);
    let mut bad = secrets.get("muster-generation").await?;
    for data in bad.data.iter_mut().flatten() {
        *data.1 = ByteString(b"{\"generation\": \"many\"}".to_vec());
    }
    secrets
        .replace("muster-generation", &PostParams::default(), &bad)
        .await?;

    rolling.fleet.start_agent("one")?;
    says(
        &rolling,
        &[
            "the Secret muster-generation, is damaged",
            "delete the Secret",
        ],
    )
    .await?;
    secrets
        .delete("muster-generation", &DeleteParams::default())
        .await?;
    rolling.commit(2).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    rolling.fleet.stop_agent("one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_generation_comes_in_while_the_old_one_can_not_be_loaded() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    rolling.fleet.stop_agent("one")?;
    let proxy = FaultProxy::start(&rolling.fleet.clusters()["one"]).await?;
    let hang = proxy.spoil(usize::MAX, Fault::Hang, |asked| {
        let name = asked.name.as_deref().unwrap_or_default();
        asked.verb == Verb::Get && name.starts_with("muster-bundle-")
    });
    let url = proxy.config()?.cluster_url;
    let kubeconfig = rolling.fleet.directory().join("proxied.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{}}}}]\nclusters: [{{name: c, cluster: {{server: \"{url}\"}}}}]\n"
    );
    std::fs::write(&kubeconfig, text)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["agent", "--kubeconfig"]).arg(&kubeconfig);
    let agent = Process::spawn(
        "agent",
        command,
        &rolling.fleet.directory().join("proxied.log"),
    )?;
    // The agent has not shown that it can do its work, so it leaves the free Lease to other agents for a minute.
    says(&rolling, &[]).await?;
    agent.check()?;
    ensure!(hang.times() > 0);
    rolling.commit(2).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    agent.check()
}
