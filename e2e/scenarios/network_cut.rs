//! The network between the hub and one cluster is cut: the cluster keeps its generation and reverts drift, the other
//! clusters continue, and the cluster catches up when the network is back.

use muster_e2e::{App, Levels, World};
use muster_testkit::kind::KindCluster;
use muster_testkit::wait::eventually;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let before = App::saying("before the cut");
    world.serve("Before", &before).await?;
    let name = "us-east-1";
    let (hub, cluster) = (world.cluster(muster_e2e::HUB_CLUSTER)?, world.cluster(name)?);
    cut(cluster, hub, "-I")?;
    let app = App::saying("during the cut");
    let result = async {
        world.connected(name, false, Levels::RECOVERY).await?;
        world.commit("During the cut", &app.fleet())?;
        world.serves_in("eu-north-1", &app, Levels::COMMIT).await?;
        world.kubectl(name, &["-n", "hello", "delete", "service", "hello"])?;
        eventually("drift to be reverted without the hub", Levels::DRIFT, async || {
            world.kubectl(name, &["-n", "hello", "get", "service", "hello"]).map(drop)
        })
        .await?;
        world.serves_in(name, &before, Levels::COMMIT).await
    }
    .await;
    cut(cluster, hub, "-D")?;
    result?;
    world.serves(&app, Levels::RECOVERY).await
}

/// Drops packets in both directions between a cluster and the hub's cluster (`-I`), or stops dropping them (`-D`).
pub(crate) fn cut(cluster: &KindCluster, hub: &KindCluster, how: &str) -> anyhow::Result<()> {
    for (chain, side) in [("FORWARD", "-d"), ("FORWARD", "-s"), ("OUTPUT", "-d"), ("INPUT", "-s")] {
        for network in [hub.address(), &hub.pods(), &hub.services()] {
            cluster.exec(["iptables", how, chain, side, network, "-j", "DROP"])?;
        }
    }
    Ok(())
}
