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
        /// An object in that Namespace, or of that CustomResourceDefinition's group.
        object: String,
        /// The application for which the object is pending approval.
        app: String,
        /// The cluster.
        cluster: ClusterName,
    },
}

/// Returns true if deleting `container` would delete `object`: it is the object's Namespace, or a
/// CustomResourceDefinition of the object's group. Both are in the text form of [`muster_model::bundle::ObjectRef`].
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
            .is_some_and(|((_, group), (_, of_object))| group == of_object),
        _ => false,
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

/// Returns the approvals that the next generation still needs. An approval is done if the generation before contained
/// it, the cluster has that generation in force and is settled, and the set is no longer pending there.
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
mod tests {
    use muster_model::policy::PruneOrders;
    use muster_plan::delivery::Numbered;

    use super::*;

    fn set(name: &str) -> ContentHash {
        ContentHash::of(name.as_bytes())
    }

    fn number(generation: u64) -> Numbered {
        Numbered {
            generation: Generation(generation),
            content: set(&generation.to_string()),
        }
    }

    /// Returns an observed state in which these sets of app `wiki` are pending approval.
    fn level(generation: u64, holds: &[&str]) -> Level {
        let hold = |name: &&str| v1::Hold {
            set: set(name).0.to_vec(),
            ..v1::Hold::default()
        };
        let report = v1::AppReport {
            holds: holds.iter().map(hold).collect(),
            ..v1::AppReport::default()
        };
        Level {
            instance: "i-1".parse().ok(),
            in_force: Some(number(generation)),
            settled: true,
            apps: [("wiki".to_owned(), report)].into(),
            ..Level::default()
        }
    }

    #[test]
    fn only_what_is_held_now_can_be_approved() {
        let request = |app: &str, name: &str| Request {
            cluster: "eu-1".parse().unwrap(),
            app: app.parse().unwrap(),
            set: set(name),
            reason: String::new(),
        };
        let newest = Some(Generation(4)..=Generation(5));
        let held = level(5, &["a", "b"]);
        let cluster: ClusterName = "eu-1".parse().unwrap();
        let judged = |app, name, current: &Option<_>, level: Option<&Level>| {
            judge(&request(app, name), current.clone(), level)
                .map(|(_, instance)| instance.to_string())
        };
        assert_eq!(
            judged("wiki", "b", &newest, Some(&held)),
            Ok("i-1".to_owned())
        );
        let just_before = level(4, &["a"]);
        assert!(judged("wiki", "a", &newest, Some(&just_before)).is_ok());
        let place = |app: &str| (app.parse().unwrap(), cluster.clone());
        let ((app, at), (shop, _)) = (place("wiki"), place("shop"));
        assert_eq!(
            judged("wiki", "c", &newest, Some(&held)),
            Err(Refusal::Changed { app, cluster: at })
        );
        let nothing = Refusal::Nothing {
            app: shop,
            cluster: cluster.clone(),
        };
        assert_eq!(judged("shop", "a", &newest, Some(&held)), Err(nothing));
        let behind = Err(Refusal::Behind(cluster.clone()));
        assert_eq!(
            judged("wiki", "a", &newest, Some(&level(3, &["a"]))),
            behind
        );
        assert_eq!(judged("wiki", "a", &None, Some(&held)), behind);
        let nobody = Err(Refusal::NoAgent(cluster));
        assert_eq!(judged("wiki", "a", &newest, None), nobody);
        assert_eq!(
            judged("wiki", "a", &newest, Some(&Level::default())),
            nobody
        );
    }

    #[test]
    fn an_approval_is_done_when_its_cluster_has_it_and_no_longer_waits() {
        let approved: BTreeSet<ContentHash> = [set("a"), set("b")].into();
        let before = DesiredState {
            number: number(5),
            since: Generation(5),
            commit: String::new(),
            epoch: 1,
            prune: PruneOrders {
                approved: [set("a")].into(),
                ..PruneOrders::default()
            },
            bundles: [].into(),
        };
        let left = |level: Option<&Level>| pending(&approved, Some(&before), level);
        // `b` is not in any generation yet.
        assert_eq!(left(Some(&level(5, &[]))), [set("b")].into());
        assert_eq!(left(Some(&level(5, &["a"]))), approved);
        assert_eq!(left(Some(&level(4, &[]))), approved);
        let unsettled = Level {
            settled: false,
            ..level(5, &[])
        };
        assert_eq!(left(Some(&unsettled)), approved);
        assert_eq!(left(None), approved);
        assert_eq!(pending(&approved, None, Some(&level(5, &[]))), approved);
    }
}
