//! Moves of apps' writers. A person orders a move; the hub carries it out step by step, by what the agents of both sides
//! report. Each step is a change of the stored fleet record, so a hub that is started again continues where the last one
//! stopped. `muster_plan::handover` decides; this file stores.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_model::{
    fleet_record::{FleetRecord, Handover, Place, Writer},
    ids::{AppName, ClusterName, Epoch, InstanceId, RegionName, Role},
    writer_rule::MAX_CARRIED,
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
/// The shortest interval between two attempts to take the next steps.
const GATHER: Duration = Duration::from_millis(50);
/// The most objects, and the most values, of a look.
const MOST_NAMED: usize = 8;
/// The longest name or UID of a look, in bytes.
const WORD: usize = 64;

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
    /// True if the writer is in the region and no move is under way.
    pub(crate) finished: bool,
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
    /// A person vouches that the old side of a move without proof has stopped.
    Vouch,
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

/// Returns what is known of an app in a cluster. There is no look if the agent is not connected, has not shown its fleet
/// record, or has not reported on the app. A look with an invalid value proves nothing.
pub(crate) fn side_of(level: &Level, app: &AppName) -> Side {
    let is_connected = level.connected && level.heard;
    Side {
        look: look_of(level, app).filter(|_| is_connected),
        is_connected,
        instance: level.instance.clone(),
    }
}

/// What is known of one side of a move.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    pub(crate) look: Option<Look>,
    is_connected: bool,
    instance: Option<InstanceId>,
}

