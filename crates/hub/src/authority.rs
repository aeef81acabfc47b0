//! Who may speak: the fleet's CA, enrolment by join token, renewal, revocation, and logins for people.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Duration,
};

use muster_model::ids::{ClusterName, ContentHash, InstanceId};
use muster_pki::{
    Ca, Certified, Credentials, Identity, JoinSecret, JoinToken, PkiError, ServerTls, TermKey,
};
use muster_runtime::log::Chain;
use muster_store::{CommitError, Expected, RESTORED_KEY, Store, Txn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    HubConfig, approvals,
    records::{
        self, Grant, InstanceRecord, JoinRecord, LoginRecord, RecordError, audited, now, seconds,
    },
    removed::{Names, Removed},
    rotation::Cas,
    suspects,
};

/// How often it is looked whether the hub's certificate is due.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long the hub's own certificate is valid.
const HUB_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The hub itself, as the audit log names it.
pub(crate) const HUB: &str = "hub";

/// Why somebody is turned away, or can't be served.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The token was never made here, or its record is gone.
    #[error("this join token is not known here; make one with `muster cluster join-token`")]
    UnknownToken,
    /// The token is too old.
    #[error("this join token has expired; make one with `muster cluster join-token`")]
    ExpiredToken,
    /// The token was used by another key.
    #[error("this join token was used already; make one with `muster cluster join-token`")]
    UsedToken,
    /// The instance was removed.
    #[error(
        "this instance of cluster {0} was removed or is not known here; it needs a new join token"
    )]
    Revoked(ClusterName),
    /// The login was taken back, or its record is gone.
    #[error(
        "this login was removed or is not known here; get one with `muster hub admin NAME` on the hub's machine"
    )]
    UnknownLogin,
    /// The instance's key is in two places.
    #[error("{0}")]
    Held(String),
    /// Another hub leads.
    #[error("this hub has stepped down; another hub leads")]
    NotLeading,
    /// A CA that is made now would end before the one that there is.
    #[error(
        "the clock of the hub's machine is wrong: a CA that is made now would end before the old one"
    )]
    Clock,
    /// What was removed can't be written down.
    #[error("what was removed can't be kept in {path}", path = .0.display())]
    Removed(PathBuf, #[source] std::io::Error),
    /// A request or certificate is not what it should be.
    #[error("the certificate request can't be granted")]
    Pki(#[from] PkiError),
    /// The records fail.
    #[error("the hub's records fail")]
    Record(#[from] RecordError),
    /// A write fails.
    #[error("the hub's store refuses the write")]
    Commit(#[from] CommitError),
}

impl AuthorityError {
    /// Whether the caller is at fault, and a word for the metrics.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::UnknownToken => Some("unknown_token"),
            Self::ExpiredToken => Some("expired_token"),
            Self::UsedToken => Some("used_token"),
            Self::Revoked(_) => Some("revoked"),
            Self::UnknownLogin => Some("unknown_login"),
            Self::Held(_) => Some("copied_key"),
            Self::Pki(_) => Some("bad_request"),
            Self::NotLeading => Some("not_leading"),
            Self::Clock => Some("wrong_clock"),
            Self::Record(_) | Self::Commit(_) | Self::Removed(..) => None,
        }
    }
}

/// A certificate as it is handed out.
pub(crate) struct Granted {
    pub(crate) certificate: String,
    pub(crate) trust: String,
    pub(crate) cluster: ClusterName,
    pub(crate) instance: InstanceId,
}

/// The fleet's CA and its records.
pub(crate) struct Authority {
    store: Arc<dyn Store>,
    cas: watch::Sender<Arc<Cas>>,
    /// How many had not followed when that was last asked.
    waiting: AtomicUsize,
    /// Of the hub's listener, once there is one.
    tls: OnceLock<Arc<ServerTls>>,
    advertise: String,
    lifetime: Duration,
    grace: Duration,
    removed: Removed,
}

impl Authority {
    /// Opens the fleet's CA; makes it where there is none.
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
                .when(records::CA, Expected::Absent)
                .put(records::CA, pem);
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
            removed: Removed::in_directory(&config.state_dir),
        })
    }

    /// A store that was restored from a backup may hold join tokens that were used since, and approvals
    /// of what has long been something else: all are void.
    pub(crate) async fn after_restore(&self) -> Result<(), AuthorityError> {
        let Some(restored) = self
            .store
            .get(RESTORED_KEY)
            .await
            .map_err(RecordError::from)?
        else {
            return Ok(());
        };
        let at = String::from_utf8_lossy(&restored.value);
        tracing::warn!(%at, "this hub's state was restored from a backup; join tokens and approvals from before are void");
        let mut txn = Txn::new().delete(RESTORED_KEY);
        for key in self
            .store
            .keys(records::JOIN)
            .await
            .map_err(RecordError::from)?
        {
            txn = txn.delete(key.0);
        }
        txn = without_serials(self.store.as_ref(), txn).await?;
        let txn = approvals::void_in_force(self.store.as_ref(), txn).await?;
        let why = format!("this hub's state was restored from the backup of {at}");
        let txn = suspects::suspect(self.store.as_ref(), txn, None, why).await?;
        self.store.commit(txn).await?;
        Ok(())
    }

    /// The key under which this fleet's hubs prove their terms.
    pub(crate) fn term_key(&self) -> TermKey {
        self.cas().current.term_key()
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// How many had not followed another CA when that was last asked.
    pub(crate) fn waiting(&self) -> &AtomicUsize {
        &self.waiting
    }

    /// Where removals are kept that no backup undoes.
    pub(crate) fn removed(&self) -> &Removed {
        &self.removed
    }

    /// Every join token's record, by its key.
    pub(crate) async fn join_tokens(&self) -> Result<Vec<(String, JoinRecord)>, AuthorityError> {
        let kept = self.store.range(records::JOIN).await;
        let kept = kept.map_err(RecordError::from)?;
        let tokens = kept.into_iter().map(|(key, versioned)| {
            let record = records::decode(&key, &versioned)?;
            Ok((key, record))
        });
        tokens.collect()
    }

    /// Uses these from now on, for everything.
    pub(crate) fn use_cas(&self, cas: Cas) {
        self.cas.send_replace(Arc::new(cas));
        self.update_tls();
    }

    /// The fleet's CAs.
    pub(crate) fn cas(&self) -> Arc<Cas> {
        self.cas.borrow().clone()
    }

    /// The fleet's CAs now, and whenever they change.
    pub(crate) fn watch_cas(&self) -> watch::Receiver<Arc<Cas>> {
        self.cas.subscribe()
    }

    /// TLS for the hub's listener, renewed in time until told to stop.
    pub(crate) fn server_tls(&self) -> Result<Arc<ServerTls>, AuthorityError> {
        let trust = &self.cas().trust;
        let tls = ServerTls::new(trust, &self.hub_credentials()?, self.grace)?;
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(tls))))
    }

    /// Shows a certificate that is made now, and trusts the CAs of now.
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
        // Whoever has not followed yet trusts the older one alone.
        let ca = &self.cas().current;
        Ok(ca.hub_credentials(&names, HUB_LIFETIME, muster_pki::clock::now())?)
    }

    /// Renews the hub's own certificate in time until told to stop. The wall clock decides, which may have been
    /// wrong when the hub started.
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

    /// Makes a join token for a cluster.
    pub(crate) async fn join_token(
        &self,
        cluster: ClusterName,
        valid: Duration,
        who: &str,
    ) -> Result<JoinToken, AuthorityError> {
        let secret = JoinSecret::generate();
        let expires = muster_pki::clock::now() + valid;
        let cas = self.cas();
        let record = JoinRecord {
            cluster: cluster.clone(),
            expires: seconds(expires),
            used: None,
            trust: cas.version(),
        };
        let txn = Txn::new().put(
            format!("{}{}", records::JOIN, secret.hash()),
            records::encode(&record),
        );
        let txn = audited(txn, who, format!("join token for cluster {cluster}"));
        self.store
            .commit(self.without_stale_tokens(txn).await?)
            .await?;
        let (hub, trust) = (self.advertise.clone(), cas.trust.clone());
        Ok(JoinToken {
            hub,
            trust,
            cluster,
            secret,
            expires,
        })
    }

    /// Tokens that expired a day ago are forgotten.
    async fn without_stale_tokens(&self, mut txn: Txn) -> Result<Txn, AuthorityError> {
        for (key, record) in self.join_tokens().await? {
            if record.expires + 86_400 < now() {
                txn = txn.delete(key);
            }
        }
        Ok(txn)
    }

    /// Grants a certificate for a join token. The same request may be made again, in case its answer
    /// was lost; any other is refused once the token was used.
    pub(crate) async fn enrol(&self, secret: &str, csr: &str) -> Result<Granted, AuthorityError> {
        let secret: JoinSecret = secret.parse().map_err(|_| AuthorityError::UnknownToken)?;
        let key = format!("{}{}", records::JOIN, secret.hash());
        let found: Option<(JoinRecord, u64)> = records::read(self.store.as_ref(), &key).await?;
        let (mut record, revision) = found.ok_or(AuthorityError::UnknownToken)?;
        if record.expires < now() {
            return Err(AuthorityError::ExpiredToken);
        }
        let request = ContentHash::of(csr.as_bytes());
        let instance = match &record.used {
            Some((instance, by)) if *by == request => instance.clone(),
            Some(_) => return Err(AuthorityError::UsedToken),
            None => new_instance(),
        };
        let (granted, grant) = self.grant(&record.cluster, &instance, csr)?;
        if record.used.is_none() {
            record.used = Some((instance.clone(), request));
            let txn = Txn::new().when(key.clone(), Expected::Revision(revision));
            // A cluster has one agent: whatever was enrolled before under its name is replaced.
            let (txn, replaced) = self.revoke(txn, &record.cluster).await?;
            let txn = txn.put(key, records::encode(&record)).put(
                records::instance_key(&record.cluster, &instance),
                records::encode(&InstanceRecord::new(grant)),
            );
            let txn = replaced.iter().fold(txn, |txn, replaced| {
                let what = format!(
                    "instance {replaced} of cluster {} is replaced",
                    record.cluster
                );
                audited(txn, "join token", what)
            });
            let what = format!("cluster {} enrolled as instance {instance}", record.cluster);
            match self.store.commit(audited(txn, "join token", what)).await {
                Ok(_) => {}
                Err(CommitError::Conflict { .. }) => return Err(AuthorityError::UsedToken),
                Err(error) => return Err(error.into()),
            }
        } else {
            // Its answer was lost: this is a certificate of the same enrolment.
            let (mut enrolled, at) =
                admitted(self.store.as_ref(), &record.cluster, &instance).await?;
            enrolled.grant(grant);
            let txn = changed(&record.cluster, &instance, &enrolled, at);
            self.store.commit(txn).await?;
        }
        Ok(granted)
    }

    /// Grants a new certificate to an instance that shows this one, as often as its answers are lost. Once
    /// another has been shown that came of it, its key is in two places, and both are held.
    pub(crate) async fn renew(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        serial: &str,
        csr: &str,
    ) -> Result<Granted, AuthorityError> {
        let (mut record, revision) = admitted(self.store.as_ref(), cluster, instance).await?;
        record.show(serial);
        if !record.is_shown(serial) {
            let why = format!(
                "the certificate of cluster {cluster} was renewed twice: its key is in two places. Find out where; \
                 then `muster cluster remove {cluster}`, and let it join again with a new token"
            );
            record.held = Some(why.clone());
            let txn = changed(cluster, instance, &record, revision);
            let who = format!("agent of cluster {cluster}");
            self.store
                .commit(audited(txn, &who, format!("held: {why}")))
                .await?;
            return Err(AuthorityError::Held(why));
        }
        let (granted, grant) = self.grant(cluster, instance, csr)?;
        record.grant(grant);
        let txn = changed(cluster, instance, &record, revision);
        self.store.commit(txn).await?;
        Ok(granted)
    }

    /// Whether an instance is still one of the fleet, and notes that it has shown this certificate. The answer is
    /// the version of the CAs that it knows.
    pub(crate) async fn admit_shown(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        serial: &str,
    ) -> Result<u64, AuthorityError> {
        let (mut record, revision) = admitted(self.store.as_ref(), cluster, instance).await?;
        if !record.show(serial) {
            return Ok(record.trust);
        }
        let txn = changed(cluster, instance, &record, revision);
        match self.store.commit(txn).await {
            // Somebody else noted it, or renewed it just now.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(record.trust),
            Err(error) => Err(error.into()),
        }
    }

    fn grant(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        csr: &str,
    ) -> Result<(Granted, Grant), AuthorityError> {
        let identity = Identity::Agent {
            cluster: cluster.clone(),
            instance: instance.clone(),
        };
        let now = muster_pki::clock::now();
        let cas = self.cas();
        let certificate = cas.signer().sign(csr, &identity, self.lifetime, now)?;
        let grant = Grant {
            serial: Certified::of_pem(&certificate)?.serial,
            trust: cas.version(),
        };
        let granted = Granted {
            certificate,
            trust: cas.trust.to_pem(),
            cluster: cluster.clone(),
            instance: instance.clone(),
        };
        Ok((granted, grant))
    }

    /// The transaction in which every instance of a cluster is revoked, and those that it revokes. It holds only
    /// where no other enrolment or removal of that cluster comes between.
    async fn revoke(
        &self,
        txn: Txn,
        cluster: &ClusterName,
    ) -> Result<(Txn, Vec<InstanceId>), AuthorityError> {
        let key = format!("{}{cluster}", records::MEMBERSHIP);
        let mut txn = records::turn(self.store.as_ref(), txn, key).await?;
        let mut revoked = Vec::new();
        let prefix = format!("{}{cluster}/", records::INSTANCE);
        for (key, versioned) in self.store.range(&prefix).await.map_err(RecordError::from)? {
            let mut record: InstanceRecord = records::decode(&key, &versioned)?;
            if !record.revoked {
                record.revoked = true;
                revoked.extend(key[prefix.len()..].parse::<InstanceId>());
                txn = txn.put(key, records::encode(&record));
            }
        }
        Ok((txn, revoked))
    }

    /// What was removed stays removed, also where a backup of before is put back.
    pub(crate) async fn still_removed(&self) -> Result<(), AuthorityError> {
        let mut txn = Txn::new();
        let Names { instances, logins } = self.removed.read()?;
        for serial in logins {
            let key = format!("{}{serial}", records::LOGIN);
            let found = records::read::<LoginRecord>(self.store.as_ref(), &key).await?;
            let Some((mut record, _)) = found.filter(|(record, _)| !record.removed) else {
                continue;
            };
            record.removed = true;
            let what = format!(
                "the login of {} stays removed, which the backup did not know",
                record.name
            );
            txn = audited(txn.put(key, records::encode(&record)), "hub", what);
        }
        for (cluster, instance) in instances {
            let key = records::instance_key(&cluster, &instance);
            let found = records::read::<InstanceRecord>(self.store.as_ref(), &key).await?;
            let Some((mut record, _)) = found.filter(|(record, _)| !record.revoked) else {
                continue;
            };
            record.revoked = true;
            txn = txn.put(key, records::encode(&record));
            let what = format!(
                "instance {instance} of cluster {cluster} stays removed, which the backup did not know"
            );
            txn = audited(txn, "hub", what);
        }
        self.store.commit(txn).await?;
        Ok(())
    }

    /// Every instance that was not removed, by cluster, with its record.
    pub(crate) async fn joined(
        &self,
    ) -> Result<Vec<(ClusterName, InstanceId, InstanceRecord)>, AuthorityError> {
        let mut joined = Vec::new();
        for (key, versioned) in self
            .store
            .range(records::INSTANCE)
            .await
            .map_err(RecordError::from)?
        {
            let record: InstanceRecord = records::decode(&key, &versioned)?;
            let (cluster, instance) = key[records::INSTANCE.len()..]
                .split_once('/')
                .unwrap_or_default();
            if let (false, Ok(cluster), Ok(instance)) =
                (record.revoked, cluster.parse(), instance.parse())
            {
                joined.push((cluster, instance, record));
            }
        }
        Ok(joined)
    }

    /// Revokes every instance of a cluster. Says how many there were.
    pub(crate) async fn remove(
        &self,
        cluster: &ClusterName,
        who: &str,
    ) -> Result<u32, AuthorityError> {
        loop {
            match self.try_remove(cluster, who).await {
                // An agent enrolled just now.
                Err(AuthorityError::Commit(CommitError::Conflict { .. })) => {}
                removed => return removed,
            }
        }
    }

    async fn try_remove(&self, cluster: &ClusterName, who: &str) -> Result<u32, AuthorityError> {
        let (mut txn, revoked) = self.revoke(Txn::new(), cluster).await?;
        for (key, record) in self.join_tokens().await? {
            if record.cluster == *cluster {
                txn = txn.delete(key);
            }
        }
        txn = txn.delete(format!("{}{cluster}", records::OBSERVED));
        let txn = approvals::void(self.store.as_ref(), txn, Some(cluster)).await?;
        let instances = revoked
            .iter()
            .map(|instance| (cluster.clone(), instance.clone()));
        self.removed.add(Names {
            instances: instances.collect(),
            ..Names::default()
        })?;
        self.store
            .commit(audited(txn, who, format!("cluster {cluster} removed")))
            .await?;
        Ok(u32::try_from(revoked.len()).unwrap_or(u32::MAX))
    }

    /// Where the hub is reached.
    pub(crate) fn advertised(&self) -> &str {
        &self.advertise
    }
}

