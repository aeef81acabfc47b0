//! The fleet record: the fleet's epoch, and the cluster that holds each app's writer. The hub stores it, and every agent
//! stores a copy. Git only names candidates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AppName, ClusterName, ContentHash, Epoch, InstanceId, RegionName, Role},
    load::Roles,
};

/// The fleet record. Its epoch rises with every change.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetRecord {
    /// The number of changes of this record; zero for a record that was never written.
    pub epoch: Epoch,
    /// The holder of each app's writer. Apps whose mode is active-active have none.
    pub writers: BTreeMap<AppName, Writer>,
}

/// The cluster that holds an app's writer, and when and why it got it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writer {
    /// The region of the cluster.
    pub region: RegionName,
    /// The cluster in which the app is the primary.
    pub cluster: ClusterName,
    /// The epoch at which this cluster became the holder, was fenced, or became the primary again.
    pub epoch: Epoch,
    /// The time of that change, in seconds since 1970.
    pub at: u64,
    /// The person or commit that made it the holder.
    pub by: String,
    /// The reason.
    pub why: String,
    /// The move of the writer that is under way, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
}

/// A cluster with its region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The region of the cluster.
    pub region: RegionName,
    /// The cluster.
    pub cluster: ClusterName,
}

/// The step of a writer's move.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Handover {
    /// The holder is fenced and must prove that it has stopped. No cluster is the primary.
    Fencing {
        /// The cluster that gets the writer then.
        to: Place,
        /// What was known of the holder before it was fenced.
        baseline: Baseline,
    },
    /// The new holder is the primary and must become healthy. Until then the old one stays fenced.
    Promoting {
        /// The cluster that had the writer before.
        from: Place,
        /// The values that were carried over from there.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        carried: BTreeMap<String, String>,
        /// Set if a person has ordered the move without proof that the old holder has stopped, and there is still none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unproven: Option<Unproven>,
    },
    /// The move was ended before the record named the new holder. The old one becomes the primary again.
    Returning {
        /// The cluster that would have got the writer.
        to: Place,
    },
}

/// A move without proof that the old holder has stopped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unproven {
    /// The enrolment of the old holder's agent. Only that one can still prove that it has stopped. `None` if the hub
    /// knows none; then only a person can vouch for it.
    pub instance: Option<InstanceId>,
    /// True if the new holder was healthy, so that only the late proof is awaited.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
}

/// What was known of a writer before it was fenced. A proof that it has stopped counts only if it is about the same
/// things.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// The enrolment of the cluster's agent.
    pub instance: InstanceId,
    /// The hash of the rule by which the app proves that it has stopped.
    pub rule: ContentHash,
    /// The UIDs of the objects that the rule names and that existed.
    pub uids: BTreeMap<String, String>,
}

impl Writer {
    /// Returns the cluster in which the app may be the primary now, if there is one.
    #[must_use]
    pub fn primary(&self) -> Option<&ClusterName> {
        match self.handover {
            Some(Handover::Fencing { .. }) => None,
            Some(Handover::Promoting { .. } | Handover::Returning { .. }) | None => {
                Some(&self.cluster)
            }
        }
    }

    /// Returns true if the primary's objects must not wait for anything, because a move is at that step.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match &self.handover {
            Some(Handover::Promoting { unproven, .. }) => {
                unproven.as_ref().is_none_or(|unproven| !unproven.verified)
            }
            Some(Handover::Returning { .. }) => true,
            Some(Handover::Fencing { .. }) | None => false,
        }
    }

    /// Returns the other cluster of the move that is under way: the one that gets the writer, would have got it, or had it.
    #[must_use]
    pub fn other_side(&self) -> Option<&Place> {
        match self.handover.as_ref()? {
            Handover::Fencing { to, .. } | Handover::Returning { to } => Some(to),
            Handover::Promoting { from, .. } => Some(from),
        }
    }

    /// Returns the holder.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            region: self.region.clone(),
            cluster: self.cluster.clone(),
        }
    }
}

impl FleetRecord {
    /// Returns the epoch at which an app's roles last changed; zero for an app without a writer.
    #[must_use]
    pub fn epoch_of(&self, app: &AppName) -> Epoch {
        self.writers
            .get(app)
            .map_or(Epoch::default(), |writer| writer.epoch)
    }

    /// Returns the apps whose writer a cluster holds.
    pub fn held_by<'a>(&'a self, cluster: &'a ClusterName) -> impl Iterator<Item = &'a AppName> {
        let writers = self.writers.iter();
        writers.filter_map(move |(app, writer)| (writer.cluster == *cluster).then_some(app))
    }

