//! Join tokens, and enrolment with them.

use std::time::Duration;

use muster_model::ids::{ClusterName, ContentHash, InstanceId};
use muster_pki::{JoinSecret, JoinToken};
use muster_store::{CommitError, Expected, Txn};

use super::{
    Authority, Granted,
    error::AuthorityError,
    instances::{admitted, changed},
};
use crate::store_schema::{self, InstanceRecord, JoinRecord, RecordError, audited, now, seconds};

impl Authority {
    /// Returns the records of all join tokens with their keys.
    pub(crate) async fn join_tokens(&self) -> Result<Vec<(String, JoinRecord)>, AuthorityError> {
        let kept = self.store.range(store_schema::JOIN).await;
        let kept = kept.map_err(RecordError::from)?;
        let tokens = kept.into_iter().map(|(key, versioned)| {
            let record = store_schema::decode(&key, &versioned)?;
            Ok((key, record))
        });
        tokens.collect()
    }

    /// Creates a join token for a cluster.
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
            format!("{}{}", store_schema::JOIN, secret.hash()),
            store_schema::encode(&record),
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

    /// Deletes tokens that expired over a day ago, in the transaction.
    pub(super) async fn without_stale_tokens(&self, mut txn: Txn) -> Result<Txn, AuthorityError> {
        for (key, record) in self.join_tokens().await? {
            if record.expires + 86_400 < now() {
                txn = txn.delete(key);
            }
        }
        Ok(txn)
    }

    /// Grants a certificate for a join token. The same request may be repeated, in case its answer was lost; any other
    /// request is refused once the token was used.
    pub(crate) async fn enrol(&self, secret: &str, csr: &str) -> Result<Granted, AuthorityError> {
        let secret: JoinSecret = secret.parse().map_err(|_| AuthorityError::UnknownToken)?;
        let key = format!("{}{}", store_schema::JOIN, secret.hash());
        let found: Option<(JoinRecord, u64)> =
            store_schema::read(self.store.as_ref(), &key).await?;
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
            // A cluster has one agent, so an enrolment replaces every earlier instance of the cluster.
            let (txn, replaced) = self.revoke(txn, &record.cluster).await?;
            let txn = txn.put(key, store_schema::encode(&record)).put(
                store_schema::instance_key(&record.cluster, &instance),
                store_schema::encode(&InstanceRecord::new(grant)),
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
            // The first answer was lost: this is another certificate of the same enrolment.
            let (mut enrolled, at) =
                admitted(self.store.as_ref(), &record.cluster, &instance).await?;
            enrolled.grant(grant);
            let txn = changed(&record.cluster, &instance, &enrolled, at);
            self.store.commit(txn).await?;
        }
        Ok(granted)
    }
}

pub(super) fn new_instance() -> InstanceId {
    let id = format!("i-{:016x}", rand::random::<u64>());
    // An ID of these letters, digits and one dash is always a valid label.
    id.parse()
        .unwrap_or_else(|_| unreachable!("{id} is a label"))
}
