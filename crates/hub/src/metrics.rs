//! The hub's own metrics.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The label of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Refused {
    pub(crate) reason: String,
}

/// The label of messages to agents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Sent {
    pub(crate) kind: SentKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum SentKind {
    Generation,
    Blob,
}

/// The reasons for refusals. Their series exist from the start with the value 0, since Prometheus sees no increase in a
/// series that begins with its first event.
const REASONS: [&str; 27] = [
    "bad_request",
    "copied_key",
    "crowded",
    "expired",
    "expired_token",
    "foreign_record",
    "impossible_number",
    "no_certificate",
    "no_hello",
    "no_record",
    "nonsense",
    "not_an_admin",
    "not_an_agent",
    "not_leading",
    "old_ca",
    "other_cluster",
    "protocol",
    "revoked",
    "tls",
    "too_large",
    "too_much",
    "two_processes",
    "unknown_login",
    "unknown_token",
    "wrong_clock",
    "unproven_term",
    "used_token",
];

/// The prefix of all metric names.
pub(crate) const PREFIX: &str = "muster_hub";

/// The hub's metrics. Clones share the same values.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) agents: Gauge,
    pub(crate) refused: Family<Refused, Counter>,
    pub(crate) sent: Family<Sent, Counter>,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commits_failed: Counter,
    pub(crate) workers_ended: Counter,
    pub(crate) ca_end: Gauge,
    pub(crate) ca_behind: Gauge,
    /// The start of the current log period and the number of refusals in it, by reason. This limits how much refused
    /// callers can write to the log.
    logged: Arc<Mutex<HashMap<String, (Instant, u32)>>>,
}

/// The most refusals for one reason that are logged individually within [`LOG_PERIOD`].
const LOGGED: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(10);

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix(PREFIX);
        let metrics = Self {
            agents: Gauge::default(),
            refused: Family::default(),
            sent: Family::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            commits_failed: Counter::default(),
            workers_ended: Counter::default(),
            ca_end: Gauge::default(),
            ca_behind: Gauge::default(),
            logged: Arc::default(),
        };
        for reason in REASONS.map(str::to_owned) {
            drop(metrics.refused.get_or_create(&Refused { reason }));
        }
        for kind in [SentKind::Generation, SentKind::Blob] {
            drop(metrics.sent.get_or_create(&Sent { kind }));
        }
        registry.register(
            "agents_connected",
            "Agents that are connected",
            metrics.agents.clone(),
        );
        registry.register(
            "refused",
            "Connections and requests that were refused, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "ca_end_timestamp_seconds",
            "Expiry of the fleet's CA, in seconds since 1970",
            metrics.ca_end.clone(),
        );
        registry.register(
            "ca_behind",
            "Clusters, logins and join tokens that still need the old CA while it is being replaced",
            metrics.ca_behind.clone(),
        );
        registry.register(
            "messages_sent",
            "Generations and bundles sent to agents, by kind",
            metrics.sent.clone(),
        );
        registry.register(
            "commit_seconds",
            "Seconds from the start of processing a commit to its generations in the store",
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "commits_failed",
            "Failed attempts to bring a commit into force",
            metrics.commits_failed.clone(),
        );
        registry.register(
            "render_workers_ended",
            "Worker processes (which read and render commits) that ended unexpectedly",
            metrics.workers_ended.clone(),
        );
        metrics
    }

    /// Counts and logs a refused caller.
    pub(crate) fn refuse(&self, reason: &str, who: &str, why: &str) {
        self.refused
            .get_or_create(&Refused {
                reason: reason.to_owned(),
            })
            .inc();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = logged
            .entry(reason.to_owned())
            .or_insert((Instant::now(), 0));
        if since.elapsed() > LOG_PERIOD {
            let left_out = count.saturating_sub(LOGGED);
            if left_out > 0 {
                tracing::warn!(
                    reason,
                    left_out,
                    "more callers were refused than are logged individually"
                );
            }
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
        if *count <= LOGGED {
            tracing::warn!(reason, who, why, "refused");
        }
    }
}
