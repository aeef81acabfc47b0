//! Chooses the desired state of every cluster after a commit, and brings it into force.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use muster_model::{
    fleet_record::{FleetRecord, Writer},
    ids::{AppName, ClusterName, ContentHash, Epoch},
    problem::Problem,
    tree::{Recent, Snapshot},
};
use muster_plan::{handover::role_of, placement::FIRST_PLACEMENT};
use muster_render::RenderedBundle;
use muster_worker::{Facts, Outcome};

use super::{
    FleetError, FleetLoop, Older, Worked,
    numbering::{List, Orders},
};
use crate::{
    approvals::{self},
    blobs::{self},
    bundle_selection::{Bundles, Candidate, Selection, select_bundles},
    desired_state::FleetState,
    fleet_record::Stored,
    store_schema::{self, AppRecord, InForce, RecordError, RegionRecord},
    unconfirmed::Unconfirmed,
};

/// The results that the fleet loop caches from one commit to the next.
#[derive(Default)]
pub(super) struct RenderCache {
    /// The sets of bundles in which no object occurs twice, by content.
    verified: HashSet<ContentHash>,
    /// The bundles in force, which an app keeps while its newest bundle has a problem.
    in_force: Bundles,
}

/// Returns the apps that the commits since the one in force release by their messages, so that all their objects may be
/// deleted. If the commit in force is not an ancestor, as after a force-push, only the newest commit counts.
pub(super) fn released_apps(snapshot: &Snapshot, in_force: &str) -> BTreeSet<AppName> {
    let recent = &snapshot.recent;
    let known = |recent: &Recent| recent.commit.to_string() == in_force;
    let new = recent.iter().position(known).unwrap_or(1);
    recent
        .iter()
        .take(new)
        .flat_map(|recent| recent.lets_go.iter().cloned())
        .collect()
}

