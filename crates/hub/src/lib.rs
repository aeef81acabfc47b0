//! The hub reads one fleet repository and delivers a generation to each cluster. This file is the composition root;
//! each loop has its own module.

mod approvals;
mod authority;
mod blobs;
mod bundle_selection;
mod ca_rotation;
mod config;
mod connection_limit;
mod desired_state;
mod fleet_loop;
mod fleet_metrics;
mod fleet_record;
mod fleet_view;
mod leadership;
mod logins;
mod maintenance;
mod metrics;
mod moves;
mod observed;
mod rate_limit;
mod removals;
mod server;
mod services;
mod session;
mod store_schema;
mod unconfirmed;
mod webhook;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_loop::{FleetLoop, Heard};
use fleet_view::FleetView;
use leadership::Leadership;
use metrics::Metrics;
use moves::Moves;
use muster_git::{Mirror, WatchConfig, Watcher};
use muster_pki::{AdminName, LoginError};
use muster_proto::v1::{
    admin_server::AdminServer, agents_server::AgentsServer, enrolment_server::EnrolmentServer,
};
use muster_runtime::{http::Readiness, process, shutdown::Shutdown};
use muster_store::{SqliteStore, Store, StoreError};
use muster_worker::Worker;
use observed::Observed;
use prometheus_client::registry::Registry;
use services::{Parts, Services};
use session::Sessions;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub use authority::AuthorityError;
pub use config::{AGENT_LIFETIME, HEARD_WITHIN, HubConfig, LOGIN_FILE, STORE_FILE};
pub use leadership::LeadError;
pub use maintenance::maintain;
pub use store_schema::RecordError;

/// The file in the state directory in which the hub notes the commit that is in progress.
const WORKING_FILE: &str = "working.json";
/// The lifetime of the login for people on the hub's own machine. The hub replaces it at every start, and when half
/// of this time has passed.
const LOCAL_LOGIN: Duration = Duration::from_secs(24 * 60 * 60);
/// The interval at which the hub checks whether that login is due. The check uses the wall clock, since a machine may
/// sleep or may set its clock late.
const LOGIN_LOOK: Duration = Duration::from_secs(15);
/// The time within which streams and writes must finish when the hub stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The HTTP/2 window of an agent's connection, in bytes. It can be small, since bundles are sent in pieces.
const WINDOW: u32 = 256 * 1024;
/// The largest message and HTTP/2 window, in bytes, for callers without a certificate and for services whose requests
/// are small.
const SMALL: u32 = 64 * 1024;

