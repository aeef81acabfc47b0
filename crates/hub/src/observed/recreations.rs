//! Collects entries for the audit log about the objects that agents have recreated. Each recreation is recorded once.

use std::collections::{BTreeMap, HashMap};

use muster_model::ids::ClusterName;
use muster_proto::v1;

use crate::store_schema::AuditEntry;

/// The most recreations of one cluster that are recorded within [`PERIOD`]. It keeps an agent from filling the hub's
/// store.
const MOST: u32 = 100;
/// The length of a period, in seconds.
const PERIOD: u64 = 3600;
/// The most characters of an agent's text that are recorded.
const TEXT: usize = 300;

/// Recreations that are not in the audit log yet.
#[derive(Debug, Default)]
pub(super) struct Recreations {
    entries: Vec<AuditEntry>,
    /// The start of each cluster's period, and the number of recreations in it.
    counts: HashMap<ClusterName, (u64, u32)>,
}

impl Recreations {
    /// Records the recreations in a cluster's report that its previous report did not contain. `now` is in seconds
    /// since 1970.
    pub(super) fn hear(
        &mut self,
        cluster: &ClusterName,
        before: &BTreeMap<String, v1::AppReport>,
        apps: &[v1::AppReport],
        now: u64,
    ) {
        for report in apps {
            let known = before
                .get(&report.app)
                .map_or(&[][..], |report| &report.drifts);
            let new = report.drifts.iter();
            for drift in new.filter(|drift| drift.recreated && !known.contains(drift)) {
                let (app, object) = (text(&report.app), text(&drift.object));
                let why = text(&drift.difference);
                self.add(
                    cluster,
                    now,
                    format!("recreated {object} of app {app}: {why}"),
                );
            }
        }
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
