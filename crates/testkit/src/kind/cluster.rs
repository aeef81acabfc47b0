//! kind clusters whose pods and Services can reach those of the other clusters, as in a company's network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::docker::{docker, run};
use super::node_image::NodeImage;
use crate::guard;
use crate::scratch::Scratch;
use crate::tools::Program;
use crate::wait::eventually;

/// The prefix of the names of all clusters that are created here.
const PREFIX: &str = "muster-";
/// The longest time until pods can run on a node, once kind has created all clusters.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// The options of a kind cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindOptions {
    /// The cluster's name in the fleet.
    pub name: String,
    /// The region of the node (`topology.kubernetes.io/region`).
    pub region: String,
    /// The quota of etcd's database in bytes; `None` for etcd's default.
    pub etcd_quota: Option<u64>,
}

impl KindOptions {
    /// Returns the options of a cluster with etcd's default quota.
    pub fn new(name: &str, region: &str) -> Self {
        Self {
            name: name.to_owned(),
            region: region.to_owned(),
            etcd_quota: None,
        }
    }
}

/// Clusters in one Docker network. They are removed when this is dropped, and when this process ends for any reason.
#[derive(Debug)]
pub struct KindClusters {
    clusters: Vec<KindCluster>,
    network: String,
    directory: Scratch,
}

/// A kind cluster.
#[derive(Debug)]
pub struct KindCluster {
    name: String,
    /// The cluster's name in kind.
    kind_name: String,
    kubeconfig: PathBuf,
    address: String,
    number: usize,
}

impl KindClusters {
    /// Starts clusters in parallel and waits until pods can run on them. Leftovers of killed runs are removed first.
    ///
    /// # Errors
    /// Fails if Docker or kind fails, or a cluster does not come up in time. The error contains the output.
    pub async fn start(options: Vec<KindOptions>) -> anyhow::Result<Self> {
        let directory = Scratch::temporary("kind")?;
        let run_name = directory.path().file_name().unwrap_or_default();
        let network = format!("{PREFIX}{}", run_name.to_string_lossy().to_lowercase());
        let image = {
            let (network, root) = (
                network.clone(),
                directory.path().parent().map(Path::to_owned),
            );
            let prepared = tokio::task::spawn_blocking(move || {
                let image = NodeImage::ready()?;
                sweep(&root.unwrap_or_default())?;
                guard::add_docker("network", &network)?;
                docker(["network", "create", &network])?;
                anyhow::Ok(image)
            });
            prepared
                .await
                .context("the set-up of kind was interrupted")??
        };
        let mut all = Self {
            clusters: Vec::new(),
            network,
            directory,
        };
        let starts = options.iter().enumerate().map(|(number, options)| {
            KindCluster::start(options, number, &image, &all.network, all.directory.path())
        });
        all.clusters = try_join_all(starts).await?;
        all.connect()?;
        try_join_all(all.clusters.iter().map(KindCluster::ready)).await?;
        Ok(all)
    }

    /// The clusters, in the order of their options.
    pub fn all(&self) -> &[KindCluster] {
        &self.clusters
    }

    /// Returns the cluster with this name.
    ///
    /// # Errors
    /// Fails if there is no such cluster.
    pub fn get(&self, name: &str) -> anyhow::Result<&KindCluster> {
        let found = self.clusters.iter().find(|cluster| cluster.name == name);
        found.with_context(|| format!("there is no cluster {name}"))
    }

    /// The administrators' kubeconfigs, by the clusters' names.
    pub fn kubeconfigs(&self) -> BTreeMap<String, PathBuf> {
        let all = self.clusters.iter();
        all.map(|cluster| (cluster.name.clone(), cluster.kubeconfig.clone()))
            .collect()
    }

    /// This machine's address in the clusters' network.
    ///
    /// # Errors
    /// Fails if Docker fails.
    pub fn gateway(&self) -> anyhow::Result<String> {
        docker([
            "network",
            "inspect",
            "--format",
            "{{(index .IPAM.Config 0).Gateway}}",
            &self.network,
        ])
    }

