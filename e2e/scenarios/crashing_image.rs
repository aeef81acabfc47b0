//! An image crashes: the old pods keep serving, the status says why the new ones don't, and the fix is rolled out
//! without delay.

use anyhow::Context;
use muster_e2e::{App, CLUSTERS, Levels, World};
use muster_testkit::wait::eventually;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let good = App::saying("before the crash");
    world.serve("Good", &good).await?;
    // A pod that crashes repeatedly alternates between these reasons.
    let crash = ["exit code 1", "CrashLoopBackOff"];
    for (tag, reasons) in [("crash", crash), ("missing", ["ErrImagePull", "ImagePullBackOff"])] {
        let bad = App {
            tag,
            ..App::saying("never heard")
        };
        world.commit(&format!("An image that is {tag}"), &bad.fleet())?;
        eventually("the status to say why the new pods don't run", Levels::RECOVERY, async || {
            let status = world.status()?;
            let text = status["clusters"].to_string();
            let told = reasons.iter().any(|reason| text.contains(reason));
            anyhow::ensure!(told, "{text}");
            Ok(())
        })
        .await
        .with_context(|| format!("the image {tag}"))?;
        for (cluster, _) in CLUSTERS {
            world.serves_in(cluster, &good, Levels::DRIFT).await?;
        }
    }
    world.serve("The fix", &App::saying("after the crash")).await
}