impl FleetLoop {
    pub(super) async fn bring_in(
        &self,
        render_cache: &mut RenderCache,
        snapshot: &Snapshot,
        worked: &Worked,
    ) -> Result<(), FleetError> {
        let Worked {
            outcome,
            older,
            stored,
            base,
        } = worked;
        let processed = snapshot.commit.to_string();
        let _numbering = self.leadership.numbering().await;
        self.check_record(stored).await?;
        let approved = approvals::all(self.store.as_ref()).await?;
        let unconfirmed = Arc::new(Unconfirmed::load(self.store.as_ref()).await?);
        let before = self.published.borrow().clone();
        let Some(facts) = &outcome.facts else {
            // The last good commit stays in force. Only three things change: the problems that are shown, the approvals
            // and confirmations that people have given meanwhile, and the bundles of apps that are being moved.
            let moved = moved(older, &stored.record);
            let lists = before.desired.iter().map(|(cluster, desired)| {
                let mut bundles = desired.bundles.to_vec();
                if let Some(moved) = moved.get(cluster) {
                    bundles.retain(|listed| !moved.contains_key(&listed.app));
                    bundles.extend(moved.values().map(|candidate| candidate.listed.clone()));
                    bundles.sort_by(|a, b| a.app.cmp(&b.app));
                }
                let list = List {
                    budget: unconfirmed.budget(cluster, desired.prune.budget),
                    unknown: desired.prune.unknown.clone(),
                    bundles,
                };
                (cluster.clone(), list)
            });
            let commit = &before.in_force.commit;
            let none = |_: &AppName| false;
            let numbers = BTreeMap::new();
            let record = Arc::new(stored.record.clone());
            let orders = Orders {
                approved: &approved,
                unconfirmed: &unconfirmed,
                numbers: &numbers,
                epoch: record.epoch,
            };
            let desired = if before.current {
                self.number(lists.collect(), &orders, &before, none, commit)
            } else {
                // The state from the store may be older than what the clusters run.
                before.desired.clone()
            };
            let mut state = FleetState {
                current: before.current,
                failed: None,
                processed,
                unconfirmed,
                in_force: Arc::clone(&before.in_force),
                desired,
                sealed: Arc::new(self.leadership.seal(&record)),
                record,
            };
            if state.desired != before.desired {
                self.write(&before, &state, stored, &moved, &approved)
                    .await?;
                let bundles = moved.values().flat_map(BTreeMap::values);
                let bundles = bundles.map(|c| (c.listed.hash, Arc::clone(&c.rendered)));
                render_cache.in_force.extend(bundles);
            }
            let mut in_force = InForce::clone(&before.in_force);
            in_force.problems.clone_from(&outcome.problems);
            state.in_force = Arc::new(in_force);
            self.publish(state);
            return Ok(());
        };
        let record = record_after(base, outcome, snapshot)?;
        let is_placed = |(app, writer): (&AppName, &Writer)| {
            writer.epoch > base.epoch && !base.writers.contains_key(app)
        };
        if record.writers.iter().any(is_placed)
            && self.heard.frozen_by(&unconfirmed, &before).is_some()
        {
            // A cluster has left, or the state has become unconfirmed, since the commit was placed.
            return Err(FleetError::RecordChanged);
        }
        self.recall(render_cache, outcome, &before).await?;
        let Selection {
            chosen,
            mut problems,
            blocked,
        } = select_bundles(
            facts,
            outcome,
            &before.desired,
            &render_cache.in_force,
            &mut render_cache.verified,
            |cluster| {
                self.observed
                    .get(cluster)
                    .map_or_else(Vec::new, |level| level.cluster_scoped)
            },
            |app, cluster| {
                let writer = record.writers.get(app);
                let moved = writer.filter(|writer| writer.handover.is_some());
                moved.is_some_and(|writer| role_of(writer, cluster).is_some())
            },
        );
        problems.extend(outcome.problems.iter().cloned());
        problems.sort();
        problems.dedup();
        let in_force = Arc::new(describe(facts, outcome, snapshot, problems, &blocked));
        let budget = facts.prune;
        let lists = chosen.iter().map(|(cluster, bundles)| {
            let is_unconfirmed = unconfirmed.is(cluster);
            let level = self.observed.get(cluster);
            let there = |app: &&AppName| {
                let level = level.as_ref();
                is_unconfirmed || level.is_some_and(|level| level.apps.contains_key(app.as_str()))
            };
            let unknown = outcome
                .blocked()
                .filter(|app| !bundles.contains_key(*app))
                .filter(there);
            let list = List {
                budget: unconfirmed.budget(cluster, budget),
                unknown: unknown.cloned().collect(),
                bundles: bundles.values().map(|c| c.listed.clone()).collect(),
            };
            (cluster.clone(), list)
        });
        let said = released_apps(snapshot, &before.in_force.commit);
        let apps = &facts.apps;
        let meant = |app: &AppName| said.contains(app) || apps.contains_key(app);
        let commit = &in_force.commit;
        let numbers = self.numbers(facts, &before).await?;
        let orders = Orders {
            approved: &approved,
            unconfirmed: &unconfirmed,
            numbers: &numbers,
            epoch: record.epoch,
        };
        let desired = self.number(lists.collect(), &orders, &before, meant, commit);
        let state = FleetState {
            current: true,
            failed: None,
            processed,
            unconfirmed,
            in_force,
            desired,
            sealed: Arc::new(self.leadership.seal(&record)),
            record: Arc::new(record),
        };
        let is_stored = stored.revision.is_some() && *state.record == stored.record;
        if state.in_force != before.in_force || state.desired != before.desired || !is_stored {
            self.write(&before, &state, stored, &chosen, &approved)
                .await?;
        }
        let bundles = chosen.values().flat_map(BTreeMap::values);
        render_cache.in_force = bundles
            .map(|c| (c.listed.hash, Arc::clone(&c.rendered)))
            .collect();
        self.publish(state);
        Ok(())
    }

    /// Checks that nobody has changed the fleet record since the commit was rendered with it.
    async fn check_record(&self, stored: &Stored) -> Result<(), FleetError> {
        let key = store_schema::FLEET_RECORD;
        let now = self.store.get(key).await.map_err(RecordError::from)?;
        if now.map(|record| record.revision) == stored.revision {
            Ok(())
        } else {
            Err(FleetError::RecordChanged)
        }
    }

    /// Loads into the cache every bundle in force that this commit did not render again. After a restart they come from
    /// the store.
    pub(super) async fn recall(
        &self,
        render_cache: &mut RenderCache,
        outcome: &Outcome,
        before: &FleetState,
    ) -> Result<(), FleetError> {
        let rendered = outcome.bundles.values().flat_map(BTreeMap::values);
        let rendered: HashSet<ContentHash> = rendered.map(|bundle| bundle.hash).collect();
        for listed in before
            .desired
            .values()
            .flat_map(|desired| desired.bundles.iter())
        {
            if rendered.contains(&listed.hash) || render_cache.in_force.contains_key(&listed.hash) {
                continue;
            }
            let Some(packed) = self
                .blobs
                .get(listed.hash)
                .await
                .map_err(RecordError::from)?
            else {
                let (app, hash) = (listed.app.clone(), listed.hash);
                return Err(FleetError::Lost { app, hash });
            };
            let bytes = blobs::decompress(&packed).map_err(FleetError::Blob)?;
            let bundle = RenderedBundle::from_encoded(bytes)
                .map_err(|error| FleetError::Blob(std::io::Error::other(error)))?;
            render_cache.in_force.insert(listed.hash, Arc::new(bundle));
        }
        Ok(())
    }

