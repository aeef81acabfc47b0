//! The fleet's CA is replaced while the fleet runs: agents and people follow by themselves, also over the death of
//! the hub, and what the old one signed is good for nothing afterwards.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use muster_testkit::{fleet::Fleet, wait::eventually};
use serde_json::{Value, json};

use crate::{resting::says, rolling::Rolling};

const LONG: Duration = Duration::from_secs(60);

/// The CA as the command line shows it.
fn ca(fleet: &Fleet) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(
        &fleet.run(&["hub", "ca", "-o", "json"])?,
    )?)
}

/// A login that was last looked at long ago.
fn login(fleet: &Fleet, name: &str) -> anyhow::Result<PathBuf> {
    let path = fleet.directory().join(format!("{name}.yaml"));
    fleet.run(&["hub", "admin", name, "--out", &path.to_string_lossy()])?;
    long_ago(&path)?;
    Ok(path)
}

fn long_ago(path: &Path) -> anyhow::Result<()> {
    let file = File::options().append(true).open(path)?;
    Ok(file.set_modified(SystemTime::now() - Duration::from_secs(3600))?)
}

fn look_as(fleet: &Fleet, login: &Path) -> anyhow::Result<String> {
    fleet.run(&["--login", &login.to_string_lossy(), "get", "clusters"])
}

/// How many CAs a login or an agent's identity trusts.
fn trusted(text: &str) -> usize {
    text.matches("BEGIN CERTIFICATE").count()
}

async fn until_replaced(fleet: &Fleet, before: &Value) -> anyhow::Result<Value> {
    eventually("the CA to be replaced", LONG, async || {
        let now = ca(fleet)?;
        ensure!(now["next"].is_null() && now["name"] != *before, "{now}");
        Ok(now["name"].clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_follows_another_ca_and_the_old_one_is_worth_nothing() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    let secrets: Api<Secret> = Api::namespaced(rolling.client.clone(), "muster-system");
    let identity = async |field: &str| {
        let data = secrets
            .get("muster-agent-identity")
            .await?
            .data
            .unwrap_or_default();
        let bytes = data.get(field).context("no such field")?.0.clone();
        anyhow::Ok(String::from_utf8(bytes)?)
    };
    let before = ca(&rolling.fleet)?["name"].clone();
    let ada = login(&rolling.fleet, "ada")?;
    let stolen = rolling.fleet.directory().join("stolen.yaml");
    fs::copy(&ada, &stolen)?;
    let first = identity("certificate.pem").await?;

    let said = rolling.fleet.try_run(&["hub", "ca", "rotate"])?;
    ensure!(!said.status.success(), "it asks, and there is nobody");
    rolling.fleet.run(&["hub", "ca", "rotate", "--dry-run"])?;
    ensure!(ca(&rolling.fleet)?["next"].is_null());
    rolling
        .fleet
        .run(&["hub", "ca", "rotate", "--yes", "--reason", "a test"])?;
    // Begun once, however often it is said.
    let next = ca(&rolling.fleet)?["next"]["name"].clone();
    rolling.fleet.run(&["hub", "ca", "rotate", "--yes"])?;
    ensure!(ca(&rolling.fleet)?["next"]["name"] == next);
    rolling.fleet.kill_hub()?;
    rolling.fleet.start_hub().await?;

    eventually("the agent to follow", LONG, async || {
        let now = ca(&rolling.fleet)?;
        ensure!(now["next"]["waitingClusters"] == json!([]), "{now}");
        Ok(())
    })
    .await?;
    ensure!(identity("certificate.pem").await? != first);
    ensure!(trusted(&identity("trust.pem").await?) == 2);
    rolling.commit(2).await?;
    // One login has not followed, and works still.
    let now = ca(&rolling.fleet)?;
    ensure!(
        now["next"]["waitingLogins"] == json!(["ada"]) && now["name"] == before,
        "{now}"
    );
    look_as(&rolling.fleet, &ada)?;
    ensure!(
        trusted(&fs::read_to_string(&ada)?) == 3,
        "two CAs and its own"
    );
    // A second look shows the new certificate, and with that everybody has followed.
    look_as(&rolling.fleet, &ada)?;
    let second = until_replaced(&rolling.fleet, &before).await?;
    ensure!(second == next);

    eventually("the agent to forget the old CA", LONG, async || {
        ensure!(trusted(&identity("trust.pem").await?) == 1);
        Ok(())
    })
    .await?;
    rolling.commit(3).await?;
    long_ago(&ada)?;
    look_as(&rolling.fleet, &ada)?;
    ensure!(trusted(&fs::read_to_string(&ada)?) == 2);
    let refused =
        rolling
            .fleet
            .try_run(&["--login", &stolen.to_string_lossy(), "get", "clusters"])?;
    ensure!(!refused.status.success(), "the old login still works");
    rolling.fleet.kill_hub()?;
    rolling.fleet.start_hub().await?;
    rolling.commit(4).await?;

    // Without waiting for those who are away.
    let bob = login(&rolling.fleet, "bob")?;
    rolling.fleet.run(&["hub", "ca", "rotate", "--yes"])?;
    let dry = rolling
        .fleet
        .run(&["hub", "ca", "rotate", "--finish", "--dry-run"])?;
    ensure!(dry.contains("bob") && dry.contains("ada"), "{dry}");
    eventually("the agent to follow again", LONG, async || {
        let now = ca(&rolling.fleet)?;
        ensure!(now["next"]["waitingClusters"] == json!([]), "{now}");
        Ok(())
    })
    .await?;
    rolling
        .fleet
        .run(&["hub", "ca", "rotate", "--finish", "--yes"])?;
    until_replaced(&rolling.fleet, &second).await?;
    let refused = rolling
        .fleet
        .try_run(&["--login", &bob.to_string_lossy(), "get", "clusters"])?;
    ensure!(
        !refused.status.success(),
        "a login that did not follow still works"
    );
    says(&rolling, &[]).await?;
    rolling.commit(5).await?;
    rolling.fleet.agent("one")?.check()?;
    Ok(())
}
