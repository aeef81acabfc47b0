//! Marks of unconfirmed clusters: their records may be older than the clusters, because the store was restored from a
//! backup or an agent proved that it has seen something newer. Until a person confirms the state, nothing is deleted
//! there without approval.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{ids::ClusterName, policy::PruneBudget, problem::Problem};
use muster_store::{CommitError, Expected, Store, Txn};
use serde::{Deserialize, Serialize};

use crate::store_schema::{self, Lead, RecordError, audited, now};

/// The word that stands for the whole store in place of a cluster's name. It is not a valid cluster name.
const WHOLE: &str = "@store";

/// The reason and time of a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnconfirmedSince {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) why: String,
}

/// All marks in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    whole: Option<UnconfirmedSince>,
    clusters: BTreeMap<ClusterName, UnconfirmedSince>,
}

fn key(cluster: Option<&ClusterName>) -> String {
    let name = cluster.map_or(WHOLE, ClusterName::as_str);
    format!("{}{name}", store_schema::SUSPECT)
}

/// Marks one cluster as unconfirmed in the transaction, or the whole store if `cluster` is `None`. An existing mark is
/// not replaced.
pub(crate) async fn mark_unconfirmed(
    store: &dyn Store,
    txn: Txn,
    cluster: Option<&ClusterName>,
    why: String,
) -> Result<Txn, RecordError> {
    let key = key(cluster);
    if store_schema::read::<UnconfirmedSince>(store, &key)
        .await?
        .is_some()
    {
        return Ok(txn);
    }
    let txn = txn.put(
        key,
        store_schema::encode(&UnconfirmedSince {
            at: now(),
            why: why.clone(),
        }),
    );
    Ok(audited(
        txn,
        "hub",
        format!("nothing is deleted without approval: {why}"),
    ))
}

impl Unconfirmed {
    pub(crate) async fn load(store: &dyn Store) -> Result<Self, RecordError> {
        let mut unconfirmed = Self::default();
        for (key, versioned) in store.range(store_schema::SUSPECT).await? {
            let suspicion = store_schema::decode(&key, &versioned)?;
            match &key[store_schema::SUSPECT.len()..] {
                WHOLE => unconfirmed.whole = Some(suspicion),
                name => {
                    if let Ok(cluster) = name.parse() {
                        unconfirmed.clusters.insert(cluster, suspicion);
                    }
                }
            }
        }
        Ok(unconfirmed)
    }

    /// Returns true if the whole store is unconfirmed.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// Returns true if a cluster is unconfirmed.
    pub(crate) fn is(&self, cluster: &ClusterName) -> bool {
        self.whole.is_some() || self.clusters.contains_key(cluster)
    }

    /// Returns the budget of deletions without approval in a cluster: nothing if it is unconfirmed, else `budget`.
    pub(crate) fn budget(&self, cluster: &ClusterName, budget: PruneBudget) -> PruneBudget {
        if self.is(cluster) { NOTHING } else { budget }
    }

    /// Returns the reasons of all marks, for people.
    pub(crate) fn texts(&self) -> Vec<String> {
        let whole = self.whole.iter().map(|suspicion| suspicion.why.clone());
        let clusters = self.clusters.iter();
        whole
            .chain(clusters.map(|(cluster, suspicion)| format!("{cluster}: {}", suspicion.why)))
            .collect()
    }

    /// Returns the same reasons, and the clusters that were not heard, which may know a newer fleet record.
    pub(crate) fn texts_with(&self, silent: &BTreeSet<ClusterName>) -> Vec<String> {
        let mut texts = self.texts();
        if !silent.is_empty() {
            let names: Vec<&str> = silent.iter().map(ClusterName::as_str).collect();
            texts.push(format!(
                "not heard, so that nobody knows whether they have a newer fleet record: {}",
                names.join(", ")
            ));
        }
        texts
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problem = |why: String| {
            Problem::of_hub(
                format!("{why}; nothing is deleted without approval until that is confirmed"),
                "check that the fleet is in order, then run `muster hub confirm`",
            )
        };
        self.texts().into_iter().map(problem).collect()
    }
}

/// The budget of unconfirmed clusters: every deletion needs approval.
pub(crate) const NOTHING: PruneBudget = PruneBudget {
    objects: 0,
    percent: 0,
};

/// Removes all marks, because a person has confirmed the state. That person also vouches for the clusters in `silent`,
/// which were not heard. Returns the number of reasons that were confirmed.
pub(crate) async fn confirm(
    store: &dyn Store,
    lead: Lead,
    who: &str,
    reason: &str,
    silent: &BTreeSet<ClusterName>,
) -> Result<usize, ConfirmError> {
    let unconfirmed = Unconfirmed::load(store).await?;
    let texts = unconfirmed.texts_with(silent);
    if unconfirmed == Unconfirmed::default() {
        return Ok(0);
    }
    let mut txn = Txn::new().when(store_schema::TERM, Expected::Revision(lead.revision));
    for (key, _) in store
        .keys(store_schema::SUSPECT)
        .await
        .map_err(RecordError::from)?
    {
        txn = txn.delete(key);
    }
    let mut what = format!("confirmed: {}", texts.join("; "));
    if !reason.is_empty() {
        what.push_str(&format!(" ({reason})"));
    }
    store.commit(audited(txn, who, what)).await?;
    Ok(texts.len())
}

/// The reason why a confirmation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfirmError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the hub's store refused the write")]
    Commit(#[from] CommitError),
}
