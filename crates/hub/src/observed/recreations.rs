//! Collects entries for the audit log about the objects that agents have recreated. Each recreation is recorded once.

use std::collections::{HashMap, HashSet};

use muster_model::ids::{ClusterName, ContentHash};
use muster_proto::v1;
use prost::Message as _;

use crate::store_schema::AuditEntry;

/// The most recreations of one cluster that are recorded within [`PERIOD`]. It keeps an agent from filling the hub's
/// store.
const MOST: u32 = 100;
/// The length of a period, in seconds.
const PERIOD: u64 = 3600;
/// The most characters of an agent's text that are recorded.
const TEXT: usize = 300;
/// The number of each cluster's newest recreations that are always remembered. At most twice as many are remembered, so
/// that an agent can't fill the hub's memory. An older one is recorded again if the agent reports it again.
const REMEMBERED: usize = 5_000;

/// The recreations of one cluster that its agent has already reported, as hashes. The observed state does not tell which
/// they are: a full report of several messages clears it, and the hub leaves out details if it is too large.
#[derive(Debug, Default)]
struct Reported {
    recent: HashSet<ContentHash>,
    /// The content that `recent` had when it was last full.
    earlier: HashSet<ContentHash>,
}

impl Reported {
    /// Remembers a recreation. Returns true if it was not remembered yet.
    fn remember(&mut self, app: &str, drift: &v1::DriftEvent) -> bool {
        let report = v1::AppReport {
            app: app.to_owned(),
            drifts: vec![drift.clone()],
            ..v1::AppReport::default()
        };
        let hash = ContentHash::of(&report.encode_to_vec());
        let is_new = self.recent.insert(hash) && !self.earlier.contains(&hash);
        if self.recent.len() >= REMEMBERED {
            self.earlier = std::mem::take(&mut self.recent);
        }
        is_new
    }
}

/// Recreations that are not in the audit log yet.
#[derive(Debug, Default)]
pub(super) struct Recreations {
    entries: Vec<AuditEntry>,
    reported: HashMap<ClusterName, Reported>,
    /// The start of each cluster's period, and the number of recreations in it.
    counts: HashMap<ClusterName, (u64, u32)>,
}

impl Recreations {
    /// Records the recreations that a cluster's agent reports for the first time. `now` is in seconds since 1970.
    pub(super) fn hear(&mut self, cluster: &ClusterName, apps: &[v1::AppReport], now: u64) {
        for (app, drift) in self.new_in(cluster, apps) {
            let (app, object) = (text(app), text(&drift.object));
            let why = text(&drift.difference);
            self.add(
                cluster,
                now,
                format!("recreated {object} of app {app}: {why}"),
            );
        }
    }

    /// Remembers the recreations in a stored report. The audit log has them already, because they were written in the
    /// same transaction. Those that the stored report left out are recorded again when the agent reports them.
    pub(super) fn hear_stored(&mut self, cluster: &ClusterName, apps: &[v1::AppReport]) {
        self.new_in(cluster, apps);
    }

    /// Remembers the recreations in a report, and returns the new ones with their apps.
    fn new_in<'a>(
        &mut self,
        cluster: &ClusterName,
        apps: &'a [v1::AppReport],
    ) -> Vec<(&'a str, &'a v1::DriftEvent)> {
        let reported = self.reported.entry(cluster.clone()).or_default();
        let mut new = Vec::new();
        for app in apps {
            for drift in app.drifts.iter().filter(|drift| drift.recreated) {
                if reported.remember(&app.app, drift) {
                    new.push((app.app.as_str(), drift));
                }
            }
        }
        new
    }

    /// Forgets a cluster that was removed.
    pub(super) fn forget(&mut self, cluster: &ClusterName) {
        self.reported.remove(cluster);
    }

    fn add(&mut self, cluster: &ClusterName, at: u64, what: String) {
        let (since, count) = self.counts.entry(cluster.clone()).or_insert((at, 0));
        if at.saturating_sub(*since) >= PERIOD {
            (*since, *count) = (at, 0);
        }
        *count = count.saturating_add(1);
        let what = match *count {
            ..=MOST => what,
            over if over == MOST + 1 => format!(
                "recreated more than {MOST} objects within an hour; the agent's log has the rest"
            ),
            _ => return,
        };
        let who = format!("agent of cluster {cluster}");
        self.entries.push(AuditEntry::new(&who, what));
    }

    /// Takes the entries that have to be written.
    pub(super) fn take(&mut self) -> Vec<AuditEntry> {
        std::mem::take(&mut self.entries)
    }

    /// Puts back entries that could not be written.
    pub(super) fn take_back(&mut self, mut entries: Vec<AuditEntry>) {
        entries.append(&mut self.entries);
        self.entries = entries;
    }
}

fn text(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

#[cfg(test)]
mod tests;
