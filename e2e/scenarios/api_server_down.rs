//! A cluster's API server is down for a minute: workloads keep serving, the agent reports the problem, and the commit
//! of that minute is applied afterwards.

use std::time::{Duration, Instant};

use muster_e2e::{App, Levels, World};

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const ASIDE: &str = "/root/kube-apiserver.yaml";
const AWAY: Duration = Duration::from_secs(60);

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let before = App::saying("before the outage");
    world.serve("Before", &before).await?;
    let cluster = world.cluster("eu-north-1")?;
    cluster.exec(["mv", MANIFEST, ASIDE])?;
    let down = Instant::now();
    let app = App::saying("during the outage");
    let result = async {
        world.commit("During the outage", &app.fleet())?;
        world.serves_in("us-east-1", &app, Levels::COMMIT).await?;
        // Wait for the whole outage: its duration is what this scenario is about.
        while down.elapsed() < AWAY {
            world.serves_in("eu-north-1", &before, Levels::DRIFT).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        world.says("eu-north-1", "can't renew its Lease", Levels::DRIFT).await
    }
    .await;
    cluster.exec(["mv", ASIDE, MANIFEST])?;
    result?;
    world.serves(&app, Levels::RECOVERY).await
}
