//! Publishes the observed state whenever it has changed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_plan::health::{Assessment, Health, worst_of};
use tokio::{sync::watch, time::Instant};

use super::{
    ObjectTracker, TrackedBundle, TrackedObject,
    object::{Object, health},
};
use crate::{
    inventory::Identity,
    observed::{
        Counts, DriftEvent, ObjectState, Observed, ObservedBundle, ObservedObject, PendingApproval,
    },
};

impl ObjectTracker {
    /// Publishes the observed state whenever it has changed: at most once per `pause`, and
    /// immediately at the end of a run.
    pub(crate) async fn publish(&self, to: watch::Sender<Arc<Observed>>, pause: Duration) {
        loop {
            let silence = self.state().silent.first().map(|(until, _)| *until);
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(silence.unwrap_or_else(Instant::now)),
                    if silence.is_some() => self.end_silence(),
            }
            to.send_replace(Arc::new(self.level()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ended.notified() => {}
            }
        }
    }

    pub(super) fn level(&self) -> Observed {
        let mut guard = self.state();
        let state = &mut *guard;
        let known = std::mem::take(&mut state.published);
        let mut known: HashMap<_, _> = known.into_iter().map(|b| (b.app.clone(), b)).collect();
        for (index, section) in state.sections.iter().enumerate() {
            let known = known.remove(&section.app);
            let bundle = if let Some(known) = &known
                && !state.stale.contains(&index)
            {
                known.clone()
            } else {
                let drifts = state.drifts.get(&section.app);
                let bundle = observe(section, &state.objects, drifts);
                known
                    .filter(|known| **known == bundle)
                    .unwrap_or_else(|| Arc::new(bundle))
            };
            state.published.push(bundle);
        }
        state.stale.clear();
        Observed {
            generation: state.generation,
            settled: state.settled,
            problem: state.problem.clone(),
            bundles: state.published.clone(),
            leftovers: state.leftovers.values().cloned().collect(),
            pending_approvals: state
                .pending_approvals
                .iter()
                .cloned()
                .chain(recreations(&state.published))
                .collect(),
            cluster_scoped: state.cluster_scoped.clone(),
        }
    }
}

/// Returns the recreations that are pending approval.
pub(super) fn recreations(
    bundles: &[Arc<ObservedBundle>],
) -> impl Iterator<Item = PendingApproval> {
    // The observed state is published often, and in most bundles nothing waits.
    let waiting = bundles.iter().filter(|bundle| bundle.counts.waiting > 0);
    let objects =
        waiting.flat_map(|bundle| bundle.objects.iter().map(move |object| (bundle, object)));
    objects.filter_map(|(bundle, object)| {
        let ObjectState::Approval { set, why } = &object.state else {
            return None;
        };
        Some(PendingApproval {
            app: bundle.app.clone(),
            set: *set,
            recreate: true,
            reason: why.clone(),
            objects: vec![(*object.id).clone()],
        })
    })
}

pub(super) fn observe(
    section: &TrackedBundle,
    objects: &HashMap<Identity, Object>,
    drifts: Option<&VecDeque<DriftEvent>>,
) -> ObservedBundle {
    let mut counts = Counts {
        total: section.objects.len(),
        ..Counts::default()
    };
    let row = |row: &TrackedObject| {
        let none = Object::default();
        let object = objects.get(&row.key).unwrap_or(&none);
        let Assessment { health, message } = health(object);
        let state = match &object.fought {
            Some(message) => &ObjectState::Failed(message.clone()),
            None => &object.state,
        };
        match state {
            ObjectState::Pending => {}
            ObjectState::Applied | ObjectState::LeftAlone(_) => counts.applied += 1,
            ObjectState::Waiting(_) | ObjectState::Approval { .. } => counts.waiting += 1,
            ObjectState::Failed(_) => counts.failed += 1,
            ObjectState::Drifted(_) => counts.drifted += 1,
        }
        counts.healthy += usize::from(matches!(health, Health::Healthy | Health::Suspended));
        ObservedObject {
            id: row.id.clone(),
            uid: object.seen.as_ref().map(|seen| seen.uid.clone()),
            state: state.clone(),
            health,
            message,
            has_pods: object.seen.as_ref().is_some_and(|seen| seen.has_pods),
        }
    };
    let objects: Vec<_> = section.objects.iter().map(row).collect();
    ObservedBundle {
        app: section.app.clone(),
        role: section.role,
        hash: section.hash,
        health: worst_of(objects.iter().map(|object| object.health)),
        objects,
        counts,
        drifts: drifts.into_iter().flatten().cloned().collect(),
    }
}
