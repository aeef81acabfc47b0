//! The fleet record in the store, and the records that agents show: if an agent has a newer one, this hub's store is
//! older than the fleet, and the hub takes over the agent's.

use std::{collections::BTreeMap, sync::Arc};

use muster_model::{
    fleet_record::{FleetRecord, RecordId, SealedRecord, Writer},
    ids::{AppName, ClusterName, Epoch, RegionName, Role},
};
use muster_plan::delivery::{RecordMeeting, meet_record};
use muster_store::{CommitError, Expected, Store, Txn};

use crate::{
    desired_state::{DesiredState, FleetState},
    leadership::Leadership,
    store_schema::{self, InForce, Lead, RecordError, audited, now},
    unconfirmed,
};

/// The stored fleet record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) record: FleetRecord,
    /// The revision of the record in the store; `None` if it was never written.
    pub(crate) revision: Option<u64>,
}

impl Stored {
    /// Reads the record. A store of an earlier release has none: its record is made from the roles in force.
    pub(crate) async fn load(
        store: &dyn Store,
        in_force: &InForce,
        desired: &BTreeMap<ClusterName, Arc<DesiredState>>,
    ) -> Result<Self, RecordError> {
        let mut stored = Self::read(store).await?;
        if stored.revision.is_none() {
            stored.record = from_roles(in_force, desired);
        }
        Ok(stored)
    }

    /// Reads the record, which is empty if it was never written.
    async fn read(store: &dyn Store) -> Result<Self, RecordError> {
        let found = store_schema::read(store, store_schema::FLEET_RECORD).await?;
        Ok(found.map_or_else(Self::default, |(record, revision)| Self {
            record,
            revision: Some(revision),
        }))
    }

    /// Writes `record` in the transaction, unless somebody has changed the stored one since it was read.
    pub(crate) fn replace(&self, txn: Txn, record: &FleetRecord) -> Txn {
        txn.when(
            store_schema::FLEET_RECORD,
            Expected::unchanged(self.revision),
        )
        .put(store_schema::FLEET_RECORD, store_schema::encode(record))
    }
}

fn from_roles(
    in_force: &InForce,
    desired: &BTreeMap<ClusterName, Arc<DesiredState>>,
) -> FleetRecord {
    let mut record = FleetRecord::default();
    for (cluster, desired) in desired {
        let mut regions = in_force.clusters.iter();
        let region = regions.find(|(name, _)| name == cluster);
        let Some(region) = region.and_then(|(_, region)| region.parse::<RegionName>().ok()) else {
            continue;
        };
        let epoch = Epoch(desired.epoch);
        record.epoch = record.epoch.max(epoch);
        let primaries = desired.bundles.iter();
        for listed in primaries.filter(|listed| listed.role == Role::Primary) {
            let writer = Writer {
                region: region.clone(),
                cluster: cluster.clone(),
                epoch,
                at: now(),
                by: "hub".to_owned(),
                why: "it was the primary before the fleet record existed".to_owned(),
                handover: None,
            };
            record.writers.insert(listed.app.clone(), writer);
        }
    }
    record
}

/// Returns the record without the writers of apps that have left the repository and of which nothing is left in the
/// holder's cluster. `is_gone` returns true for such an app.
pub(crate) fn without_gone(
    record: &FleetRecord,
    is_gone: impl Fn(&AppName, &Writer) -> bool,
) -> FleetRecord {
    let mut left = record.clone();
    left.writers.retain(|app, writer| !is_gone(app, writer));
    if left.writers.len() != record.writers.len() {
        left.epoch = record.epoch.next();
    }
    left
}

/// The reason why the fleet record of an agent can't be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Foreign {
    /// No hub of this fleet wrote the record.
    #[error(
        "its agent shows a fleet record of epoch {0}, which no hub of this fleet wrote. Does somebody else hold its \
         certificate? `muster cluster remove` it, and let it join again"
    )]
    Unproven(Epoch),
    /// Both records have given an app's writer to different clusters at the same epoch.
    #[error(
        "its agent has another fleet record than this hub for epoch {epoch}: {difference}. Two hubs have worked on \
         copies of one store. If this hub is right, let the cluster join again with a new join token; otherwise \
         restore the other hub's state"
    )]
    Other {
        /// The epoch.
        epoch: Epoch,
        /// The first writer that differs, for people.
        difference: String,
    },
    /// The store failed.
    #[error("the hub's records can't be read")]
    Record(#[from] RecordError),
    /// The write was refused.
    #[error("the hub's store refused the write")]
    Commit(#[from] CommitError),
}

/// Describes how two records differ in an app's writer, for people.
fn difference(own: &FleetRecord, other: &FleetRecord, app: &AppName) -> String {
    let cluster = |record: &FleetRecord| {
        let writer = record.writers.get(app);
        writer.map_or("no cluster".to_owned(), |writer| writer.cluster.to_string())
    };
    format!(
        "it has the writer of {app} in {}, this hub in {}",
        cluster(other),
        cluster(own)
    )
}

/// A fleet record that an agent shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) cluster: &'a ClusterName,
    pub(crate) record: &'a SealedRecord,
    /// True if the record came in an earlier enrolment of the cluster, perhaps from another fleet.
    pub(crate) is_foreign: bool,
}

