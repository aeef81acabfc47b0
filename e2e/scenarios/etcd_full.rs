//! A cluster's etcd has no space left: the agent can't change anything and reports why, workloads keep serving, and the
//! commit is applied when there is space again.

use anyhow::Context;
use muster_e2e::{App, Levels, World};
use muster_testkit::kind::{KindCluster, docker::docker};
use muster_testkit::tools::Program;

const CLUSTER: &str = "us-east-1";
/// The size of a filler ConfigMap in bytes. etcd accepts requests of up to 1.5 MiB, and a ConfigMap may have 1 MiB.
const PIECE: usize = 900_000;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let before = App::saying("with space left");
    world.serve("Before", &before).await?;
    let cluster = world.cluster(CLUSTER)?;
    docker(["cp", &Program::Etcdctl.build()?.display().to_string(), &format!("{}:/etcdctl", cluster.node())])?;
    fill(world)?;
    let app = App::saying("once there is space again");
    let result = async {
        world.commit("Into a full cluster", &app.fleet())?;
        world.serves_in("eu-north-1", &app, Levels::COMMIT).await?;
        world.says(CLUSTER, "database space exceeded", Levels::COMMIT).await?;
        world.connected(CLUSTER, true, Levels::DRIFT).await?;
        world.serves_in(CLUSTER, &before, Levels::DRIFT).await
    }
    .await;
    make_space(world, cluster)?;
    result?;
    world.serves(&app, Levels::RECOVERY).await
}

fn fill(world: &World) -> anyhow::Result<()> {
    let file = world.scratch().join("piece");
    std::fs::write(&file, "x".repeat(PIECE))?;
    world.kubectl(CLUSTER, &["create", "namespace", "filler"])?;
    let from = format!("--from-file={}", file.display());
    for number in 0..200 {
        let name = format!("piece-{number}");
        let made = world.kubectl(CLUSTER, &["-n", "filler", "create", "configmap", &name, &from]);
        match made {
            Ok(_) => {}
            Err(error) if format!("{error:#}").contains("space exceeded") => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    anyhow::bail!("etcd took 200 pieces and is not full")
}

/// Frees space as the runbook for a full etcd says: delete, compact, defragment, disarm.
fn make_space(world: &World, cluster: &KindCluster) -> anyhow::Result<()> {
    world.kubectl(CLUSTER, &["-n", "filler", "delete", "configmaps", "--all"])?;
    let etcdctl = |arguments: &str| {
        let pki = "/etc/kubernetes/pki/etcd";
        let command = format!(
            "/etcdctl --endpoints https://127.0.0.1:2379 --cacert {pki}/ca.crt --cert {pki}/server.crt \
             --key {pki}/server.key --command-timeout 30s {arguments}"
        );
        cluster.exec(["sh", "-c", &command])
    };
    let status: serde_json::Value = serde_json::from_str(&etcdctl("endpoint status -w json")?)?;
    let revision = status[0]["Status"]["header"]["revision"].as_u64();
    let revision = revision.context("etcd reports no revision")?;
    etcdctl(&format!("compact {revision}"))?;
    etcdctl("defrag")?;
    etcdctl("alarm disarm")?;
    world.kubectl(CLUSTER, &["delete", "namespace", "filler", "--wait=false"])?;
    Ok(())
}
