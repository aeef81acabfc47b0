//! Decides who may connect: the fleet's CA, enrolment by join token, renewal, revocation, and logins for people.

mod enrolment;
mod error;
mod instances;
mod restore;

use std::{
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Duration,
};

use muster_model::ids::{ClusterName, InstanceId};
use muster_pki::{Ca, Certified, Credentials, ServerTls, TermKey};
use muster_runtime::log::Chain;
use muster_store::{Expected, Store, Txn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::error::AuthorityError;
pub(crate) use self::{instances::admit, restore::without_serials};
use crate::{HubConfig, ca_rotation::Cas, removals::Removals, store_schema};

/// The interval at which the hub checks whether its certificate is due for renewal.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// The lifetime of the hub's own certificate.
const HUB_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The name of the hub itself in the audit log.
pub(crate) const HUB: &str = "hub";

/// A certificate that is handed out to an agent, with the CAs to trust.
pub(crate) struct Granted {
    pub(crate) certificate: String,
    pub(crate) trust: String,
    pub(crate) cluster: ClusterName,
    pub(crate) instance: InstanceId,
}

/// The fleet's CA, and the records of enrolments and logins.
pub(crate) struct Authority {
    store: Arc<dyn Store>,
    cas: watch::Sender<Arc<Cas>>,
    /// The number of clusters, logins and join tokens that still needed the old CA when that was last counted.
    waiting: AtomicUsize,
    /// The TLS configuration of the hub's listener, once it exists.
    tls: OnceLock<Arc<ServerTls>>,
    advertise: String,
    lifetime: Duration,
    grace: Duration,
    removed: Removals,
}

impl Authority {
    /// Opens the fleet's CA, and creates it if the store has none.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        config: &HubConfig,
        advertise: String,
    ) -> Result<Self, AuthorityError> {
        let cas = loop {
            if let Some(cas) = Cas::load(store.as_ref()).await? {
                break cas;
            }
            let pem = Ca::create(muster_pki::clock::now())?.to_pem();
            let txn = Txn::new()
                .when(store_schema::CA, Expected::Absent)
                .put(store_schema::CA, pem);
            store.commit(txn).await?;
        };
        Ok(Self {
            store,
            cas: watch::Sender::new(Arc::new(cas)),
            waiting: AtomicUsize::default(),
            tls: OnceLock::new(),
            advertise,
            lifetime: config.agent_lifetime,
            grace: config.renewal_grace,
            removed: Removals::in_directory(&config.state_dir),
        })
    }

    /// Returns the key with which the hubs of this fleet prove their terms.
    pub(crate) fn term_key(&self) -> TermKey {
        self.cas().current.term_key()
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Returns the last count of clusters, logins and join tokens that still need the old CA.
    pub(crate) fn waiting(&self) -> &AtomicUsize {
        &self.waiting
    }

    /// Returns the list of removals that a restored backup does not undo.
    pub(crate) fn removed(&self) -> &Removals {
        &self.removed
    }

    /// Uses these CAs for everything from now on.
    pub(crate) fn use_cas(&self, cas: Cas) {
        self.cas.send_replace(Arc::new(cas));
        self.update_tls();
    }

    /// Returns the fleet's CAs.
    pub(crate) fn cas(&self) -> Arc<Cas> {
        self.cas.borrow().clone()
    }

    /// Returns a watch of the fleet's CAs.
    pub(crate) fn watch_cas(&self) -> watch::Receiver<Arc<Cas>> {
        self.cas.subscribe()
    }

    /// Returns the TLS configuration of the hub's listener. [`Self::renew_hub`] keeps its certificate fresh.
    pub(crate) fn server_tls(&self) -> Result<Arc<ServerTls>, AuthorityError> {
        let trust = &self.cas().trust;
        let tls = ServerTls::new(trust, &self.hub_credentials()?, self.grace)?;
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(tls))))
    }

    /// Gives the listener a new certificate and the current CAs.
    fn update_tls(&self) {
        let Some(tls) = self.tls.get() else { return };
        let updated = self.hub_credentials().and_then(|credentials| {
            tls.update(&self.cas().trust, &credentials)?;
            Ok(())
        });
        if let Err(error) = updated {
            tracing::error!(error = %Chain(&error), "the hub's certificate was not renewed");
        }
    }

    fn hub_credentials(&self) -> Result<Credentials, AuthorityError> {
        let host = self
            .advertise
            .rsplit_once(':')
            .map_or(self.advertise.as_str(), |(host, _)| host);
        let names =
            ["localhost", "127.0.0.1", host].map(|name| name.trim_matches(['[', ']']).to_owned());
        // Clients that have not received the new CA yet trust only the old one.
        let ca = &self.cas().current;
        Ok(ca.hub_credentials(&names, HUB_LIFETIME, muster_pki::clock::now())?)
    }

    /// Renews the hub's own certificate before it expires, until `stop` fires. It checks the wall clock at short
    /// intervals instead of sleeping until the renewal, because the clock may have been wrong when the hub started.
    pub(crate) async fn renew_hub(self: Arc<Self>, stop: CancellationToken) {
        let mut made = muster_pki::clock::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = muster_pki::clock::now();
            if muster_pki::is_due(made, HUB_LIFETIME, now) {
                made = now;
                self.update_tls();
            }
        }
    }

    /// Returns the address at which agents reach the hub.
    pub(crate) fn advertised(&self) -> &str {
        &self.advertise
    }
}

/// The other end of a connection: its address and its certificate, if it presented one.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) certified: Option<Arc<Certified>>,
}
