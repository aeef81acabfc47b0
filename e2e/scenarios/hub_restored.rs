//! The hub's state is lost and restored from an old backup: nothing is undone in the clusters, nothing is deleted
//! without an approval until `muster hub confirm`, and the fleet continues.

use muster_e2e::{App, Levels, World};
use muster_testkit::wait::eventually;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("In the backup", &App::saying("at the time of the backup")).await?;
    let backup = world.scratch().join("hub.backup");
    world.muster_into(&["hub", "backup", "-"], &backup)?;
    let after = App::saying("after the backup");
    world.serve("After the backup", &after).await?;

    world.install_hub(&["maintenance=true"])?;
    world.muster_with_input(&["hub", "restore", "-"], &backup)?;
    world.install_hub(&["maintenance=false"])?;

    // Every agent has a newer generation than the backup, and reports it when it is connected again.
    eventually("all agents to be back", Levels::RECOVERY, async || {
        let status = world.status()?;
        let clusters = status["clusters"].as_array().into_iter().flatten();
        let problems = status["problems"].as_array().into_iter().flatten();
        let unasked = problems.filter(|problem| {
            let message = problem["message"].as_str().unwrap_or_default();
            message.contains("nothing is deleted without approval")
        });
        let back = clusters.filter(|cluster| cluster["state"] == "synced").count();
        anyhow::ensure!(back == 3 && unasked.count() == 4, "{status:#}");
        Ok(())
    })
    .await?;
    world.muster(&["hub", "confirm", "--yes", "--reason", "all is as it should be"])?;
    world.serves(&after, Levels::RECOVERY).await?;
    world.serve("Life goes on", &App::saying("after the restore")).await
}
