//! The last observed state of every cluster: what its agent reported, and whether it is connected.

mod bounds;
mod recreations;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_model::ids::{ClusterName, ContentHash, Generation, InstanceId};
use muster_plan::delivery::Numbered;
use muster_proto::v1;
use muster_runtime::log::Chain;
use muster_store::{Store, Txn};
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::recreations::Recreations;
use crate::store_schema::{self, RecordError, now};

/// The interval at which changed observed states are written to the store. The stored copy is a convenience after a
/// restart; agents report again whatever was lost.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// The last observed state of one cluster. Each report replaces the previous one (level-triggered).
#[derive(Debug, Clone, Default)]
pub(crate) struct Level {
    pub(crate) instance: Option<InstanceId>,
    pub(crate) connected: bool,
    /// True if its agent is connected and has no writer in its fleet record that the hub lacks.
    pub(crate) heard: bool,
    /// The time of the last contact, in seconds since 1970.
    pub(crate) last_seen: u64,
    pub(crate) version: String,
    pub(crate) in_force: Option<Numbered>,
    pub(crate) apps: BTreeMap<String, v1::AppReport>,
    pub(crate) digest: Vec<u8>,
    pub(crate) problems: Vec<String>,
    /// True if the agent has processed every object of the generation, including deletions, so that the reported sets
    /// pending approval are complete.
    pub(crate) settled: bool,
    /// The cluster-scoped kinds among its apps' objects that are not Kubernetes' own.
    pub(crate) cluster_scoped: Vec<String>,
    /// The reason why the hub refuses or restricts the agent, if it does.
    pub(crate) refusal: Option<String>,
    /// A description of what the hub has left out since the last full report began, if it left anything out.
    pub(crate) cut: Option<String>,
}

