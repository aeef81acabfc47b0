//! A cluster is disconnected until its certificate has expired: when the network is back, its agent gets a new
//! certificate without help.

use std::time::{Duration, Instant};

use muster_e2e::{App, HUB_CLUSTER, Levels, World};

use crate::network_cut::cut;

const CLUSTER: &str = "us-east-1";
const SPARE: Duration = Duration::from_secs(5);
const LIFETIME: Duration = Duration::from_secs(30);

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("Before", &App::saying("with a certificate")).await?;
    world.install_hub(&[&format!("agentLifetime={}s", LIFETIME.as_secs())])?;
    // The agent must enrol again, because its old certificate is valid for a day.
    world.kubectl(CLUSTER, &["delete", "secret", "muster-agent-identity"])?;
    world.install_agent(CLUSTER, &[])?;
    world.kubectl(CLUSTER, &["rollout", "restart", "deployment/muster-agent"])?;
    world.kubectl(CLUSTER, &["rollout", "status", "deployment/muster-agent", "--timeout=90s"])?;
    world.serve("Joined again", &App::saying("with a short certificate")).await?;

    let (hub, cluster) = (world.cluster(HUB_CLUSTER)?, world.cluster(CLUSTER)?);
    cut(cluster, hub, "-I")?;
    let since = Instant::now();
    let during = App::saying("past the certificate's end");
    let result = async {
        world.connected(CLUSTER, false, Levels::RECOVERY).await?;
        world.commit("While the certificate ends", &during.fleet())?;
        // Wait until the certificate has expired. It can't have been renewed after the cut.
        tokio::time::sleep((LIFETIME + SPARE).saturating_sub(since.elapsed())).await;
        anyhow::Ok(())
    }
    .await;
    cut(cluster, hub, "-D")?;
    result?;
    world.serves(&during, Levels::RECOVERY).await?;
    world.install_hub(&[])?;
    world.serve("After", &App::saying("with a new certificate")).await
}
