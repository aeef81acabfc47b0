//! The long-running commands: `muster hub` and `muster agent`.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use muster_agent::NamespaceAccess;
use muster_git::{Auth, Reference, RemoteConfig};
use muster_hub::HubConfig;
use muster_model::kinds::Span;
use muster_pki::JoinToken;
use muster_runtime::{
    log::{self, LogFormat},
    process,
    shutdown::Shutdown,
};
use muster_worker::{Limits, Program};

use crate::client;

/// The logging options of a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// The log format: text or json. MUSTER_LOG sets the level, such as debug.
    #[arg(long, default_value = "text", env = "MUSTER_LOG_FORMAT")]
    log_format: LogFormat,
    /// Shift the wall clock by this many seconds, such as -60s. For tests of fleets whose clocks disagree.
    #[arg(
        long,
        hide = true,
        env = "MUSTER_CLOCK_OFFSET",
        allow_hyphen_values = true
    )]
    clock_offset: Option<String>,
}

impl LogArgs {
    /// Starts logging, and applies the clock offset.
    fn init(&self) -> anyhow::Result<()> {
        log::init(self.log_format)?;
        if let Some(offset) = self
            .clock_offset
            .as_deref()
            .filter(|offset| !offset.is_empty())
        {
            let seconds = offset.trim_start_matches('+').trim_end_matches('s').parse();
            let seconds = seconds.with_context(|| {
                format!(
                    "MUSTER_CLOCK_OFFSET is {offset:?}, which is not a number of seconds such as -60s"
                )
            })?;
            tracing::warn!(
                seconds,
                "MUSTER_CLOCK_OFFSET shifts this process's clock; use it only in tests"
            );
            muster_pki::clock::put_off(seconds);
        }
        Ok(())
    }
}

/// The flags of `muster hub`. Only the repository is required.
#[derive(Debug, Clone, Args)]
pub(crate) struct HubArgs {
    /// The fleet repository: a path, file://, https:// or ssh:// URL, or git@HOST:PATH.
    #[arg(long, env = "MUSTER_REPO")]
    pub(crate) repo: Option<String>,
    /// The branch to follow; the repository's default branch if not set.
    #[arg(long, conflicts_with = "tag", env = "MUSTER_BRANCH")]
    branch: Option<String>,
    /// The tag to follow.
    #[arg(long, env = "MUSTER_TAG")]
    tag: Option<String>,
    /// The interval between checks of the repository, such as 30s.
    #[arg(long, env = "MUSTER_INTERVAL")]
    interval: Option<Span>,
    /// A file with the token for https://.
    #[arg(long, value_name = "FILE", env = "MUSTER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// A file with the private key for ssh://.
    #[arg(long, value_name = "FILE", env = "MUSTER_SSH_KEY_FILE")]
    ssh_key_file: Option<PathBuf>,
    /// A file with the host keys to trust for ssh://; ~/.ssh/known_hosts if not set.
    #[arg(long, value_name = "FILE", env = "MUSTER_KNOWN_HOSTS_FILE")]
    known_hosts_file: Option<PathBuf>,
    /// A file with CAs to trust for https://, in addition to the system's.
    #[arg(long, value_name = "FILE", env = "MUSTER_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// The directory for the hub's state.
    #[arg(long, value_name = "DIR", env = "MUSTER_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The address for agents and people, with mTLS.
    #[arg(long, default_value = "0.0.0.0:7443", env = "MUSTER_LISTEN")]
    listen: SocketAddr,
    /// The address for probes and metrics, in plain HTTP.
    #[arg(long, default_value = "127.0.0.1:7480", env = "MUSTER_HTTP")]
    http: SocketAddr,
    /// The address for the Git host's webhook (/hook), in plain HTTP; that of --http if not set.
    #[arg(long, env = "MUSTER_HOOK")]
    hook: Option<SocketAddr>,
    /// The address at which agents reach the hub, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT", env = "MUSTER_ADVERTISE")]
    advertise: Option<String>,
    /// A file with the webhook's secret. GitLab sends the secret itself; GitHub, Gitea and Forgejo sign with it.
    ///
    /// Without it, the webhook refuses all calls.
    #[arg(long, value_name = "FILE", env = "MUSTER_HOOK_TOKEN_FILE")]
    hook_token_file: Option<PathBuf>,
    /// How long an agent's certificate is valid; it is renewed after two thirds of that.
    #[arg(long, default_value = "24h", env = "MUSTER_AGENT_LIFETIME")]
    agent_lifetime: Span,
    /// How long an agent can still renew its certificate after it has expired.
    #[arg(long, default_value = "72h", env = "MUSTER_RENEWAL_GRACE")]
    renewal_grace: Span,
    /// Run no hub and only answer probes, so that the state can be restored.
    #[arg(long)]
    maintenance: bool,
    /// The memory limit for reading and rendering commits, in MiB.
    ///
    /// The default is half of the container's limit if there is one, and at most 2048.
    #[arg(long, value_name = "MIB", env = "MUSTER_RENDER_MEMORY")]
    render_memory: Option<u64>,
    #[command(flatten)]
    log: LogArgs,
}

