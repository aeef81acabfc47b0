//! The fleet's status as a document: what `-o json` prints, and the source of reports and lists.
//!
//! Scripts rely on the field names. Times are in RFC 3339; unknown values are `null`.

use std::collections::BTreeSet;

use clap::Args;
use jiff::Timestamp;
use muster_model::{
    ids::ContentHash,
    problem::{Problem, Scope},
};
use muster_proto::v1;
use serde::Serialize;

/// The state of a cluster, or of an app in a cluster. A worse state is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    /// It is in the desired state, and healthy.
    Synced,
    /// It is not yet in the desired state, or not yet healthy.
    Progressing,
    /// No agent has ever joined.
    Unjoined,
    /// The agent has no stream to the hub. All other fields hold the last observed state.
    Offline,
    /// Something is pending approval or needs a decision, and nothing fails.
    Pending,
    /// Something is refused, degraded or stuck.
    Failing,
}

impl State {
    /// Returns the word for people, which is the same as in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Progressing => "progressing",
            Self::Unjoined => "unjoined",
            Self::Offline => "offline",
            Self::Pending => "pending",
            Self::Failing => "failing",
        }
    }
}

/// The status of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    /// The fleet's name; empty before the first good commit.
    pub(crate) fleet: String,
    pub(crate) hub_version: String,
    /// The time of the hub's clock.
    pub(crate) now: Option<Timestamp>,
    /// True if everything selected runs at the newest commit and is healthy, and all problems are only hints.
    pub(crate) synced: bool,
    pub(crate) repo: Repo,
    /// The epoch of the fleet record, which says who writes.
    pub(crate) epoch: u64,
    /// The problems of the hub and of the fleet repository, in the form of `muster validate -o json`.
    pub(crate) problems: Vec<Problem>,
    pub(crate) regions: Vec<Region>,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) apps: Vec<App>,
}

/// The fleet repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Repo {
    pub(crate) url: String,
    /// A description of the branch or tag that the hub follows.
    pub(crate) reference: String,
    /// The commit in force.
    pub(crate) commit: Option<String>,
    pub(crate) subject: String,
    pub(crate) author: String,
    pub(crate) committed_at: Option<Timestamp>,
    /// The newest commit that the hub has seen.
    pub(crate) tip: Option<String>,
    /// True if the newest commit is not in force: it is blocked or in progress.
    pub(crate) behind: bool,
    /// The commit that the problems belong to. It differs from `tip` while a newer commit is in progress. `None` also
    /// for a hub that is too old to report it.
    pub(crate) processed: Option<String>,
    /// The reason why the repository can't be read.
    pub(crate) problem: Option<String>,
    pub(crate) problem_since: Option<Timestamp>,
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) last_read: Option<Timestamp>,
}

/// A region, with the number of its clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) continent: String,
    pub(crate) country: String,
    pub(crate) city: String,
    pub(crate) clusters: usize,
    pub(crate) synced: usize,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) state: State,
    pub(crate) connected: bool,
    /// When the hub last received something from the agent. An agent with nothing to report sends nothing.
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) agent_version: Option<String>,
    pub(crate) wanted_generation: u64,
    pub(crate) generation: u64,
    /// The commit that the cluster runs.
    pub(crate) commit: Option<String>,
    /// The problems of the cluster itself, not of one of its apps.
    pub(crate) problems: Vec<String>,
    pub(crate) apps: Vec<Placed>,
}

impl Cluster {
    /// Returns how many of the cluster's apps are synced according to the agent's last report, and how many apps the
    /// cluster should have. An app that is leaving the cluster is not counted.
    pub(crate) fn apps_synced(&self) -> (usize, usize) {
        let placed = || self.apps.iter().filter(|app| !app.role.is_empty());
        let synced = placed().filter(|app| app.reported == State::Synced);
        (synced.count(), placed().count())
    }

    /// Returns the number of applied objects, and the number of all objects.
    pub(crate) fn objects(&self) -> (u32, u32) {
        self.apps.iter().fold((0, 0), |(applied, all), app| {
            (applied + app.applied, all + app.objects)
        })
    }
}

