//! Moves of apps' writers. A person orders a move; the hub carries it out step by step, by what the agents of both sides
//! report. Each step is a change of the stored fleet record, so a hub that is started again continues where the last one
//! stopped. `muster_plan::handover` decides; this file stores.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_model::{
    fleet_record::{FleetRecord, Handover, Place, Writer},
    ids::{AppName, ClusterName, Epoch, RegionName, Role},
};
use muster_plan::{
    handover::{Advance, Look, Order, Seen, advance, advanced, baseline, fence, force, give_back},
    writer_rule::is_carried,
};
use muster_proto::v1;
use muster_runtime::log::Chain;
use muster_store::{CommitError, Expected, Store, Txn};
use tokio_util::sync::CancellationToken;

use crate::{
    desired_state::FleetState,
    fleet_loop::{Heard, Published},
    fleet_record::Stored,
    leadership::Leadership,
    observed::{Level, Observed},
    store_schema::{self, AppRecord, Lead, RecordError, audited, now},
};

/// The pause before a step that could not be stored is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Orders moves and carries them out.
pub(crate) struct Moves {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) published: Arc<Published>,
    pub(crate) heard: Heard,
}

/// A person's order to move an app's writer.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) app: AppName,
    pub(crate) region: RegionName,
    pub(crate) dry_run: bool,
    pub(crate) reason: String,
    pub(crate) without_proof: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone)]
pub(crate) struct Ordered {
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// The reasons why the move can't begin. Nothing has changed if there are any.
    pub(crate) refusals: Vec<String>,
    /// What the request comes to.
    pub(crate) kind: Kind,
    /// What the app's rule says about the holder before it is fenced.
    pub(crate) rule_says: String,
    /// The epoch of the fleet record after the order.
    pub(crate) epoch: Epoch,
}

/// What a [`Request`] comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The writer is in the region already, or on its way there.
    Nothing,
    /// A move begins.
    Begin,
    /// The holder of a move whose old side is fenced gets its role back.
    GiveBack,
    /// The writer moves without proof.
    Force,
}