/// Returns the command that starts the process that reads and renders commits.
pub(crate) fn worker() -> anyhow::Result<Program> {
    // On Linux, /proc/self/exe still refers to the running build after an upgrade has replaced the file.
    let own = match cfg!(target_os = "linux") {
        true => PathBuf::from("/proc/self/exe"),
        false => std::env::current_exe().context("can't find this program's own file")?,
    };
    Ok(Program {
        program: own,
        args: vec![WORKER.to_owned()],
    })
}

/// The command that [`worker`] runs.
pub(crate) const WORKER: &str = "render-worker";

impl HubArgs {
    fn state_dir(&self) -> anyhow::Result<PathBuf> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => client::default_state_dir(),
        }
    }

    fn config(&self) -> anyhow::Result<HubConfig> {
        let repo = self.repo.as_deref().context(
            "no repository is set; use `muster hub --repo URL`, such as https://git.example.com/fleet.git or a path",
        )?;
        let reference = match (&self.branch, &self.tag) {
            (Some(branch), _) => Reference::Branch(branch.clone()),
            (None, Some(tag)) => Reference::Tag(tag.clone()),
            (None, None) => Reference::Default,
        };
        let hook_token = match &self.hook_token_file {
            Some(file) => {
                let token = std::fs::read_to_string(file).with_context(|| {
                    format!("can't read the webhook's token in {}", file.display())
                })?;
                let token = token.trim();
                if token.is_empty() {
                    bail!(
                        "{} is empty; it must contain the webhook's token",
                        file.display()
                    );
                }
                Some(token.to_owned())
            }
            None => None,
        };
        let state_dir = self.state_dir()?;
        let limits = Limits::within(process::container_memory());
        Ok(HubConfig {
            remote: RemoteConfig {
                url: repo
                    .parse()
                    .with_context(|| format!("{repo:?} is not a repository URL"))?,
                reference,
                auth: Auth {
                    token_file: self.token_file.clone(),
                    ssh_key: self.ssh_key_file.clone(),
                    known_hosts: self.known_hosts_file.clone(),
                    ca_file: self.ca_file.clone(),
                    ..Auth::default()
                },
            },
            interval: self
                .interval
                .as_ref()
                .map(|interval| interval.duration.max(Duration::from_secs(1))),
            state_dir,
            listen: self.listen,
            http: self.http,
            hook: self.hook,
            advertise: self.advertise.clone(),
            hook_token,
            agent_lifetime: self.agent_lifetime.duration.max(Duration::from_secs(10)),
            renewal_grace: self.renewal_grace.duration,
            heard_within: muster_hub::HEARD_WITHIN,
            worker: worker()?,
            limits: Limits {
                memory: self
                    .render_memory
                    .map_or(limits.memory, |mib| mib.saturating_mul(1024 * 1024)),
                ..limits
            },
        })
    }
}

/// Runs `muster hub`.
pub(crate) async fn hub(args: &HubArgs) -> anyhow::Result<()> {
    if args.maintenance {
        args.log.init()?;
        let state_dir = args.state_dir()?;
        muster_hub::maintain(args.http, Shutdown::on_signals()?, |http| {
            tracing::warn!(%http, state_dir = %state_dir.display(), "maintenance mode: no hub is running. `muster hub restore - < BACKUP` replaces the state with a backup, `muster hub backup -` saves it. Then start the hub without --maintenance");
        })
        .await?;
        return Ok(());
    }
    let config = args.config()?;
    args.log.init()?;
    let shutdown = Shutdown::on_signals()?;
    let login = config.login_path();
    muster_hub::run(config, shutdown, |addresses| {
        tracing::info!(grpc = %addresses.grpc, http = %addresses.http, login = %login.display(), "the hub is up");
    })
    .await?;
    Ok(())
}