/// An app in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Placed {
    pub(crate) app: String,
    /// The app's role; empty if it is leaving the cluster.
    pub(crate) role: String,
    pub(crate) state: State,
    /// True if the cluster is in the desired state for this app.
    pub(crate) synced: bool,
    /// The phase of the app's generation: `received`, `applied` or `failed`.
    pub(crate) phase: Option<&'static str>,
    /// The app's health, in Argo CD's words.
    pub(crate) health: Option<String>,
    pub(crate) objects: u32,
    pub(crate) applied: u32,
    pub(crate) problems: Vec<ObjectProblem>,
    /// The objects that are deleted or recreated only after `muster app approve`.
    pub(crate) holds: Vec<Hold>,
    /// The number of objects that are leaving.
    pub(crate) leaving: u32,
    /// The number of objects that are stuck.
    pub(crate) stuck: u32,
    /// The number of objects that have drifted and are not reverted, because the app says `drift: report`.
    pub(crate) drifted: u32,
    /// The latest drift events, newest first; empty unless apps are selected by name.
    pub(crate) drifts: Vec<Drift>,
    /// The app's state according to the agent's last report, even if the cluster is offline.
    #[serde(skip)]
    pub(crate) reported: State,
    /// True if something of the app is refused, degraded or stuck.
    #[serde(skip)]
    pub(crate) fails: bool,
}

/// A set of objects that are pending approval.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hold {
    /// The hash that identifies exactly this set of objects.
    pub(crate) set: String,
    /// The reason why their deletion or recreation needs an approval.
    pub(crate) reason: String,
    /// True if the objects are in Git and are recreated right after the deletion.
    pub(crate) recreate: bool,
    /// The number of objects.
    pub(crate) count: u32,
    /// The names of objects of the set. If apps are selected by name, these are all names that fit in the agent's
    /// report, otherwise at most three.
    pub(crate) objects: Vec<String>,
}

/// A drift of an object that the agent found, or a recreation of the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drift {
    pub(crate) at: Option<Timestamp>,
    pub(crate) object: String,
    /// The fields, with their actual and desired values.
    pub(crate) difference: String,
    /// True if the drift was reverted.
    pub(crate) corrected: bool,
    /// True if the object did not drift, but was recreated because of an immutable field.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) recreated: bool,
}

/// A problem of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ObjectProblem {
    pub(crate) object: String,
    pub(crate) message: String,
}

/// An app, with the number of clusters that it is placed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) tier: String,
    pub(crate) mode: String,
    pub(crate) owner: String,
    /// True if the app is blocked: it stays at its last good state, because of a problem in the fleet repository.
    pub(crate) held: bool,
    /// The cluster that holds the app's writer; `null` for an app without one.
    pub(crate) writer: Option<Writer>,
    pub(crate) clusters: usize,
    pub(crate) synced: usize,
}

/// The cluster that holds an app's writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Writer {
    pub(crate) region: String,
    pub(crate) cluster: String,
    /// The epoch at which the cluster became the holder.
    pub(crate) epoch: u64,
    /// When it became the holder.
    pub(crate) since: Option<Timestamp>,
    /// The person or commit that made it the holder.
    pub(crate) by: String,
    pub(crate) reason: String,
    /// The move that is under way; `null` if there is none.
    #[serde(rename = "move")]
    pub(crate) moved: Option<Move>,
    /// The regions to which the writer can move.
    pub(crate) targets: Vec<String>,
}

/// The move of an app's writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Move {
    /// `fencing`, `promoting` or `returning`.
    pub(crate) step: String,
    /// The other cluster: the one that gets the writer (`fencing`), had it (`promoting`), or would have got it
    /// (`returning`).
    pub(crate) region: String,
    pub(crate) cluster: String,
    /// What the move waits for.
    pub(crate) waits_for: String,
    /// True if nothing proves that the old side no longer writes.
    pub(crate) unproven: bool,
}

impl From<v1::Writer> for Writer {
    fn from(writer: v1::Writer) -> Self {
        let moved = writer.r#move.map(|step| Move {
            step: step.step,
            region: step.region,
            cluster: step.cluster,
            waits_for: step.waits,
            unproven: step.unproven,
        });
        Self {
            moved,
            targets: writer.targets,
            region: writer.region,
            cluster: writer.cluster,
            epoch: writer.epoch,
            since: time(writer.at),
            by: writer.by,
            reason: writer.why,
        }
    }
}

/// The selected part of the fleet; everything if nothing is named.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Filter {
    /// Only the clusters of this region; can be repeated.
    #[arg(long = "region", value_name = "REGION")]
    pub(crate) regions: Vec<String>,
    /// Only this cluster; can be repeated.
    #[arg(long = "cluster", value_name = "CLUSTER")]
    pub(crate) clusters: Vec<String>,
    /// Only this app; can be repeated.
    #[arg(long = "app", value_name = "APP")]
    pub(crate) apps: Vec<String>,
}

