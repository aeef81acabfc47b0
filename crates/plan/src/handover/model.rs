//! A model of one hub and two clusters, which a model checker explores with the functions that the hub and the agents
//! run. Messages arrive late, twice, in another order, or never. A writer crashes and starts again. The hub is restored
//! from an older backup. Clusters join again, and objects are replaced. At no time do two clusters write.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    fleet_record::{FleetRecord, Handover, Place, SealedRecord, Writer},
    ids::{AppName, ClusterName, ContentHash, Epoch, InstanceId, Role},
};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{Look, Order, Seen, advance, advanced, baseline, fence, give_back, role_of};
use crate::delivery::{Known, Term, accept_record, accept_term};

/// A fault that is put into the hub or the agents, to show that the model would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// The new holder is promoted without any proof.
    PromoteFirst,
    /// A proof from before the fence counts.
    OldProof,
    /// A proof counts although the cluster has joined again.
    OtherInstance,
    /// A proof counts although its object was replaced.
    OtherObject,
    /// An agent accepts a generation of a lower epoch.
    LowerEpoch,
    /// A hub that was restored does not wait until it has heard its clusters.
    NoHearing,
}

const SIDES: [&str; 2] = ["a", "b"];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cluster {
    instance: u8,
    /// The newest term that its agent has seen.
    term: u64,
    /// The UID of the object that the app's rule is about.
    object: u8,
    /// The fleet record in force.
    record: FleetRecord,
    /// The role whose objects are applied.
    applied: Role,
    /// True if the app writes.
    writes: bool,
    /// True if the rule says that the app has stopped. It says so of an object that was just replaced, too.
    says_stopped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    record: FleetRecord,
    /// The number of troubles so far: crashes, replaced objects, clusters that joined again, and restores.
    troubles: u8,
    /// The clusters that the hub has not heard since it was restored.
    unheard: BTreeSet<usize>,
    clusters: [Cluster; 2],
    /// The hub's term. Each restore begins another one.
    term: u64,
    /// Every record that there ever was, with its term. Each may still arrive in a cluster, and the hub may be restored
    /// to it.
    records: BTreeSet<(u64, FleetRecord)>,
    /// The looks that were ever sent, with their clusters. Each may still arrive at the hub.
    looks: BTreeSet<(usize, Look)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Move(Look),
    GiveBack,
    Advance(Option<Look>, Option<Look>),
    Deliver(usize, u64, FleetRecord),
    Apply(usize),
    Crash(usize),
    End(usize),
    Start(usize),
    Replace(usize),
    Rejoin(usize),
    LookAt(usize),
    Restore(FleetRecord),
    Hear(usize),
}

struct Handovers {
    mutation: Option<Mutation>,
    /// The highest epoch that is explored.
    last: u64,
    /// The most troubles that are explored.
    troubles: u8,
}

fn app() -> AppName {
    "db".parse().unwrap_or_else(|_| unreachable!())
}

fn name(cluster: usize) -> ClusterName {
    SIDES[cluster].parse().unwrap_or_else(|_| unreachable!())
}

fn instance(number: u8) -> InstanceId {
    let text = format!("{number:032x}");
    text.parse().unwrap_or_else(|_| unreachable!())
}

fn place(cluster: usize) -> Place {
    Place {
        region: SIDES[cluster].parse().unwrap_or_else(|_| unreachable!()),
        cluster: name(cluster),
    }
}

fn numbered(number: u64) -> Term {
    Term {
        number,
        ..Term::default()
    }
}

fn sealed(record: &FleetRecord) -> SealedRecord {
    SealedRecord {
        epoch: record.epoch,
        ..SealedRecord::default()
    }
}

fn writer(record: &FleetRecord) -> &Writer {
    &record.writers[&app()]
}

impl Cluster {
    fn role(&self, at: usize) -> Role {
        role_of(writer(&self.record), &name(at)).unwrap_or(Role::Standby)
    }

    fn look(&self, at: usize) -> Look {
        let role = self.role(at);
        Look {
            instance: instance(self.instance),
            epoch: self.record.epoch,
            role,
            is_applied: self.applied == role,
            is_healthy: self.writes,
            rule: Some(ContentHash([0; 32])),
            is_evaluated: true,
            stopped: self.says_stopped,
            uids: BTreeMap::from([("db".to_owned(), self.object.to_string())]),
            carried: BTreeMap::new(),
            why: String::new(),
        }
    }
}

impl World {
    fn order(&self) -> Order {
        Order {
            epoch: self.record.epoch.next(),
            at: 0,
            by: String::new(),
            why: String::new(),
        }
    }