/// The flags of `muster agent`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AgentArgs {
    /// The token from `muster cluster join-token`, or @FILE. Needed once.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "MUSTER_JOIN_TOKEN",
        hide_env_values = true
    )]
    join_token: Option<String>,
    /// The hub's address, if it differs from the one in the token.
    #[arg(long, value_name = "HOST:PORT", env = "MUSTER_HUB")]
    hub: Option<String>,
    /// The kubeconfig of the cluster; the pod's service account or ~/.kube/config if not set.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig.
    #[arg(long)]
    context: Option<String>,
    /// The namespace for the agent's own objects.
    #[arg(long, default_value = muster_agent::NAMESPACE, env = "MUSTER_NAMESPACE")]
    namespace: String,
    /// The only namespaces that the agent may touch.
    ///
    /// Use this for a service account that has no cluster-wide rights. Objects in Git outside of these namespaces are
    /// reported and left alone.
    #[arg(
        long,
        value_name = "NAMESPACE,…",
        value_delimiter = ',',
        env = "MUSTER_NAMESPACES"
    )]
    namespaces: Vec<String>,
    /// Namespaces that the agent leaves alone, in addition to its own; empty for none.
    #[arg(
        long,
        value_name = "NAMESPACE,…",
        value_delimiter = ',',
        default_value = "kube-system",
        env = "MUSTER_DENY_NAMESPACES"
    )]
    deny_namespaces: Vec<String>,
    /// Allow objects in the agent's own namespace, so that the agent can be in the fleet repository.
    ///
    /// Anyone who may write to that namespace can act as the agent.
    #[arg(long, env = "MUSTER_MANAGE_ITSELF")]
    manage_itself: bool,
    /// The most objects that the agent deletes in an hour without an approval.
    ///
    /// This limit applies even if the hub allows more. Without it, only the fleet's prune budget applies.
    #[arg(long, value_name = "OBJECTS", env = "MUSTER_PRUNE_CEILING")]
    prune_ceiling: Option<usize>,
    /// The address for probes and metrics, in plain HTTP; not served if not set.
    #[arg(long, env = "MUSTER_HTTP")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

impl AgentArgs {
    /// Returns the namespaces that the agent may touch. `--namespaces` lists them explicitly, so the denied namespaces
    /// are ignored if it is set.
    fn reach(&self) -> NamespaceAccess {
        let only = names(&self.namespaces);
        if !only.is_empty() {
            return NamespaceAccess::Only(only);
        }
        let mut denied = names(&self.deny_namespaces);
        if !self.manage_itself {
            denied.insert(self.namespace.clone());
        }
        NamespaceAccess::AllBut(denied)
    }
}

/// Returns the names in a list. An environment variable that is set but empty gives no names.
fn names(list: &[String]) -> BTreeSet<String> {
    let names = list.iter().map(|name| name.trim());
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Runs `muster agent`.
pub(crate) async fn agent(args: &AgentArgs) -> anyhow::Result<()> {
    let text = match args
        .join_token
        .as_deref()
        .map(|text| (text, text.strip_prefix('@')))
    {
        Some((_, Some(file))) => match std::fs::read_to_string(file) {
            Ok(text) => Some(text),
            // The token works once, so its Secret may be deleted after the agent has joined.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("can't read the join token in {file}"));
            }
        },
        Some((text, None)) if !text.is_empty() => Some(text.to_owned()),
        Some(_) | None => None,
    };
    let join_token = text.map(|text| text.parse::<JoinToken>()).transpose()?;
    let kube = kube_config(args).await?;
    args.log.init()?;
    end_on_panic();
    let config = muster_agent::AgentConfig {
        kube,
        namespace: args.namespace.clone(),
        namespaces: args.reach(),
        prune_ceiling: args.prune_ceiling,
        join_token,
        hub: args.hub.clone(),
        http: args.http,
    };
    muster_agent::run(config, Shutdown::on_signals()?).await?;
    Ok(())
}

/// Makes the first panic of any task end this process. Otherwise an agent that has lost one of its tasks would look
/// healthy although it is not.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        tracing::error!(%info, "the agent has panicked and exits; this is a bug in Muster");
        std::process::exit(101);
    }));
}

async fn kube_config(args: &AgentArgs) -> anyhow::Result<kube::Config> {
    let options = kube::config::KubeConfigOptions {
        context: args.context.clone(),
        ..Default::default()
    };
    match &args.kubeconfig {
        Some(file) => {
            let read = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("can't read the kubeconfig {}", file.display()))?;
            Ok(kube::Config::from_custom_kubeconfig(read, &options).await?)
        }
        None if args.context.is_some() => Ok(kube::Config::from_kubeconfig(&options).await?),
        None => kube::Config::infer()
            .await
            .context("found neither a pod's service account nor a kubeconfig; use --kubeconfig"),
    }
}

#[cfg(test)]
mod tests;