/// The observed states of all clusters. Subscribers of [`Self::watch`] may see several changes as one.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    levels: Mutex<HashMap<ClusterName, Level>>,
    dirty: Mutex<BTreeSet<ClusterName>>,
    /// The recreations that are not in the audit log yet.
    recreations: Mutex<Recreations>,
    /// The clusters that were removed before they were heard.
    removed_unheard: Mutex<BTreeSet<ClusterName>>,
    is_answered: AtomicBool,
    changed: watch::Sender<u64>,
    write: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observed {
    /// Loads the observed states that an earlier hub process stored. No agent is connected yet.
    pub(crate) async fn load(store: &dyn Store) -> Result<Self, RecordError> {
        let mut levels = HashMap::new();
        let mut recreations = Recreations::default();
        for (key, versioned) in store.range(store_schema::OBSERVED).await? {
            let cluster = key[store_schema::OBSERVED.len()..].parse::<ClusterName>();
            let (Ok(cluster), Ok(status)) = (
                cluster,
                v1::ObservedRecord::decode(versioned.value.as_ref()),
            ) else {
                continue;
            };
            let report = status.report.unwrap_or_default();
            recreations.hear_stored(&cluster, &report.apps);
            let level = Level {
                instance: status.instance.parse().ok(),
                last_seen: status.last_seen,
                version: status.version,
                in_force: number_of(report.generation, &report.content),
                apps: report
                    .apps
                    .into_iter()
                    .map(|app| (app.app.clone(), app))
                    .collect(),
                digest: report.digest,
                problems: report.problems,
                settled: report.settled,
                cluster_scoped: report.cluster_scoped,
                connected: false,
                heard: false,
                refusal: None,
                cut: None,
            };
            levels.insert(cluster, level);
        }
        Ok(Self {
            levels: Mutex::new(levels),
            recreations: Mutex::new(recreations),
            ..Self::default()
        })
    }

    /// Changes a cluster's observed state.
    pub(crate) fn update(&self, cluster: &ClusterName, change: impl FnOnce(&mut Level)) {
        change(lock(&self.levels).entry(cluster.clone()).or_default());
        lock(&self.dirty).insert(cluster.clone());
        self.changed.send_modify(|count| *count += 1);
        self.write.notify_one();
    }

    /// Applies a report, cut to its bounds. `has` returns true for the apps that the cluster should run.
    pub(crate) fn report(
        &self,
        cluster: &ClusterName,
        mut report: v1::Report,
        has: impl Fn(&str) -> bool,
    ) {
        self.update(cluster, |level| {
            let invented = bounds::bound(&mut report, has, &level.apps);
            level.last_seen = now();
            level.in_force = number_of(report.generation, &report.content);
            lock(&self.recreations).hear(cluster, &report.apps, now());
            if report.full {
                level.apps.clear();
            }
            for app in report.apps {
                if app.gone {
                    level.apps.remove(&app.app);
                } else {
                    level.apps.insert(app.app.clone(), app);
                }
            }
            let cut = invented.or(bounds::bound_level(&mut level.apps));
            if cut.is_some() && cut != level.cut {
                tracing::warn!(%cluster, cut, "parts of a report were left out");
            }
            // Until the next full report the agent sends only what changes, so what was left out stays missing.
            if report.full || cut.is_some() {
                level.cut = cut;
            }
            // Without a digest the agent sends its full report again on its next stream.
            level.digest = if level.cut.is_none() {
                report.digest
            } else {
                Vec::new()
            };
            level.problems = report.problems;
            level.settled = report.settled;
            level.cluster_scoped = report.cluster_scoped;
        });
    }

    /// Notes that an agent has connected. If it is another instance than before, the earlier observed state is dropped.
    pub(crate) fn welcome(
        &self,
        cluster: &ClusterName,
        instance: &InstanceId,
        version: &str,
        in_force: Option<Numbered>,
    ) {
        self.update(cluster, |level| {
            if level.instance.as_ref() != Some(instance) {
                *level = Level::default();
            }
            level.settled &= level.in_force == in_force;
            level.connected = true;
            level.heard = false;
            level.refusal = None;
            level.last_seen = now();
            level.instance = Some(instance.clone());
            level.version = version.to_owned();
            level.in_force = in_force;
        });
    }

    /// Notes that a cluster has joined, although its agent has not connected yet.
    pub(crate) fn expect(&self, cluster: &ClusterName, instance: InstanceId) {
        let mut levels = lock(&self.levels);
        levels
            .entry(cluster.clone())
            .or_default()
            .instance
            .get_or_insert(instance);
    }

    /// Notes that a cluster's stream has ended. Does nothing if the cluster was removed meanwhile.
    pub(crate) fn left(&self, cluster: &ClusterName) {
        if lock(&self.levels).contains_key(cluster) {
            self.update(cluster, |level| {
                level.connected = false;
                level.heard = false;
                level.last_seen = now();
            });
        }
    }

    /// Forgets a cluster that was removed.
    pub(crate) fn forget(&self, cluster: &ClusterName) {
        let removed = lock(&self.levels).remove(cluster);
        if removed.is_some_and(|level| level.instance.is_some() && !level.heard) {
            lock(&self.removed_unheard).insert(cluster.clone());
        }
        lock(&self.recreations).forget(cluster);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Returns a cluster's observed state.
    pub(crate) fn get(&self, cluster: &ClusterName) -> Option<Level> {
        lock(&self.levels).get(cluster).cloned()
    }

    /// Looks at a cluster's observed state, without a copy of it; `None` if there is none.
    pub(crate) fn with<T>(
        &self,
        cluster: &ClusterName,
        look: impl FnOnce(&Level) -> T,
    ) -> Option<T> {
        lock(&self.levels).get(cluster).map(look)
    }

    /// Notes that a cluster's fleet record was compared with the hub's.
    pub(crate) fn heard(&self, cluster: &ClusterName) {
        self.update(cluster, |level| level.heard = true);
    }

    /// Returns the clusters that have joined and whose fleet record the hub does not know. These include clusters that
    /// were removed before they were heard.
    pub(crate) fn silent(&self) -> BTreeSet<ClusterName> {
        let mut silent = lock(&self.removed_unheard).clone();
        let levels = lock(&self.levels);
        let unheard = levels
            .iter()
            .filter(|(_, level)| level.instance.is_some() && !level.heard);
        silent.extend(unheard.map(|(cluster, _)| cluster.clone()));
        silent.retain(|cluster| levels.get(cluster).is_none_or(|level| !level.heard));
        silent
    }

    /// Notes that a person has vouched for the clusters that were not heard.
    pub(crate) fn answered(&self) {
        lock(&self.removed_unheard).clear();
        self.is_answered.store(true, Ordering::Relaxed);
    }

    /// Returns true if a person has vouched for the clusters that were not heard, since this process was started.
    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Relaxed)
    }

    /// Returns true if an agent has ever joined as this cluster.
    pub(crate) fn has_joined(&self, cluster: &ClusterName) -> bool {
        let levels = lock(&self.levels);
        levels
            .get(cluster)
            .is_some_and(|level| level.instance.is_some())
    }

    /// Returns a watch that fires on every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes changed observed states to the store until `stop` fires, and once more then.
    pub(crate) async fn keep(self: Arc<Self>, store: Arc<dyn Store>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = async { self.write.notified().await; tokio::time::sleep(WRITE_EVERY).await } => {}
            }
            if let Err(error) = self.write_down(store.as_ref()).await {
                tracing::warn!(error = %Chain(&error), "the observed states of clusters were not written to the store");
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn write_down(&self, store: &dyn Store) -> Result<(), muster_store::CommitError> {
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        if dirty.is_empty() {
            return Ok(());
        }
        let mut txn = Txn::new();
        let recreated = {
            let levels = lock(&self.levels);
            for cluster in &dirty {
                let Some(level) = levels.get(cluster) else {
                    continue;
                };
                let report = v1::Report {
                    generation: level.in_force.map_or(0, |number| number.generation.0),
                    content: level
                        .in_force
                        .map_or_else(Vec::new, |n| n.content.0.to_vec()),
                    apps: level.apps.values().cloned().collect(),
                    full: true,
                    digest: level.digest.clone(),
                    problems: level.problems.clone(),
                    settled: level.settled,
                    cluster_scoped: level.cluster_scoped.clone(),
                };
                let record = v1::ObservedRecord {
                    instance: level
                        .instance
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    last_seen: level.last_seen,
                    version: level.version.clone(),
                    report: Some(report),
                };
                txn = txn.put(
                    format!("{}{cluster}", store_schema::OBSERVED),
                    record.encode_to_vec(),
                );
            }
            lock(&self.recreations).take()
        };
        for entry in &recreated {
            txn = entry.put(txn);
        }
        let written = store.commit(txn).await;
        if written.is_err() {
            lock(&self.dirty).extend(dirty);
            lock(&self.recreations).take_back(recreated);
        }
        written.map(|_| ())
    }
}

/// The highest term and generation that the hub accepts from an agent. The limit leaves enough numbers above it.
pub(crate) const MAX_NUMBER: u64 = i64::MAX as u64;

/// Returns the number and content that a message names as in force; `None` if they are invalid.
pub(crate) fn number_of(generation: u64, content: &[u8]) -> Option<Numbered> {
    let content = ContentHash::try_from(content).ok()?;
    (1..=MAX_NUMBER).contains(&generation).then_some(Numbered {
        generation: Generation(generation),
        content,
    })
}

#[cfg(test)]
mod tests;
