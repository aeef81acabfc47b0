//! Changes by hand in a cluster are reverted, deleted objects are recreated, and objects that leave Git are deleted
//! from the clusters.

use muster_e2e::{App, CLUSTERS, Levels, World};
use muster_testkit::wait::eventually;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let app = App::saying("as committed");
    world.serve("Something to change", &app).await?;
    let cluster = "us-east-1";

    world.kubectl(cluster, &["-n", "hello", "set", "env", "deployment/hello", "STANDIN_SAYS=by hand"])?;
    world.kubectl(cluster, &["-n", "hello", "scale", "deployment/hello", "--replicas=3"])?;
    eventually("the Deployment to be reverted", Levels::DRIFT, async || {
        let live = world.get(cluster, &["-n", "hello", "deployment", "hello"])?;
        anyhow::ensure!(live["spec"]["replicas"] == 1, "{}", live["spec"]);
        Ok(())
    })
    .await?;
    world.kubectl(cluster, &["-n", "hello", "delete", "service", "hello"])?;
    world.serves(&app, Levels::RECOVERY).await?;

    let mut extra = app.fleet();
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra, namespace: hello}\n";
    extra.insert("apps/hello/templates/extra.yaml".to_owned(), settings.to_owned());
    world.commit("One more object", &extra)?;
    world.synced(Levels::COMMIT).await?;
    world.kubectl(cluster, &["-n", "hello", "get", "configmap", "extra"])?;
    world.serve("And away with it", &app).await?;
    for (cluster, _) in CLUSTERS {
        let left = world.kubectl(cluster, &["-n", "hello", "get", "configmap", "extra"]);
        anyhow::ensure!(left.is_err(), "the ConfigMap that left Git is still in {cluster}");
    }
    Ok(())
}
