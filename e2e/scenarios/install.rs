//! Muster is installed as docs/operations.md describes: the hub in one cluster, and an agent in each cluster.

use muster_e2e::{App, CLUSTERS, Levels, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.commit("A fleet", &App::saying("hello").fleet())?;
    world.install_hub(&[])?;
    for (cluster, _) in CLUSTERS {
        world.install_agent(cluster, &[])?;
    }
    world.serves(&App::saying("hello"), Levels::COMMIT).await
}
