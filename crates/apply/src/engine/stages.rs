//! Stage by stage: what can be sent now, what waits and for what.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use muster_model::ids::AppName;
use muster_plan::{health::Health, order::Order};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Engine, FIRST_LOOK, LONGEST_LOOK, Turn, wanted::Wanted};
use crate::{
    board::Standing,
    inventory::Identity,
    kinds::{Kind, Lookup},
};

/// What a run works on.
pub(super) struct Work<'a> {
    pub(super) wanted: &'a [Wanted<'a>],
    pub(super) order: &'a Order,
    /// The objects of each app.
    pub(super) by_app: BTreeMap<&'a AppName, Vec<usize>>,
    /// Objects that are there and not as they were left.
    pub(super) drifted: HashSet<usize>,
    pub(super) cancel: &'a CancellationToken,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        wanted: &'a [Wanted<'a>],
        order: &'a Order,
        drifted: HashSet<usize>,
        cancel: &'a CancellationToken,
    ) -> Self {
        let mut by_app: BTreeMap<&AppName, Vec<usize>> = BTreeMap::new();
        for (index, object) in wanted.iter().enumerate() {
            by_app.entry(object.app).or_default().push(index);
        }
        Self {
            wanted,
            order,
            by_app,
            drifted,
            cancel,
        }
    }

    /// Whether something in the set brings an object's kind.
    fn is_taught(&self, index: usize, turns: &[Turn]) -> bool {
        self.order.needs[index]
            .iter()
            .any(|&need| self.wanted[need].defines.is_some() && turns[need] != Turn::OutOfReach)
    }

    /// Whether the definition of its kind was sent just now.
    fn has_new_schema(&self, index: usize, turns: &[Turn]) -> bool {
        self.order.needs[index]
            .iter()
            .any(|&need| self.wanted[need].defines.is_some() && turns[need] == Turn::Good(true))
    }
}

impl Engine {
    /// Sends every stage.
    pub(super) async fn send_all(&mut self, work: &Work<'_>, turns: &mut [Turn]) {
        let mut late = Vec::new();
        let mut gates = Vec::new();
        for stage in &work.order.stages {
            let (now, parked) = self.ready(stage, work, turns, &mut gates).await;
            late.extend(parked);
            self.send(now, work, turns).await;
        }
        self.board.wait_for(gates);
        self.send_late(late, work, turns).await;
    }

    /// Splits a stage into what can be sent now and what waits for its kind to be served; says of the
    /// rest why it can't be sent.
    async fn ready(
        &mut self,
        stage: &[usize],
        work: &Work<'_>,
        turns: &mut [Turn],
        gates: &mut Vec<Vec<Identity>>,
    ) -> (Vec<(usize, Arc<Kind>)>, Vec<usize>) {
        let mut looked = HashSet::new();
        let (mut now, mut parked) = (Vec::new(), Vec::new());
        for &index in stage {
            if turns[index] != Turn::None || work.cancel.is_cancelled() {
                continue;
            }
            let object = &work.wanted[index];
            if let Some(&need) = work.order.needs[index].iter().find(|need| {
                matches!(turns[**need], Turn::Bad | Turn::Gated)
                    && !self.is_there(&work.wanted[**need])
            }) {
                let message = format!("{} is not applied", work.wanted[need].id);
                self.wait(object, &mut turns[index], message);
                continue;
            }
            if let Some((message, gate)) = self.gate(index, work, turns) {
                self.board.stand(&object.key, Standing::Waiting(message));
                turns[index] = Turn::Gated;
                if !gates.contains(&gate) {
                    gates.push(gate);
                }
                continue;
            }
            let gvk = &object.id.gvk;
            let taught = work.is_taught(index, turns);
            if taught
                && !matches!(self.kinds.find(gvk), Lookup::Served(_))
                && looked.insert((&gvk.group, &gvk.version))
            {
                // An error is as good as a no: it is asked again.
                let _ = self
                    .kinds
                    .refresh_version(&self.cluster, &gvk.group, &gvk.version)
                    .await;
            }
            match self.kinds.find(gvk) {
                Lookup::Served(kind) => now.push((index, kind)),
                _ if taught => parked.push(index),
                Lookup::OtherVersion(kind) => {
                    let message = format!(
                        "the cluster serves {} in {}, not in {}",
                        gvk.kind,
                        kind.gvk.api_version(),
                        gvk.api_version()
                    );
                    self.wait(object, &mut turns[index], message);
                }
                Lookup::Unknown => {
                    self.wait(object, &mut turns[index], self.kinds.why_unknown(gvk));
                }
            }
        }
        (now, parked)
    }

