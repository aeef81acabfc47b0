//! Who may speak: the fleet's CA, enrolment by join token, renewal, revocation, and logins for people.

use std::{sync::Arc, time::Duration};

use muster_model::ids::{ClusterName, ContentHash, InstanceId};
use muster_pki::{
    AdminName, Ca, Certified, Credentials, Identity, JoinSecret, JoinToken, Key, Login, PkiError,
    ServerTls, TermKey, TrustBundle,
};
use muster_store::{CommitError, Expected, RESTORED_KEY, Store, Txn};
use tokio_util::sync::CancellationToken;

use crate::{
    approvals,
    records::{self, InstanceRecord, JoinRecord, RecordError, audited, now, seconds},
    suspects,
};

/// How long the hub's own certificate is valid.
const HUB_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

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
            Self::Pki(_) => Some("bad_request"),
            Self::Record(_) | Self::Commit(_) => None,
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
    ca: Ca,
    trust: TrustBundle,
    advertise: String,
    lifetime: Duration,
}

impl Authority {
    /// Opens the fleet's CA; makes it where there is none.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        advertise: String,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        let pem = match store.get(records::CA).await.map_err(RecordError::from)? {
            Some(kept) => String::from_utf8_lossy(&kept.value).into_owned(),
            None => {
                let pem = Ca::create(muster_pki::clock::now())?.to_pem();
                let txn = Txn::new()
                    .when(records::CA, Expected::Absent)
                    .put(records::CA, pem.clone());
                store.commit(txn).await?;
                pem
            }
        };
        let ca = Ca::from_pem(&pem)?;
        let trust = ca.trust()?;
        Ok(Self {
            store,
            ca,
            trust,
            advertise,
            lifetime,
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
        let txn = approvals::void_in_force(self.store.as_ref(), txn).await?;
        let why = format!("this hub's state was restored from the backup of {at}");
        let txn = suspects::suspect(self.store.as_ref(), txn, None, why).await?;
        self.store.commit(txn).await?;
        Ok(())
    }

    /// The key under which this fleet's hubs prove their terms.
    pub(crate) fn term_key(&self) -> TermKey {
        self.ca.term_key()
    }

    /// TLS for the hub's listener, renewed in time until told to stop.
    pub(crate) fn server_tls(&self) -> Result<Arc<ServerTls>, AuthorityError> {
        Ok(Arc::new(ServerTls::new(
            &self.trust,
            &self.hub_credentials()?,
        )?))
    }

    fn hub_credentials(&self) -> Result<Credentials, AuthorityError> {
        let host = self
            .advertise
            .rsplit_once(':')
            .map_or(self.advertise.as_str(), |(host, _)| host);
        let names =
            ["localhost", "127.0.0.1", host].map(|name| name.trim_matches(['[', ']']).to_owned());
        Ok(self
            .ca
            .hub_credentials(&names, HUB_LIFETIME, muster_pki::clock::now())?)
    }

    /// Renews the hub's own certificate in time until told to stop.
    pub(crate) async fn renew_hub(self: Arc<Self>, tls: Arc<ServerTls>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(HUB_LIFETIME / 2) => {}
            }
            match self.hub_credentials() {
                Ok(credentials) => {
                    if let Err(error) = tls.update(&self.trust, &credentials) {
                        tracing::error!(%error, "the hub's new certificate can't be used");
                    }
                }
                Err(error) => tracing::error!(%error, "the hub's certificate was not renewed"),
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
        let record = JoinRecord {
            cluster: cluster.clone(),
            expires: seconds(expires),
            used: None,
        };
        let txn = Txn::new().put(
            format!("{}{}", records::JOIN, secret.hash()),
            records::encode(&record),
        );
        let txn = audited(txn, who, format!("join token for cluster {cluster}"));
        self.store
            .commit(self.without_stale_tokens(txn).await?)
            .await?;
        let (hub, trust) = (self.advertise.clone(), self.trust.clone());
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
        let kept = self
            .store
            .range(records::JOIN)
            .await
            .map_err(RecordError::from)?;
        for (key, versioned) in kept {
            let record: JoinRecord = records::decode(&key, &versioned)?;
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
        let granted = self.grant(&record.cluster, &instance, csr)?;
        if record.used.is_none() {
            record.used = Some((instance.clone(), request));
            let enrolled = InstanceRecord {
                enrolled: now(),
                revoked: false,
            };
            let txn = Txn::new()
                .when(key.clone(), Expected::Revision(revision))
                .put(key, records::encode(&record))
                .put(
                    records::instance_key(&record.cluster, &instance),
                    records::encode(&enrolled),
                );
            let what = format!("cluster {} enrolled as instance {instance}", record.cluster);
            match self.store.commit(audited(txn, "join token", what)).await {
                Ok(_) => {}
                Err(CommitError::Conflict { .. }) => return Err(AuthorityError::UsedToken),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(granted)
    }

    /// Grants a new certificate to an instance that has one.
    pub(crate) async fn renew(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        csr: &str,
    ) -> Result<Granted, AuthorityError> {
        admit(self.store.as_ref(), cluster, instance).await?;
        self.grant(cluster, instance, csr)
    }

    fn grant(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        csr: &str,
    ) -> Result<Granted, AuthorityError> {
        let identity = Identity::Agent {
            cluster: cluster.clone(),
            instance: instance.clone(),
        };
        Ok(Granted {
            certificate: self
                .ca
                .sign(csr, &identity, self.lifetime, muster_pki::clock::now())?,
            trust: self.trust.to_pem(),
            cluster: cluster.clone(),
            instance: instance.clone(),
        })
    }

    /// Every instance that was not removed, by cluster.
    pub(crate) async fn joined(&self) -> Result<Vec<(ClusterName, InstanceId)>, AuthorityError> {
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
                joined.push((cluster, instance));
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
        let mut txn = Txn::new();
        let mut revoked = 0;
        let prefix = format!("{}{cluster}/", records::INSTANCE);
        for (key, versioned) in self.store.range(&prefix).await.map_err(RecordError::from)? {
            let mut record: InstanceRecord = records::decode(&key, &versioned)?;
            if !record.revoked {
                record.revoked = true;
                revoked += 1;
                txn = txn.put(key, records::encode(&record));
            }
        }
        for (key, versioned) in self
            .store
            .range(records::JOIN)
            .await
            .map_err(RecordError::from)?
        {
            let record: JoinRecord = records::decode(&key, &versioned)?;
            if record.cluster == *cluster {
                txn = txn.delete(key);
            }
        }
        txn = txn.delete(format!("{}{cluster}", records::OBSERVED));
        let txn = approvals::void(self.store.as_ref(), txn, Some(cluster)).await?;
        self.store
            .commit(audited(txn, who, format!("cluster {cluster} removed")))
            .await?;
        Ok(revoked)
    }

    /// A certificate for a person or script, and the CAs to trust.
    pub(crate) async fn admin(
        &self,
        name: &AdminName,
        csr: &str,
        valid: Duration,
        who: &str,
    ) -> Result<(String, String), AuthorityError> {
        let identity = Identity::Admin(name.clone());
        let certificate = self
            .ca
            .sign(csr, &identity, valid, muster_pki::clock::now())?;
        let txn = audited(Txn::new(), who, format!("login for {name}"));
        self.store.commit(txn).await?;
        Ok((certificate, self.trust.to_pem()))
    }

    /// A whole login for somebody on this very machine, to a hub that they reach at this address.
    pub(crate) async fn local_login(
        &self,
        name: &AdminName,
        valid: Duration,
        hub: String,
    ) -> Result<Login, AuthorityError> {
        let key = Key::generate()?;
        let (certificate, ca) = self.admin(name, &key.request()?, valid, "hub").await?;
        Ok(Login {
            hub,
            name: name.to_string(),
            ca,
            certificate,
            key: key.to_pem(),
        })
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
    let key = records::instance_key(cluster, instance);
    match records::read::<InstanceRecord>(store, &key).await? {
        Some((record, _)) if !record.revoked => Ok(()),
        Some(_) | None => Err(AuthorityError::Revoked(cluster.clone())),
    }
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
