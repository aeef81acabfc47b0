//! A cluster is cut off for longer than its certificate is valid: when the network is back, it gets a new
//! one by itself.

use std::time::Duration;

use muster_e2e::{App, HUB_CLUSTER, Levels, World};

use crate::network_cut::cut;

const CLUSTER: &str = "us-east-1";
const LIFETIME: Duration = Duration::from_secs(45);

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("Before", &App::saying("with a certificate")).await?;
    world.install_hub(&[&format!("agentLifetime={}s", LIFETIME.as_secs())])?;
    // A new enrolment, since the old certificate is good for a day.
    world.kubectl(CLUSTER, &["delete", "secret", "muster-agent-identity"])?;
    world.install_agent(CLUSTER, &[])?;
    world.kubectl(CLUSTER, &["rollout", "restart", "deployment/muster-agent"])?;
    world.kubectl(CLUSTER, &["rollout", "status", "deployment/muster-agent", "--timeout=90s"])?;
    world.serve("Joined again", &App::saying("with a short certificate")).await?;

    let (hub, cluster) = (world.cluster(HUB_CLUSTER)?, world.cluster(CLUSTER)?);
    cut(cluster, hub, "-I")?;
    let during = App::saying("past the certificate's end");
    let result = async {
        world.connected(CLUSTER, false, Levels::RECOVERY).await?;
        world.commit("While the certificate ends", &during.fleet())?;
        // What is waited for is the certificate's own end.
        tokio::time::sleep(LIFETIME * 2).await;
        anyhow::Ok(())
    }
    .await;
    cut(cluster, hub, "-D")?;
    result?;
    world.serves(&during, Levels::RECOVERY).await?;
    world.install_hub(&[])?;
    world.serve("After", &App::saying("with a new certificate")).await
}
