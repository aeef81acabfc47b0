//! The sending of a run: each app's objects in their order, all apps side by side.
//!
//! An object waits for what it can't exist without, however long that takes. For the rest of its own
//! app that merely comes first it waits a moment ([`FIRST_PATIENCE`]), and for nobody else's objects at all:
//! a request that hangs or fails delays no other app. Such a request goes on after the run; its end
//! wakes the engine.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_model::{bundle::Gvk, ids::AppName};
use muster_plan::{
    health::Health,
    order::{Order, Reach},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Engine, FIRST_LOOK, LONGEST_LOOK, PATIENCE, Turn, desired::DesiredObject};
use crate::{
    kinds::{Kind, Lookup},
    object_tracker::Gate,
    observed::ObjectState,
};

/// What a run works on.
pub(super) struct Work<'a> {
    pub(super) desired: &'a [Arc<DesiredObject>],
    pub(super) order: &'a Order,
    /// The objects of each app.
    pub(super) by_app: BTreeMap<&'a AppName, Vec<usize>>,
    /// Objects that are there and not as they were left.
    pub(super) drifted: HashSet<usize>,
    pub(super) cancel: &'a CancellationToken,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        desired: &'a [Arc<DesiredObject>],
        order: &'a Order,
        drifted: HashSet<usize>,
        cancel: &'a CancellationToken,
    ) -> Self {
        let mut by_app: BTreeMap<&AppName, Vec<usize>> = BTreeMap::new();
        for (index, object) in desired.iter().enumerate() {
            by_app.entry(object.app()).or_default().push(index);
        }
        Self {
            desired,
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
            .any(|&need| self.desired[need].defines().is_some() && turns[need] != Turn::OutOfReach)
    }

    /// Whether the definition of its kind was sent just now.
    fn has_new_schema(&self, index: usize, turns: &[Turn]) -> bool {
        self.order.needs[index]
            .iter()
            .any(|&need| self.desired[need].defines().is_some() && turns[need] == Turn::Good(true))
    }

    /// Each app's objects in stages.
    fn lines(&self) -> Vec<Line> {
        let mut number = HashMap::new();
        let mut lines: Vec<Line> = Vec::new();
        for &app in self.by_app.keys() {
            number.insert(app, lines.len());
            lines.push(Line {
                stages: VecDeque::new(),
                open: HashSet::new(),
                after: Vec::new(),
            });
        }
        for (place, stage) in self.order.stages.iter().enumerate() {
            let mut by_line: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for &index in stage {
                let line = number[self.desired[index].app()];
                by_line.entry(line).or_default().push(index);
            }
            for (line, objects) in by_line {
                lines[line]
                    .stages
                    .push_back((self.order.reach[place], objects));
            }
        }
        for (&app, members) in &self.by_app {
            let after = members
                .first()
                .map(|&index| self.desired[index].header().after.as_slice());
            let after = after.into_iter().flatten();
            let line = number[app];
            lines[line].after = after
                .filter_map(|app| number.get(app).copied())
                .filter(|other| *other != line)
                .collect();
        }
        lines
    }
}

/// One app's objects on their way.
struct Line {
    /// What has not had its turn.
    stages: VecDeque<(Reach, Vec<usize>)>,
    /// Objects of earlier stages that are waited for.
    open: HashSet<usize>,
    /// The lines of the apps that come first.
    after: Vec<usize>,
}

impl Line {
    fn is_done(&self) -> bool {
        self.stages.is_empty() && self.open.is_empty()
    }
}

/// An object that can be sent.
struct Ready {
    index: usize,
    kind: Arc<Kind>,
    new_schema: bool,
}

/// What became of looking at an object whose turn it is.
enum Considered {
    Ready(Arc<Kind>),
    /// This one has to be applied first and is on its way.
    After(usize),
    /// Its kind will be served in a moment.
    Parked,
    /// It has had its turn.
    Had,
}