fn look_of(level: &Level, app: &AppName) -> Option<Look> {
    let instance = level.instance.clone()?;
    let look = level.apps.get(app.as_str())?.writer.as_ref()?;
    let named = |values: &[v1::NamedValue]| -> BTreeMap<String, String> {
        let values = values.iter().take(MOST_NAMED);
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
        is_evaluated: look.evaluated,
        stopped: look.stopped,
        uids: named(&look.uids),
        carried: named(&look.carried),
        why: look.why.clone(),
    };
    // All of this becomes part of the fleet record, which every agent stores.
    let is_word = |text: &String| {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        text.len() <= WORD && text.bytes().all(harmless)
    };
    let size: usize = seen.carried.values().map(String::len).sum();
    let are_known = seen
        .uids
        .iter()
        .all(|(name, uid)| is_word(name) && is_word(uid));
    let is_small = size <= MAX_CARRIED && seen.carried.keys().all(is_word);
    if !are_known || !is_small || !seen.carried.values().all(|value| is_carried(value)) {
        seen.stopped = false;
        seen.is_evaluated &= are_known;
        seen.carried.clear();
        seen.why = "its agent reports a value that is not allowed".to_owned();
    }
    if !are_known {
        seen.uids.clear();
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
    side: impl Fn(&ClusterName) -> Side,
) -> Result<Advance, String> {
    let (old, new) = match &writer.handover {
        Some(Handover::Fencing { to, .. }) => (writer.place(), to.clone()),
        Some(Handover::Returning { to }) => (to.clone(), writer.place()),
        Some(Handover::Promoting { from, .. }) => (from.clone(), writer.place()),
        None => return Err(String::new()),
    };
    let mut clusters = state.in_force.clusters.iter();
    let sides = (side(&old.cluster), side(&new.cluster));
    let known = state.in_force.apps.iter().find(|known| known.name == *app);
    // Of an app whose document can't be read, nobody knows where it may run.
    let is_allowed = |known: &AppRecord| {
        known.targets.is_empty() || known.targets.values().any(|name| *name == new.cluster)
    };
    if matches!(writer.handover, Some(Handover::Fencing { .. })) && !known.is_none_or(is_allowed) {
        return Err(format!(
            "Git no longer lets the app run in {}; move the writer back to {}",
            new.cluster, old.region
        ));
    }
    let next = advance(
        writer,
        Seen {
            old: sides.0.look.as_ref(),
            new: sides.1.look.as_ref(),
            is_new_connected: sides.1.is_connected,
            is_old_gone: !clusters.any(|(name, _)| *name == old.cluster),
        },
    );
    next.map_err(|why| match known {
        Some(known) if known.blocked => {
            format!("{why}. The newest commit has a problem with this app")
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
            tokio::time::sleep(GATHER).await;
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
            let side = |cluster: &ClusterName| self.side(cluster, app);
            let Ok(change) = next(app, writer, state, side) else {
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

    fn side(&self, cluster: &ClusterName, app: &AppName) -> Side {
        let side = self.observed.with(cluster, |level| side_of(level, app));
        side.unwrap_or_default()
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
        let held = stored.record.writers.get(app);
        let (known, writer) = match (known, held) {
            (Some(known), Some(writer)) => (known.clone(), writer),
            // An app that has left Git during its move.
            (None, Some(writer)) if writer.handover.is_some() => (AppRecord::gone(app), writer),
            (None, _) => {
                let message = format!("there is no app `{app}`; `muster get apps` lists them");
                return Err(MoveError::NoWriter(message));
            }
            (Some(known), None) => {
                let why = match known.mode.as_str() {
                    "active-active" => "it is active-active and writes in every cluster",
                    _ => "it was not placed yet; `muster status` shows why",
                };
                return Err(MoveError::NoWriter(format!(
                    "app `{app}` has no writer: {why}"
                )));
            }
        };
        let known = &known;
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
            Kind::Vouch => refusals.extend(self.unfit(&state)),
            Kind::GiveBack => {
                refusals.extend(self.unfit(&state));
                // If this hub's volume was rolled back, the other cluster may know that it was promoted.
                if let Some(Handover::Fencing { to, .. }) = &writer.handover
                    && !self.side(&to.cluster, app).is_connected
                    && !request.without_proof
                {
                    refusals.push(format!(
                        "the agent of {}, which would have got the writer, is not connected. If you know that it never \
                         became the primary: --override proof",
                        to.cluster
                    ));
                }
            }
            // Without a target, there is nothing more to say.
            Kind::Begin | Kind::Force if !refusals.is_empty() => {}
            Kind::Begin | Kind::Force => {
                refusals.extend(self.refusals(app, known, &to, kind, &state));
            }
        }
        match kind {
            Kind::Nothing => {}
            Kind::GiveBack => {
                if let Some(Handover::Fencing { to, .. }) = &writer.handover {
                    after = Some(give_back(writer, to.clone(), order));
                }
            }
            Kind::Vouch => {
                after = Some(advanced(writer, Advance::Proven, order.epoch, order.at));
            }
            Kind::Force => {
                let instance = match &writer.handover {
                    Some(Handover::Fencing { baseline, .. }) => Some(baseline.instance.clone()),
                    _ => self.side(&writer.cluster, app).instance,
                };
                after = Some(force(writer, to.clone(), instance, order));
            }
            Kind::Begin => {
                let look = self.side(&writer.cluster, app).look;
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
            finished: kind == Kind::Nothing && writer.handover.is_none(),
            rule_says,
            from: writer.place(),
            to,
            refusals,
            kind,
        };
        let Some(after) = after.filter(|_| !request.dry_run && ordered.refusals.is_empty()) else {
            return Ok(ordered);
        };
        let epoch = stored.record.epoch.next();
        let what = match kind {
            Kind::Vouch => format!(
                "vouched at epoch {epoch} that the writer of app {app} has stopped where it was before its move to \
                 cluster {}: {}",
                ordered.from.cluster, request.reason
            ),
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
        record.epoch = epoch;
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
        kind: Kind,
        state: &FleetState,
    ) -> Vec<String> {
        let mut refusals: Vec<String> = self.unfit(state).into_iter().collect();
        let is_forced = kind == Kind::Force;
        if known.blocked && !is_forced {
            refusals.push(format!(
                "the newest commit has a problem with app {app}, so its new roles can't be rendered; \
                 `muster status` shows it"
            ));
        }
        let cluster = &to.cluster;
        let Side {
            look, is_connected, ..
        } = self.side(cluster, app);
        // Whoever forces a move knows of the standby's state, which may be bad because the primary is lost.
        let is_standby = known.mode != "singleton" && !is_forced;
        match look {
            _ if !is_connected => {
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
        Some(Handover::Promoting { unproven, .. })
            if is_held(&place) && unproven.is_some() && request.without_proof =>
        {
            return (Kind::Vouch, place, Vec::new());
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
        // The new side may never become healthy. Its old side has proven that it has stopped, or gets the writer back.
        Some(Handover::Promoting { unproven: None, .. }) if request.without_proof => {}
        Some(Handover::Promoting { from, .. }) if request.without_proof && is_held(from) => {}
        Some(Handover::Promoting {
            from,
            unproven: Some(_),
            ..
        }) if request.without_proof => refusals.push(format!(
            "the move from {} to {} has no proof yet, either; move the writer back to {}, or vouch for it first: \
             --to {} --override proof",
            from.region, writer.region, from.region, writer.region
        )),
        Some(Handover::Promoting { from, .. }) => refusals.push(format!(
            "the move from {} to {} is not finished yet; `muster status` shows what it waits for",
            from.region, writer.region
        )),
        Some(Handover::Returning { .. }) if request.without_proof => {}
        Some(Handover::Returning { .. }) => refusals.push(format!(
            "the writer has just been moved back to {}, and is not healthy there yet",
            writer.region
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
        Advance::Verified => format!(
            "cluster {} is the primary of app {app} and healthy, after a move that was ordered without proof",
            after.cluster
        ),
        Advance::Finish => format!(
            "the move of app {app} to cluster {} is finished at epoch {epoch}",
            after.cluster
        ),
    }
}