/// Whether an instance is still one of the fleet.
pub(crate) async fn admit(
    store: &dyn Store,
    cluster: &ClusterName,
    instance: &InstanceId,
) -> Result<(), AuthorityError> {
    admitted(store, cluster, instance).await.map(drop)
}

/// The record of an instance that is still one of the fleet, with its revision.
async fn admitted(
    store: &dyn Store,
    cluster: &ClusterName,
    instance: &InstanceId,
) -> Result<(InstanceRecord, u64), AuthorityError> {
    let key = records::instance_key(cluster, instance);
    match records::read::<InstanceRecord>(store, &key).await? {
        Some((
            InstanceRecord {
                held: Some(why),
                revoked: false,
                ..
            },
            _,
        )) => Err(AuthorityError::Held(why)),
        Some((record, revision)) if !record.revoked => Ok((record, revision)),
        Some(_) | None => Err(AuthorityError::Revoked(cluster.clone())),
    }
}

/// The transaction that changes an instance's record, where nobody else has.
fn changed(
    cluster: &ClusterName,
    instance: &InstanceId,
    record: &InstanceRecord,
    revision: u64,
) -> Txn {
    let key = records::instance_key(cluster, instance);
    Txn::new()
        .when(key.clone(), Expected::Revision(revision))
        .put(key, records::encode(record))
}

/// The transaction in which it is not known which certificates agents show: the store is older than they are.
pub(crate) async fn without_serials(store: &dyn Store, mut txn: Txn) -> Result<Txn, RecordError> {
    for (key, versioned) in store.range(records::INSTANCE).await? {
        let mut record: InstanceRecord = records::decode(&key, &versioned)?;
        if !record.revoked {
            record.forget();
            txn = txn.put(key, records::encode(&record));
        }
    }
    Ok(txn)
}

fn new_instance() -> InstanceId {
    let id = format!("i-{:016x}", rand::random::<u64>());
    // Letters, digits and a dash are always a label.
    id.parse()
        .unwrap_or_else(|_| unreachable!("{id} is a label"))
}

/// Who is at the other end of a connection, by its certificate.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) certified: Option<Arc<Certified>>,
}