    pub(super) fn publish(&self, state: FleetState) {
        self.published.send_replace(Arc::new(state));
    }
}

/// Returns the bundles of apps that are being moved, for the clusters of the move.
fn moved(
    older: &[Older],
    record: &FleetRecord,
) -> BTreeMap<ClusterName, BTreeMap<AppName, Candidate>> {
    let mut moved: BTreeMap<ClusterName, BTreeMap<AppName, Candidate>> = BTreeMap::new();
    for Older {
        app,
        bundles,
        roles,
    } in older
    {
        let writer = record.writers.get(app);
        for (cluster, rendered) in bundles {
            let is_side = writer.is_some_and(|writer| role_of(writer, cluster).is_some());
            let Some(role) = roles.get(cluster).filter(|_| is_side) else {
                continue;
            };
            let candidate = Candidate::new(app, *role, rendered);
            let apps = moved.entry(cluster.clone()).or_default();
            apps.insert(app.clone(), candidate);
        }
    }
    moved
}

/// Returns the fleet record after a commit that was placed with the record `base`. Only these
/// parts of the worker's answer are used: which app succeeds another one, the region of a writer's cluster, and the
/// cluster in which an app without a writer gets its first one. An app gets its first writer only if it has a good
/// bundle.
fn record_after(
    base: &FleetRecord,
    outcome: &Outcome,
    snapshot: &Snapshot,
) -> Result<FleetRecord, FleetError> {
    let placed = &outcome.record.writers;
    let mut record = base.clone();
    for (app, writer) in placed {
        let old = outcome
            .formerly
            .get(app)
            .filter(|old| !placed.contains_key(*old));
        if let Some(own) = record.writers.get_mut(app) {
            if own.cluster == writer.cluster {
                own.region.clone_from(&writer.region);
            }
        } else if let Some(own) = old.and_then(|old| record.writers.remove(old)) {
            record.writers.insert(app.clone(), own);
        } else if outcome.bundles.contains_key(app) {
            let first = Writer {
                region: writer.region.clone(),
                cluster: writer.cluster.clone(),
                epoch: base.epoch.next(),
                at: store_schema::now(),
                by: format!("commit {}", snapshot.commit.short()),
                why: FIRST_PLACEMENT.to_owned(),
                handover: None,
            };
            record.writers.insert(app.clone(), first);
        }
    }
    if record.writers != base.writers || base.epoch == Epoch::default() {
        record.epoch = base.epoch.next();
    }
    let rendered = outcome.roles.iter();
    let rendered = rendered.filter(|(app, _)| outcome.bundles.contains_key(*app));
    let roles = rendered.map(|(app, places)| (app.clone(), places.clone()));
    match record.contradicted_by(&roles.collect()) {
        Some(app) => Err(FleetError::MovedWriter(app.clone())),
        None => Ok(record),
    }
}

pub(super) fn describe(
    facts: &Facts,
    outcome: &Outcome,
    snapshot: &Snapshot,
    problems: Vec<Problem>,
    blocked: &BTreeSet<AppName>,
) -> InForce {
    let regions = facts.regions.iter().map(|(name, region)| RegionRecord {
        name: name.to_string(),
        continent: region.continent.clone(),
        country: region.country.clone(),
        city: region.city.clone(),
    });
    let mut apps: Vec<AppRecord> = facts
        .apps
        .iter()
        .map(|(name, app)| AppRecord {
            name: name.clone(),
            tier: app.tier.clone(),
            mode: app.mode.clone(),
            owner: app.owner.clone(),
            blocked: blocked.contains(name) || !outcome.bundles.contains_key(name),
            targets: app.targets.clone(),
        })
        .collect();
    apps.extend(outcome.broken.iter().map(AppRecord::gone));
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    apps.dedup_by(|a, b| a.name == b.name);
    InForce {
        commit: snapshot.commit.to_string(),
        subject: snapshot.subject.clone(),
        author: snapshot.author.clone(),
        committed_at: snapshot.committed_at,
        fleet: facts.fleet.to_string(),
        regions: regions.collect(),
        apps,
        clusters: facts
            .clusters
            .iter()
            .map(|(name, region)| (name.clone(), region.to_string()))
            .collect(),
        problems,
    }
}
