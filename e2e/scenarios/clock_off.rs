//! The wall clocks of the hub and the agents differ by a minute, in both directions: agents still join, renew their
//! certificates and apply.

use muster_e2e::{App, Levels, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    for (cluster, offset) in [("us-east-1", "-60s"), ("eu-north-1", "60s")] {
        world.kubectl(cluster, &["delete", "secret", "muster-agent-identity"])?;
        world.install_agent(cluster, &[
            "extraEnv[0].name=MUSTER_CLOCK_OFFSET",
            &format!("extraEnv[0].value={offset}"),
        ])?;
    }
    world.serve("With other clocks", &App::saying("a minute off")).await?;
    for cluster in ["us-east-1", "eu-north-1"] {
        let logs = world.kubectl(cluster, &["logs", "deployment/muster-agent"])?;
        anyhow::ensure!(logs.contains("MUSTER_CLOCK_OFFSET"), "the clock of {cluster} was not off: {logs}");
        world.install_agent(cluster, &[])?;
    }
    world.serves(&App::saying("a minute off"), Levels::RECOVERY).await
}
