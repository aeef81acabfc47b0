//! Sends the objects of a run: each app's objects in their order, all apps in parallel.
//!
//! An object waits indefinitely for the objects that it can't exist without. For objects of its app
//! that merely precede it in the order, it waits at most [`FIRST_PATIENCE`]. It does not wait for
//! the objects of unrelated apps, so a request that hangs or fails delays no unrelated app. The
//! exceptions are webhooks and aggregated APIs, which wait for all apps. A request that hangs
//! continues after the run, and its end wakes the engine.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_model::{bundle::Gvk, ids::AppName};
use muster_plan::{
    health::Health,
    order::{Hook, Order, Reach},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Engine, FIRST_LOOK, LONGEST_LOOK, PATIENCE, Turn, desired::DesiredObject};
use crate::{
    kinds::{Kind, Lookup},
    object_tracker::Gate,
    observed::ObjectState,
};

/// The input of [`Engine::send_all`]: the desired objects and their order.
pub(super) struct Work<'a> {
    pub(super) desired: &'a [Arc<DesiredObject>],
    pub(super) order: &'a Order,
    /// The indexes of each app's objects.
    pub(super) by_app: BTreeMap<&'a AppName, Vec<usize>>,
    /// Objects that have drifted, or were deleted, and are corrected in this run.
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

    /// Returns true if the generation contains a definition of the object's kind that the agent may
    /// apply.
    fn is_taught(&self, index: usize, turns: &[Turn]) -> bool {
        self.order.needs[index]
            .iter()
            .any(|&need| self.desired[need].defines().is_some() && turns[need] != Turn::OutOfReach)
    }

    /// Returns true if the definition of the object's kind was sent in this run.
    fn has_new_schema(&self, index: usize, turns: &[Turn]) -> bool {
        self.order.needs[index]
            .iter()
            .any(|&need| self.desired[need].defines().is_some() && turns[need] == Turn::Good(true))
    }

    /// Returns each app's objects in stages.
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
            let after = members.first().map(|&index| self.desired[index].after());
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

/// One app's objects on their way through the stages.
struct Line {
    /// The stages that have not begun.
    stages: VecDeque<(Reach, Vec<usize>)>,
    /// Objects of the stages that have begun. The next stage waits until they are processed.
    open: HashSet<usize>,
    /// The lines of the apps that this app depends on.
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

/// The result of considering an object.
enum Considered {
    Ready(Arc<Kind>),
    /// The object with this index has to be applied first and is on its way.
    After(usize),
    /// The object's kind will be served in a moment.
    Parked,
    /// The object has been processed.
    Had,
}

/// The state of [`Engine::send_all`] during one run.
struct Dispatch<'a> {
    engine: &'a Arc<Engine>,
    work: &'a Work<'a>,
    turns: &'a mut [Turn],
    lines: Vec<Line>,
    line_of: HashMap<&'a AppName, usize>,
    /// The total number of objects in the `open` sets of all lines.
    open: usize,
    /// Lines whose next stage may begin.
    until_woken: Vec<usize>,
    ready: VecDeque<Ready>,
    /// Objects that failed before. They are sent after those that did not.
    retried: VecDeque<Ready>,
    /// The requests of this run that are under way, each with the time until which it is awaited.
    sent: HashMap<usize, Instant>,
    /// For each object, the objects that wait for it.
    waiters: HashMap<usize, Vec<usize>>,
    parked: Vec<usize>,
    gates: Vec<Gate>,
    ended: mpsc::UnboundedSender<(usize, Turn)>,
}

impl Engine {
    /// Sends everything that can be sent now.
    ///
    /// Returns the gates that objects wait for.
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
        // From here on, the end of a request wakes the engine.
        answers.close();
        while let Ok((index, turn)) = answers.try_recv() {
            dispatch.answered(index, turn);
        }
        dispatch.end();
        dispatch.gates
    }
}

/// The longest time that a run waits for kinds that were just defined. The next run continues the
/// wait.
const PARKED_WITHIN: Duration = Duration::from_secs(2);
/// The longest time that a run waits for a request that has not failed before. It is long enough to
/// keep the order when the API server is slow.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// The message of an object whose request hangs.
const UNANSWERED: &str = "the API server has not answered its request yet";
/// The factor by which the number of requests may exceed the usual limit when all of them take
/// long. The number is limited because each request holds its content in memory.
const LATE: usize = 4;