/// The reason why a move can't be ordered or carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    /// There is no such app, or it has no writer.
    #[error("{0}")]
    NoWriter(String),
    /// A record of the store can't be read.
    #[error("the hub's records can't be read")]
    Record(#[from] RecordError),
    /// The store refused the write.
    #[error("the fleet record can't be written")]
    Commit(#[from] CommitError),
    /// Another hub leads.
    #[error("this hub no longer leads")]
    NotLeading,
}

/// Returns what the agent of a cluster last saw of an app; `None` if the agent is not connected, has not shown its
/// fleet record, or has not reported on the app. An invalid value never counts as a proof.
pub(crate) fn look_at(level: Option<&Level>, app: &AppName) -> Option<Look> {
    let level = level.filter(|level| level.connected && level.heard)?;
    let instance = level.instance.clone()?;
    let look = level.apps.get(app.as_str())?.writer.as_ref()?;
    let named = |values: &[v1::NamedValue]| -> BTreeMap<String, String> {
        let values = values.iter();
        values
            .map(|named| (named.name.clone(), named.value.clone()))
            .collect()
    };
    let mut seen = Look {
        instance,
        epoch: Epoch(look.epoch),
        role: look.role.parse().ok()?,
        is_applied: look.applied,
        is_healthy: look.healthy,
        rule: look.rule.as_slice().try_into().ok(),
        stopped: look.stopped,
        uids: named(&look.uids),
        carried: named(&look.carried),
        why: look.why.clone(),
    };
    if !seen.carried.values().all(|value| is_carried(value)) {
        seen.stopped = false;
        seen.why = "its agent carries over a value that is not allowed".to_owned();
    }
    Some(seen)
}

/// Returns the next change of an app's move.
///
/// # Errors
/// Returns what the move waits for.
pub(crate) fn next(
    app: &AppName,
    writer: &Writer,
    state: &FleetState,
    level: impl Fn(&ClusterName) -> Option<Level>,
) -> Result<Advance, String> {
    let look = |place: &Place| look_at(level(&place.cluster).as_ref(), app);
    let (old, new) = match &writer.handover {
        Some(Handover::Fencing { to, .. }) => (writer.place(), to.clone()),
        Some(Handover::Promoting { from, .. }) => (from.clone(), writer.place()),
        None => return Err(String::new()),
    };
    let mut clusters = state.in_force.clusters.iter();
    let seen = (look(&old), look(&new));
    let is_connected = |level: Level| level.connected && level.heard;
    let next = advance(
        writer,
        Seen {
            old: seen.0.as_ref(),
            new: seen.1.as_ref(),
            is_new_connected: level(&new.cluster).is_some_and(is_connected),
            is_old_gone: !clusters.any(|(name, _)| *name == old.cluster),
        },
    );
    next.map_err(|why| match state.in_force.apps.iter().find(|a| a.name == *app) {
        Some(app) if app.blocked => {
            format!("{why}. The newest commit has a problem with this app, see above; fix it, or move the writer back")
        }
        _ => why,
    })
}

impl Moves {
    /// Carries out moves until `stop` fires.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut published = self.published.subscribe();
        let mut observed = self.observed.watch();
        loop {
            let state = published.borrow_and_update().clone();
            observed.mark_unchanged();
            let mut writers = state.record.writers.values();
            let mut again = None;
            if writers.any(|writer| writer.handover.is_some()) {
                // Whether a hub that was just started has heard its clusters changes with time alone.
                again = self.heard.frozen(&state).map(|_| AGAIN);
                if let Err(error) = self.advance_all(&state).await {
                    tracing::warn!(error = %Chain(&error), "a step of a move could not be stored; trying again");
                    again = Some(AGAIN);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = published.changed() => if changed.is_err() { return },
                changed = observed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }

    /// Takes the next step of every move for which it is time.
    async fn advance_all(&self, state: &FleetState) -> Result<(), MoveError> {
        let Some(lead) = self.leadership.now() else {
            return Ok(());
        };
        if self.unfit(state).is_some() {
            return Ok(());
        }
        let _numbering = self.leadership.numbering().await;
        let stored = Stored::load(self.store.as_ref(), &state.in_force, &state.desired).await?;
        let mut record = stored.record.clone();
        let epoch = record.epoch.next();
        let mut said = Vec::new();
        for (app, writer) in &mut record.writers {
            let Ok(change) = next(app, writer, state, |cluster| self.observed.get(cluster)) else {
                continue;
            };
            let after = advanced(writer, change.clone(), epoch, now());
            said.push(tell(app, writer, &after, &change, epoch));
            *writer = after;
        }
        if said.is_empty() {
            return Ok(());
        }
        record.epoch = epoch;
        for what in &said {
            tracing::info!("{what}");
        }
        let said = said.into_iter().map(|what| ("hub".to_owned(), what));
        self.write(lead, &stored, &record, said).await
    }

    /// Returns why the hub moves nobody at the moment.
    fn unfit(&self, state: &FleetState) -> Option<String> {
        if !state.current {
            return Some(
                "this hub has processed no commit with its fleet record yet; try again in a moment"
                    .to_owned(),
            );
        }
        self.heard.frozen(state)
    }

    async fn write(
        &self,
        lead: Lead,
        stored: &Stored,
        record: &FleetRecord,
        said: impl Iterator<Item = (String, String)>,
    ) -> Result<(), MoveError> {
        let txn = Txn::new().when(store_schema::TERM, Expected::Revision(lead.revision));
        let mut txn = stored.replace(txn, record);
        for (who, what) in said {
            txn = audited(txn, &who, what);
        }
        match self.store.commit(txn).await {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { key }) if key == store_schema::TERM => {
                self.leadership.lost(lead).await;
                Err(MoveError::NotLeading)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Orders a move, or only says what it would come to.
    pub(crate) async fn order(&self, request: &Request, who: &str) -> Result<Ordered, MoveError> {
        let lead = self.leadership.now().ok_or(MoveError::NotLeading)?;
        let _numbering = self.leadership.numbering().await;
        let state = self.published.borrow().clone();
        let stored = Stored::load(self.store.as_ref(), &state.in_force, &state.desired).await?;
        let app = &request.app;
        let known = state.in_force.apps.iter().find(|known| known.name == *app);
        let Some(known) = known else {
            let message = format!("there is no app `{app}`; `muster get apps` lists them");
            return Err(MoveError::NoWriter(message));
        };
        let Some(writer) = stored.record.writers.get(app) else {
            let message = format!("app `{app}` has no writer: its mode is {}", known.mode);
            return Err(MoveError::NoWriter(message));
        };
        let (kind, to, mut refusals) = judge(request, writer, known);
        let order = Order {
            epoch: stored.record.epoch.next(),
            at: now(),
            by: who.to_owned(),
            why: match request.reason.is_empty() {
                true => "ordered by a person".to_owned(),
                false => request.reason.clone(),
            },
        };
        let mut after = None;
        let mut rule_says = String::new();
        match kind {
            Kind::Nothing => {}
            Kind::GiveBack => refusals.extend(self.unfit(&state)),
            Kind::Begin | Kind::Force => {
                refusals.extend(self.refusals(app, known, &to, &state));
            }
        }
        match kind {
            Kind::Nothing => {}
            Kind::GiveBack => after = Some(give_back(writer, order)),
            Kind::Force => after = Some(force(writer, to.clone(), order)),
            Kind::Begin => {
                let level = self.observed.get(&writer.cluster);
                let look = look_at(level.as_ref(), app);
                rule_says = look
                    .as_ref()
                    .map(|look| look.why.clone())
                    .unwrap_or_default();
                match baseline(writer, look.as_ref()) {
                    Ok(baseline) => after = Some(fence(writer, to.clone(), baseline, order)),
                    Err(why) => refusals.push(why),
                }
            }
        }
        let mut ordered = Ordered {
            epoch: stored.record.epoch,
            rule_says,
            from: writer.place(),
            to,
            refusals,
            kind,
        };
        let Some(after) = after.filter(|_| !request.dry_run && ordered.refusals.is_empty()) else {
            return Ok(ordered);
        };
        let what = match kind {
            Kind::Force => format!(
                "moved the writer of app {app} from cluster {} to {} at epoch {}, without proof that it has stopped: {}",
                ordered.from.cluster, ordered.to.cluster, after.epoch, after.why
            ),
            Kind::GiveBack => format!(
                "ended the move of app {app} at epoch {}: cluster {} is the primary again: {}",
                after.epoch, ordered.from.cluster, after.why
            ),
            Kind::Begin | Kind::Nothing => format!(
                "began to move the writer of app {app} from cluster {} to {} at epoch {}: {}",
                ordered.from.cluster, ordered.to.cluster, after.epoch, after.why
            ),
        };
        tracing::info!(who, "{what}");
        let mut record = stored.record.clone();
        record.epoch = after.epoch;
        record.writers.insert(app.clone(), after);
        let said = std::iter::once((who.to_owned(), what));
        self.write(lead, &stored, &record, said).await?;
        ordered.epoch = record.epoch;
        Ok(ordered)
    }

    /// Returns why an app's writer can't move to a cluster now.
    fn refusals(
        &self,
        app: &AppName,
        known: &AppRecord,
        to: &Place,
        state: &FleetState,
    ) -> Vec<String> {
        let mut refusals: Vec<String> = self.unfit(state).into_iter().collect();
        if known.blocked {
            refusals.push(format!(
                "the newest commit has a problem with app {app}, so its new roles can't be rendered; \
                 `muster status` shows it"
            ));
        }
        let cluster = &to.cluster;
        let level = self.observed.get(cluster);
        let look = look_at(level.as_ref(), app);
        let is_standby = known.mode != "singleton";
        match look {
            _ if !level.is_some_and(|level| level.connected && level.heard) => {
                refusals.push(format!("the agent of {cluster} is not connected"));
            }
            None if is_standby => refusals.push(format!(
                "{cluster} has not reported on the app; is its agent older than this hub?"
            )),
            Some(look) if is_standby => {
                if look.role != Role::Standby || !look.is_applied {
                    refusals.push(format!("{cluster} has not applied the app as a standby"));
                } else if !look.is_healthy {
                    refusals.push(format!("the standby in {cluster} is not healthy"));
                }
            }
            _ => {}
        }
        refusals
    }
}

/// Decides what a request comes to, and where the writer goes. Returns the reasons why that is not possible, too.
fn judge(request: &Request, writer: &Writer, known: &AppRecord) -> (Kind, Place, Vec<String>) {
    let region = &request.region;
    let place = writer.place();
    let is_held = |by: &Place| by.region == *region;
    match &writer.handover {
        Some(Handover::Fencing { to, .. }) if is_held(to) => {
            let kind = match request.without_proof {
                true => Kind::Force,
                false => Kind::Nothing,
            };
            return (kind, to.clone(), Vec::new());
        }
        Some(Handover::Fencing { .. }) if is_held(&place) => {
            return (Kind::GiveBack, place, Vec::new());
        }
        _ if is_held(&place) => return (Kind::Nothing, place, Vec::new()),
        _ => {}
    }
    let mut refusals = Vec::new();
    match &writer.handover {
        Some(Handover::Fencing { to, .. }) => refusals.push(format!(
            "the writer is being moved to {}; wait, or move it back to {} first",
            to.region, writer.region
        )),
        Some(Handover::Promoting { from, .. }) => refusals.push(format!(
            "the move from {} to {} is not finished yet; `muster status` shows what it waits for",
            from.region, writer.region
        )),
        None => {}
    }
    let kind = match request.without_proof {
        true => Kind::Force,
        false => Kind::Begin,
    };
    let mut targets = known.targets.iter();
    let target = targets.find(|(name, _)| *name == region);
    let to = target.map(|(region, cluster)| Place {
        region: region.clone(),
        cluster: cluster.clone(),
    });
    let Some(to) = to else {
        let names: Vec<&str> = known.targets.keys().map(RegionName::as_str).collect();
        refusals.push(format!(
            "Git does not let app {} run in region {region}; its `placement` allows {}",
            request.app,
            names.join(", ")
        ));
        return (kind, place, refusals);
    };
    (kind, to, refusals)
}

/// Describes a step for the audit log.
fn tell(app: &AppName, before: &Writer, after: &Writer, change: &Advance, epoch: Epoch) -> String {
    match change {
        Advance::Promote { .. } => format!(
            "cluster {} has proven that the writer of app {app} has stopped there; cluster {} holds it from epoch {epoch}",
            before.cluster, after.cluster
        ),
        Advance::Proven => format!(
            "the writer of app {app} has stopped where it was before its move to cluster {}, which had been ordered \
             without proof",
            after.cluster
        ),
        Advance::Finish => format!(
            "the move of app {app} to cluster {} is finished at epoch {epoch}",
            after.cluster
        ),
    }
}
