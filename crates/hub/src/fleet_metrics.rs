//! Metrics of the fleet's state. They are computed at each scrape, from the same status that people see.

use std::{fmt, sync::Arc};

use muster_proto::v1;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::fleet_view::FleetView;

/// The labels of a cluster's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stands {
    cluster: String,
    region: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfApp {
    app: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    cluster: String,
    region: String,
}

impl From<&v1::ClusterStatus> for Of {
    fn from(cluster: &v1::ClusterStatus) -> Self {
        Self {
            cluster: cluster.name.clone(),
            region: cluster.region.clone(),
        }
    }
}

/// Counts objects of an application in a cluster.
type Count = fn(&v1::ClusterApp) -> u64;

/// Computes the status of the fleet at each scrape.
pub(crate) struct Scrape(pub(crate) Arc<FleetView>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode(&self.0.status(&v1::StatusRequest::default()), &mut encoder)
    }
}

fn encode(status: &v1::Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "cluster_state",
        "1 for the current state of the cluster",
        None,
        MetricType::Gauge,
    )?;
    for cluster in &status.clusters {
        let labels = Stands {
            cluster: cluster.name.clone(),
            region: cluster.region.clone(),
            state: cluster
                .state()
                .as_str_name()
                .trim_start_matches("CLUSTER_STATE_")
                .to_lowercase(),
        };
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
    }
    let mut family = encoder.encode_descriptor(
        "cluster_last_seen_timestamp_seconds",
        "Last contact with the cluster's agent, in seconds since 1970",
        None,
        MetricType::Gauge,
    )?;
    for cluster in status.clusters.iter().filter(|c| c.last_seen > 0) {
        ConstGauge::new(cluster.last_seen).encode(family.encode_family(&Of::from(cluster))?)?;
    }
    let counted: [(&str, &str, Count); 3] = [
        (
            "cluster_leaving_objects",
            "Objects that are no longer in Git and wait to be deleted",
            |app| u64::from(app.leaving),
        ),
        (
            "cluster_stuck_objects",
            "Objects that are no longer in Git and whose deletion does not finish",
            |app| u64::from(app.stuck),
        ),
        (
            "cluster_pending_approval_objects",
            "Objects whose deletion or recreation is pending approval",
            |app| app.holds.iter().map(|hold| u64::from(hold.count)).sum(),
        ),
    ];
    for (name, help, count) in counted {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for cluster in &status.clusters {
            let objects: u64 = cluster.apps.iter().map(count).sum();
            let objects = i64::try_from(objects).unwrap_or(i64::MAX);
            ConstGauge::new(objects).encode(family.encode_family(&Of::from(cluster))?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "writer_move",
        "1 while the writer of the app is being moved, otherwise 0",
        None,
        MetricType::Gauge,
    )?;
    for app in &status.apps {
        if let Some(writer) = &app.writer {
            let labels = OfApp {
                app: app.name.clone(),
            };
            let moves = i64::from(writer.r#move.is_some());
            ConstGauge::new(moves).encode(family.encode_family(&labels)?)?;
        }
    }
    let repo = status.repo.clone().unwrap_or_default();
    let unreadable = i64::from(!repo.problem.is_empty());
    let of_scope = |scopes: &[&str]| {
        let problems = status.problems.iter();
        let number = problems.filter(|problem| scopes.contains(&problem.scope.as_str()));
        i64::try_from(number.count()).unwrap_or(i64::MAX)
    };
    let single = [
        (
            "problems",
            "Problems of the fleet repository, without hints",
            of_scope(&["fleet", "app"]),
        ),
        (
            "own_problems",
            "Problems of the hub itself that a person must solve, as `muster status` shows them",
            of_scope(&["hub"]),
        ),
        (
            "repository_unreadable",
            "1 while the fleet repository can't be read",
            unreadable,
        ),
        (
            "repository_read_timestamp_seconds",
            "Last attempt to read the fleet repository, in seconds since 1970",
            repo.last_read,
        ),
        (
            "commit_timestamp_seconds",
            "Commit time of the commit in force, in seconds since 1970",
            repo.committed_at,
        ),
        (
            "commit_behind",
            "1 while the repository's newest commit is not the one in force",
            i64::from(!repo.tip.is_empty() && repo.tip != repo.commit),
        ),
    ];
    for (name, help, value) in single {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
    }
    Ok(())
}
