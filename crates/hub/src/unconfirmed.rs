//! What of the store may be older than the world: it was restored from a backup, or an agent proves that it
//! has seen something newer. Until a person confirms it, nothing is deleted unasked there.

use std::collections::BTreeMap;

use muster_model::{
    ids::ClusterName,
    policy::PruneBudget,
    problem::Problem,
};
use muster_store::{CommitError, Expected, Store, Txn};
use serde::{Deserialize, Serialize};

use crate::store_schema::{self, Lead, RecordError, audited, now};

/// The word in place of a cluster's name for the whole store. No cluster is called so.
const WHOLE: &str = "@store";

/// Why something is suspect, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnconfirmedSince {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) why: String,
}

/// Everything that is suspect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    whole: Option<UnconfirmedSince>,
    clusters: BTreeMap<ClusterName, UnconfirmedSince>,
}

fn key(cluster: Option<&ClusterName>) -> String {
    let name = cluster.map_or(WHOLE, ClusterName::as_str);
    format!("{}{name}", store_schema::SUSPECT)
}

/// The transaction with a suspicion of one cluster's records, or of all. An older one stays.
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
        format!("nothing is deleted unasked: {why}"),
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

    /// Whether what is known of a cluster may be older than the cluster.
    pub(crate) fn is(&self, cluster: &ClusterName) -> bool {
        self.whole.is_some() || self.clusters.contains_key(cluster)
    }

    /// How much may be deleted unasked in a cluster.
    pub(crate) fn budget(&self, cluster: &ClusterName, budget: PruneBudget) -> PruneBudget {
        if self.is(cluster) { NOTHING } else { budget }
    }

    /// What is told to people, for as long as it lasts.
    pub(crate) fn texts(&self) -> Vec<String> {
        let whole = self.whole.iter().map(|suspicion| suspicion.why.clone());
        let clusters = self.clusters.iter();
        whole
            .chain(clusters.map(|(cluster, suspicion)| format!("{cluster}: {}", suspicion.why)))
            .collect()
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problem = |why: String| {
            Problem::of_hub(
                format!("{why}; nothing is deleted unasked until that is confirmed"),
                "see that the fleet is as it should be, then `muster hub confirm`",
            )
        };
        self.texts().into_iter().map(problem).collect()
    }
}

/// The budget of what is suspect.
pub(crate) const NOTHING: PruneBudget = PruneBudget {
    objects: 0,
    percent: 0,
};

/// A person has seen that all is as it should be. Says how many suspicions there were.
pub(crate) async fn confirm(
    store: &dyn Store,
    lead: Lead,
    who: &str,
    reason: &str,
) -> Result<usize, ConfirmError> {
    let texts = Unconfirmed::load(store).await?.texts();
    if texts.is_empty() {
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

/// Why a confirmation fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfirmError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the hub's store refuses the write")]
    Commit(#[from] CommitError),
}
