//! Real control planes on loopback ports, without Docker and without root.
//!
//! A [`Cluster`] consists of an etcd and a kube-apiserver with RBAC. Optionally it has a controller manager, a
//! scheduler and nodes that kwok simulates, so that Deployments become ready. It ends when its parent process ends for
//! any reason, and leaves nothing but the directory that it was asked to keep.

mod commands;
mod ready;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::Signal;

use crate::credentials::{self, Credentials};
use crate::ports;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::tools::Program;

/// How often a start is tried, with other ports each time, if another process takes one of the ports.
const TRIES: usize = 5;
/// How long a component may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// A component of a cluster, which is one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// etcd, the API server's database.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kwok, which simulates nodes and their pods.
    Kwok,
}

impl Component {
    /// All components, in the order of their start.
    pub const ALL: [Self; 5] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kwok,
    ];

    /// The component's program.
    pub fn program(self) -> Program {
        match self {
            Self::Etcd => Program::Etcd,
            Self::ApiServer => Program::ApiServer,
            Self::ControllerManager => Program::ControllerManager,
            Self::Scheduler => Program::Scheduler,
            Self::Kwok => Program::Kwok,
        }
    }

    /// The program's name.
    pub fn name(self) -> &'static str {
        self.program().name()
    }
}

/// The options of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterOptions {
    /// The cluster's name, which is also the name of the context in its kubeconfig.
    pub name: String,
    /// The number of nodes that kwok simulates. With 0 there is no scheduler, and pods stay pending.
    pub nodes: usize,
    /// True if Kubernetes' own controllers run. They always run if there are nodes.
    pub controllers: bool,
    /// The region of the nodes (`topology.kubernetes.io/region`). The names of the zones are derived from it.
    pub region: String,
    /// True if the API server logs the requests of the group `system:serviceaccounts:audited`, each with its user; see
    /// [`Cluster::audit_log`].
    pub audit: bool,
    /// Programs that are used instead of the pinned ones, such as those that [`Program::installed`] finds.
    pub programs: BTreeMap<Program, PathBuf>,
    /// The directory of the cluster's data. `None` for a temporary directory, which is removed with the cluster.
    pub directory: Option<PathBuf>,
}

impl ClusterOptions {
    /// Returns the options of an API server with its etcd only, in a temporary directory.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 0,
            controllers: false,
            region: "local".to_owned(),
            audit: false,
            programs: BTreeMap::new(),
            directory: None,
        }
    }

    /// Returns the components of such a cluster, in the order of their start.
    pub fn components(&self) -> Vec<Component> {
        let mut components = vec![Component::Etcd, Component::ApiServer];
        if self.controllers || self.nodes > 0 {
            components.push(Component::ControllerManager);
        }
        if self.nodes > 0 {
            components.extend([Component::Scheduler, Component::Kwok]);
        }
        components
    }
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    etcd: u16,
    api_server: u16,
    kwok: u16,
}

impl Ports {
    fn choose(wanted: Option<u16>) -> anyhow::Result<Self> {
        let api_server = match wanted.filter(|port| ports::is_free(*port)) {
            Some(port) => port,
            None => ports::free()?,
        };
        Ok(Self {
            etcd: ports::free()?,
            api_server,
            kwok: ports::free()?,
        })
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    programs: BTreeMap<Component, PathBuf>,
    ports: Ports,
    credentials: Credentials,
    processes: Mutex<BTreeMap<Component, Arc<Process>>>,
    directory: Scratch,
}

impl Cluster {
    /// Starts a cluster and waits until it is ready: its API server and default namespace, the default service account
    /// if controllers run, and every node. Programs that are not in the cache are built first (see [`Program::build`]).
    ///
    /// # Errors
    /// Fails if a program can't be built or does not come up in time. The error contains the end of its log.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        let name = options.name.clone();
        let failed = || format!("cannot start the cluster {name}");
        let components = options.components();
        let given = options.programs.clone();
        let programs = tokio::task::spawn_blocking(move || {
            let path = |each: Component| match given.get(&each.program()) {
                Some(path) => Ok(path.clone()),
                None => each.program().build(),
            };
            let programs = components.into_iter();
            programs.map(|each| Ok((each, path(each)?))).collect()
        });
        let programs: anyhow::Result<_> = programs.await.context("the build of programs failed")?;
        let programs = programs.with_context(failed)?;
        let directory = match &options.directory {
            Some(path) => Scratch::kept(path),
            None => Scratch::temporary(&options.name),
        };
        let directory = directory.with_context(failed)?;
        let credentials = Credentials::in_directory(directory.path().join("pki"))?;
        let port_file = directory.path().join("port");
        let wanted = std::fs::read_to_string(&port_file)
            .ok()
            .and_then(|port| port.parse().ok());
        let mut cluster = Self {
            options,
            programs,
            ports: Ports::choose(wanted)?,
            credentials,
            processes: Mutex::default(),
            directory,
        };
        for left in (0..TRIES).rev() {
            cluster.write_files()?;
            match cluster.run().await {
                Ok(()) => break,
                Err(_) if left > 0 && cluster.lost_a_port() => {
                    cluster.kill_all()?;
                    cluster.ports = Ports::choose(None)?;
                }
                Err(error) => return Err(error).with_context(failed),
            }
        }
        Ok(cluster)
    }

