//! The hub's state is lost and restored from a backup that is older than the fleet: nothing is undone in
//! the clusters, and the fleet goes on.

use muster_e2e::{App, Levels, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("In the backup", &App::saying("at the time of the backup")).await?;
    let backup = world.scratch().join("hub.backup");
    world.muster_into(&["hub", "backup", "-"], &backup)?;
    let after = App::saying("after the backup");
    world.serve("After the backup", &after).await?;

    world.install_hub(&["maintenance=true"])?;
    world.muster_with_input(&["hub", "restore", "-"], &backup)?;
    world.install_hub(&["maintenance=false"])?;

    world.serves(&after, Levels::RECOVERY).await?;
    world.serve("Life goes on", &App::saying("after the restore")).await
}
