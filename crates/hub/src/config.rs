//! The settings with which a hub starts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use muster_git::RemoteConfig;
use muster_worker::{Limits, Program};

/// A hub's settings.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The fleet repository.
    pub remote: RemoteConfig,
    /// The interval at which the repository is polled; `None` for the default of its kind of remote.
    pub interval: Option<Duration>,
    /// The directory that holds the hub's state.
    pub state_dir: PathBuf,
    /// The address for agents and people, with mTLS.
    pub listen: SocketAddr,
    /// The address of probes and metrics, in plain HTTP.
    pub http: SocketAddr,
    /// The address of the Git webhook, in plain HTTP; `None` to serve it on [`Self::http`].
    pub hook: Option<SocketAddr>,
    /// The address of the hub in join tokens, as HOST:PORT.
    pub advertise: Option<String>,
    /// The webhook's secret; if it is `None`, the webhook refuses every call.
    pub hook_token: Option<String>,
    /// The lifetime of an agent's certificate.
    pub agent_lifetime: Duration,
    /// The time after its expiry during which an agent's certificate can still be renewed.
    pub renewal_grace: Duration,
    /// The time for which a hub waits after its start for clusters that have joined, before it places a first writer.
    pub heard_within: Duration,
    /// The program that reads and renders commits.
    pub worker: Program,
    /// The limits of that program's time and memory.
    pub limits: Limits,
}

impl HubConfig {
    /// Returns the settings of a hub that listens on loopback only, at ports that the system chooses.
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
            heard_within: HEARD_WITHIN,
            worker,
            limits: Limits::default(),
        }
    }

    /// Returns the path of the store's file.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.state_dir.join(STORE_FILE)
    }

    /// Returns the path of the login for people on this machine.
    #[must_use]
    pub fn login_path(&self) -> PathBuf {
        self.state_dir.join(LOGIN_FILE)
    }
}

/// The name of the store's file in the state directory.
pub const STORE_FILE: &str = "hub.db";
/// The name of the login's file in the state directory.
pub const LOGIN_FILE: &str = "admin.yaml";
/// The default of [`HubConfig::heard_within`]. Agents connect again within 15 s.
pub const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// The default lifetime of an agent's certificate.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The name of the file in the state directory that lists removed instances and logins. Backups do not contain it, so
/// a restore does not bring any of them back.
pub(crate) const REMOVED_FILE: &str = "removed.json";
