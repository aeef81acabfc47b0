//! A whole cluster stops answering and comes back: the others continue, it is shown as offline, and it catches up.

use muster_e2e::{App, Levels, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("Before", &App::saying("before the pause")).await?;
    let paused = world.cluster("us-east-1")?;
    paused.pause()?;
    let app = App::saying("during the pause");
    let result = async {
        world.commit("While one is away", &app.fleet())?;
        world.serves_in("eu-west-1", &app, Levels::COMMIT).await?;
        world.serves_in("eu-north-1", &app, Levels::COMMIT).await?;
        world.connected("us-east-1", false, Levels::RECOVERY).await
    }
    .await;
    paused.resume()?;
    result?;
    world.serves(&app, Levels::RECOVERY).await
}
