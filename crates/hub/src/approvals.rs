//! The deletions and recreations that people have approved. An approval is for one set of objects in one cluster, which
//! the cluster's agent has reported as pending approval. It reaches the cluster in its next generation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use muster_model::ids::{AppName, ClusterName, ContentHash, Generation, InstanceId};
use muster_proto::v1;
use muster_store::{CommitError, Expected, Store, Txn};

use crate::{
    desired_state::{DesiredState, content_of},
    observed::Level,
    store_schema::{
        self, ApprovalRecord, DesiredRecord, Lead, ListedBundle, RecordError, audited, now,
    },
};

/// The approved sets, by cluster.
pub(crate) type Approved = BTreeMap<ClusterName, BTreeSet<ContentHash>>;

/// The reason why an approval is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No agent reports for this cluster.
    #[error("cluster {0} has no agent that could delete anything")]
    NoAgent(ClusterName),
    /// The last report is about an older generation.
    #[error("cluster {0} has not reported on its newest generation yet; look again in a moment")]
    Behind(ClusterName),
    /// Nothing of the app is pending approval.
    #[error("nothing of app {app} is pending approval in cluster {cluster}; look again")]
    Nothing {
        /// The application.
        app: AppName,
        /// The cluster.
        cluster: ClusterName,
    },
    /// Another set is pending approval.
    #[error(
        "what is pending approval for app {app} in cluster {cluster} has changed since you were shown it; look again"
    )]
    Changed {
        /// The application.
        app: AppName,
        /// The cluster.
        cluster: ClusterName,
    },
    /// Deleting the set would also delete an object that is pending approval on its own.
    #[error(
        "deleting {container} would also delete {object}, which is pending approval for app {app} in cluster \
         {cluster}; approve that first"
    )]
    Elsewhere {
        /// A Namespace or CustomResourceDefinition in the set.
        container: String,
        /// An object in that Namespace, or of that CustomResourceDefinition's kind.
        object: String,
        /// The application for which the object is pending approval.
        app: String,
        /// The cluster.
        cluster: ClusterName,
    },
}

/// Returns true if deleting `container` would delete `object`: it is the object's Namespace, or the
/// CustomResourceDefinition of its kind. Both are in the text form of [`muster_model::bundle::ObjectRef`].
///
/// The name of a CustomResourceDefinition contains the plural of its kind, and an unusual plural is not recognized.
/// Nothing is lost then: the agent knows the kind of each CustomResourceDefinition, and does not delete one before the
/// objects of that kind whose deletion is pending approval.
fn is_inside(container: &str, object: &str) -> bool {
    let Some(((kind, name), (object_kind, object_name))) =
        container.split_once(' ').zip(object.split_once(' '))
    else {
        return false;
    };
    match kind {
        "Namespace" => object_name
            .split_once('/')
            .is_some_and(|(namespace, _)| namespace == name),
        "CustomResourceDefinition.apiextensions.k8s.io" => name
            .split_once('.')
            .zip(object_kind.split_once('.'))
            .is_some_and(|((plural, group), (kind, of_object))| {
                group == of_object && is_plural(plural, kind)
            }),
        _ => false,
    }
}

/// Returns true if this is a usual plural of a kind: the kind in lower case, as it is or with `s`, `es` or `ies`.
fn is_plural(plural: &str, kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    let stem = kind.strip_suffix('y');
    match plural.strip_prefix(&kind) {
        Some(ending) => matches!(ending, "" | "s" | "es"),
        None => stem.is_some_and(|stem| plural.strip_suffix("ies") == Some(stem)),
    }
}

/// A person's request to approve a set.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) cluster: ClusterName,
    pub(crate) app: AppName,
    pub(crate) set: ContentHash,
    pub(crate) reason: String,
}

/// Checks that the cluster's newest report has exactly this set as pending approval. Returns the reported set and the
/// instance that reported it.
pub(crate) fn judge<'a>(
    request: &Request,
    current: Option<RangeInclusive<Generation>>,
    level: Option<&'a Level>,
) -> Result<(&'a v1::Hold, &'a InstanceId), Refusal> {
    let (cluster, app) = (request.cluster.clone(), request.app.clone());
    let reported = level.and_then(|level| Some((level, level.instance.as_ref()?)));
    let Some((level, instance)) = reported else {
        return Err(Refusal::NoAgent(cluster));
    };
    let reported_on = level.in_force.map(|number| number.generation);
    if !current
        .zip(reported_on)
        .is_some_and(|(current, reported_on)| current.contains(&reported_on))
    {
        return Err(Refusal::Behind(cluster));
    }
    let report = level.apps.get(app.as_str());
    let holds = report.map_or(&[][..], |report| &report.holds);
    if holds.is_empty() {
        return Err(Refusal::Nothing { app, cluster });
    }
    let Some(hold) = holds.iter().find(|hold| hold.set == request.set.0) else {
        return Err(Refusal::Changed { app, cluster });
    };
    let others = level.apps.iter().flat_map(|(app, report)| {
        let holds = report.holds.iter();
        let others = holds.filter(|other| other.set != request.set.0);
        let objects = others.flat_map(|hold| &hold.objects);
        objects.map(move |object| (app, object))
    });
    for (app, object) in others {
        let container = hold.objects.iter().find(|held| is_inside(held, object));
        if let Some(container) = container {
            return Err(Refusal::Elsewhere {
                container: container.clone(),
                object: object.clone(),
                app: app.clone(),
                cluster,
            });
        }
    }
    Ok((hold, instance))
}

