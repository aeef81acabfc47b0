//! A commit becomes pods that serve in every region, and another image is rolled out in the same way.

use muster_e2e::{App, World};

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    world.serve("Say something else", &App::saying("good morning")).await?;
    let newer = App {
        tag: "2",
        ..App::saying("good evening")
    };
    world.serve("Version 2", &newer).await
}
