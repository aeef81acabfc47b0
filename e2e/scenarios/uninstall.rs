//! Muster is removed: what runs goes on running, unless everything is to go.

use muster_e2e::{App, CLUSTERS, Levels, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let app = App::saying("without Muster");
    world.serve("The last commit", &app).await?;
    for (cluster, _) in CLUSTERS {
        world.helm(cluster, &["uninstall", "muster-agent", "--wait"])?;
    }
    world.helm_hub(&["uninstall", "muster-hub", "--wait"])?;
    for (cluster, _) in CLUSTERS {
        world.kubectl(cluster, &["delete", "namespace", "muster-system", "--timeout=60s"])?;
        world.serves_in(cluster, &app, Levels::DRIFT).await?;
        for kind in ["clusterroles", "clusterrolebindings", "customresourcedefinitions"] {
            let names = world.kubectl(cluster, &["get", kind, "-o", "name"])?;
            anyhow::ensure!(!names.contains("muster"), "left in {cluster}: {names}");
        }
    }
    Ok(())
}
