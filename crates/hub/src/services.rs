//! The gRPC services. The certificate identifies the caller, and each call checks it.

mod admin;
mod agents;
mod caller;
mod enrolment;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use muster_git::Watcher;
use muster_model::ids::{ClusterName, InvalidId};
use muster_pki::{AdminName, Ca};
use muster_proto::v1;
use tonic::{Response, Status};

use crate::{
    authority::{Authority, AuthorityError, Granted},
    fleet_view::FleetView,
    leadership::Leadership,
    metrics::Metrics,
    moves::Moves,
    session::Sessions,
    store_schema::{Lead, timestamp},
};

/// The default lifetime of a join token.
const TOKEN_VALID: Duration = Duration::from_secs(60 * 60);
/// The longest lifetime of a join token.
const TOKEN_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The longest lifetime of a login.
const LOGIN_MOST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The default lifetime of a login.
const LOGIN_VALID: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The shortest interval between two messages of a watched status.
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// The longest reason that a caller may give, in characters; the rest is cut off.
const MAX_REASON: usize = 500;
/// The number of messages that are queued for a slow agent before its session waits.
const OUTGOING: usize = 4;

/// All services of a hub.
#[derive(Clone)]
pub(crate) struct Services(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) authority: Arc<Authority>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) view: Arc<FleetView>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) moves: Arc<Moves>,
    pub(crate) repo: Arc<Watcher>,
    pub(crate) metrics: Metrics,
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Returns the term that this hub leads in, or an error for the caller if another hub leads.
    fn lead(&self) -> Result<Lead, Status> {
        let lead = self.0.leadership.now();
        lead.ok_or_else(|| Status::unavailable("this hub has stepped down; another hub leads"))
    }

    async fn ca_info(&self) -> Result<v1::CaInfo, AuthorityError> {
        let authority = &self.0.authority;
        let (cas, behind) = (authority.cas(), authority.behind().await?);
        let since = cas.next.as_ref().map_or(0, |_| cas.since());
        Ok(v1::CaInfo {
            name: cas.current.name()?,
            expires_at: timestamp(cas.current.not_after()),
            next: cas
                .next
                .as_ref()
                .map(Ca::name)
                .transpose()?
                .unwrap_or_default(),
            since: i64::try_from(since).unwrap_or_default(),
            clusters: behind.clusters,
            logins: behind.logins,
            join_tokens: behind.join_tokens,
        })
    }
}

/// Cuts a person's reason to the length that is recorded.
fn cut_reason(reason: &str) -> String {
    reason.chars().take(MAX_REASON).collect()
}

/// Returns the requested validity, or the default if none is requested. Fails if it is longer than `most`.
fn validity(seconds: u64, default: Duration, most: Duration) -> Result<Duration, Status> {
    if seconds == 0 {
        return Ok(default);
    }
    let asked = Duration::from_secs(seconds);
    if asked > most {
        let days = most.as_secs() / 86_400;
        return Err(Status::invalid_argument(format!(
            "that is too long; at most {days} days"
        )));
    }
    Ok(asked)
}

fn certificate(granted: Granted) -> v1::Certificate {
    v1::Certificate {
        certificate: granted.certificate,
        trust: granted.trust,
        cluster: granted.cluster.to_string(),
        instance: granted.instance.to_string(),
    }
}

fn admin_name(text: &str) -> Result<AdminName, Status> {
    text.parse()
        .map_err(|error: muster_pki::InvalidAdminName| Status::invalid_argument(error.to_string()))
}

fn cluster_name(text: &str) -> Result<ClusterName, Status> {
    text.parse()
        .map_err(|error: InvalidId| Status::invalid_argument(error.to_string()))
}
