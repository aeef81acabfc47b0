//! The hub's pod and an agent's pod are killed: drift is still reverted without a hub, and both continue after a
//! restart.

use muster_e2e::{App, Levels, World};
use muster_testkit::wait::eventually;

const NOW: [&str; 3] = ["--grace-period=0", "--force", "--wait=false"];

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let app = App::saying("before the kill");
    world.serve("Before", &app).await?;

    // The hub is gone for a while, and an agent starts without it.
    world.kubectl_hub(&["scale", "statefulset/muster-hub", "--replicas=0"])?;
    world.kubectl_hub(&["wait", "--for=delete", "pod/muster-hub-0", "--timeout=60s"])?;
    let agent = "app.kubernetes.io/name=muster-agent";
    world.kubectl("us-east-1", &[&["delete", "pod", "-l", agent], NOW.as_slice()].concat())?;
    world.kubectl("us-east-1", &["-n", "hello", "delete", "deployment", "hello"])?;
    eventually("the Deployment to come back without a hub", Levels::RECOVERY, async || {
        world.kubectl("us-east-1", &["-n", "hello", "get", "deployment", "hello"]).map(drop)
    })
    .await?;
    world.serves_in("us-east-1", &app, Levels::COMMIT).await?;
    let later = App::saying("while the hub was away");
    world.commit("While the hub is away", &later.fleet())?;
    world.kubectl_hub(&["scale", "statefulset/muster-hub", "--replicas=1"])?;
    world.serves(&later, Levels::RECOVERY).await?;

    // Both are killed at the same time, during a commit.
    let last = App::saying("in the middle of it all");
    world.commit("In the middle", &last.fleet())?;
    world.kubectl_hub(&[&["delete", "pod", "muster-hub-0"], NOW.as_slice()].concat())?;
    world.kubectl("eu-north-1", &[&["delete", "pod", "-l", agent], NOW.as_slice()].concat())?;
    world.serves(&last, Levels::RECOVERY).await
}
