//! The agents' instances: renewal of their certificates, admission and removal.

use muster_model::ids::{AppName, ClusterName, InstanceId};
use muster_pki::{Certified, Identity};
use muster_store::{CommitError, Expected, Store, Txn};

use super::{Authority, Granted, error::AuthorityError};
use crate::{
    approvals,
    fleet_record::{self, Loss},
    removals::Names,
    store_schema::{self, Grant, InstanceRecord, RecordError, audited},
};

impl Authority {
    /// Grants a new certificate to an instance that presents the certificate with this serial number. The instance may
    /// repeat the request, since answers may be lost. If it has presented a newer certificate before, the key is in two
    /// places, and the instance is suspended.
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
            record.suspended = Some(why.clone());
            let txn = changed(cluster, instance, &record, revision);
            let who = format!("agent of cluster {cluster}");
            self.store
                .commit(audited(txn, &who, format!("suspended: {why}")))
                .await?;
            return Err(AuthorityError::Suspended(why));
        }
        let (granted, grant) = self.grant(cluster, instance, csr)?;
        record.grant(grant);
        let txn = changed(cluster, instance, &record, revision);
        self.store.commit(txn).await?;
        Ok(granted)
    }

    /// Checks that an instance still belongs to the fleet, and notes that it has presented this certificate. Returns
    /// the version of the CAs that the instance knows.
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
            // Another call has changed the record meanwhile.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(record.trust),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn grant(
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

    /// Revokes every instance of a cluster in the transaction, and returns the transaction with the revoked instances.
    /// The commit conflicts if another enrolment or removal of that cluster comes first.
    pub(super) async fn revoke(
        &self,
        txn: Txn,
        cluster: &ClusterName,
    ) -> Result<(Txn, Vec<InstanceId>), AuthorityError> {
        let key = format!("{}{cluster}", store_schema::MEMBERSHIP);
        let mut txn = store_schema::turn(self.store.as_ref(), txn, key).await?;
        let mut revoked = Vec::new();
        let prefix = format!("{}{cluster}/", store_schema::INSTANCE);
        for (key, versioned) in self.store.range(&prefix).await.map_err(RecordError::from)? {
            let mut record: InstanceRecord = store_schema::decode(&key, &versioned)?;
            if !record.revoked {
                record.revoked = true;
                revoked.extend(key[prefix.len()..].parse::<InstanceId>());
                txn = txn.put(key, store_schema::encode(&record));
            }
        }
        Ok((txn, revoked))
    }

    /// Returns every instance that was not removed, with its cluster and record.
    pub(crate) async fn joined(
        &self,
    ) -> Result<Vec<(ClusterName, InstanceId, InstanceRecord)>, AuthorityError> {
        let mut joined = Vec::new();
        for (key, versioned) in self
            .store
            .range(store_schema::INSTANCE)
            .await
            .map_err(RecordError::from)?
        {
            let record: InstanceRecord = store_schema::decode(&key, &versioned)?;
            let (cluster, instance) = key[store_schema::INSTANCE.len()..]
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

    /// Revokes every instance of a cluster, and returns their number.
    pub(crate) async fn remove(
        &self,
        cluster: &ClusterName,
        loss: Option<Loss<'_>>,
        who: &str,
    ) -> Result<Removed, AuthorityError> {
        loop {
            match self.try_remove(cluster, loss, who).await {
                // Another hub leads.
                Err(AuthorityError::Commit(CommitError::Conflict { key }))
                    if key == store_schema::TERM =>
                {
                    return Err(AuthorityError::NotLeading);
                }
                // An agent enrolled just now, or the fleet record has changed: try again.
                Err(AuthorityError::Commit(CommitError::Conflict { .. })) => {}
                removed => return removed,
            }
        }
    }

    pub(super) async fn try_remove(
        &self,
        cluster: &ClusterName,
        loss: Option<Loss<'_>>,
        who: &str,
    ) -> Result<Removed, AuthorityError> {
        let (txn, revoked) = self.revoke(Txn::new(), cluster).await?;
        let (mut txn, writers) =
            fleet_record::without_holder(self.store(), txn, cluster, loss, who).await?;
        for (key, record) in self.join_tokens().await? {
            if record.cluster == *cluster {
                txn = txn.delete(key);
            }
        }
        txn = txn.delete(format!("{}{cluster}", store_schema::OBSERVED));
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
        Ok(Removed {
            revoked: u32::try_from(revoked.len()).unwrap_or(u32::MAX),
            writers: loss.map_or(writers, |_| Vec::new()),
        })
    }
}

/// The result of removing a cluster.
pub(crate) struct Removed {
    /// The number of instances whose certificates were revoked.
    pub(crate) revoked: u32,
    /// The apps whose writer the cluster still holds.
    pub(crate) writers: Vec<AppName>,
}

/// Checks that an instance still belongs to the fleet and is not suspended.
pub(crate) async fn admit(
    store: &dyn Store,
    cluster: &ClusterName,
    instance: &InstanceId,
) -> Result<(), AuthorityError> {
    admitted(store, cluster, instance).await.map(drop)
}

/// Returns the record and revision of an instance that still belongs to the fleet and is not suspended.
pub(super) async fn admitted(
    store: &dyn Store,
    cluster: &ClusterName,
    instance: &InstanceId,
) -> Result<(InstanceRecord, u64), AuthorityError> {
    let key = store_schema::instance_key(cluster, instance);
    match store_schema::read::<InstanceRecord>(store, &key).await? {
        Some((
            InstanceRecord {
                suspended: Some(why),
                revoked: false,
                ..
            },
            _,
        )) => Err(AuthorityError::Suspended(why)),
        Some((record, revision)) if !record.revoked => Ok((record, revision)),
        Some(_) | None => Err(AuthorityError::Revoked(cluster.clone())),
    }
}

/// Returns the transaction that writes an instance's record. Its commit conflicts if somebody else has changed the
/// record.
pub(super) fn changed(
    cluster: &ClusterName,
    instance: &InstanceId,
    record: &InstanceRecord,
    revision: u64,
) -> Txn {
    let key = store_schema::instance_key(cluster, instance);
    Txn::new()
        .when(key.clone(), Expected::Revision(revision))
        .put(key, store_schema::encode(record))
}