impl Filter {
    /// Returns the request for the hub.
    pub(crate) fn request(&self) -> v1::StatusRequest {
        v1::StatusRequest {
            clusters: self.clusters.clone(),
            apps: self.apps.clone(),
        }
    }
}

fn asked(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|asked| asked == name)
}

fn time(seconds: i64) -> Option<Timestamp> {
    (seconds != 0)
        .then(|| Timestamp::from_second(seconds).ok())
        .flatten()
}

fn known(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Returns true if the newest commit is in force and every cluster is synced.
fn runs_everywhere(repo: &Repo, clusters: &[Cluster]) -> bool {
    repo.commit.is_some()
        && !repo.behind
        && repo.problem.is_none()
        && clusters
            .iter()
            .all(|cluster| cluster.state == State::Synced)
}

impl Repo {
    /// Returns true if the problems belong to the newest commit, and not to an earlier one.
    fn is_tip_processed(&self) -> bool {
        self.processed.is_none() || self.processed == self.tip
    }
}

impl Document {
    /// Returns true if the newest commit is blocked as a whole.
    pub(crate) fn is_blocked(&self) -> bool {
        self.repo.behind && self.repo.is_tip_processed() && self.has_fleet_problem()
    }

    /// Returns the commit that the problems belong to, if it was blocked and is not the newest one.
    pub(crate) fn blocked_before(&self) -> Option<&str> {
        let processed = self.repo.processed.as_deref();
        processed.filter(|_| {
            !self.repo.is_tip_processed()
                && self.repo.processed != self.repo.commit
                && self.has_fleet_problem()
        })
    }

    fn has_fleet_problem(&self) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.scope == Scope::Fleet)
    }

    /// Returns true if the newest commit runs everywhere but has problems that only another commit can fix.
    pub(crate) fn waits_for_a_commit(&self) -> bool {
        self.problems.iter().any(Problem::blocks)
            && self.repo.is_tip_processed()
            && runs_everywhere(&self.repo, &self.clusters)
    }

    /// Returns true if the fleet is in sync, except for problems of the hub that only a person can solve.
    pub(crate) fn waits_for_a_person(&self) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.scope == Scope::Hub)
            && !self.waits_for_a_commit()
            && runs_everywhere(&self.repo, &self.clusters)
    }

    /// Returns the selected part of a status.
    pub(crate) fn of(status: v1::Status, filter: &Filter) -> Self {
        let repo = repo(status.repo.unwrap_or_default());
        let clusters: Vec<Cluster> = status
            .clusters
            .into_iter()
            .filter(|c| asked(&filter.regions, &c.region) && asked(&filter.clusters, &c.name))
            .map(|c| cluster(c, &filter.apps))
            .filter(|c| filter.apps.is_empty() || !c.apps.is_empty())
            .collect();
        let everywhere = filter.regions.is_empty() && filter.clusters.is_empty();
        let whole = everywhere && filter.apps.is_empty();
        let regions_left: BTreeSet<&str> = clusters.iter().map(|c| c.region.as_str()).collect();
        let regions = status
            .regions
            .into_iter()
            .filter(|r| whole || regions_left.contains(r.name.as_str()))
            .map(|r| region(r, &clusters))
            .collect();
        let apps: Vec<App> = status
            .apps
            .into_iter()
            .filter(|a| asked(&filter.apps, &a.name))
            .map(|a| app(a, &clusters))
            .filter(|a| everywhere || a.clusters > 0)
            .collect();
        let problems: Vec<Problem> = status
            .problems
            .iter()
            .map(Problem::from)
            .filter(|problem| match &problem.scope {
                Scope::App(app) => asked(&filter.apps, app.as_str()),
                Scope::Fleet | Scope::Hint | Scope::Hub => true,
            })
            .collect();
        let good = problems.iter().all(|problem| problem.scope == Scope::Hint);
        let moves = |app: &App| app.writer.as_ref().is_some_and(|w| w.moved.is_some());
        let still = !apps.iter().any(moves);
        let synced = good && still && runs_everywhere(&repo, &clusters);
        Self {
            fleet: status.fleet,
            hub_version: status.hub_version,
            now: time(status.now),
            epoch: status.epoch,
            synced,
            repo,
            problems,
            regions,
            clusters,
            apps,
        }
    }
}

