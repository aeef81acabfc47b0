//! Agents whose clusters are in memory. A generation is applied as soon as it arrives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::ensure;
use muster_agent::{Arrived, Cluster, Level, TakeError, dial, follow};
use muster_model::{
    bundle::{Bundle, BundleHeader},
    fleet_record::SealedRecord,
    ids::{ClusterName, ContentHash, Generation, Role},
    policy::PruneOrders,
};
use muster_pki::{Credentials, JoinToken, Key, TrustBundle};
use muster_plan::{
    delivery::{Known, Numbered, Term},
    writer_rule::hash_of,
};
use muster_proto::v1::{self, enrolment_client::EnrolmentClient};
use muster_runtime::log::Chain;
use muster_testkit::wait::eventually;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::fixture::{Hub, SOON};

/// The pause before an agent reconnects; real agents wait longer.
const AGAIN: Duration = Duration::from_millis(50);

/// The API group whose kinds are cluster-scoped in every cluster in memory.
pub(crate) const OUTSIDE: &str = "outside.example";

/// A cluster in memory.
pub(crate) struct Memory {
    state: Mutex<State>,
    level: watch::Sender<Arc<Level>>,
    /// The objects that it lists when it is asked.
    pub(crate) objects: Vec<v1::ObjectState>,
}

#[derive(Default)]
struct State {
    known: Known,
    bundles: BTreeMap<String, (Role, Bundle)>,
    held: HashMap<ContentHash, Vec<u8>>,
    taken: usize,
    arrived: usize,
    /// The sets that are pending approval, by app.
    holds: Vec<(String, v1::Hold)>,
    /// The sets that the generation in force approves.
    approved: BTreeSet<ContentHash>,
    /// The deletion rules of the generation in force.
    orders: PruneOrders,
    /// What it says of an app whose writer stops, if it says anything else than that it writes while it is the primary.
    writers: BTreeMap<String, WriterState>,
}