fn key(cluster: &ClusterName, set: &ContentHash) -> String {
    format!("{}{cluster}/{set}", store_schema::APPROVAL)
}

/// Writes an approval to the store, where the fleet loop finds it.
pub(crate) async fn approve(
    store: &dyn Store,
    lead: Lead,
    request: &Request,
    (hold, instance): (&v1::Hold, &InstanceId),
    who: &str,
) -> Result<(), CommitError> {
    let Request {
        cluster,
        app,
        set,
        reason,
    } = request;
    let record = ApprovalRecord {
        app: app.clone(),
        instance: instance.clone(),
        at: now(),
        who: who.to_owned(),
        reason: reason.clone(),
    };
    let txn = Txn::new()
        .when(store_schema::TERM, Expected::Revision(lead.revision))
        .put(key(cluster, set), store_schema::encode(&record));
    let why = match reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    let what = if hold.recreate {
        let object = hold.objects.first().map_or("an object", String::as_str);
        format!("approved to recreate {object} of app {app} in cluster {cluster}{why}")
    } else {
        let set = set.short();
        format!("approved to delete the set {set} of app {app} in cluster {cluster}{why}")
    };
    store.commit(audited(txn, who, what)).await.map(|_| ())
}

/// Reads all approvals.
pub(crate) async fn all(store: &dyn Store) -> Result<Approved, RecordError> {
    let mut approved = Approved::new();
    for (key, _) in store.keys(store_schema::APPROVAL).await? {
        if let Some((cluster, set)) = named(&key) {
            approved.entry(cluster).or_default().insert(set);
        }
    }
    Ok(approved)
}

fn named(key: &str) -> Option<(ClusterName, ContentHash)> {
    let (cluster, set) = key.strip_prefix(store_schema::APPROVAL)?.split_once('/')?;
    Some((cluster.parse().ok()?, set.parse().ok()?))
}

/// Returns the approvals that the next generation still needs. An approval is done if the previous generation contained
/// it, the cluster has that generation in force and is settled, and the set is no longer pending approval there.
pub(crate) fn pending(
    approved: &BTreeSet<ContentHash>,
    before: Option<&DesiredState>,
    level: Option<&Level>,
) -> BTreeSet<ContentHash> {
    let told = before
        .zip(level)
        .filter(|(before, level)| level.settled && level.in_force == Some(before.number));
    let is_done = |set: &ContentHash| {
        told.is_some_and(|(before, level)| {
            let mut holds = level.apps.values().flat_map(|app| &app.holds);
            before.prune.approved.contains(set) && !holds.any(|hold| hold.set == set.0)
        })
    };
    approved
        .iter()
        .filter(|set| !is_done(set))
        .copied()
        .collect()
}

/// Deletes in the transaction the approvals that no generation contains any more.
pub(crate) fn without_done(
    mut txn: Txn,
    approved: &Approved,
    desired: &BTreeMap<ClusterName, std::sync::Arc<DesiredState>>,
) -> Txn {
    for (cluster, sets) in approved {
        let stands = desired.get(cluster);
        for set in sets {
            if !stands.is_some_and(|desired| desired.prune.approved.contains(set)) {
                txn = txn.delete(key(cluster, set));
            }
        }
    }
    txn
}

/// Deletes in the transaction every approval of a cluster, or of all clusters if `cluster` is `None`.
pub(crate) async fn void(
    store: &dyn Store,
    mut txn: Txn,
    cluster: Option<&ClusterName>,
) -> Result<Txn, RecordError> {
    let prefix = match cluster {
        Some(cluster) => format!("{}{cluster}/", store_schema::APPROVAL),
        None => store_schema::APPROVAL.to_owned(),
    };
    for (key, _) in store.keys(&prefix).await? {
        txn = txn.delete(key);
    }
    Ok(txn)
}

/// Removes in the transaction all approvals from all generations. This is for a restored store, whose approvals may be
/// for objects that have changed since.
pub(crate) async fn void_in_force(store: &dyn Store, mut txn: Txn) -> Result<Txn, RecordError> {
    for (key, versioned) in store.range(store_schema::DESIRED).await? {
        let mut record: DesiredRecord = store_schema::decode(&key, &versioned)?;
        if record.prune.approved.is_empty() {
            continue;
        }
        let list = store_schema::content_key(record.content);
        let found = store_schema::read::<Vec<ListedBundle>>(store, &list).await?;
        let Some((bundles, _)) = found else {
            // The cluster left the fleet, and its content is not delivered to anybody.
            continue;
        };
        record.prune.approved.clear();
        record.content = content_of(record.epoch, &record.prune, &bundles);
        record.generation = record.generation.next();
        txn = txn
            .put(
                store_schema::content_key(record.content),
                store_schema::encode(&bundles),
            )
            .put(key, store_schema::encode(&record));
    }
    void(store, txn, None).await
}

#[cfg(test)]
mod tests;