/// Merges the record that an agent shows into the stored one. Returns the merged record if the stored one lacked a part
/// of the agent's. From then on the whole state is unconfirmed, and nothing is delivered until a commit was processed
/// with the new record. The caller holds the lock of [`Leadership::numbering`].
pub(crate) async fn adopt(
    store: &dyn Store,
    leadership: &Leadership,
    lead: Lead,
    state: &FleetState,
    shown: Shown<'_>,
) -> Result<Option<FleetRecord>, Foreign> {
    let stored = Stored::load(store, &state.in_force, &state.desired).await?;
    let own = &stored.record;
    let Shown {
        cluster,
        record: sealed,
        is_foreign,
    } = shown;
    let read = sealed.read().ok();
    let union = read.as_ref().map(|record| own.union(record));
    let is_known = |union: &FleetRecord| union.epoch == own.epoch && union.holds_like(own);
    if matches!(&union, Some(Ok(union)) if is_known(union)) {
        return Ok(None);
    }
    let (Some(record), Some(union), true) = (read, union, leadership.holds_record(sealed)) else {
        return match is_foreign {
            // Another fleet's record says nothing about this one.
            true => Ok(None),
            false => Err(Foreign::Unproven(sealed.epoch)),
        };
    };
    let union = union.map_err(|app| Foreign::Other {
        epoch: record.writers.get(&app).map_or(record.epoch, |w| w.epoch),
        difference: difference(own, &record, &app),
    })?;
    let txn = Txn::new().when(store_schema::TERM, Expected::Revision(lead.revision));
    let txn = stored.replace(txn, &union);
    let why = format!(
        "the agent of cluster {cluster} has a fleet record of epoch {}, and this hub, which had epoch {}, lacked a part \
         of it",
        record.epoch, own.epoch
    );
    let txn = unconfirmed::mark_unconfirmed(store, txn, None, why).await?;
    let what = format!(
        "took over the fleet record of epoch {} from cluster {cluster}, now epoch {}",
        record.epoch, union.epoch
    );
    store.commit(audited(txn, "hub", what)).await?;
    Ok(Some(union))
}

/// A person's order to take the writers from a cluster that is removed. The person vouches that none of them runs any
/// more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss<'a> {
    pub(crate) lead: Lead,
    pub(crate) reason: &'a str,
}

/// Takes a cluster's writers from it in the transaction, if a person orders that. Returns the apps whose writer the
/// cluster held. Without the order it keeps them: removing a cluster only revokes its certificates.
pub(crate) async fn without_holder(
    store: &dyn Store,
    txn: Txn,
    cluster: &ClusterName,
    loss: Option<Loss<'_>>,
    who: &str,
) -> Result<(Txn, Vec<AppName>), RecordError> {
    let stored = Stored::read(store).await?;
    let apps: Vec<AppName> = stored.record.held_by(cluster).cloned().collect();
    let Some(Loss { lead, reason }) = loss.filter(|_| !apps.is_empty()) else {
        return Ok((txn, apps));
    };
    let mut record = stored.record.clone();
    record
        .writers
        .retain(|_, writer| writer.cluster != *cluster);
    record.epoch = record.epoch.next();
    let names: Vec<&str> = apps.iter().map(AppName::as_str).collect();
    let what = format!(
        "cluster {cluster} loses the writer of {} at epoch {}, without proof that none runs there: {reason}",
        names.join(", "),
        record.epoch
    );
    let txn = txn.when(store_schema::TERM, Expected::Revision(lead.revision));
    Ok((audited(stored.replace(txn, &record), who, what), apps))
}

/// Returns what the hub does about the record that an agent names in its hello.
pub(crate) fn meet(own: &SealedRecord, epoch: u64, hash: &[u8], is_suspect: bool) -> RecordMeeting {
    let agent = hash.try_into().ok().filter(|_| epoch > 0);
    let agent = agent.map(|hash| RecordId {
        epoch: Epoch(epoch),
        hash,
    });
    meet_record(own.id(), agent, is_suspect)
}

#[cfg(test)]
mod tests;