/// What a cluster says of an app's writer.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriterState {
    /// True if its rule says that it has stopped.
    pub(crate) stopped: bool,
    /// The UID of the object `db`.
    pub(crate) uid: String,
    /// The value that it carries over as `at`.
    pub(crate) carried: String,
    /// True if the app is not healthy.
    pub(crate) sick: bool,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_objects(Vec::new())
    }

    pub(crate) fn with_objects(objects: Vec<v1::ObjectState>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            level: watch::Sender::default(),
            objects,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns the apps that it runs, each with its role and the JSON of its objects.
    pub(crate) fn runs(&self) -> BTreeMap<String, (Role, Vec<String>)> {
        let state = self.state();
        let runs = state.bundles.iter().map(|(app, (role, bundle))| {
            let objects = bundle.objects.iter().map(|object| object.json.to_string());
            (app.clone(), (*role, objects.collect()))
        });
        runs.collect()
    }

    /// Returns the data of an app's only object.
    pub(crate) fn data(&self, app: &str) -> String {
        self.part(app, "data")
    }

    /// Returns the `spec` of an app's first object.
    pub(crate) fn spec(&self, app: &str) -> String {
        self.part(app, "spec")
    }

    fn part(&self, app: &str, field: &str) -> String {
        let runs = self.runs();
        let Some((_, objects)) = runs.get(app) else {
            return "nothing".to_owned();
        };
        let object: serde_json::Value = serde_json::from_str(&objects[0]).unwrap();
        object[field].to_string()
    }

    /// Forgets the hub, as an agent does that joins with a new token.
    pub(crate) fn join_anew(&self) {
        let mut state = self.state();
        state.known = Known {
            in_force: state.known.in_force,
            record: state.known.record.clone(),
            is_record_foreign: true,
            ..Known::default()
        };
    }

    /// Returns the generation in force; 0 if there is none.
    pub(crate) fn generation(&self) -> u64 {
        self.known()
            .in_force
            .map_or(0, |number| number.generation.0)
    }

    /// Reports three objects of an app as pending approval, as a set of this name. Replaces the app's earlier set.
    pub(crate) fn hold(&self, app: &str, name: &str) -> ContentHash {
        let objects = [0, 1, 2].map(|n| format!("ConfigMap {name}-{n}"));
        self.hold_objects(app, name, &objects.each_ref().map(String::as_str))
    }

    /// Reports these objects as pending approval.
    pub(crate) fn hold_objects(&self, app: &str, name: &str, objects: &[&str]) -> ContentHash {
        self.hold_back(app, name, objects, false)
    }

    /// Reports the recreation of an object as pending approval.
    pub(crate) fn hold_recreation(&self, app: &str, object: &str) -> ContentHash {
        self.hold_back(app, object, &[object], true)
    }

    fn hold_back(&self, app: &str, name: &str, objects: &[&str], recreate: bool) -> ContentHash {
        let set = ContentHash::of(name.as_bytes());
        let hold = v1::Hold {
            set: set.0.to_vec(),
            reason: "3 of 4 objects would be deleted".to_owned(),
            objects: objects.iter().map(|object| (*object).to_owned()).collect(),
            count: u32::try_from(objects.len()).unwrap(),
            recreate,
        };
        let mut state = self.state();
        state.holds.retain(|(other, _)| other != app);
        state.holds.push((app.to_owned(), hold));
        let level = Level::clone(&self.level.borrow());
        self.level.send_replace(Arc::new(state.holding(level)));
        set
    }

    /// Reports that an object of an app was recreated.
    pub(crate) fn recreated(&self, app: &str, object: &str) {
        self.level.send_modify(|level| {
            let report = Arc::make_mut(level).apps.get_mut(app).unwrap();
            Arc::make_mut(report).drifts.push(v1::DriftEvent {
                at: 1,
                object: object.to_owned(),
                difference: "spec.engine can't be changed".to_owned(),
                corrected: true,
                recreated: true,
            });
        });
    }

    /// Changes what it says of an app's writer.
    pub(crate) fn writer(&self, app: &str, change: impl FnOnce(&mut WriterState)) {
        let mut state = self.state();
        change(state.writers.entry(app.to_owned()).or_default());
        let level = Level::clone(&self.level.borrow());
        self.level.send_replace(Arc::new(state.looking(level)));
    }

    /// Returns the deletion rules of the generation in force.
    pub(crate) fn orders(&self) -> PruneOrders {
        self.state().orders.clone()
    }

    /// Returns the sets that the generation in force approves.
    pub(crate) fn approved(&self) -> BTreeSet<ContentHash> {
        self.state().approved.clone()
    }

    /// Returns the header of an app's bundle.
    pub(crate) fn header(&self, app: &str) -> Option<BundleHeader> {
        let state = self.state();
        let (_, bundle) = state.bundles.get(app)?;
        Some(bundle.header.clone())
    }

    /// Returns the number of generations that came into force, and the number of bundles that were sent for them.
    pub(crate) fn deliveries(&self) -> (usize, usize) {
        let state = self.state();
        (state.taken, state.arrived)
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = eventually(what, SOON, async || {
            ensure!(
                holds(self),
                "generation {}: {:?}",
                self.generation(),
                self.runs()
            );
            Ok(())
        });
        waiting.await.unwrap();
    }
}

impl State {
    /// Returns the observed state with a look at every app that has a writer.
    fn looking(&self, mut level: Level) -> Level {
        for (app, report) in &mut level.apps {
            let Some((role, bundle)) = self.bundles.get(app) else {
                continue;
            };
            let said = self.writers.get(app).cloned().unwrap_or_default();
            let rule = bundle.header.policy.writer.as_ref();
            let named = |name: &str, value: String| v1::NamedValue {
                name: name.to_owned(),
                value,
            };
            let is_carried = said.stopped && !said.carried.is_empty();
            let look = v1::WriterLook {
                epoch: self
                    .known
                    .record
                    .as_ref()
                    .map_or(0, |record| record.epoch.0),
                role: role.to_string(),
                applied: true,
                healthy: !said.sick,
                rule: rule.map_or_else(Vec::new, |rule| hash_of(rule).0.to_vec()),
                evaluated: true,
                stopped: said.stopped,
                uids: vec![named("db", said.uid)],
                carried: is_carried
                    .then(|| named("at", said.carried))
                    .into_iter()
                    .collect(),
                why: "it still writes".to_owned(),
            };
            let health = if said.sick { "Degraded" } else { "Healthy" };
            let report = Arc::make_mut(report);
            report.health = health.to_owned();
            report.writer = (*role != Role::Active).then_some(look);
        }
        level
    }

    /// Returns the observed state with the sets that are pending approval.
    fn holding(&self, mut level: Level) -> Level {
        for report in level.apps.values_mut() {
            Arc::make_mut(report).holds.clear();
        }
        for (app, hold) in &self.holds {
            let report = level.apps.entry(app.clone()).or_default();
            let report = Arc::make_mut(report);
            report.app.clone_from(app);
            report.holds.push(hold.clone());
        }
        level
    }
}

