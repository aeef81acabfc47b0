//! The charts are upgraded from the previous version, rolled back and upgraded again: workloads keep serving, and no
//! agent joins twice.

use muster_e2e::{App, Levels, World};

const CLUSTER: &str = "us-east-1";
/// The version of the published charts in `charts/tests/released`.
const BEFORE: &str = "0.1.0";

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let hub = format!("CHARTS/tests/released/muster-hub-{BEFORE}.tgz");
    let agent = format!("CHARTS/tests/released/muster-agent-{BEFORE}.tgz");
    // Install the older charts with the values of the current installation.
    let older = ["--reset-then-reuse-values", "--wait", "--timeout", "3m"];
    world.helm_hub(&[&["upgrade", "muster-hub", &hub], older.as_slice()].concat())?;
    world.helm(CLUSTER, &[&["upgrade", "muster-agent", &agent], older.as_slice()].concat())?;
    world.serve("Under the charts before", &App::saying("before the upgrade")).await?;
    let identity = ["get", "secret", "muster-agent-identity", "-o", "jsonpath={.metadata.uid}{.data}"];
    let joined = world.kubectl(CLUSTER, &identity)?;

    world.install_hub(&[])?;
    world.install_agent(CLUSTER, &[])?;
    world.serve("Upgraded", &App::saying("after the upgrade")).await?;

    world.helm_hub(&["rollback", "muster-hub", "--wait", "--timeout", "3m"])?;
    world.helm(CLUSTER, &["rollback", "muster-agent", "--wait", "--timeout", "3m"])?;
    world.serve("Rolled back", &App::saying("after the rollback")).await?;

    world.install_hub(&[])?;
    world.install_agent(CLUSTER, &[])?;
    world.serves(&App::saying("after the rollback"), Levels::RECOVERY).await?;
    anyhow::ensure!(world.kubectl(CLUSTER, &identity)? == joined, "the agent has joined again");
    Ok(())
}