/// The state of a run's sending.
struct Dispatch<'a> {
    engine: &'a Arc<Engine>,
    work: &'a Work<'a>,
    turns: &'a mut [Turn],
    lines: Vec<Line>,
    line_of: HashMap<&'a AppName, usize>,
    /// How many objects all lines wait for.
    open: usize,
    /// Lines whose next stage may begin.
    until_woken: Vec<usize>,
    ready: VecDeque<Ready>,
    /// What failed before is sent after what did not.
    retried: VecDeque<Ready>,
    /// Requests of this run under way, with until when each is waited for.
    sent: HashMap<usize, Instant>,
    /// Objects that wait for this one.
    waiters: HashMap<usize, Vec<usize>>,
    parked: Vec<usize>,
    gates: Vec<Gate>,
    ended: mpsc::UnboundedSender<(usize, Turn)>,
}

impl Engine {
    /// Sends everything that can be sent now.
    ///
    /// The answer is what opens gates.
    pub(super) async fn send_all(
        self: &Arc<Self>,
        work: &Work<'_>,
        turns: &mut [Turn],
    ) -> Vec<Gate> {
        let (ended, mut answers) = mpsc::unbounded_channel();
        let line_of = work.by_app.keys().enumerate();
        let mut dispatch = Dispatch {
            engine: self,
            work,
            turns,
            lines: work.lines(),
            line_of: line_of.map(|(line, &app)| (app, line)).collect(),
            open: 0,
            until_woken: (0..work.by_app.len()).collect(),
            ready: VecDeque::new(),
            retried: VecDeque::new(),
            sent: HashMap::new(),
            waiters: HashMap::new(),
            parked: Vec::new(),
            gates: Vec::new(),
            ended,
        };
        dispatch.advance();
        let parked_until = Instant::now() + self.config.established_within.min(PARKED_WITHIN);
        let mut look = FIRST_LOOK;
        let mut look_at = Instant::now() + look;
        while !work.cancel.is_cancelled() {
            dispatch.give_up_waiting();
            dispatch.send_ready();
            let parked = !dispatch.parked.is_empty() && Instant::now() < parked_until;
            if dispatch.awaited().next().is_none() && !parked {
                break;
            }
            let patience = dispatch.awaited().map(|(_, until)| until).min();
            tokio::select! {
                biased;
                () = work.cancel.cancelled() => {}
                answer = answers.recv() => if let Some((index, turn)) = answer {
                    dispatch.answered(index, turn);
                },
                () = tokio::time::sleep_until(patience.unwrap_or(look_at)), if patience.is_some() => {}
                () = tokio::time::sleep_until(look_at), if parked => {
                    dispatch.look_at_parked().await;
                    look = (look * 2).min(LONGEST_LOOK);
                    look_at = Instant::now() + look;
                }
            }
        }
        // From here on the end of a request wakes the engine.
        answers.close();
        while let Ok((index, turn)) = answers.try_recv() {
            dispatch.answered(index, turn);
        }
        dispatch.end();
        dispatch.gates
    }
}

/// How long a run looks for kinds that were defined a moment ago; the next run goes on with that.
const PARKED_WITHIN: Duration = Duration::from_secs(2);
/// How long a run waits for a request that has not failed before: a slow API server keeps the order.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// What is said of an object whose request hangs.
const UNANSWERED: &str = "the API server has not answered its request yet";
/// How many times as many requests as usual may be under way when all of them take long: each holds
/// its content.
const LATE: usize = 4;

impl<'a> Dispatch<'a> {
    /// Requests that are waited for, with until when: for a moment only, so that one that hangs holds up
    /// nobody.
    fn awaited(&self) -> impl Iterator<Item = (usize, Instant)> {
        let now = Instant::now();
        let sent = self.sent.iter().map(|(index, until)| (*index, *until));
        sent.filter(move |(_, until)| *until > now)
    }