impl Cluster for Memory {
    fn known(&self) -> Known {
        self.state().known.clone()
    }

    fn holds(&self, hash: ContentHash) -> bool {
        self.state().held.contains_key(&hash)
    }

    async fn note_term(&self, term: Term, incarnation: &str) -> Result<(), TakeError> {
        let mut state = self.state();
        state.known.term = term;
        state.known.incarnation = incarnation.to_owned();
        Ok(())
    }

    async fn note_record(&self, record: SealedRecord) -> Result<(), TakeError> {
        let mut state = self.state();
        state.known.record = Some(record);
        state.known.is_record_foreign = false;
        Ok(())
    }

    async fn take(&self, generation: Arrived) -> Result<(), TakeError> {
        let mut level = Level {
            in_force: Some(generation.number),
            settled: true,
            ..Level::default()
        };
        let mut state = self.state();
        let before = std::mem::take(&mut state.held);
        state.bundles.clear();
        state.taken += 1;
        let mut outside = BTreeSet::new();
        for bundle in generation.bundles {
            state.arrived += usize::from(bundle.packed.is_some());
            let arrived = bundle.packed.map(|packed| packed.unpack().unwrap());
            let encoded = arrived.or_else(|| before.get(&bundle.hash).cloned());
            let encoded = encoded.unwrap();
            assert_eq!(ContentHash::of(&encoded), bundle.hash);
            let decoded = Bundle::decode(&encoded).unwrap();
            let kinds = decoded.objects.iter().map(|object| &object.id.gvk);
            let kinds = kinds.filter(|kind| kind.group == OUTSIDE);
            outside.extend(kinds.map(|kind| format!("{}.{}", kind.kind, kind.group)));
            let objects = u32::try_from(decoded.objects.len()).unwrap();
            let report = v1::AppReport {
                app: bundle.app.to_string(),
                hash: bundle.hash.0.to_vec(),
                phase: v1::Phase::Applied.into(),
                objects,
                applied: objects,
                health: "Healthy".to_owned(),
                ..v1::AppReport::default()
            };
            level.apps.insert(bundle.app.to_string(), Arc::new(report));
            state
                .bundles
                .insert(bundle.app.to_string(), (bundle.role, decoded));
            state.held.insert(bundle.hash, encoded);
        }
        state.known = Known {
            term: generation.term,
            incarnation: generation.incarnation,
            in_force: Some(generation.number),
            record: generation.record,
            is_record_foreign: false,
        };
        state.orders = generation.prune.clone();
        let approved = generation.prune.approved;
        let waits = |hold: &v1::Hold| approved.iter().all(|set| set.0.as_slice() != hold.set);
        state.holds.retain(|(_, hold)| waits(hold));
        state.approved = approved;
        level.cluster_scoped = outside.into_iter().collect();
        let level = state.looking(state.holding(level));
        drop(state);
        self.level.send_replace(Arc::new(level));
        Ok(())
    }

    fn level(&self) -> watch::Receiver<Arc<Level>> {
        self.level.subscribe()
    }

    fn objects(&self, _: &str) -> Vec<v1::ObjectState> {
        self.objects.clone()
    }
}

/// Renews an agent's certificate.
pub(crate) async fn renew(hub: &Hub, badge: &Badge) -> Result<Arc<Badge>, Status> {
    let unreachable = |error: muster_agent::DialError| Status::unavailable(error.to_string());
    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await;
    let key = Key::generate().unwrap();
    let csr = key.request().unwrap();
    let mut enrolment = EnrolmentClient::new(channel.map_err(unreachable)?);
    let renewed = enrolment
        .renew(v1::RenewRequest { csr })
        .await?
        .into_inner();
    Ok(Arc::new(Badge {
        cluster: renewed.cluster.parse().unwrap(),
        trust: badge.trust.clone(),
        credentials: Credentials::new(&renewed.certificate, key).unwrap(),
    }))
}

/// The identity of an agent.
pub(crate) struct Badge {
    pub(crate) cluster: ClusterName,
    pub(crate) trust: TrustBundle,
    pub(crate) credentials: Credentials,
}

/// Enrols with an existing certificate request.
pub(crate) async fn enrol_with(token: &JoinToken, csr: &str) -> Result<v1::Certificate, Status> {
    let channel = dial(&token.hub, &token.trust, None).await.unwrap();
    let request = v1::EnrolRequest {
        token: token.secret.expose(),
        csr: csr.to_owned(),
    };
    let granted = EnrolmentClient::new(channel).enrol(request).await?;
    Ok(granted.into_inner())
}

