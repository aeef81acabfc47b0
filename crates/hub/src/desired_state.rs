//! The desired state of every cluster, as the store holds it and as the agents' sessions read it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use muster_model::{
    fleet_record::{FleetRecord, SealedRecord},
    ids::{ClusterName, ContentHash, Generation},
    policy::PruneOrders,
};
use muster_plan::delivery::{Numbered, number_for};
use muster_store::Store;

use crate::{
    fleet_record::Stored,
    leadership::Leadership,
    store_schema::{self, DesiredRecord, InForce, ListedBundle, RecordError},
    unconfirmed::{NOTHING, Unconfirmed},
};

/// The desired state of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredState {
    pub(crate) number: Numbered,
    /// The generation since which neither the bundles nor the deletion budget of this cluster have changed.
    pub(crate) since: Generation,
    pub(crate) commit: String,
    pub(crate) epoch: u64,
    pub(crate) prune: PruneOrders,
    /// The bundles to run. Clusters with equal content share the list.
    pub(crate) bundles: Arc<[ListedBundle]>,
}

/// The desired state of the whole fleet at one commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct FleetState {
    /// True once this process has brought a commit into force. Before that it delivers nothing, because the store may
    /// be older than what the clusters run.
    pub(crate) current: bool,
    /// The reason why the newest commit is not in force, if the hub itself failed and not the commit.
    pub(crate) failed: Option<String>,
    /// The last commit that was processed, in force or blocked; empty before the first one. The problems in `in_force`
    /// belong to it.
    pub(crate) processed: String,
    pub(crate) unconfirmed: Arc<Unconfirmed>,
    pub(crate) in_force: Arc<InForce>,
    pub(crate) desired: BTreeMap<ClusterName, Arc<DesiredState>>,
    pub(crate) record: Arc<FleetRecord>,
    /// The record as it is sent to agents.
    pub(crate) sealed: Arc<SealedRecord>,
}

/// Returns the hash of a generation's content.
pub(crate) fn content_of(epoch: u64, prune: &PruneOrders, bundles: &[ListedBundle]) -> ContentHash {
    let entries = bundles
        .iter()
        .map(|b| (b.app.as_str(), b.role.as_str(), b.hash.0.as_slice()));
    muster_proto::content_hash(epoch, prune, entries)
}

impl DesiredState {
    pub(crate) fn record(&self) -> DesiredRecord {
        DesiredRecord {
            generation: self.number.generation,
            content: self.number.content,
            commit: self.commit.clone(),
            epoch: self.epoch,
            prune: self.prune.clone(),
        }
    }

    /// Returns the same content under the next number, for an agent that has lost the content of generation `in_force`.
    pub(crate) fn repeated(&self, in_force: Option<Numbered>) -> Self {
        Self {
            number: number_for(self.number, in_force),
            ..self.clone()
        }
    }

    /// Returns the same bundles under a number that an agent accepts if it has the generation `in_force`. The store is
    /// older than that agent's state, so the approvals are void, and every deletion needs a new approval.
    pub(crate) fn renumbered(&self, in_force: Option<Numbered>) -> Self {
        let prune = PruneOrders {
            budget: NOTHING,
            unknown: self.prune.unknown.clone(),
            ..PruneOrders::default()
        };
        let held = Numbered {
            generation: self.number.generation,
            content: content_of(self.epoch, &prune, &self.bundles),
        };
        let number = number_for(held, in_force);
        Self {
            number,
            since: number.generation,
            commit: self.commit.clone(),
            epoch: self.epoch,
            prune,
            bundles: Arc::clone(&self.bundles),
        }
    }
}

/// Loads the fleet's state from the store. It is in force until the repository has been read.
pub(crate) async fn load(
    store: &dyn Store,
    leadership: &Leadership,
) -> Result<FleetState, RecordError> {
    let in_force = match store_schema::read::<InForce>(store, store_schema::IN_FORCE).await? {
        Some((record, _)) => Arc::new(record),
        None => Arc::default(),
    };
    let mut lists: HashMap<ContentHash, Arc<[ListedBundle]>> = HashMap::new();
    let mut desired = BTreeMap::new();
    for (key, versioned) in store.range(store_schema::DESIRED).await? {
        let record: DesiredRecord = store_schema::decode(&key, &versioned)?;
        let Ok(cluster) = key[store_schema::DESIRED.len()..].parse::<ClusterName>() else {
            continue;
        };
        let bundles = match lists.get(&record.content) {
            Some(bundles) => Arc::clone(bundles),
            None => {
                let key = store_schema::content_key(record.content);
                let Some((list, _)) = store_schema::read::<Vec<ListedBundle>>(store, &key).await?
                else {
                    // The cluster left the fleet, and its content was deleted. If it comes back, its number
                    // continues from this record.
                    tracing::debug!(%cluster, "the content of this cluster is no longer stored");
                    continue;
                };
                let bundles: Arc<[ListedBundle]> = list.into();
                lists.insert(record.content, Arc::clone(&bundles));
                bundles
            }
        };
        let number = Numbered {
            generation: record.generation,
            content: record.content,
        };
        let state = DesiredState {
            number,
            since: record.generation,
            commit: record.commit,
            epoch: record.epoch,
            prune: record.prune,
            bundles,
        };
        desired.insert(cluster, Arc::new(state));
    }
    let unconfirmed = Arc::new(Unconfirmed::load(store).await?);
    let record = Arc::new(Stored::load(store, &in_force, &desired).await?.record);
    let sealed = Arc::new(leadership.seal(&record));
    Ok(FleetState {
        current: false,
        failed: None,
        processed: in_force.commit.clone(),
        unconfirmed,
        in_force,
        desired,
        record,
        sealed,
    })
}

#[cfg(test)]
mod tests;