impl<'a> Dispatch<'a> {
    /// Returns the requests that are awaited, each with the end of its wait. The wait is short, so
    /// that a request that hangs delays nobody.
    fn awaited(&self) -> impl Iterator<Item = (usize, Instant)> {
        let now = Instant::now();
        let sent = self.sent.iter().map(|(index, until)| (*index, *until));
        sent.filter(move |(_, until)| *until > now)
    }

    /// Sends objects that are ready. Their number is limited, because each request holds its
    /// content in memory.
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
                            // The object still has the drift that was found.
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

    /// Stops waiting for requests that take long, so that the rest of their apps continues.
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

    /// Handles the end of a request. The run may have stopped waiting for it before.
    fn answered(&mut self, index: usize, turn: Turn) {
        self.sent.remove(&index);
        self.had(index, turn);
        self.advance();
    }

    /// Records how far an object got, and continues with the objects that waited for it.
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

    /// Makes the object's line wait for it.
    fn open(&mut self, index: usize) {
        let line = self.line(index);
        self.open += usize::from(self.lines[line].open.insert(index));
    }

    /// Ends the wait of the object's line.
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
            // No line has an object under way, so a stage that affects every client may begin.
            let mut all = 0..self.lines.len();
            let Some(line) = all.find(|&line| self.may_begin(line, true)) else {
                return;
            };
            self.begin_stage(line);
            self.until_woken.push(line);
        }
    }

    /// Returns true if a line's next stage can begin. With `everybody`, that stage must have
    /// [`Reach::Everybody`]; without, it must have another reach.
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

    /// Sends an object, or lets it wait, or records why it can't be sent.
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

    /// Decides whether an object can be sent now. If it can't, its state says why.
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

    /// Discovers the kinds of objects whose definition exists and whose kind was not served yet.
    async fn look_at_parked(&mut self) {
        let parked = std::mem::take(&mut self.parked);
        let versions: HashSet<(&str, &str)> = parked
            .iter()
            .map(|&index| &self.work.desired[index].id.gvk)
            .map(|gvk| (gvk.group.as_str(), gvk.version.as_str()))
            .collect();
        for (group, version) in versions {
            // An error counts as not served, and the kind is discovered again.
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

    /// Records the state of objects that were not processed completely.
    fn end(&mut self) {
        for members in self.work.by_app.values() {
            if !members
                .iter()
                .any(|&index| self.turns[index] == Turn::Good(true))
            {
                continue;
            }
            // An object may have failed because something was missing that was applied later.
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
    /// Returns true if an object that others need exists, even if it could not be updated. An
    /// existing namespace or a served kind is enough for the objects that need it.
    fn is_there(&self, need: &DesiredObject, gvk: &Gvk) -> bool {
        if need.defines().is_some() {
            return matches!(self.kinds().find(gvk), Lookup::Served(_));
        }
        let entry = self.inventory.get(&need.key);
        entry.is_some_and(|entry| entry.uid.is_some())
    }

    /// Returns what this object waits for, or `None` if it can be sent: all objects that must be
    /// completed or healthy first, and a message about the first of them that is not. The objects
    /// are the Jobs that run before its app, or the objects of an app that its app depends on.
    fn gate(&self, index: usize, work: &Work<'_>) -> Option<(String, Gate)> {
        let object = &work.desired[index];
        // Namespaces and definitions come before every app. Drift, including a deletion by somebody
        // else, is corrected regardless of others.
        let namespace = object.id.gvk.group.is_empty() && object.id.gvk.kind == "Namespace";
        let waits_never = object.urgent && object.marks().hook != Some(Hook::After);
        if namespace || object.defines().is_some() || work.drifted.contains(&index) || waits_never {
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
        for before in object.after() {
            let members = work.by_app.get(before).map_or(&[][..], Vec::as_slice);
            if let Some(&first) = members.iter().find(|&other| !well(other)) {
                let message = format!("app {before}: {}", self.waits_for(&work.desired[first]));
                return Some((message, gate(members)));
            }
        }
        None
    }

    /// Returns true if an object is applied and healthy. A Job that others wait for must have
    /// completed.
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