    /// Sends what is ready, not too many at a time: each holds its content.
    fn send_ready(&mut self) {
        let most = self.engine.config.concurrency;
        let late = (most * LATE).saturating_sub(self.engine.under_way.count());
        let mut room = most.saturating_sub(self.awaited().count()).min(late);
        while room > 0 {
            let next = self.ready.pop_front().or_else(|| self.retried.pop_front());
            let Some(Ready {
                index,
                kind,
                new_schema,
            }) = next
            else {
                break;
            };
            let object = self.work.desired[index].clone();
            let Some(taken) = self.engine.under_way.take(&object.key) else {
                self.had(index, Turn::UnderWay);
                continue;
            };
            room -= 1;
            let failed = self
                .engine
                .schedule
                .is_failing(&object.key, object.digest());
            let patience = if failed { PATIENCE } else { FIRST_PATIENCE };
            self.sent.insert(index, Instant::now() + patience);
            let (engine, ended) = (self.engine.clone(), self.ended.clone());
            let cancel = self.work.cancel.clone();
            let drifted = self.work.drifted.contains(&index);
            self.engine.under_way.tasks.spawn(async move {
                let turn = engine
                    .send_one(&object, &kind, new_schema, drifted, &cancel)
                    .await;
                match turn {
                    Turn::Good(_) => {
                        engine.schedule.succeeded(&object.key);
                        engine.tracker.resume_drift(&object.key);
                    }
                    Turn::Bad => {
                        if drifted {
                            // It is no more as it was left than before.
                            engine.postponed().insert(object.key.clone());
                        }
                        engine.schedule.failed(&object.key, object.digest());
                    }
                    _ => {}
                }
                drop(taken);
                if ended.send((index, turn)).is_err() {
                    engine.tracker.wake();
                }
            });
        }
    }

