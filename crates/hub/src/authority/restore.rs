//! Repairs the store after a restore from a backup: join tokens and approvals become void, and removals stay in effect.

use muster_store::{RESTORED_KEY, Store, Txn};

use super::{Authority, error::AuthorityError};
use crate::{
    approvals,
    removals::Names,
    store_schema::{self, InstanceRecord, LoginRecord, RecordError, audited},
    unconfirmed,
};

impl Authority {
    /// Voids all join tokens and approvals if the store was restored from a backup. Tokens may have been used since the
    /// backup, and approvals may be for objects that have changed since.
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
            .keys(store_schema::JOIN)
            .await
            .map_err(RecordError::from)?
        {
            txn = txn.delete(key.0);
        }
        txn = without_serials(self.store.as_ref(), txn).await?;
        let txn = approvals::void_in_force(self.store.as_ref(), txn).await?;
        let why = format!("this hub's state was restored from a backup at {at}");
        let txn = unconfirmed::mark_unconfirmed(self.store.as_ref(), txn, None, why).await?;
        self.store.commit(txn).await?;
        Ok(())
    }

    /// Removes again the instances and logins that are on the list of removals but that a restored backup has brought
    /// back.
    pub(crate) async fn still_removed(&self) -> Result<(), AuthorityError> {
        let mut txn = Txn::new();
        let Names { instances, logins } = self.removed.read()?;
        for serial in logins {
            let key = format!("{}{serial}", store_schema::LOGIN);
            let found = store_schema::read::<LoginRecord>(self.store.as_ref(), &key).await?;
            let Some((mut record, _)) = found.filter(|(record, _)| !record.removed) else {
                continue;
            };
            record.removed = true;
            let what = format!(
                "the login of {} stays removed, although the restored backup still had it",
                record.name
            );
            txn = audited(txn.put(key, store_schema::encode(&record)), "hub", what);
        }
        for (cluster, instance) in instances {
            let key = store_schema::instance_key(&cluster, &instance);
            let found = store_schema::read::<InstanceRecord>(self.store.as_ref(), &key).await?;
            let Some((mut record, _)) = found.filter(|(record, _)| !record.revoked) else {
                continue;
            };
            record.revoked = true;
            txn = txn.put(key, store_schema::encode(&record));
            let what = format!(
                "instance {instance} of cluster {cluster} stays removed, although the restored backup still had it"
            );
            txn = audited(txn, "hub", what);
        }
        self.store.commit(txn).await?;
        Ok(())
    }
}

/// Forgets in the transaction which certificates the agents present, because the store is older than those
/// certificates.
pub(crate) async fn without_serials(store: &dyn Store, mut txn: Txn) -> Result<Txn, RecordError> {
    for (key, versioned) in store.range(store_schema::INSTANCE).await? {
        let mut record: InstanceRecord = store_schema::decode(&key, &versioned)?;
        if !record.revoked {
            record.forget();
            txn = txn.put(key, store_schema::encode(&record));
        }
    }
    Ok(txn)
}
