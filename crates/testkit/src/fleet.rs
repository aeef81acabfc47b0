//! A whole fleet on this machine, as processes: control planes, a Git repository, a hub and an agent for each
//! cluster. The demo, the end-to-end tests and the benchmarks use it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{
    gitserver::GitRepo,
    local::{Cluster, ClusterOptions},
    ports,
    process::Process,
    scratch::Scratch,
    tools::Program,
    wait::eventually,
};

const START_WITHIN: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(15);

/// The options of a fleet.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The path of the `muster` binary.
    pub muster: PathBuf,
    /// The name and region of each cluster.
    pub clusters: Vec<(String, String)>,
    /// The number of nodes of each cluster; with 0 no pod runs.
    pub nodes: usize,
    /// The administrators' kubeconfigs of clusters that run already, by name. Control planes are started for all other
    /// clusters.
    pub running: BTreeMap<String, PathBuf>,
    /// True if the API servers log the requests of audited accounts; see [`ClusterOptions::audit`].
    pub audit: bool,
    /// Programs of the control planes, as in [`ClusterOptions::programs`].
    pub programs: BTreeMap<Program, PathBuf>,
    /// The directory of all files; `None` for a temporary directory, which is removed with the fleet.
    pub directory: Option<PathBuf>,
    /// True if the hub uses its default ports when they are free, so that commands need no address. Tests must not set
    /// it: two tests that run at the same time could both find the ports free.
    pub usual_ports: bool,
}

impl FleetOptions {
    /// Returns the options of a fleet of control planes without nodes, in a temporary directory.
    pub fn new(muster: impl Into<PathBuf>, clusters: &[(&str, &str)]) -> Self {
        let named = |(name, region): &(&str, &str)| ((*name).to_owned(), (*region).to_owned());
        Self {
            muster: muster.into(),
            clusters: clusters.iter().map(named).collect(),
            nodes: 0,
            running: BTreeMap::new(),
            audit: false,
            programs: BTreeMap::new(),
            directory: None,
            usual_ports: false,
        }
    }
}

/// A running fleet.
#[derive(Debug)]
pub struct Fleet {
    options: FleetOptions,
    scratch: Scratch,
    repo: GitRepo,
    clusters: BTreeMap<String, Cluster>,
    hub: Option<Process>,
    hub_settings: BTreeMap<String, String>,
    agents: BTreeMap<String, Process>,
    tokens: BTreeMap<String, String>,
    ports: (u16, u16),
}

impl Fleet {
    /// Starts the repository and the control planes. The caller starts the hub and the agents.
    ///
    /// # Errors
    /// Fails if one of them does not start.
    pub async fn start(options: FleetOptions) -> anyhow::Result<Self> {
        let scratch = match &options.directory {
            Some(directory) => Scratch::kept(directory)?,
            None => Scratch::temporary("fleet")?,
        };
        let wanted = options
            .clusters
            .iter()
            .filter(|(name, _)| !options.running.contains_key(name))
            .map(|(name, region)| ClusterOptions {
                nodes: options.nodes,
                controllers: true,
                audit: options.audit,
                programs: options.programs.clone(),
                region: region.clone(),
                directory: Some(scratch.path().join("clusters").join(name)),
                ..ClusterOptions::new(name)
            });
        let clusters = Cluster::start_many(wanted.collect()).await?;
        let repo = GitRepo::at(scratch.path())?;
        let ports = if options.usual_ports {
            (preferred(7443)?, preferred(7480)?)
        } else {
            (ports::free()?, ports::free()?)
        };
        Ok(Self {
            repo,
            clusters: clusters
                .into_iter()
                .map(|c| (c.name().to_owned(), c))
                .collect(),
            hub: None,
            hub_settings: BTreeMap::new(),
            agents: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ports,
            scratch,
            options,
        })
    }

    /// The directory of all files of the fleet.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The fleet repository and its clone.
    pub fn repo(&self) -> &GitRepo {
        &self.repo
    }

    /// The control planes that this fleet started, by name.
    pub fn clusters(&self) -> &BTreeMap<String, Cluster> {
        &self.clusters
    }

    /// The administrators' kubeconfigs of all clusters, by name.
    pub fn kubeconfigs(&self) -> BTreeMap<String, PathBuf> {
        let started = self.clusters.iter();
        let mut all = self.options.running.clone();
        all.extend(started.map(|(name, cluster)| (name.clone(), cluster.kubeconfig_path())));
        all
    }