    /// Returns the union of this record and another record of this fleet. If both have a writer for an app, the later
    /// one counts. If only one of them has a writer for an app, the union has it, too. An extra writer does no harm: it
    /// only keeps the app where it is.
    ///
    /// The union has a new epoch if it differs from both records.
    ///
    /// # Errors
    /// Returns the app if both records have given its writer to different clusters at the same epoch.
    pub fn union(&self, other: &Self) -> Result<Self, AppName> {
        let mut union = self.clone();
        for (app, theirs) in &other.writers {
            match union.writers.get_mut(app) {
                Some(own) if own.epoch == theirs.epoch && own.cluster != theirs.cluster => {
                    return Err(app.clone());
                }
                Some(own) if own.epoch < theirs.epoch => own.clone_from(theirs),
                // The end of a move changes the record, but no role of the holder.
                Some(own) if own.epoch == theirs.epoch && self.epoch < other.epoch => {
                    own.clone_from(theirs);
                }
                Some(_) => {}
                None => {
                    union.writers.insert(app.clone(), theirs.clone());
                }
            }
        }
        union.epoch = self.epoch.max(other.epoch);
        let is_of = |record: &Self| union.holds_like(record) && union.epoch == record.epoch;
        if !is_of(self) && !is_of(other) {
            union.epoch = union.epoch.next();
        }
        Ok(union)
    }

    /// Returns true if both records have the same holders since the same epochs, and the same moves.
    #[must_use]
    pub fn holds_like(&self, other: &Self) -> bool {
        let holders = |record: &Self| -> Vec<(AppName, ClusterName, Epoch, Option<Handover>)> {
            let writers = record.writers.iter();
            writers
                .map(|(app, writer)| {
                    let Writer {
                        cluster,
                        epoch,
                        handover,
                        ..
                    } = writer.clone();
                    (app.clone(), cluster, epoch, handover)
                })
                .collect()
        };
        holders(self) == holders(other)
    }

    /// Returns an app that has a primary in a cluster where this record does not allow it; `None` if every role agrees
    /// with this record.
    #[must_use]
    pub fn contradicted_by<'a>(&self, roles: &'a Roles) -> Option<&'a AppName> {
        let contradicts = |(app, places): &(&AppName, &BTreeMap<ClusterName, Role>)| {
            let holder = self.writers.get(*app).and_then(Writer::primary);
            let mut primaries = places.iter().filter(|(_, role)| **role == Role::Primary);
            primaries.any(|(cluster, _)| Some(cluster) != holder)
        };
        let app = roles.iter().find(contradicts);
        app.map(|(app, _)| app)
    }
}

/// A fleet record as hubs send it and agents store it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRecord {
    /// The epoch in the content.
    pub epoch: Epoch,
    /// The [`FleetRecord`] as JSON.
    pub content: String,
    /// The proof that a hub of this fleet wrote the content.
    pub proof: [u8; 32],
}

/// The epoch of a fleet record and the hash of its content and proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId {
    /// The epoch of the record.
    pub epoch: Epoch,
    /// The hash of the record's content and proof.
    pub hash: ContentHash,
}

impl SealedRecord {
    /// Seals a record. `prove` returns the proof for the content.
    #[must_use]
    pub fn new(record: &FleetRecord, prove: impl FnOnce(&[u8]) -> [u8; 32]) -> Self {
        let content = serde_json::to_string(record).unwrap_or_default();
        Self {
            epoch: record.epoch,
            proof: prove(content.as_bytes()),
            content,
        }
    }

    /// Returns the epoch and the hash of content and proof. After a change of the fleet's key, the same content has
    /// another proof and therefore another hash.
    #[must_use]
    pub fn id(&self) -> RecordId {
        let mut hashed = self.proof.to_vec();
        hashed.extend_from_slice(self.content.as_bytes());
        RecordId {
            epoch: self.epoch,
            hash: ContentHash::of(&hashed),
        }
    }

    /// Reads the content.
    ///
    /// # Errors
    /// Returns an error if the content is no fleet record, or one of another epoch.
    pub fn read(&self) -> Result<FleetRecord, serde_json::Error> {
        let record: FleetRecord = serde_json::from_str(&self.content)?;
        if record.epoch == self.epoch {
            Ok(record)
        } else {
            Err(serde::de::Error::custom("its content has another epoch"))
        }
    }
}

#[cfg(test)]
mod tests;
