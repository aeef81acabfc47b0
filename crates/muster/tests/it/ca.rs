//! The fleet's CA is replaced while the fleet runs. Agents and logins switch to the new CA by themselves, even if the
//! hub crashes meanwhile. Afterwards the hub refuses certificates that the old CA signed.

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

/// Returns what `muster hub ca` shows.
fn ca(fleet: &Fleet) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(
        &fleet.run(&["hub", "ca", "-o", "json"])?,
    )?)
}

/// Creates a login whose next use checks for a new CA.
fn login(fleet: &Fleet, name: &str) -> anyhow::Result<PathBuf> {
    let path = fleet.directory().join(format!("{name}.yaml"));
    fleet.run(&["hub", "admin", name, "--out", &path.to_string_lossy()])?;
    long_ago(&path)?;
    Ok(path)
}

/// Makes a login's file an hour old, so that the next command checks for a new CA.
fn long_ago(path: &Path) -> anyhow::Result<()> {
    let file = File::options().append(true).open(path)?;
    Ok(file.set_modified(SystemTime::now() - Duration::from_secs(3600))?)
}

/// Runs a command with this login.
fn look_as(fleet: &Fleet, login: &Path) -> anyhow::Result<String> {
    fleet.run(&["--login", &login.to_string_lossy(), "get", "clusters"])
}

/// Returns the number of certificates in a login or a trust bundle.
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
        let bytes = data
            .get(field)
            .context("the identity has no such field")?
            .0
            .clone();
        anyhow::Ok(String::from_utf8(bytes)?)
    };
    let before = ca(&rolling.fleet)?["name"].clone();
    let ada = login(&rolling.fleet, "ada")?;
    let stolen = rolling.fleet.directory().join("stolen.yaml");
    fs::copy(&ada, &stolen)?;
    let first = identity("certificate.pem").await?;

    let said = rolling.fleet.try_run(&["hub", "ca", "rotate"])?;
    ensure!(
        !said.status.success(),
        "the rotation began without a confirmation"
    );
    rolling.fleet.run(&["hub", "ca", "rotate", "--dry-run"])?;
    ensure!(ca(&rolling.fleet)?["next"].is_null());
    rolling
        .fleet
        .run(&["hub", "ca", "rotate", "--yes", "--reason", "a test"])?;
    // A second command does not begin a second rotation.
    let next = ca(&rolling.fleet)?["next"]["name"].clone();
    rolling.fleet.run(&["hub", "ca", "rotate", "--yes"])?;
    ensure!(ca(&rolling.fleet)?["next"]["name"] == next);
    rolling.fleet.kill_hub()?;
    rolling.fleet.start_hub().await?;

    eventually("the agent to switch to the new CA", LONG, async || {
        let now = ca(&rolling.fleet)?;
        ensure!(now["next"]["waitingClusters"] == json!([]), "{now}");
        Ok(())
    })
    .await?;
    ensure!(identity("certificate.pem").await? != first);
    ensure!(trusted(&identity("trust.pem").await?) == 2);
    rolling.commit(2).await?;
    // One login has not switched to the new CA yet, and still works.
    let now = ca(&rolling.fleet)?;
    ensure!(
        now["next"]["waitingLogins"] == json!(["ada"]) && now["name"] == before,
        "{now}"
    );
    look_as(&rolling.fleet, &ada)?;
    ensure!(
        trusted(&fs::read_to_string(&ada)?) == 3,
        "the login does not hold two CAs and its own certificate"
    );
    // The second command presents the new certificate. Now everybody has switched.
    look_as(&rolling.fleet, &ada)?;
    let second = until_replaced(&rolling.fleet, &before).await?;
    ensure!(second == next);

    eventually("the agent to drop the old CA", LONG, async || {
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

    // `--finish` does not wait for logins that have not switched.
    let bob = login(&rolling.fleet, "bob")?;
    rolling.fleet.run(&["hub", "ca", "rotate", "--yes"])?;
    let dry = rolling
        .fleet
        .run(&["hub", "ca", "rotate", "--finish", "--dry-run"])?;
    ensure!(dry.contains("bob") && dry.contains("ada"), "{dry}");
    eventually("the agent to switch to the next CA", LONG, async || {
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
        "a login that did not switch still works"
    );
    says(&rolling, &[]).await?;
    rolling.commit(5).await?;
    rolling.fleet.agent("one")?.check()?;
    Ok(())
}