/// The reason why a hub can't start or continue.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store can't be opened.
    #[error("the hub's state can't be opened")]
    Store(#[from] StoreError),
    /// The repository's mirror can't be opened.
    #[error("the mirror of the fleet repository can't be opened")]
    Git(#[source] Box<muster_git::Error>),
    /// A record in the store can't be read.
    #[error("the hub's records can't be read")]
    Record(#[from] RecordError),
    /// The CA can't be used, or a certificate can't be created.
    #[error("the fleet's CA can't be used")]
    Authority(#[from] AuthorityError),
    /// The hub can't become the leader.
    #[error("this hub can't become the leader")]
    Lead(#[from] LeadError),
    /// The hub can't listen on an address.
    #[error("can't listen on {address}; is another hub running?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The login for this machine can't be written.
    #[error("the login for this machine can't be written to {path}", path = path.display())]
    Login {
        /// The file of the login.
        path: PathBuf,
        /// The error of the write.
        #[source]
        source: LoginError,
    },
    /// A task ended that should run as long as the hub.
    #[error("the hub's task `{task}` ended, which is a bug in Muster; see the log")]
    Ended {
        /// The name of the task.
        task: &'static str,
    },
    /// The gRPC server failed.
    #[error("the server ended")]
    Serve(#[from] tonic::transport::Error),
}

/// Raises the soft limit of open files to the hard limit: every agent needs a connection, and the usual soft limit is
/// 1,024.
fn open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, limit = now.current, "the limit of open files can't be raised");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, HubError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| HubError::Listen { address, source })
}

/// The addresses of a running hub.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The address for agents and people, with gRPC and mTLS.
    pub grpc: SocketAddr,
    /// The address of probes and metrics.
    pub http: SocketAddr,
    /// The address of the webhook; `None` if it is served on [`Self::http`].
    pub hook: Option<SocketAddr>,
}

/// Runs a hub until `shutdown` begins. Calls `started` with the addresses once the hub listens.
///
/// # Errors
/// [`HubError`] if the hub can't start, or if its server fails.
pub async fn run(
    config: HubConfig,
    shutdown: Shutdown,
    started: impl FnOnce(&Addresses) + Send,
) -> Result<(), HubError> {
    open_files();
    let grpc = listen(config.listen).await?;
    let http = listen(config.http).await?;
    let hook = match config.hook {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let address = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    let addresses = Addresses {
        grpc: address(&grpc, config.listen),
        http: address(&http, config.http),
        hook: hook
            .as_ref()
            .zip(config.hook)
            .map(|(hook, asked)| address(hook, asked)),
    };
    let advertise = config
        .advertise
        .clone()
        .unwrap_or_else(|| advertised(addresses.grpc));

    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::new();
    let ready = readiness.part("hub");

    let path = config.store_path();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path)?);
    let stop = shutdown.token();
    let authority = authority::Authority::open(Arc::clone(&store), &config, advertise);
    let authority = Arc::new(authority.await?);
    authority.after_restore().await?;
    authority.still_removed().await?;
    let tls = authority.server_tls()?;
    let observed = Arc::new(Observed::load(store.as_ref()).await?);
    for (cluster, instance, _) in authority.joined().await? {
        observed.expect(&cluster, instance);
    }
    let leadership = Arc::new(Leadership::begin(Arc::clone(&store), authority.term_key()).await?);
    let state = desired_state::load(store.as_ref(), &leadership).await?;
    let blobs = Arc::new(blobs::Blobs::new(Arc::clone(&store)));
    let published = Arc::new(watch::Sender::new(Arc::new(state)));

    let mirror = Mirror::open(&config.state_dir.join("mirror"), config.remote.clone())
        .map_err(|error| HubError::Git(Box::new(error)))?;
    let mut watching = WatchConfig::for_remote(&config.remote);
    watching.interval = config.interval.unwrap_or(watching.interval);
    let repo = Arc::new(Watcher::spawn(mirror, watching, &stop));

    let heard = Heard {
        observed: Arc::clone(&observed),
        by: Instant::now() + config.heard_within,
    };
    let moves = Arc::new(Moves {
        store: Arc::clone(&store),
        leadership: Arc::clone(&leadership),
        observed: Arc::clone(&observed),
        published: Arc::clone(&published),
        heard: heard.clone(),
    });
    shutdown.spawn_vital("moves", Arc::clone(&moves).run(stop.clone()));
    let fleet = FleetLoop {
        store: Arc::clone(&store),
        blobs: Arc::clone(&blobs),
        leadership: Arc::clone(&leadership),
        observed: Arc::clone(&observed),
        views: repo.views(),
        published: Arc::clone(&published),
        metrics: metrics.clone(),
        worker: Worker::new(
            config.worker.clone(),
            config.limits,
            Some(config.state_dir.join(WORKING_FILE)),
        ),
        heard: heard.clone(),
        was_frozen: false,
        good: BTreeMap::new(),
    };
    shutdown.spawn_vital("fleet", fleet.run(stop.clone()));
    let keeping = Arc::clone(&observed).keep(Arc::clone(&store), stop.clone());
    shutdown.spawn_vital("levels", keeping);
    let renewing = Arc::clone(&authority).renew_hub(stop.clone());
    shutdown.spawn_vital("certificate", renewing);
    let sessions = Sessions::new(
        store,
        Arc::clone(&leadership),
        blobs,
        Arc::clone(&observed),
        Arc::clone(&published),
        metrics.clone(),
        authority.watch_cas(),
        stop.clone(),
    );
    let rotating = Arc::clone(&authority).keep_rotating(
        Arc::clone(&leadership),
        metrics.clone(),
        stop.clone(),
    );
    shutdown.spawn_vital("rotation", rotating);
    let login = LocalLogin {
        path: config.login_path(),
        authority: Arc::clone(&authority),
        hub: advertised(addresses.grpc),
    };
    login.write(false).await?;
    shutdown.spawn_vital("login", login.renew(stop.clone()));

    let webhook = webhook::route(Arc::clone(&repo), config.hook_token.clone());
    let view = Arc::new(FleetView {
        authority: Arc::clone(&authority),
        leadership: Arc::clone(&leadership),
        observed,
        published,
        repository: repo.views(),
    });
    let scrape = Box::new(fleet_metrics::Scrape(Arc::clone(&view)));
    let services = Services::new(Parts {
        authority,
        leadership,
        view,
        sessions,
        moves,
        repo,
        metrics: metrics.clone(),
    });
    registry
        .sub_registry_with_prefix(metrics::PREFIX)
        .register_collector(scrape);
    let mut routes = muster_runtime::http::routes(readiness, Arc::new(registry));
    match hook {
        Some(listener) => serve_http(&shutdown, "webhook", listener, webhook),
        None => routes = routes.merge(webhook),
    }
    serve_http(&shutdown, "http", http, routes);

    let (certified, callers) = mpsc::channel(64);
    let (guests, strangers) = mpsc::channel(64);
    let incoming = server::Incoming { certified, guests };
    let accepting = server::accept(grpc, tls, metrics, incoming, stop.clone());
    shutdown.spawn_vital("connections", accepting);
    // Callers without a certificate can only enrol; every other call is refused and says what the caller needs.
    let for_strangers = tonic::transport::Server::builder()
        .initial_stream_window_size(SMALL)
        .initial_connection_window_size(SMALL)
        .max_concurrent_streams(4)
        .http2_max_header_list_size(8 * 1024)
        .timeout(Duration::from_secs(10))
        .add_service(
            EnrolmentServer::new(services.clone()).max_decoding_message_size(SMALL as usize),
        )
        .add_service(AgentsServer::new(services.clone()).max_decoding_message_size(SMALL as usize))
        .add_service(AdminServer::new(services.clone()).max_decoding_message_size(SMALL as usize))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(strangers),
            stop.clone().cancelled_owned(),
        );
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(16)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(
            EnrolmentServer::new(services.clone()).max_decoding_message_size(SMALL as usize),
        )
        .add_service(AgentsServer::new(services.clone()))
        .add_service(AdminServer::new(services).max_decoding_message_size(SMALL as usize))
        .serve_with_incoming_shutdown(ReceiverStream::new(callers), stop.cancelled_owned());
    ready.ready();
    started(&addresses);
    let served = tokio::try_join!(server, for_strangers).map(|_| ());
    shutdown.begin();
    if let Err(unfinished) = shutdown.finish(STOP_WITHIN).await {
        tracing::warn!(%unfinished, "stopped before every task had finished");
    }
    if let Some(task) = shutdown.ended() {
        return Err(HubError::Ended { task });
    }
    Ok(served?)
}