    /// Whether a Namespace is there, though it could not be made what it should be: that keeps nothing
    /// out of it.
    fn is_there(&self, need: &Wanted<'_>) -> bool {
        let gvk = &need.id.gvk;
        let entry = self.inventory.get(&need.key);
        gvk.group.is_empty()
            && gvk.kind == "Namespace"
            && entry.is_some_and(|entry| entry.uid.is_some())
    }

    /// What has to be complete or healthy before this object is sent and is not: the Jobs that run
    /// before its app, the apps that its app depends on. With the message, all that it waits for.
    fn gate(
        &self,
        index: usize,
        work: &Work<'_>,
        turns: &[Turn],
    ) -> Option<(String, Vec<Identity>)> {
        let object = &work.wanted[index];
        // Namespaces and definitions come before every app, and what is there is put right whatever
        // others do.
        let namespace = object.id.gvk.group.is_empty() && object.id.gvk.kind == "Namespace";
        if namespace || object.defines.is_some() || work.drifted.contains(&index) {
            return None;
        }
        let well = |&other: &usize| {
            let other_object = &work.wanted[other];
            let finished = || {
                self.inventory
                    .get(&other_object.key)
                    .is_some_and(|e| e.finished)
            };
            let is_well = || match self.board.health_of(&other_object.key).health {
                Health::Healthy => true,
                // A Job that nobody lets run is not done.
                Health::Suspended => other_object.marks.hook.is_none(),
                _ => finished(),
            };
            matches!(turns[other], Turn::Good(_)) && is_well()
        };
        let keys = |all: &[usize]| all.iter().map(|&i| work.wanted[i].key.clone()).collect();
        let gates = &work.order.gates[index];
        if let Some(&first) = gates.iter().find(|&other| !well(other)) {
            return Some((self.waits_for(&work.wanted[first]), keys(gates)));
        }
        for before in &object.header.after {
            let members = work.by_app.get(before).map_or(&[][..], Vec::as_slice);
            if let Some(&first) = members.iter().find(|&other| !well(other)) {
                let message = format!("app {before}: {}", self.waits_for(&work.wanted[first]));
                return Some((message, keys(members)));
            }
        }
        None
    }

    fn waits_for(&self, other: &Wanted<'_>) -> String {
        let assessment = self.board.health_of(&other.key);
        let why = match (assessment.health, assessment.message) {
            (Health::Healthy, None) => "not applied yet".to_owned(),
            (health, None) => health.to_string(),
            (health, Some(message)) => format!("{health}, {message}"),
        };
        format!("waiting for {}: {why}", other.id)
    }

    fn wait(&self, object: &Wanted<'_>, turn: &mut Turn, message: String) {
        self.board.stand(&object.key, Standing::Waiting(message));
        *turn = Turn::Bad;
    }

    /// Sends objects, several at a time.
    async fn send(&self, now: Vec<(usize, Arc<Kind>)>, work: &Work<'_>, turns: &mut [Turn]) {
        let now: Vec<_> = now
            .into_iter()
            .map(|(index, kind)| (index, kind, work.has_new_schema(index, turns)))
            .collect();
        let requests = now.into_iter().map(|(index, kind, new_schema)| async move {
            if work.cancel.is_cancelled() {
                return (index, Turn::None);
            }
            let drifted = work.drifted.contains(&index);
            let object = &work.wanted[index];
            let sent = self.send_one(object, &kind, new_schema, drifted, work.cancel);
            (index, sent.await)
        });
        let mut requests = stream::iter(requests).buffer_unordered(self.config.concurrency);
        while let Some((index, turn)) = requests.next().await {
            turns[index] = turn;
        }
    }

    /// Waits, for a bounded time, until the kinds of these objects are served, and sends each as soon
    /// as its own is.
    async fn send_late(&mut self, mut late: Vec<usize>, work: &Work<'_>, turns: &mut [Turn]) {
        let end = Instant::now() + self.config.established_within;
        let mut pause = FIRST_LOOK;
        for &index in &late {
            let message = "its kind is not served yet".to_owned();
            self.board
                .stand(&work.wanted[index].key, Standing::Waiting(message));
        }
        while !late.is_empty() && Instant::now() < end {
            let slept = work
                .cancel
                .run_until_cancelled(tokio::time::sleep(pause))
                .await;
            if slept.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_LOOK);
            let (now, parked) = self.ready(&late, work, turns, &mut Vec::new()).await;
            if !now.is_empty() {
                self.follow(work.wanted);
            }
            self.send(now, work, turns).await;
            late = parked;
        }
    }
}