    fn put(&mut self, after: Writer) {
        self.record.epoch = self.record.epoch.next();
        self.record.writers.insert(app(), after);
        self.records.insert((self.term, self.record.clone()));
    }
}

impl Model for Handovers {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let held = Writer {
            region: place(0).region,
            cluster: name(0),
            epoch: Epoch(1),
            at: 0,
            by: String::new(),
            why: String::new(),
            handover: None,
        };
        let record = FleetRecord {
            epoch: Epoch(1),
            writers: BTreeMap::from([(app(), held)]),
        };
        let cluster = |applied| Cluster {
            instance: 0,
            term: 0,
            object: 0,
            record: record.clone(),
            applied,
            writes: applied == Role::Primary,
            says_stopped: applied != Role::Primary,
        };
        vec![World {
            record: record.clone(),
            troubles: 0,
            unheard: BTreeSet::new(),
            clusters: [cluster(Role::Primary), cluster(Role::Standby)],
            term: 0,
            records: BTreeSet::from([(0, record)]),
            looks: BTreeSet::new(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let held = writer(&world.record);
        if world.unheard.is_empty() {
            let holder = usize::from(held.cluster != name(0));
            let of = |side: usize| {
                let looks = world.looks.iter().filter(move |(at, _)| *at == side);
                looks.map(|(_, look)| look.clone())
            };
            match &held.handover {
                None => actions.extend(of(holder).map(Action::Move)),
                Some(step) => {
                    let new = match step {
                        Handover::Fencing { .. } => 1 - holder,
                        Handover::Promoting { .. } | Handover::Returning { .. } => holder,
                    };
                    let seen = world.clusters[new].look(new);
                    for old in of(1 - new).map(Some).chain([None]) {
                        actions.push(Action::Advance(old, Some(seen.clone())));
                    }
                    if matches!(step, Handover::Fencing { .. }) {
                        actions.push(Action::GiveBack);
                    }
                }
            }
        }
        // Backups of two hubs that had gone different ways are out of scope.
        if world.troubles < self.troubles && world.term == 0 {
            let records = world.records.iter().map(|(_, record)| record);
            let older = records.filter(|record| **record != world.record);
            actions.extend(older.cloned().map(Action::Restore));
        }
        actions.extend(world.unheard.iter().map(|at| Action::Hear(*at)));
        for at in 0..2 {
            let records = world.records.iter().cloned();
            actions.extend(records.map(|(term, record)| Action::Deliver(at, term, record)));
            actions.extend([Action::Apply(at), Action::End(at), Action::Start(at)]);
            if world.clusters[at].role(at) != Role::Standby {
                actions.push(Action::LookAt(at));
            }
            if world.troubles < self.troubles {
                actions.extend([Action::Crash(at), Action::Replace(at), Action::Rejoin(at)]);
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let held = writer(&world.record).clone();
        match action {
            Action::Move(look) => {
                let baseline = baseline(&held, Some(&look)).ok()?;
                let to = place(usize::from(held.cluster == name(0)));
                world.put(fence(&held, to, baseline, before.order()));
            }
            Action::GiveBack => {
                let to = place(usize::from(held.cluster == name(0)));
                world.put(give_back(&held, to, before.order()));
            }
            Action::Advance(mut old, new) => {
                if let (Some(Handover::Fencing { baseline, .. }), Some(look)) =
                    (&held.handover, &mut old)
                {
                    match self.mutation {
                        Some(Mutation::PromoteFirst) => {
                            look.epoch = held.epoch;
                            look.role = Role::Fenced;
                            (look.is_applied, look.stopped) = (true, true);
                        }
                        Some(Mutation::OldProof) => {
                            look.epoch = held.epoch;
                            look.role = Role::Fenced;
                        }
                        Some(Mutation::OtherInstance) => {
                            look.instance = baseline.instance.clone();
                        }
                        Some(Mutation::OtherObject) => look.uids = baseline.uids.clone(),
                        _ => {}
                    }
                }
                let seen = Seen {
                    old: old.as_ref(),
                    new: new.as_ref(),
                    is_new_connected: true,
                    is_old_gone: false,
                };
                let change = advance(&held, seen).ok()?;
                let epoch = world.record.epoch.next();
                world.put(advanced(&held, change, epoch, 0));
            }
            Action::Deliver(at, term, record) => {
                let cluster = &mut world.clusters[at];
                let known = Known {
                    term: numbered(cluster.term),
                    record: Some(sealed(&cluster.record)),
                    ..Known::default()
                };
                let accepted = accept_record(&known, Some(sealed(&record)), record.epoch);
                accept_term(&known, numbered(term)).ok()?;
                cluster.term = term;
                if accepted.is_err() && self.mutation != Some(Mutation::LowerEpoch) {
                    return None;
                }
                cluster.record = record;
            }
            Action::Apply(at) => {
                let cluster = &mut world.clusters[at];
                cluster.applied = cluster.role(at);
            }
            // The writer ends some time after the primary's objects are gone.
            Action::End(at) => {
                let cluster = &mut world.clusters[at];
                if cluster.applied == Role::Primary {
                    return None;
                }
                (cluster.writes, cluster.says_stopped) = (false, true);
            }
            // A writer that crashed starts again as long as the primary's objects are there.
            Action::Crash(at) => {
                world.troubles += 1;
                let cluster = &mut world.clusters[at];
                (cluster.writes, cluster.says_stopped) = (false, true);
            }
            Action::Start(at) => {
                let cluster = &mut world.clusters[at];
                if cluster.applied != Role::Primary {
                    return None;
                }
                (cluster.writes, cluster.says_stopped) = (true, false);
            }
            Action::Replace(at) => {
                world.troubles += 1;
                let cluster = &mut world.clusters[at];
                cluster.object += 1;
                // The status of a new object knows nothing of the old one's processes.
                cluster.says_stopped = true;
            }
            // A cluster that joins again may be another one under the old name, in which nothing runs.
            Action::Rejoin(at) => {
                world.troubles += 1;
                let cluster = &mut world.clusters[at];
                cluster.instance += 1;
                cluster.says_stopped = true;
            }
            Action::LookAt(at) => {
                world.looks.insert((at, world.clusters[at].look(at)));
            }
            Action::Restore(record) => {
                world.record = record;
                world.term += 1;
                world.troubles += 1;
                if self.mutation != Some(Mutation::NoHearing) {
                    world.unheard = BTreeSet::from([0, 1]);
                }
            }
            Action::Hear(at) => {
                world.record = world.record.union(&world.clusters[at].record).ok()?;
                world.records.insert((world.term, world.record.clone()));
                world.clusters[at].term = world.term;
                world.unheard.remove(&at);
            }
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE, |_, world: &World| {
                world.clusters.iter().filter(|c| c.writes).count() <= 1
            }),
            Property::sometimes("a move is finished", |_, world: &World| {
                let held = writer(&world.record);
                held.cluster == name(1) && held.handover.is_none() && world.clusters[1].writes
            }),
            Property::sometimes("a move is given back", |_, world: &World| {
                let held = writer(&world.record);
                held.cluster == name(0) && held.handover.is_none() && held.epoch > Epoch(1)
            }),
            Property::sometimes("a writer moves there and back", |_, world: &World| {
                let held = writer(&world.record);
                held.cluster == name(0) && held.epoch > Epoch(3) && held.handover.is_some()
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        let epochs = world.clusters.iter().map(|c| c.record.epoch);
        let highest = epochs.chain([world.record.epoch]).max();
        highest <= Some(Epoch(self.last)) && world.looks.len() <= 4
    }
}

/// Explores every state of the model within these bounds. Returns false if two clusters write in one of them.
fn holds(mutation: Option<Mutation>, last: u64, troubles: u8, reached: &[&'static str]) -> bool {
    let model = Handovers {
        mutation,
        last,
        troubles,
    };
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    eprintln!(
        "{mutation:?}: {} states to epoch {last}, with {troubles} troubles",
        checker.unique_state_count()
    );
    for name in reached {
        assert!(checker.discovery(name).is_some(), "never: {name}");
    }
    let found = checker.discovery(ONE);
    if let (Some(path), None) = (&found, mutation) {
        for action in path.clone().into_actions() {
            eprintln!("{action:?}");
        }
    }
    found.is_none()
}

const ONE: &str = "at most one cluster writes";

#[test]
fn two_clusters_never_write_at_the_same_time() {
    assert!(holds(None, 4, 1, &ENDED));
    assert!(holds(None, 7, 0, &["a writer moves there and back"]));
}

const ENDED: [&str; 2] = ["a move is finished", "a move is given back"];

/// Takes minutes; `cargo xtask soak model` runs it.
#[test]
#[ignore = "takes minutes"]
fn two_clusters_never_write_however_many_troubles_there_are() {
    assert!(holds(None, 4, 2, &ENDED));
    assert!(holds(None, 6, 1, &ENDED));
}

#[test]
fn the_model_finds_every_fault() {
    for (mutation, troubles) in [
        (Mutation::PromoteFirst, 0),
        (Mutation::OldProof, 1),
        (Mutation::OtherInstance, 1),
        (Mutation::OtherObject, 1),
        (Mutation::LowerEpoch, 0),
        (Mutation::NoHearing, 1),
    ] {
        let found = !holds(Some(mutation), 4, troubles, &[]);
        assert!(found, "{mutation:?} is not found");
    }
}
