//! What a hub is told when it starts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use muster_git::RemoteConfig;
use muster_worker::{Limits, Program};

/// A hub's settings.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The fleet repository.
    pub remote: RemoteConfig,
    /// How often the repository is looked at without a reason; `None` for the default of its kind.
    pub interval: Option<Duration>,
    /// Where the hub keeps its state.
    pub state_dir: PathBuf,
    /// Where agents and people connect, with mTLS.
    pub listen: SocketAddr,
    /// Where probes and metrics are served, in plain HTTP.
    pub http: SocketAddr,
    /// Where the Git webhook is served, in plain HTTP; beside the probes where nothing is said.
    pub hook: Option<SocketAddr>,
    /// The address that agents are given in their join tokens, as HOST:PORT.
    pub advertise: Option<String>,
    /// The webhook's secret; where there is none, nobody may call the webhook.
    pub hook_token: Option<String>,
    /// How long an agent's certificate is valid.
    pub agent_lifetime: Duration,
    /// How long after its end an agent's certificate is still good for a new one.
    pub renewal_grace: Duration,
    /// How the process is started that reads and renders commits.
    pub worker: Program,
    /// What that process may use.
    pub limits: Limits,
}

impl HubConfig {
    /// A hub of this repository that can be reached on this machine only, at ports of the system's choice.
    #[must_use]
    pub fn local(remote: RemoteConfig, state_dir: PathBuf, worker: Program) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            remote,
            interval: None,
            state_dir,
            listen: loopback,
            http: loopback,
            hook: None,
            advertise: None,
            hook_token: None,
            agent_lifetime: AGENT_LIFETIME,
            renewal_grace: muster_pki::RENEWAL_GRACE,
            worker,
            limits: Limits::default(),
        }
    }

    /// The store's file.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.state_dir.join(STORE_FILE)
    }

    /// Where a login for people on this machine is written.
    #[must_use]
    pub fn login_path(&self) -> PathBuf {
        self.state_dir.join(LOGIN_FILE)
    }
}

/// The store's file within the state directory.
pub const STORE_FILE: &str = "hub.db";
/// The login's file within the state directory.
pub const LOGIN_FILE: &str = "admin.yaml";
/// How long an agent's certificate is valid where nothing else is said.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The file within the state directory with what was removed: it is no part of a backup, so that a backup brings
/// nothing of it back.
pub(crate) const REMOVED_FILE: &str = "removed.json";
