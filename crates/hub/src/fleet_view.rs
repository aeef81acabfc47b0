//! The fleet's status for people, scripts, metrics and the dashboard.

mod status;

use std::{collections::BTreeSet, sync::Arc};

use muster_git::RepoView;
use muster_model::{ids::ClusterName, problem::Problem};
use muster_proto::v1;
use tokio::sync::watch;

use crate::{
    authority::Authority,
    fleet_loop::{Published, silent},
    leadership::Leadership,
    observed::Observed,
    store_schema::timestamp,
};

/// The sources of the fleet's status.
pub(crate) struct FleetView {
    pub(crate) authority: Arc<Authority>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) published: Arc<Published>,
    pub(crate) repository: watch::Receiver<RepoView>,
}

impl FleetView {
    /// Returns the clusters that may know a writer that the hub does not know, and that were not heard. While the hub's
    /// whole state is unconfirmed, a cluster may have joined after the state was stored.
    pub(crate) fn silent(&self) -> BTreeSet<ClusterName> {
        silent(&self.observed, &self.published.borrow())
    }

    /// Returns the current status of the fleet, or of the requested clusters and apps.
    pub(crate) fn status(&self, request: &v1::StatusRequest) -> v1::Status {
        let state = self.published.borrow().clone();
        let view = self.repository.borrow().state.clone();
        let mut repo = v1::Repo {
            url: view.remote,
            reference: view.reference,
            commit: state.in_force.commit.clone(),
            subject: state.in_force.subject.clone(),
            author: state.in_force.author.clone(),
            committed_at: state.in_force.committed_at,
            tip: view
                .tip
                .map(|tip| tip.commit.to_string())
                .unwrap_or_default(),
            last_read: view.last_attempt.map_or(0, timestamp),
            processed: state.processed.clone(),
            ..v1::Repo::default()
        };
        if let Some(problem) = view.problem {
            repo.problem = problem.text;
            repo.problem_since = timestamp(problem.since);
            repo.retry_at = timestamp(problem.retry_at);
        }
        let unreadable = !repo.problem.is_empty();
        let mut status =
            status::status(&state, |cluster| self.observed.get(cluster), repo, request);
        let mut first = state.unconfirmed.problems();
        let blocked = unreadable
            || status
                .problems
                .iter()
                .any(|problem| problem.scope == "fleet");
        if !state.current && blocked {
            first.push(Problem::of_hub(
                "this hub has read no good commit since it was started, and delivers nothing until it has",
                "clusters continue to run what they have",
            ));
        }
        let failed = state.failed.iter();
        first.extend(failed.map(|why| {
            Problem::of_hub(why, "the hub retries; the last good commit stays in force")
        }));
        first.extend(self.authority.warnings());
        if self.leadership.now().is_none() {
            let problem = Problem::of_hub(
                "this hub has stepped down: another hub leads with a copy of its store",
                "stop one of the two and start the other again",
            );
            first.insert(0, problem);
        }
        let first = first.iter().map(v1::RepoProblem::from);
        status.problems.splice(0..0, first);
        status
    }
}
