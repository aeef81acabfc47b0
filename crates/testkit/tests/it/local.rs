//! Tests that local control planes start, work, survive faults, and leave nothing behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use muster_testkit::local::{Cluster, ClusterOptions, Component};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn api<K>(client: &Client) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), "default")
}

async fn create<K>(api: &Api<K>, object: Value) -> anyhow::Result<K>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    Ok(api
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?)
}

fn config_map(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "data": { "key": "value" } })
}

fn pod_template(app: &str, restart_policy: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "restartPolicy": restart_policy,
            "initContainers": [{ "name": "prepare", "image": "busybox" }],
            "containers": [{ "name": "main", "image": "nginx" }],
        },
    })
}

/// Returns the status of the pod's condition `Ready`.
fn readiness(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}

#[tokio::test]
async fn workloads_run_on_simulated_nodes() -> anyhow::Result<()> {
    let options = ClusterOptions {
        nodes: 3,
        region: "eu-west".to_owned(),
        ..ClusterOptions::new("workloads")
    };
    let cluster = Cluster::start(options).await?;
    let client = cluster.client().await?;

    let nodes: Api<Node> = Api::all(client.clone());
    let mut places = BTreeSet::new();
    for node in nodes.list(&ListParams::default()).await? {
        let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
        places.insert((
            node.name_any(),
            label("topology.kubernetes.io/region"),
            label("topology.kubernetes.io/zone"),
        ));
    }
    let place = |number: u8, zone: &str| {
        (
            format!("workloads-node-{number}"),
            "eu-west".to_owned(),
            format!("eu-west-{zone}"),
        )
    };
    assert_eq!(
        places,
        BTreeSet::from([place(0, "a"), place(1, "b"), place(2, "c")])
    );

    let deployments: Api<Deployment> = api(&client);
    let deployment = json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 5,
            "selector": { "matchLabels": { "app": "web" } },
            "template": pod_template("web", "Always"),
        },
    });
    create(&deployments, deployment).await?;
    eventually("five replicas", MINUTE, async || {
        let status = deployments.get("web").await?.status.unwrap_or_default();
        anyhow::ensure!(
            status.available_replicas == Some(5),
            "the status is {status:?}"
        );
        Ok(())
    })
    .await?;
    let pods: Api<Pod> = api(&client);
    let of_web = ListParams::default().labels("app=web");
    let addresses: BTreeSet<_> = pods
        .list(&of_web)
        .await?
        .into_iter()
        .filter_map(|pod| pod.status.and_then(|status| status.pod_ip))
        .collect();
    assert_eq!(addresses.len(), 5, "each pod must have a unique address");

    // Nodes renew their Leases, so that they and their pods are not considered lost. If a pod is marked as not ready
    // all the same, it becomes ready again.
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    eventually("a lease for each node", MINUTE, async || {
        let leases = leases.list(&ListParams::default()).await?.items.len();
        anyhow::ensure!(leases == 3, "there are {leases}");
        Ok(())
    })
    .await?;
    let lost = pods
        .list(&of_web)
        .await?
        .items
        .first()
        .map(ResourceExt::name_any);
    let lost = lost.context("no pod")?;
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let unready = Patch::Strategic(&unready);
    let patched = pods
        .patch_status(&lost, &PatchParams::default(), &unready)
        .await?;
    assert_eq!(readiness(&patched), Some("False"));
    eventually("the pod's recovery", MINUTE, async || {
        let pod = pods.get(&lost).await?;
        anyhow::ensure!(
            readiness(&pod) == Some("True"),
            "it is {:?}",
            readiness(&pod)
        );
        Ok(())
    })
    .await?;

    let jobs: Api<Job> = api(&client);
    let job = json!({
        "metadata": { "name": "once" },
        "spec": { "template": pod_template("once", "Never") },
    });
    create(&jobs, job).await?;
    let claims: Api<PersistentVolumeClaim> = api(&client);
    let claim = json!({
        "metadata": { "name": "data" },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    create(&claims, claim).await?;
    eventually("the job's completion", MINUTE, async || {
        let status = jobs.get("once").await?.status.unwrap_or_default();
        anyhow::ensure!(status.succeeded == Some(1), "the status is {status:?}");
        Ok(())
    })
    .await?;
    eventually("the claim's volume", MINUTE, async || {
        let phase = claims.get("data").await?.status.unwrap_or_default().phase;
        anyhow::ensure!(phase.as_deref() == Some("Bound"), "the phase is {phase:?}");
        Ok(())
    })
    .await?;

    deployments.delete("web", &DeleteParams::default()).await?;
    claims.delete("data", &DeleteParams::default()).await?;
    let volumes: Api<PersistentVolume> = Api::all(client);
    eventually(
        "the end of the pods and of the volume",
        MINUTE,
        async || {
            let pods = pods.list(&of_web).await?.items.len();
            let volumes = volumes.list(&ListParams::default()).await?.items.len();
            anyhow::ensure!(
                pods + volumes == 0,
                "there are {pods} pods and {volumes} volumes"
            );
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn clusters_side_by_side_are_independent() -> anyhow::Result<()> {
    let options = ["left", "right"].map(ClusterOptions::new);
    let clusters = Cluster::start_many(options.to_vec()).await?;
    let [left, right] = &clusters[..] else {
        anyhow::bail!("two were asked for")
    };
    let directory = left.directory().to_owned();
    let maps: Api<ConfigMap> = api(&left.client().await?);
    create(&maps, config_map("only-left")).await?;
    let others: Api<ConfigMap> = api(&right.client().await?);
    assert_eq!(
        others
            .get_opt("only-left")
            .await?
            .map(|found| found.name_any()),
        None
    );

    // A certificate of one cluster is not valid in the other.
    let (own, foreign) = (right.kubeconfig()?, left.kubeconfig()?);
    let address = |text: &str| {
        text.lines()
            .find(|line| line.contains("server:"))
            .map(String::from)
    };
    let (own, foreign) = (address(&own).context("no server")?, foreign);
    let mixed = foreign.replace(&address(&foreign).context("no server")?, &own);
    let mixed = kube::config::Kubeconfig::from_yaml(&mixed)?;
    let config = kube::Config::from_custom_kubeconfig(mixed, &Default::default()).await?;
    assert!(Client::try_from(config)?.apiserver_version().await.is_err());

    drop(clusters);
    assert!(
        !directory.exists(),
        "a dropped cluster must remove its directory"
    );
    Ok(())
}

#[tokio::test]
async fn what_was_written_survives_restarts() -> anyhow::Result<()> {
    let kept = tempfile::tempdir()?;
    let options = ClusterOptions {
        controllers: true,
        directory: Some(kept.path().join("cluster")),
        ..ClusterOptions::new("phoenix")
    };
    let cluster = Cluster::start(options.clone()).await?;
    let client = cluster.client().await?;
    let maps: Api<ConfigMap> = api(&client);
    let uid = create(&maps, config_map("lasting")).await?.uid();
    let first = cluster.pid(Component::ApiServer)?;

    cluster.restart_api_server().await?;
    assert_ne!(cluster.pid(Component::ApiServer)?, first);
    // The same client still works, because the address and the certificates are the same.
    assert_eq!(maps.get("lasting").await?.uid(), uid);

    cluster.pause(Component::ApiServer)?;
    let answer = tokio::time::timeout(Duration::from_millis(300), maps.get("lasting")).await;
    assert!(answer.is_err(), "a paused API server does not answer");
    cluster.resume(Component::ApiServer)?;
    cluster.ready().await?;

    cluster.kill(Component::ApiServer)?;
    assert!(
        maps.get("lasting").await.is_err(),
        "a killed API server refuses connections"
    );
    assert!(cluster.pid(Component::ApiServer).is_err());
    cluster.start_component(Component::ApiServer).await?;

    cluster.restart().await?;
    assert_eq!(maps.get("lasting").await?.uid(), uid);

    // Two clusters can't use one directory at the same time, and a later one finds the data of an earlier one.
    let second = Cluster::start(options.clone()).await.map(drop);
    let refusal = format!("{:#}", second.expect_err("the directory is taken"));
    assert!(
        refusal.contains("in use by another running process"),
        "{refusal}"
    );
    let kubeconfig = cluster.kubeconfig()?;
    drop(cluster);
    let cluster = Cluster::start(options).await?;
    assert_eq!(cluster.kubeconfig()?, kubeconfig);
    let accounts: Api<ServiceAccount> = api(&cluster.client().await?);
    accounts.get("default").await?;
    let maps: Api<ConfigMap> = api(&cluster.client().await?);
    assert_eq!(maps.get("lasting").await?.uid(), uid);
    Ok(())
}

#[tokio::test]
async fn a_component_that_ends_is_reported_with_its_log() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions::new("headless")).await?;
    cluster.kill(Component::ApiServer)?;
    std::fs::write(cluster.directory().join("pki/server.key"), "broken")?;
    let error = cluster
        .start_component(Component::ApiServer)
        .await
        .expect_err("its key is broken");
    let text = format!("{error:#}");
    assert!(
        text.contains("kube-apiserver of headless ended (exit status: 1)"),
        "{text}"
    );
    assert!(
        text.contains("failed to find any PEM data in key input"),
        "{text}"
    );
    Ok(())
}

/// Runs this test's binary a second time as the parent process. There, an environment variable makes this test start a
/// cluster.
#[tokio::test]
async fn nothing_outlives_a_killed_parent() -> anyhow::Result<()> {
    const ROLE: &str = "MUSTER_TESTKIT_PARENT";
    if std::env::var_os(ROLE).is_some() {
        let options = ClusterOptions {
            nodes: 1,
            ..ClusterOptions::new("orphan")
        };
        let cluster = Cluster::start(options.clone()).await?;
        let pids: Result<Vec<_>, _> = options
            .components()
            .into_iter()
            .map(|each| cluster.pid(each))
            .collect();
        println!("READY {} {:?}", cluster.directory().display(), pids?);
        return std::future::pending().await;
    }

    let mut parent = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "local::nothing_outlives_a_killed_parent",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(parent.stdout.take().context("no output")?);
    let (directory, pids) = tokio::task::spawn_blocking(move || {
        for line in output.lines() {
            let line = line?;
            let Some((_, report)) = line.split_once("READY ") else {
                continue;
            };
            let (directory, pids) = report.split_once(' ').context("no pids")?;
            let pids: Vec<u32> = serde_json::from_str(pids)?;
            return anyhow::Ok((std::path::PathBuf::from(directory), pids));
        }
        anyhow::bail!("the parent ended before its cluster was ready")
    })
    .await??;
    assert_eq!(pids.len(), 5);
    assert_eq!(
        alive(&pids, &directory),
        pids,
        "all must run while the parent runs"
    );

    parent.kill()?;
    parent.wait()?;
    eventually(
        "the end of all that the parent started",
        MINUTE,
        async || {
            let alive = alive(&pids, &directory);
            anyhow::ensure!(alive.is_empty(), "these still run: {alive:?}");
            Ok(())
        },
    )
    .await?;

    // Creating the next temporary directory removes the parent's directory.
    eventually("the end of the parent's directory", MINUTE, async || {
        drop(muster_testkit::scratch::Scratch::temporary("sweeper")?);
        anyhow::ensure!(!directory.exists(), "{} still exists", directory.display());
        Ok(())
    })
    .await
}

/// Returns those processes that run and have the directory on their command line. The latter excludes other processes
/// that got the same process id.
fn alive(pids: &[u32], directory: &std::path::Path) -> Vec<u32> {
    let directory = directory.display().to_string();
    let listed = |pid: &u32| {
        let output = Command::new("ps")
            .args(["-o", "args=", "-p", &pid.to_string()])
            .output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&directory))
    };
    pids.iter().copied().filter(listed).collect()
}

#[test]
fn programs_are_built_once() -> anyhow::Result<()> {
    let modified = |component: Component| -> anyhow::Result<(std::path::PathBuf, SystemTime)> {
        let path = component.program().build()?;
        let time = std::fs::metadata(&path)?.modified()?;
        Ok((path, time))
    };
    let first = modified(Component::Etcd)?;
    assert_eq!(modified(Component::Etcd)?, first);
    Ok(())
}