    /// The directory with all files of the clusters on this machine.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Adds routes from every cluster to the pods and Services of every other. Traffic to other networks is masqueraded
    /// with the node's address.
    fn connect(&self) -> anyhow::Result<()> {
        for cluster in &self.clusters {
            let masquerade = [
                "-t",
                "nat",
                "-A",
                "POSTROUTING",
                "-s",
                &cluster.pods(),
                "!",
                "-d",
                "10.0.0.0/8",
                "-j",
                "MASQUERADE",
            ];
            cluster.exec([&["iptables"], masquerade.as_slice()].concat())?;
            for other in self
                .clusters
                .iter()
                .filter(|other| other.name != cluster.name)
            {
                for network in [other.pods(), other.services()] {
                    cluster.exec(["ip", "route", "replace", &network, "via", &other.address])?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for KindClusters {
    fn drop(&mut self) {
        let ended = remove(|name| name.starts_with(&format!("{}-", self.network)))
            .and_then(|()| docker(["network", "rm", &self.network]));
        if let Err(error) = ended {
            eprintln!("the kind clusters did not end cleanly: {error:#}");
        }
    }
}

/// Removes the containers and networks of clusters whose run has ended.
fn sweep(root: &Path) -> anyhow::Result<()> {
    let live: Vec<String> = fs::read_dir(root)
        .with_context(|| format!("cannot list {}", root.display()))?
        .filter_map(|entry| {
            Some(format!(
                "{PREFIX}{}",
                entry.ok()?.file_name().to_string_lossy().to_lowercase()
            ))
        })
        .collect();
    let is_live = |name: &str| {
        live.iter()
            .any(|run| name == run || name.starts_with(&format!("{run}-")))
    };
    let ours = format!("{PREFIX}kind-");
    remove(|name| name.starts_with(&ours) && !is_live(name))?;
    let networks = docker(["network", "ls", "--format", "{{.Name}}"])?;
    for network in networks.lines() {
        if network.starts_with(&ours) && !is_live(network) {
            docker(["network", "rm", network])?;
        }
    }
    Ok(())
}

/// Removes the nodes of the kind clusters for whose names `chosen` returns true.
fn remove(chosen: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let label = "io.x-k8s.kind.cluster";
    let format = format!("{{{{.Names}}}} {{{{.Label \"{label}\"}}}}");
    let filter = format!("label={label}");
    let list = docker(["ps", "--all", "--filter", &filter, "--format", &format])?;
    let containers = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, cluster)| chosen(cluster))
        .map(|(container, _)| container);
    let arguments: Vec<&str> = ["rm", "--force", "--volumes"]
        .into_iter()
        .chain(containers)
        .collect();
    if arguments.len() > 3 {
        docker(arguments)?;
    }
    Ok(())
}

impl KindCluster {
    async fn start(
        options: &KindOptions,
        number: usize,
        image: &NodeImage,
        network: &str,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let name = options.name.clone();
        let kind_name = format!("{network}-{name}");
        let directory = directory.join(&name);
        let mut cluster = Self {
            kubeconfig: directory.join("kubeconfig"),
            address: String::new(),
            name,
            kind_name,
            number,
        };
        guard::add_docker("container", &cluster.node())?;
        fs::create_dir_all(&directory)?;
        let network_file = directory.join("cni.conflist");
        fs::write(&network_file, cluster.pod_network().to_string())?;
        let config = directory.join("kind.json");
        let document = cluster.config(options, image, &network_file);
        fs::write(&config, document.to_string())?;
        let (kubeconfig, network) = (cluster.kubeconfig.clone(), network.to_owned());
        let made = tokio::task::spawn_blocking(move || {
            let mut kind = Command::new(Program::Kind.build()?);
            kind.env("KIND_EXPERIMENTAL_DOCKER_NETWORK", network)
                .args(["create", "cluster", "--retain", "--config"])
                .arg(config)
                .arg("--kubeconfig")
                .arg(kubeconfig);
            run(&mut kind)
        });
        let made = made
            .await
            .context("the start of a cluster was interrupted")?;
        made.with_context(|| format!("the cluster {} did not come up", cluster.name))?;
        cluster.address = docker([
            "inspect",
            "--format",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            &cluster.node(),
        ])?;
        Ok(cluster)
    }

    /// The cluster's name in the fleet.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the cluster's node, which is also the name of the node's container.
    pub fn node(&self) -> String {
        format!("{}-control-plane", self.kind_name)
    }

    /// The address of the node in the clusters' network.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The network of the cluster's pods, as a CIDR.
    pub fn pods(&self) -> String {
        format!("10.{}.0.0/16", 101 + self.number)
    }

    /// The network of the cluster's Services, as a CIDR.
    pub fn services(&self) -> String {
        format!("10.{}.0.0/16", 151 + self.number)
    }

    /// Returns a new client with administrator's rights.
    ///
    /// # Errors
    /// Fails if the kubeconfig can't be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::try_from(config)?)
    }

    /// Runs a command in the node and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn exec<A: Into<String>>(
        &self,
        command: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        let exec = ["exec".to_owned(), self.node()];
        docker(exec.into_iter().chain(command.into_iter().map(Into::into)))
    }

    /// Pauses the whole cluster: connections stay open and nothing answers.
    ///
    /// # Errors
    /// Fails if Docker fails.
    pub fn pause(&self) -> anyhow::Result<()> {
        docker(["pause", &self.node()]).map(drop)
    }

    /// Resumes a paused cluster.
    ///
    /// # Errors
    /// Fails if Docker fails.
    pub fn resume(&self) -> anyhow::Result<()> {
        docker(["unpause", &self.node()]).map(drop)
    }

    /// Loads an image into the node.
    ///
    /// # Errors
    /// Fails if kind fails.
    pub fn load(&self, archive: &Path) -> anyhow::Result<()> {
        let mut kind = Command::new(Program::Kind.build()?);
        kind.args(["load", "image-archive", "--name", &self.kind_name]);
        run(kind.arg(archive)).map(drop)
    }

    fn pod_network(&self) -> serde_json::Value {
        // The cluster has one node, which gets the first /24 of the pods' network.
        let subnet = format!("10.{}.0.0/24", 101 + self.number);
        serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "muster",
            "plugins": [
                {
                    "type": "ptp", "mtu": 1500,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    fn config(
        &self,
        options: &KindOptions,
        image: &NodeImage,
        network: &Path,
    ) -> serde_json::Value {
        let mut patches = Vec::new();
        if image.built {
            // The node image's containerd uses cgroupfs, so the kubelet must use it too. Old hosts still have cgroup
            // v1, and some don't allow a negative oom_score_adj.
            patches.push(
                "kind: KubeletConfiguration\ncgroupDriver: cgroupfs\nfailCgroupV1: false\noomScoreAdj: 0\n"
                    .to_owned(),
            );
            patches.push("kind: KubeProxyConfiguration\noomScoreAdj: 0\n".to_owned());
        }
        let mut etcd = vec![("unsafe-no-fsync".to_owned(), "true".to_owned())];
        if let Some(quota) = options.etcd_quota {
            etcd.push(("quota-backend-bytes".to_owned(), quota.to_string()));
        }
        let etcd: String = etcd
            .iter()
            .map(|(name, value)| format!("      - {{name: {name}, value: \"{value}\"}}\n"))
            .collect();
        patches.push(format!(
            "kind: ClusterConfiguration\netcd:\n  local:\n    extraArgs:\n{etcd}"
        ));
        serde_json::json!({
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": self.kind_name,
            "networking": {
                "disableDefaultCNI": true,
                "podSubnet": self.pods(),
                "serviceSubnet": self.services(),
                "kubeProxyMode": if image.built { "nftables" } else { "iptables" },
            },
            "kubeadmConfigPatches": patches,
            "nodes": [{
                "role": "control-plane",
                "image": image.name,
                "labels": {
                    "topology.kubernetes.io/region": options.region,
                    "topology.kubernetes.io/zone": format!("{}-a", options.region),
                },
                "extraMounts": [{
                    "hostPath": network,
                    "containerPath": "/etc/cni/net.d/10-muster.conflist",
                    "readOnly": true,
                }],
            }],
        })
    }

    /// Waits until pods can run in the cluster.
    async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        let nodes: Api<Node> = Api::all(client.clone());
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client);
        eventually(
            &format!("the node of {}", self.name),
            READY_WITHIN,
            async || {
                let node = nodes.get(&self.node()).await?;
                let conditions = node
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                let ready = conditions
                    .iter()
                    .find(|condition| condition.type_ == "Ready");
                let ready = ready.context("the kubelet has not reported yet")?;
                anyhow::ensure!(
                    ready.status == "True",
                    "not ready: {}",
                    ready.message.as_deref().unwrap_or_default()
                );
                accounts.get("default").await?;
                Ok(())
            },
        )
        .await
    }
}