    /// The hub's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.path().join("hub")
    }

    /// The path of the login for the hub.
    pub fn login(&self) -> PathBuf {
        self.state_dir().join("admin.yaml")
    }

    /// The address of the hub's HTTP port for probes, metrics and the webhook.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.ports.1)
    }

    /// The hub's process.
    ///
    /// # Errors
    /// Fails if the process was not started.
    pub fn hub(&self) -> anyhow::Result<&Process> {
        self.hub.as_ref().context("the hub does not run")
    }

    /// The process of a cluster's agent.
    ///
    /// # Errors
    /// Fails if the process was not started.
    pub fn agent(&self, cluster: &str) -> anyhow::Result<&Process> {
        self.agents
            .get(cluster)
            .with_context(|| format!("{cluster}'s agent does not run"))
    }

    fn muster(&self) -> Command {
        let mut command = Command::new(&self.options.muster);
        command.env("MUSTER_LOGIN", self.login());
        command
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.log"))
    }

    /// Sets an environment variable of the hub. It takes effect at the hub's next start.
    pub fn set_hub(&mut self, name: &str, value: &str) {
        self.hub_settings.insert(name.to_owned(), value.to_owned());
    }

    /// Starts the hub and waits until it answers.
    ///
    /// # Errors
    /// Fails if the hub does not answer in time. The error contains the end of its log.
    pub async fn start_hub(&mut self) -> anyhow::Result<()> {
        let mut command = self.muster();
        command
            .arg("hub")
            .arg("--repo")
            .arg(self.repo.path())
            .arg("--state-dir")
            .arg(self.state_dir());
        command
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.ports.0));
        command.arg("--http").arg(self.http());
        command.envs(&self.hub_settings);
        let hub = self.hub.insert(Process::spawn(
            "hub",
            command,
            &self.scratch.path().join("hub.log"),
        )?);
        let (address, login) = (
            format!("127.0.0.1:{}", self.ports.1),
            self.scratch.path().join("hub/admin.yaml"),
        );
        eventually("the hub", START_WITHIN, async || {
            if let Err(error) = hub.check() {
                return Ok(Err(error));
            }
            let login = login.exists();
            anyhow::ensure!(login, "the hub has written no login yet");
            let page = get(&address, "/readyz").await?;
            anyhow::ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
            Ok(Ok(()))
        })
        .await?
    }

    /// Kills the hub with SIGKILL.
    ///
    /// # Errors
    /// Fails if the process can't be killed.
    pub fn kill_hub(&mut self) -> anyhow::Result<()> {
        self.hub.take().map_or(Ok(()), |hub| hub.kill().map(drop))
    }

    /// Stops the hub with SIGTERM.
    ///
    /// # Errors
    /// Fails if the hub can't be stopped.
    pub fn stop_hub(&mut self) -> anyhow::Result<()> {
        self.hub
            .take()
            .map_or(Ok(()), |hub| hub.stop(GRACE).map(drop))
    }

    /// Starts a cluster's agent. A join token is created the first time.
    ///
    /// # Errors
    /// Fails if no token can be created or the process can't be started.
    pub fn start_agent(&mut self, cluster: &str) -> anyhow::Result<()> {
        let command = self.agent_command(cluster)?;
        let name = format!("agent-{cluster}");
        let agent = Process::spawn(&name, command, &self.log(&name))?;
        self.agents.insert(cluster.to_owned(), agent);
        Ok(())
    }

    /// Returns the command that runs a cluster's agent, for callers that start it themselves.
    ///
    /// # Errors
    /// Fails if no token can be created.
    pub fn agent_command(&mut self, cluster: &str) -> anyhow::Result<Command> {
        if !self.tokens.contains_key(cluster) {
            let token = self.run(&["cluster", "join-token", cluster])?;
            self.tokens
                .insert(cluster.to_owned(), token.trim().to_owned());
        }
        let kubeconfigs = self.kubeconfigs();
        let kubeconfig = kubeconfigs.get(cluster).context("no such cluster")?;
        let mut command = self.muster();
        command.arg("agent").arg("--kubeconfig").arg(kubeconfig);
        command.env("MUSTER_JOIN_TOKEN", &self.tokens[cluster]);
        Ok(command)
    }

    /// Stops a cluster's agent with SIGTERM.
    ///
    /// # Errors
    /// Fails if the agent can't be stopped, or exits with an error.
    pub fn stop_agent(&mut self, cluster: &str) -> anyhow::Result<()> {
        let Some(agent) = self.agents.remove(cluster) else {
            return Ok(());
        };
        let status = agent.stop(GRACE)?;
        anyhow::ensure!(status.success(), "{status}: {}", agent.tail());
        Ok(())
    }

    /// Kills a cluster's agent with SIGKILL.
    ///
    /// # Errors
    /// Fails if the process can't be killed.
    pub fn kill_agent(&mut self, cluster: &str) -> anyhow::Result<()> {
        self.agents
            .remove(cluster)
            .map_or(Ok(()), |agent| agent.kill().map(drop))
    }

    /// Starts every cluster's agent.
    ///
    /// # Errors
    /// Fails if one can't be started.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.kubeconfigs().into_keys().collect();
        names.iter().try_for_each(|name| self.start_agent(name))
    }

    /// Runs a `muster` command against this fleet's hub and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails. The error contains its output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_run(arguments)?;
        if !output.status.success() {
            bail!(
                "`muster {}` failed: {}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a `muster` command against this fleet's hub and returns its output and exit status.
    ///
    /// # Errors
    /// Fails if the command can't be started.
    pub fn try_run(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        self.muster()
            .args(arguments)
            .output()
            .context("cannot run muster")
    }

    /// Returns the fleet's status as JSON.
    ///
    /// # Errors
    /// Fails if the hub does not answer.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        let output = self.try_run(&["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "muster status says: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }
}

/// Fetches a page over plain HTTP and returns it with its headers.
///
/// # Errors
/// Fails if there is no answer.
pub async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// Returns this port if it is free, so that commands need no address, and any free port otherwise.
fn preferred(port: u16) -> anyhow::Result<u16> {
    if ports::is_free(port) {
        Ok(port)
    } else {
        ports::free()
    }
}