impl Badge {
    pub(crate) async fn new(hub: &Hub, cluster: &str) -> Arc<Self> {
        let token = hub.token(cluster).await;
        let key = Key::generate().unwrap();
        let granted = enrol_with(&token, &key.request().unwrap()).await.unwrap();
        Arc::new(Self {
            cluster: granted.cluster.parse().unwrap(),
            trust: TrustBundle::from_pem(&granted.trust).unwrap(),
            credentials: Credentials::new(&granted.certificate, key).unwrap(),
        })
    }
}

/// An agent that reconnects whenever its stream ends.
pub(crate) struct Agent {
    pub(crate) badge: Arc<Badge>,
    pub(crate) memory: Arc<Memory>,
    stop: CancellationToken,
    running: JoinHandle<()>,
    /// The reason why its last stream ended.
    ended: watch::Receiver<String>,
}

impl Agent {
    /// Joins a cluster and runs its agent.
    pub(crate) async fn join(hub: &Hub, cluster: &str) -> Self {
        let badge = Badge::new(hub, cluster).await;
        let agent = Self::run(hub.address(), badge, Memory::new());
        // From here on, `Hub::until_synced` also waits for this cluster.
        let look = |status: &v1::Status| {
            let joined = status.clusters.iter().find(|c| c.name == cluster);
            ensure!(joined.is_some_and(|c| c.state() != v1::ClusterState::Unjoined));
            Ok(())
        };
        hub.until("the agent has connected", look).await;
        agent
    }

    /// Runs the agent of a cluster that already has this generation, with content that the hub does not know.
    pub(crate) fn ahead(hub: &Hub, badge: Arc<Badge>, generation: u64) -> Self {
        let memory = Memory::new();
        memory.state().known.in_force = Some(Numbered {
            generation: Generation(generation),
            content: ContentHash::of(badge.cluster.as_str().as_bytes()),
        });
        Self::run(hub.address(), badge, memory)
    }

    /// Joins all clusters of the fixture's fleet.
    pub(crate) async fn join_all(hub: &Hub) -> [Self; 3] {
        [
            Self::join(hub, "eu-1").await,
            Self::join(hub, "eu-2").await,
            Self::join(hub, "us-1").await,
        ]
    }

    /// Runs the agent of a cluster that has joined.
    pub(crate) fn run(hub: String, badge: Arc<Badge>, memory: Arc<Memory>) -> Self {
        let stop = CancellationToken::new();
        let (sender, ended) = watch::channel(String::new());
        let running = tokio::spawn({
            let (badge, memory, stop) = (Arc::clone(&badge), Arc::clone(&memory), stop.clone());
            let process = rand::random();
            let renew = tokio::sync::Notify::new();
            async move {
                while !stop.is_cancelled() {
                    let end = match dial(&hub, &badge.trust, Some(&badge.credentials)).await {
                        Ok(channel) => {
                            let name = &badge.cluster;
                            let streamed = follow(
                                channel,
                                name,
                                process,
                                memory.as_ref(),
                                &stop,
                                &renew,
                                || {},
                            );
                            streamed.await.map_err(|error| Chain(&error).to_string())
                        }
                        Err(error) => Err(Chain(&error).to_string()),
                    };
                    sender.send_replace(end.err().unwrap_or_default());
                    let _ = tokio::time::timeout(AGAIN, stop.cancelled()).await;
                }
            }
        });
        Self {
            badge,
            memory,
            stop,
            running,
            ended,
        }
    }

    /// Stops the agent; its cluster remains unchanged.
    pub(crate) async fn stop(self) -> (Arc<Badge>, Arc<Memory>) {
        self.stop.cancel();
        self.running.await.unwrap();
        (self.badge, self.memory)
    }

    /// Returns the reason why its last stream ended; empty if none has.
    pub(crate) fn last_end(&self) -> String {
        self.ended.borrow().clone()
    }

    /// Waits until a stream ends for a reason that contains this text.
    pub(crate) async fn until_ended(&self, why: &str) {
        let what = format!("a stream ends: {why}");
        let waiting = eventually(&what, SOON, async || {
            let ended = self.ended.borrow().clone();
            ensure!(ended.contains(why), "the last one ended: {ended}");
            Ok(())
        });
        waiting.await.unwrap();
    }
}