/// Serves plain HTTP until shutdown begins.
fn serve_http(
    shutdown: &Shutdown,
    name: &'static str,
    listener: TcpListener,
    routes: axum::Router,
) {
    let served = muster_runtime::http::serve(listener, routes, shutdown.clone());
    shutdown.spawn_vital(name, async move {
        if let Err(error) = served.await {
            tracing::error!(%error, name, "plain HTTP is no longer served");
        }
    });
}

/// Returns an address at which the hub can be reached from its own machine. It is advertised to agents unless another
/// address is configured.
fn advertised(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("127.0.0.1:{}", address.port())
    } else {
        address.to_string()
    }
}

/// The login for people on this machine, so that `muster status` works there without further setup.
struct LocalLogin {
    path: PathBuf,
    authority: Arc<authority::Authority>,
    /// The address on which the hub listens. The advertised address may be that of a load balancer that does not exist
    /// yet.
    hub: String,
}

impl LocalLogin {
    async fn write(&self, is_running: bool) -> Result<(), HubError> {
        let name: AdminName = "local".parse().map_err(|_| AuthorityError::UnknownToken)?;
        let hub = self.hub.clone();
        let login = self
            .authority
            .local_login(&name, LOCAL_LOGIN, hub, is_running)
            .await?;
        login.write(&self.path).map_err(|source| HubError::Login {
            path: self.path.clone(),
            source,
        })
    }

    /// Replaces the login before it expires and whenever the CAs change, until `stop` fires.
    async fn renew(self, stop: CancellationToken) {
        let mut written = muster_pki::clock::now();
        let mut cas = self.authority.watch_cas();
        // After a change of the CAs the login in the file may be useless, so retry until it is replaced.
        let mut changed = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOGIN_LOOK) => {}
                Ok(()) = cas.changed() => changed = true,
            }
            if !changed && !muster_pki::is_due(written, LOCAL_LOGIN, muster_pki::clock::now()) {
                continue;
            }
            match self.write(true).await {
                Ok(()) => {
                    written = muster_pki::clock::now();
                    changed = false;
                }
                Err(error) => {
                    tracing::warn!(error = %muster_runtime::log::Chain(&error), "the login for this machine was not renewed; retrying");
                }
            }
        }
    }
}