    /// What waits in its app for a request that takes long goes on without it.
    fn give_up_waiting(&mut self) {
        let now = Instant::now();
        let late: Vec<usize> = self
            .sent
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(index, _)| *index)
            .collect();
        for index in late {
            self.sent.remove(&index);
            let key = &self.work.desired[index].key;
            self.engine.tracker.set_waiting(key, UNANSWERED);
            self.had(index, Turn::UnderWay);
        }
        self.advance();
    }

    /// A request has ended, maybe after it was given up waiting for.
    fn answered(&mut self, index: usize, turn: Turn) {
        self.sent.remove(&index);
        self.had(index, turn);
        self.advance();
    }

    /// An object has had its turn: what waited for it goes on.
    fn had(&mut self, index: usize, turn: Turn) {
        self.turns[index] = turn;
        for waiter in self.waiters.remove(&index).unwrap_or_default() {
            self.consider(waiter);
        }
        self.close(index);
    }

    fn line(&self, index: usize) -> usize {
        self.line_of[self.work.desired[index].app()]
    }

    /// Its line waits for this object.
    fn open(&mut self, index: usize) {
        let line = self.line(index);
        self.open += usize::from(self.lines[line].open.insert(index));
    }

    /// Its line does not wait for this object any more.
    fn close(&mut self, index: usize) {
        let line = self.line(index);
        if self.lines[line].open.remove(&index) {
            self.open -= 1;
            self.until_woken.push(line);
        }
    }

    /// Begins every stage that can begin.
    fn advance(&mut self) {
        loop {
            while let Some(line) = self.until_woken.pop() {
                while self.may_begin(line, false) {
                    self.begin_stage(line);
                }
                if self.lines[line].is_done() {
                    let after = |(_, other): &(usize, &Line)| {
                        !other.is_done() && other.after.contains(&line)
                    };
                    let after = self.lines.iter().enumerate().filter(after);
                    let after: Vec<usize> = after.map(|(other, _)| other).collect();
                    self.until_woken.extend(after);
                }
            }
            if self.open > 0 {
                return;
            }
            // Nobody else has anything under way that could come first.
            let mut all = 0..self.lines.len();
            let Some(line) = all.find(|&line| self.may_begin(line, true)) else {
                return;
            };
            self.begin_stage(line);
            self.until_woken.push(line);
        }
    }

    /// Whether a line's next stage can begin; with `everybody`, one that concerns everybody.
    fn may_begin(&self, line: usize, everybody: bool) -> bool {
        let Line {
            stages,
            open,
            after,
        } = &self.lines[line];
        let Some((reach, _)) = stages.front() else {
            return false;
        };
        open.is_empty()
            && (*reach == Reach::Everybody) == everybody
            && (*reach == Reach::Foundation
                || after.iter().all(|&other| self.lines[other].is_done()))
    }

    fn begin_stage(&mut self, line: usize) {
        let Some((_, stage)) = self.lines[line].stages.pop_front() else {
            return;
        };
        for index in stage {
            self.consider(index);
        }
    }

    /// Looks at an object whose turn it is.
    fn consider(&mut self, index: usize) {
        if self.turns[index] != Turn::None {
            return self.close(index);
        }
        match self.look_at(index) {
            Considered::Ready(kind) => {
                self.open(index);
                let ready = Ready {
                    index,
                    kind,
                    new_schema: self.work.has_new_schema(index, self.turns),
                };
                let object = &self.work.desired[index];
                let failing = &self.engine.schedule;
                if failing.is_failing(&object.key, object.digest()) {
                    self.retried.push_back(ready);
                } else {
                    self.ready.push_back(ready);
                }
            }
            Considered::After(need) => {
                self.open(index);
                self.waiters.entry(need).or_default().push(index);
            }
            Considered::Parked => {
                self.parked.push(index);
                self.close(index);
            }
            Considered::Had => self.close(index),
        }
    }

    /// Whether an object can be sent now; says of one that can't why not.
    fn look_at(&mut self, index: usize) -> Considered {
        let (work, engine) = (self.work, self.engine);
        let object = &work.desired[index];
        let gvk = &object.id.gvk;
        let kinds = engine.kinds();
        for &need in &work.order.needs[index] {
            let other = &work.desired[need];
            let why = match self.turns[need] {
                Turn::None => return Considered::After(need),
                Turn::Good(_) | Turn::OutOfReach => continue,
                Turn::Bad | Turn::Gated if engine.is_there(other, gvk) => continue,
                Turn::UnderWay if engine.is_there(other, gvk) => continue,
                Turn::UnderWay => format!("{} is being applied", other.id),
                Turn::Bad | Turn::Gated => format!("{} is not applied", other.id),
            };
            engine
                .tracker
                .set_state(&object.key, ObjectState::Waiting(why));
            self.turns[index] = Turn::Bad;
            return Considered::Had;
        }
        if let Some((message, gate)) = engine.gate(index, work) {
            engine
                .tracker
                .set_state(&object.key, ObjectState::Waiting(message));
            self.turns[index] = Turn::Gated;
            if !self.gates.contains(&gate) {
                self.gates.push(gate);
            }
            return Considered::Had;
        }
        let why = match kinds.find(gvk) {
            Lookup::Served(kind) => return Considered::Ready(kind),
            _ if work.is_taught(index, self.turns) => return Considered::Parked,
            Lookup::OtherVersion(kind) => format!(
                "the cluster serves {} in {}, not in {}",
                gvk.kind,
                kind.gvk.api_version(),
                gvk.api_version()
            ),
            Lookup::Unknown => kinds.why_unknown(gvk),
        };
        engine
            .tracker
            .set_state(&object.key, ObjectState::Waiting(why));
        engine.schedule.failed(&object.key, object.digest());
        self.turns[index] = Turn::Bad;
        Considered::Had
    }

    /// Asks for the kinds of objects whose definition is there and whose kind was not served yet.
    async fn look_at_parked(&mut self) {
        let parked = std::mem::take(&mut self.parked);
        let versions: HashSet<(&str, &str)> = parked
            .iter()
            .map(|&index| &self.work.desired[index].id.gvk)
            .map(|gvk| (gvk.group.as_str(), gvk.version.as_str()))
            .collect();
        for (group, version) in versions {
            // An error is as good as a no: it is asked again.
            let _ = self.engine.refresh_version(group, version).await;
        }
        for index in parked {
            let object = &self.work.desired[index];
            match self.engine.kinds().find(&object.id.gvk) {
                Lookup::Served(_) => {
                    self.engine.follow(self.work.desired);
                    self.consider(index);
                }
                _ => self.parked.push(index),
            }
        }
        self.advance();
    }

    /// Says what did not get its turn.
    fn end(&mut self) {
        for members in self.work.by_app.values() {
            if !members
                .iter()
                .any(|&index| self.turns[index] == Turn::Good(true))
            {
                continue;
            }
            // What failed may have failed for want of what was applied since.
            for &index in members {
                if self.turns[index] == Turn::Bad {
                    self.engine.schedule.hasten(&self.work.desired[index].key);
                }
            }
        }
        for index in std::mem::take(&mut self.parked) {
            let object = &self.work.desired[index];
            let why = "its kind is not served yet".to_owned();
            self.engine
                .tracker
                .set_state(&object.key, ObjectState::Waiting(why));
            self.engine.schedule.failed(&object.key, object.digest());
            self.turns[index] = Turn::Bad;
        }
        for (index, _) in std::mem::take(&mut self.sent) {
            self.turns[index] = Turn::UnderWay;
        }
    }
}