fn repo(repo: v1::Repo) -> Repo {
    Repo {
        behind: !repo.tip.is_empty() && repo.tip != repo.commit,
        url: repo.url,
        reference: repo.reference,
        commit: known(repo.commit),
        subject: repo.subject,
        author: repo.author,
        committed_at: time(repo.committed_at),
        tip: known(repo.tip),
        processed: known(repo.processed),
        problem: known(repo.problem),
        problem_since: time(repo.problem_since),
        retry_at: time(repo.retry_at),
        last_read: time(repo.last_read),
    }
}

fn region(region: v1::RegionSummary, clusters: &[Cluster]) -> Region {
    let own = || clusters.iter().filter(|c| c.region == region.name);
    Region {
        clusters: own().count(),
        synced: own().filter(|c| c.state == State::Synced).count(),
        name: region.name,
        continent: region.continent,
        country: region.country,
        city: region.city,
    }
}

fn cluster(cluster: v1::ClusterStatus, apps_asked: &[String]) -> Cluster {
    let state = state(cluster.state());
    let apps: Vec<Placed> = cluster
        .apps
        .into_iter()
        .filter(|app| asked(apps_asked, &app.app))
        .map(|app| placed(app, state))
        .collect();
    // The hub reports one state for the whole generation, and reports pending as failing. If apps are selected, only
    // their states and the problems of the cluster itself count.
    let state = match state {
        State::Synced | State::Progressing | State::Failing
            if !apps_asked.is_empty() || state == State::Failing =>
        {
            let worst = apps.iter().map(|app| app.state).max();
            let own = (!cluster.problems.is_empty()).then_some(State::Failing);
            own.max(worst).unwrap_or(state)
        }
        state => state,
    };
    Cluster {
        name: cluster.name,
        region: cluster.region,
        state,
        connected: cluster.connected,
        last_seen: time(cluster.last_seen),
        agent_version: known(cluster.agent_version),
        wanted_generation: cluster.wanted,
        generation: cluster.in_force,
        commit: known(cluster.commit),
        problems: cluster.problems,
        apps,
    }
}

fn placed(app: v1::ClusterApp, cluster: State) -> Placed {
    let phase = match app.phase() {
        v1::Phase::Unspecified => None,
        v1::Phase::Received => Some("received"),
        v1::Phase::Applied => Some("applied"),
        v1::Phase::Failed => Some("failed"),
    };
    let fails = app.fails();
    let reported = match state(app.state()) {
        State::Failing if !fails => State::Pending,
        state => state,
    };
    let problems = app.problems.into_iter().map(|problem| ObjectProblem {
        object: problem.object,
        message: problem.message,
    });
    let holds = app.holds.into_iter().map(|hold| Hold {
        set: hex(&hold.set),
        reason: hold.reason,
        recreate: hold.recreate,
        count: hold.count,
        objects: hold.objects,
    });
    let drifts = app.drifts.into_iter().rev().map(|drift| Drift {
        at: time(drift.at),
        object: drift.object,
        difference: drift.difference,
        corrected: drift.corrected,
        recreated: drift.recreated,
    });
    Placed {
        app: app.app,
        role: app.role,
        state: match cluster {
            State::Unjoined | State::Offline => cluster,
            _ => reported,
        },
        synced: app.synced,
        phase,
        health: known(app.health),
        objects: app.objects,
        applied: app.applied,
        problems: problems.collect(),
        holds: holds.collect(),
        leaving: app.leaving,
        stuck: app.stuck,
        drifted: app.drifted,
        drifts: drifts.collect(),
        reported,
        fails,
    }
}

fn state(state: v1::ClusterState) -> State {
    match state {
        v1::ClusterState::Unspecified | v1::ClusterState::Unjoined => State::Unjoined,
        v1::ClusterState::Offline => State::Offline,
        v1::ClusterState::Failing => State::Failing,
        v1::ClusterState::Progressing => State::Progressing,
        v1::ClusterState::Synced => State::Synced,
    }
}

fn hex(bytes: &[u8]) -> String {
    ContentHash::try_from(bytes).map_or_else(|_| String::new(), |hash| hash.to_string())
}

fn app(app: v1::AppSummary, clusters: &[Cluster]) -> App {
    let places = || {
        let all = clusters.iter().flat_map(|cluster| &cluster.apps);
        all.filter(|placed| placed.app == app.name)
    };
    App {
        clusters: places().count(),
        synced: places()
            .filter(|placed| placed.state == State::Synced)
            .count(),
        name: app.name,
        tier: app.tier,
        mode: app.mode,
        owner: app.owner,
        held: app.held,
        writer: app.writer.map(Into::into),
    }
}