    /// Starts clusters in parallel. If one fails, all are stopped.
    ///
    /// # Errors
    /// Fails like [`Cluster::start`].
    pub async fn start_many(options: Vec<ClusterOptions>) -> anyhow::Result<Vec<Self>> {
        try_join_all(options.into_iter().map(Self::start)).await
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The URL of the API server.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api_server)
    }

    /// The directory with all files of the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The path of the administrator's kubeconfig, which embeds the certificates and the key.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.directory().join("kubeconfig")
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// Fails if the certificates can't be read.
    pub fn kubeconfig(&self) -> anyhow::Result<String> {
        self.credentials
            .kubeconfig(self.name(), self.ports.api_server)
    }

    /// Returns a new client with administrator's rights. It belongs to the current Tokio runtime.
    ///
    /// # Errors
    /// Fails if the kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig()?)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::try_from(config)?)
    }

    /// Returns a kubeconfig with the rights of a ServiceAccount, valid for two hours.
    ///
    /// # Errors
    /// Fails if the ServiceAccount does not exist.
    pub async fn account(&self, namespace: &str, name: &str) -> anyhow::Result<Kubeconfig> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(7_200),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        let token = answer.status.and_then(|status| status.token);
        let token = token.context("no token")?;
        let mut kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig()?)?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo {
                token: Some(token.clone().into()),
                ..AuthInfo::default()
            });
        }
        Ok(kubeconfig)
    }

    /// The path of a component's log.
    pub fn log(&self, component: Component) -> PathBuf {
        self.directory().join(format!("{}.log", component.name()))
    }

    /// The path of the audit log, with one JSON event per line. Each request has an event when it ends, and a watch
    /// also has one when it begins. An event is written within two seconds.
    pub fn audit_log(&self) -> PathBuf {
        self.directory().join("audit.log")
    }

    /// The process id of a component.
    ///
    /// # Errors
    /// Fails if the component does not run.
    pub fn pid(&self, component: Component) -> anyhow::Result<u32> {
        Ok(self.process(component)?.pid())
    }

    /// Pauses a component (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// Fails if the component does not run.
    pub fn pause(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.pause()
    }

    /// Resumes a paused component.
    ///
    /// # Errors
    /// Fails if the component does not run.
    pub fn resume(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.resume()
    }

    /// Kills a component (SIGKILL). [`Cluster::start_component`] starts it again.
    ///
    /// # Errors
    /// Fails if the component does not run.
    pub fn kill(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.kill()?;
        self.processes().remove(&component);
        Ok(())
    }

    /// Stops a component with SIGTERM and waits until it has ended; kills it after five seconds.
    ///
    /// # Errors
    /// Fails if the component does not run.
    pub async fn stop(&self, component: Component) -> anyhow::Result<()> {
        let process = self.process(component)?;
        let stop = tokio::task::spawn_blocking(move || process.stop(GRACE));
        stop.await
            .context("the wait for a component's end was interrupted")??;
        self.processes().remove(&component);
        Ok(())
    }

    /// Starts a component again on the same data and port, and waits until the cluster is ready.
    ///
    /// # Errors
    /// Fails if the component runs already, or the cluster is not ready in time.
    pub async fn start_component(&self, component: Component) -> anyhow::Result<()> {
        self.spawn(component)?;
        self.ready().await
    }

    /// Stops and starts the API server, and waits until the cluster is ready.
    ///
    /// # Errors
    /// Fails if the cluster is not ready in time.
    pub async fn restart_api_server(&self) -> anyhow::Result<()> {
        self.stop(Component::ApiServer).await?;
        self.start_component(Component::ApiServer).await
    }

    /// Kills all components and starts the cluster again on the same data and ports.
    ///
    /// # Errors
    /// Fails if the cluster is not ready in time.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.kill_all()?;
        self.run().await
    }

    /// Starts all components in order and waits until the cluster is ready.
    async fn run(&self) -> anyhow::Result<()> {
        self.spawn(Component::Etcd)?;
        self.spawn(Component::ApiServer)?;
        self.api_server_ready().await?;
        for component in self.options.components().into_iter().skip(2) {
            self.spawn(component)?;
        }
        if self.options.nodes > 0 {
            self.create_nodes()
                .await
                .context("cannot create the nodes")?;
        }
        self.ready().await
    }

    fn spawn(&self, component: Component) -> anyhow::Result<()> {
        let mut processes = self.processes();
        let name = format!("{} of {}", component.name(), self.name());
        anyhow::ensure!(!processes.contains_key(&component), "{name} runs already");
        let process = Process::spawn(&name, self.command(component)?, &self.log(component))?;
        processes.insert(component, Arc::new(process));
        Ok(())
    }

    fn write_files(&self) -> anyhow::Result<()> {
        credentials::write(
            &self.directory().join("port"),
            &self.ports.api_server.to_string(),
        )?;
        credentials::write(&self.kubeconfig_path(), &self.kubeconfig()?)
    }

    /// Returns true if a component ended because another process had taken its port.
    fn lost_a_port(&self) -> bool {
        self.processes().values().any(|process| {
            matches!(process.exited(), Ok(Some(_)))
                && process.tail().contains("address already in use")
        })
    }

    fn process(&self, component: Component) -> anyhow::Result<Arc<Process>> {
        let process = self.processes().get(&component).cloned();
        process.with_context(|| format!("{} of {} does not run", component.name(), self.name()))
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<Component, Arc<Process>>> {
        self.processes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Kills all components. Signals all of them before it waits, so that they end in parallel.
    fn kill_all(&self) -> anyhow::Result<()> {
        let processes = std::mem::take(&mut *self.processes());
        for process in processes.values() {
            process.signal(Signal::KILL)?;
        }
        processes
            .values()
            .try_for_each(|process| process.kill().map(drop))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("the cluster {} did not end cleanly: {error:#}", self.name());
        }
    }
}
