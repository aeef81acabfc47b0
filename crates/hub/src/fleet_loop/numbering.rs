//! Numbers the generations of a commit: one for each cluster whose desired state changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ClusterName, ContentHash, Epoch, Generation},
    policy::{PruneBudget, PruneOrders},
};
use muster_plan::delivery::Numbered;
use muster_worker::Facts;

use super::{FleetError, FleetLoop};
use crate::{
    approvals::{self, Approved},
    desired_state::{DesiredState, FleetState, content_of},
    observed::Level,
    store_schema::{self, DesiredRecord, ListedBundle},
    unconfirmed::Unconfirmed,
};

/// The bundles and the deletion rules for one cluster, not numbered yet.
pub(super) struct List {
    pub(super) budget: PruneBudget,
    pub(super) unknown: BTreeSet<AppName>,
    pub(super) bundles: Vec<ListedBundle>,
}

/// The inputs of generations beside their [`List`]s: approvals, unconfirmed clusters and last numbers.
pub(super) struct Orders<'a> {
    pub(super) approved: &'a Approved,
    pub(super) unconfirmed: &'a Unconfirmed,
    /// The last numbers of clusters that come back to the fleet.
    pub(super) numbers: &'a BTreeMap<ClusterName, Generation>,
    /// The epoch of the fleet record.
    pub(super) epoch: Epoch,
}

/// Returns the approvals ([`PruneOrders::leaving`]) of the apps that may leave a cluster with all their objects. These
/// are the apps in the cluster's previous list or last report that are not in its new list and that are `meant` to
/// leave. Such approvals of the previous generation are included too, except for apps that are in the list again.
pub(super) fn leaving(
    list: &[ListedBundle],
    before: Option<&DesiredState>,
    level: Option<&Level>,
    meant: impl Fn(&AppName) -> bool,
) -> BTreeSet<ContentHash> {
    let listed: BTreeSet<&AppName> = list.iter().map(|listed| &listed.app).collect();
    let had = before
        .into_iter()
        .flat_map(|desired| desired.bundles.iter());
    let had = had.map(|listed| listed.app.clone());
    let left = level.into_iter().flat_map(|level| level.apps.keys());
    let left = left.filter_map(|app| app.parse().ok());
    let gone = had
        .chain(left)
        .filter(|app| !listed.contains(app) && meant(app));
    let back: BTreeSet<ContentHash> = listed.iter().map(|app| PruneOrders::leaving(app)).collect();
    let decided = before
        .into_iter()
        .flat_map(|desired| &desired.prune.approved);
    let decided = decided.filter(|name| PruneOrders::is_leaving(name) && !back.contains(*name));
    gone.map(|app| PruneOrders::leaving(&app))
        .chain(decided.copied())
        .collect()
}

impl FleetLoop {
    /// Gives a new number to each cluster whose list or approvals changed. An app that a cluster should no longer run
    /// is deleted there if that is `meant`; otherwise its deletion is pending approval.
    pub(super) fn number(
        &self,
        lists: BTreeMap<ClusterName, List>,
        orders: &Orders<'_>,
        before: &FleetState,
        meant: impl Fn(&AppName) -> bool,
        commit: &str,
    ) -> BTreeMap<ClusterName, Arc<DesiredState>> {
        let epoch = orders.epoch;
        let mut shared: HashMap<ContentHash, Arc<[ListedBundle]>> = HashMap::new();
        let mut number = |cluster: &ClusterName, list: List| {
            let List {
                budget,
                unknown,
                bundles: list,
            } = list;
            let now = before.desired.get(cluster);
            let level = self.observed.get(cluster);
            let mut approved = orders.approved.get(cluster).cloned().unwrap_or_default();
            if !orders.unconfirmed.is(cluster) {
                approved.extend(leaving(
                    &list,
                    now.map(AsRef::as_ref),
                    level.as_ref(),
                    &meant,
                ));
            }
            let mut prune = PruneOrders {
                budget,
                approved,
                unknown,
            };
            let mut content = content_of(epoch.0, &prune, &list);
            if let Some(now) = now.filter(|now| now.number.content == content) {
                return Arc::clone(now);
            }
            if !prune.approved.is_empty() {
                let now = now.map(AsRef::as_ref);
                prune.approved = approvals::pending(&prune.approved, now, level.as_ref());
                content = content_of(epoch.0, &prune, &list);
            }
            let known = orders.numbers.get(cluster).copied();
            let generation = now
                .map(|now| now.number.generation)
                .or(known)
                .unwrap_or(Generation(0))
                .next();
            let since = now
                .filter(|now| now.prune.budget == budget && now.bundles.as_ref() == list.as_slice())
                .map_or(generation, |now| now.since);
            let bundles = shared.entry(content).or_insert_with(|| list.into());
            Arc::new(DesiredState {
                number: Numbered {
                    generation,
                    content,
                },
                since,
                commit: commit.to_owned(),
                epoch: epoch.0,
                prune,
                bundles: Arc::clone(bundles),
            })
        };
        let numbered = lists.into_iter().map(|(cluster, list)| {
            let desired = number(&cluster, list);
            (cluster, desired)
        });
        numbered.collect()
    }

    /// Reads the last numbers of clusters that come back to the fleet.
    pub(super) async fn numbers(
        &self,
        facts: &Facts,
        before: &FleetState,
    ) -> Result<BTreeMap<ClusterName, Generation>, FleetError> {
        let mut numbers = BTreeMap::new();
        let clusters = facts.clusters.keys();
        for cluster in clusters.filter(|cluster| !before.desired.contains_key(*cluster)) {
            let key = store_schema::desired_key(cluster);
            let record = store_schema::read::<DesiredRecord>(self.store.as_ref(), &key).await?;
            numbers.extend(record.map(|(record, _)| (cluster.clone(), record.generation)));
        }
        Ok(numbers)
    }
}