impl Engine {
    /// Whether what an object needs is there, though it could not be made what it should be: that keeps
    /// nothing out of a namespace, and no object from a kind that is served.
    fn is_there(&self, need: &DesiredObject, gvk: &Gvk) -> bool {
        if need.defines().is_some() {
            return matches!(self.kinds().find(gvk), Lookup::Served(_));
        }
        let entry = self.inventory.get(&need.key);
        entry.is_some_and(|entry| entry.uid.is_some())
    }

    /// What has to be complete or healthy before this object is sent and is not: the Jobs that run
    /// before its app, the apps that its app depends on. With the message, all that it waits for.
    fn gate(&self, index: usize, work: &Work<'_>) -> Option<(String, Gate)> {
        let object = &work.desired[index];
        // Namespaces and definitions come before every app, and what is there is corrected whatever
        // others do.
        let namespace = object.id.gvk.group.is_empty() && object.id.gvk.kind == "Namespace";
        if namespace || object.defines().is_some() || work.drifted.contains(&index) {
            return None;
        }
        let well = |&other: &usize| self.is_well(&work.desired[other]);
        let gate = |all: &[usize]| {
            all.iter()
                .map(|&index| &work.desired[index])
                .map(|object| (object.key.clone(), object.marks().hook.is_some()))
                .collect()
        };
        let gates = &work.order.gates[index];
        if let Some(&first) = gates.iter().find(|&other| !well(other)) {
            return Some((self.waits_for(&work.desired[first]), gate(gates)));
        }
        for before in &object.header().after {
            let members = work.by_app.get(before).map_or(&[][..], Vec::as_slice);
            if let Some(&first) = members.iter().find(|&other| !well(other)) {
                let message = format!("app {before}: {}", self.waits_for(&work.desired[first]));
                return Some((message, gate(members)));
            }
        }
        None
    }

    /// Whether an object is applied and healthy; a Job for which others wait, whether it has completed.
    pub(super) fn is_well(&self, object: &DesiredObject) -> bool {
        let hook = object.marks().hook.is_some();
        let entry = || self.inventory.get(&object.key);
        self.tracker.is_well(&object.key, hook)
            || entry().is_some_and(|e| e.finished && e.applied == Some(object.digest()))
    }

    pub(super) fn waits_for(&self, other: &DesiredObject) -> String {
        let assessment = self.tracker.health_of(&other.key);
        let why = match (assessment.health, assessment.message) {
            (Health::Healthy, None) => "not applied yet".to_owned(),
            (health, None) => health.to_string(),
            (health, Some(message)) => format!("{health}, {message}"),
        };
        format!("waiting for {}: {why}", other.id)
    }
}
