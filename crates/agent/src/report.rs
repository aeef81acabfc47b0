//! Turns what the applier observes in a cluster into the observed state that is reported to the hub.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use muster_apply::{
    LeftoverState, ObjectState, Observed, ObservedBundle, ObservedObject, PendingApproval,
};
use muster_plan::{delivery::Numbered, health::Health};
use muster_proto::v1;
use tokio::sync::watch;

use crate::{cluster::Level, writer_looks::Looks};

/// The most problems of one app that are reported.
const PROBLEMS: usize = 10;
/// The most bytes of names of objects that are pending approval. This is enough for the names of about ten thousand
/// objects, and a report stays well below the size limit of a message.
const HELD: usize = 2 * 1024 * 1024;
/// The most drifts of one app that are reported.
const DRIFTS: usize = 10;

/// Publishes the observed state whenever it changes. It combines what the applier observes with problems of the
/// agent's own records.
pub(crate) async fn summarise(
    mut observed: watch::Receiver<Arc<Observed>>,
    mut trouble: watch::Receiver<Option<String>>,
    mut looks: watch::Receiver<Arc<Looks>>,
    level: watch::Sender<Arc<Level>>,
) {
    let mut summary = Summary::default();
    loop {
        let now = observed.borrow_and_update().clone();
        let mut next = summary.level(&now);
        for (app, look) in looks.borrow_and_update().iter() {
            if let Some(report) = next.apps.get_mut(app.as_str()) {
                Arc::make_mut(report).writer = Some(look.clone());
            }
        }
        if let Some(trouble) = trouble.borrow_and_update().clone() {
            next.settled = false;
            next.problems.push(trouble);
        }
        level.send_replace(Arc::new(next));
        tokio::select! {
            () = level.closed() => return,
            changed = observed.changed() => if changed.is_err() { return },
            changed = trouble.changed() => if changed.is_err() { return },
            // The looks end last.
            Ok(()) = looks.changed() => {}
        }
    }
}

/// The reports of the last observed bundles. Bundles that have not changed keep their report.
#[derive(Default)]
struct Summary(HashMap<String, (Arc<ObservedBundle>, Arc<v1::AppReport>)>);

impl Summary {
    fn level(&mut self, now: &Observed) -> Level {
        let mut before = std::mem::take(&mut self.0);
        let mut apps = BTreeMap::new();
        for bundle in &now.bundles {
            let name = bundle.app.to_string();
            let report = match before.remove(&name) {
                Some((same, report)) if Arc::ptr_eq(&same, bundle) => report,
                _ => Arc::new(app_report(bundle)),
            };
            apps.insert(name.clone(), Arc::clone(&report));
            self.0.insert(name, (Arc::clone(bundle), report));
        }
        // Leftovers and pending approvals may belong to apps that no longer have a bundle.
        for leftover in &now.leftovers {
            let report = report_of(&mut apps, leftover.app.as_str());
            match leftover.state {
                // The app's pending approval (`v1::Hold`) reports this object.
                LeftoverState::Approval => continue,
                LeftoverState::Waiting | LeftoverState::Deleting => report.leaving += 1,
                LeftoverState::Refused => report.stuck += 1,
            }
            if report.problems.len() < PROBLEMS {
                report.problems.push(v1::ObjectProblem {
                    object: leftover.id.to_string(),
                    message: leftover.message.clone(),
                });
            }
        }
        let mut room = HELD;
        for hold in &now.pending_approvals {
            let report = report_of(&mut apps, hold.app.as_str());
            let hold = held(hold, &mut room);
            report.holds.push(hold);
        }
        let in_force = now.generation.map(|(generation, content)| Numbered {
            generation,
            content,
        });
        Level {
            in_force,
            apps,
            problems: now.problem.iter().cloned().collect(),
            settled: now.settled,
            cluster_scoped: now.cluster_scoped.clone(),
        }
    }
}

/// Returns an app's report, so that the caller can add to it. An app that no longer has a bundle gets a
/// new report.
fn report_of<'a>(
    apps: &'a mut BTreeMap<String, Arc<v1::AppReport>>,
    app: &str,
) -> &'a mut v1::AppReport {
    let report = apps.entry(app.to_owned()).or_insert_with(|| {
        Arc::new(v1::AppReport {
            app: app.to_owned(),
            phase: v1::Phase::Received.into(),
            health: Health::Progressing.to_string(),
            ..v1::AppReport::default()
        })
    });
    Arc::make_mut(report)
}

fn held(hold: &PendingApproval, room: &mut usize) -> v1::Hold {
    let names = hold.objects.iter().map(ToString::to_string);
    let names = names.take_while(|name| {
        let fits = name.len() <= *room;
        *room = room.saturating_sub(name.len());
        fits
    });
    v1::Hold {
        set: hold.set.0.to_vec(),
        reason: hold.reason.clone(),
        recreate: hold.recreate,
        objects: names.collect(),
        count: number(hold.objects.len()),
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn app_report(bundle: &ObservedBundle) -> v1::AppReport {
    let counts = bundle.counts;
    let phase = if counts.failed > 0 {
        v1::Phase::Failed
    } else if counts.applied + counts.drifted == counts.total {
        v1::Phase::Applied
    } else {
        v1::Phase::Received
    };
    let mut troubled: Vec<(u8, &ObservedObject, Option<&str>)> = bundle
        .objects
        .iter()
        .filter_map(|object| match (&object.state, object.health) {
            (ObjectState::Failed(why), _) => Some((0, object, Some(why.as_str()))),
            (_, Health::Degraded) => Some((1, object, object.message.as_deref())),
            (ObjectState::Drifted(why), _) => Some((1, object, Some(why.as_str()))),
            (ObjectState::Waiting(why), _) => Some((2, object, Some(why.as_str()))),
            (ObjectState::Applied, Health::Progressing | Health::Missing) => {
                Some((3, object, object.message.as_deref()))
            }
            _ => None,
        })
        .collect();
    troubled.sort_by_key(|(rank, ..)| *rank);
    let problems = troubled
        .into_iter()
        .take(PROBLEMS)
        .map(|(_, object, why)| v1::ObjectProblem {
            object: object.id.to_string(),
            message: why.map_or_else(|| object.health.to_string(), str::to_owned),
        });
    let late = bundle.drifts.len().saturating_sub(DRIFTS);
    let drifts = bundle.drifts[late..].iter().map(|drift| v1::DriftEvent {
        at: i64::try_from(drift.at).unwrap_or(i64::MAX),
        object: drift.id.to_string(),
        difference: drift.difference.clone(),
        corrected: drift.corrected,
        recreated: drift.recreated,
    });
    v1::AppReport {
        app: bundle.app.to_string(),
        hash: bundle.hash.0.to_vec(),
        phase: phase.into(),
        objects: number(counts.total),
        applied: number(counts.applied),
        health: bundle.health.to_string(),
        problems: problems.collect(),
        gone: false,
        holds: Vec::new(),
        drifted: number(counts.drifted),
        drifts: drifts.collect(),
        leaving: 0,
        stuck: 0,
        writer: None,
    }
}

#[cfg(test)]
mod tests;
