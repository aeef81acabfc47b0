//! The [`Cluster`] behind a Kubernetes API server. It stores received generations in the cluster, applies
//! them, and publishes what the applier observes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::TryStreamExt as _;
use kube::Client;
use muster_apply::{
    Applier, Config, GenerationStore, GenerationStoreError, ObjectState, Observed, Pointer,
    StoredBundle, StoredGeneration,
};
use muster_model::{fleet_record::SealedRecord, ids::ContentHash};
use muster_plan::delivery::{Known, Numbered, Term};
use muster_proto::v1;
use muster_runtime::{backoff::Backoff, log::Chain};
use tokio::sync::{Notify, watch};

use crate::{
    cluster::{Arrived, Cluster, Level, TakeError},
    memory_budget::{MemoryBudget, TooLarge},
    report::summarise,
    writer_looks::{Looks, look},
};

/// The first and the longest pause before the generation in force is read again after a failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The error when the generation in force can't be read while a cluster is opened.
#[derive(Debug, thiserror::Error)]
#[error("the generation in force can't be read from the cluster")]
pub struct OpenError(#[from] GenerationStoreError);

/// A cluster behind an API server.
pub struct ClusterClient {
    store: Arc<tokio::sync::Mutex<GenerationStore>>,
    applier: Applier,
    state: Mutex<State>,
    level: watch::Receiver<Arc<Level>>,
    /// The generation in force, once its bundles are in memory.
    in_force: watch::Sender<Option<Arc<StoredGeneration>>>,
    rest: watch::Sender<Option<String>>,
    /// The problem with the agent's stored records, if there is one.
    trouble: watch::Sender<Option<String>>,
    /// Notified when the content of the generation in force turns out to be lost.
    forgotten: Notify,
    /// The instance ID of this agent's enrolment.
    enrolment: String,
    room: MemoryBudget,
}

#[derive(Default)]
struct State {
    known: Known,
    /// The generation in force, once its bundles are in memory.
    stored: Option<Arc<StoredGeneration>>,
    /// The pointer to the generation in force, until its bundles are in memory.
    unread: Option<Pointer>,
}

impl State {
    /// Returns true if this generation has still to be read.
    fn is_unread(&self, pointer: &Pointer) -> bool {
        let unread = self.unread.as_ref();
        unread.is_some_and(|unread| unread.generation == pointer.generation)
    }
}

impl ClusterClient {
    /// Opens a cluster and reads the number of the generation in force. [`ClusterClient::load`] reads its bundles.
    /// If the record of the generation is damaged, the agent reports that and starts without a generation.
    ///
    /// # Errors
    /// [`OpenError`] if the record can't be read.
    pub async fn open(client: Client, config: Config, enrolment: &str) -> Result<Self, OpenError> {
        let mut store = GenerationStore::new(client.clone(), &config.namespace);
        let mut trouble = None;
        let pointer = match store.open().await {
            Err(error @ GenerationStoreError::DamagedPointer(_)) => {
                tracing::error!(error = %Chain(&error), "the agent continues without the record of the generation in force");
                trouble = Some(Chain(&error).to_string());
                None
            }
            opened => opened?,
        };
        let state = State {
            known: pointer
                .as_ref()
                .map(|pointer| known(pointer, enrolment))
                .unwrap_or_default(),
            stored: None,
            unread: pointer,
        };
        let applier = Applier::start(client.clone(), config);
        let trouble = watch::Sender::new(trouble);
        let (sender, level) = watch::channel(Arc::default());
        let in_force = watch::Sender::new(None);
        let (seen, looks) = watch::channel(Arc::<Looks>::default());
        let looking = look(client, applier.observed(), in_force.subscribe(), seen);
        tokio::spawn(looking);
        let summary = summarise(applier.observed(), trouble.subscribe(), looks, sender);
        tokio::spawn(summary);
        let store = Arc::new(tokio::sync::Mutex::new(store));
        let (rest, resting) = watch::channel(None);
        tokio::spawn(tidy(applier.observed(), Arc::clone(&store), resting));
        Ok(Self {
            store,
            applier,
            state: Mutex::new(state),
            enrolment: enrolment.to_owned(),
            level,
            in_force,
            rest,
            trouble,
            forgotten: Notify::new(),
            room: MemoryBudget::of_this_process(),
        })
    }

    /// Reads the generation in force and has it applied, unless a newer generation arrives first. Returns when the
    /// applier has started.
    pub async fn load(&self) {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        loop {
            let Some(pointer) = self.state().unread.clone() else {
                break;
            };
            let error = match self.read(&pointer).await {
                Ok(()) => break,
                Err(error) => error,
            };
            tracing::error!(error = %Chain(&error), generation = %pointer.generation, "the generation in force is not applied");
            if let ReadError::StoredGeneration(GenerationStoreError::DamagedBundle { .. }) = error {
                // The number stays in force. The hub sends the content again under the next number.
                self.forget(&pointer);
                continue;
            }
            if self.state().is_unread(&pointer) {
                self.trouble.send_replace(Some(Chain(&error).to_string()));
            }
            if let ReadError::TooLarge(_) = error {
                // Only another generation can help, and the stream receives it.
                break;
            }
            let pause = backoff.next_delay();
            tokio::time::sleep(pause).await;
        }
        self.applier.started().await;
    }

    /// Reads a generation's bundles and makes it the desired one, unless another generation has arrived.
    async fn read(&self, pointer: &Pointer) -> Result<(), ReadError> {
        let reader = self.store.lock().await.reader();
        let mut bundles = Vec::new();
        let mut room = self.room;
        let mut reading = std::pin::pin!(reader.bundles(pointer));
        while let Some(bundle) = reading.try_next().await? {
            if !self.state().is_unread(pointer) {
                return Ok(());
            }
            room.add(&bundle)?;
            bundles.push(bundle);
        }
        let stored = Arc::new(pointer.clone().with(bundles));
        {
            let mut state = self.state();
            if !state.is_unread(pointer) {
                return Ok(());
            }
            state.unread = None;
            state.stored = Some(Arc::clone(&stored));
        }
        self.trouble.send_replace(None);
        self.in_force.send_replace(Some(Arc::clone(&stored)));
        self.applier.set_desired(stored);
        Ok(())
    }

    /// Records that the content of the generation in force is lost, so that the hub sends it again.
    fn forget(&self, pointer: &Pointer) {
        let mut state = self.state();
        if state.is_unread(pointer) {
            state.unread = None;
            state.known.in_force = Some(Numbered {
                generation: pointer.generation,
                content: ContentHash::of(b""),
            });
            self.forgotten.notify_one();
        }
    }

    /// Waits until the content of the generation in force turns out to be lost. The hub must then be informed.
    pub async fn forgotten(&self) {
        self.forgotten.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses all writing in the cluster while `why` holds a reason, and resumes it with `None`. The generation in
    /// force stays in force, and the observed state is still reported.
    pub fn pause(&self, why: Option<String>) {
        self.rest.send_replace(why.clone());
        self.applier.pause(why);
    }

    /// Ends all work in the cluster. When this returns, no request is running.
    pub async fn stop(self) {
        self.applier.stop().await;
    }

    /// Returns an error while writing in the cluster is paused.
    fn may_write(&self, number: u64) -> Result<(), TakeError> {
        match self.rest.borrow().clone() {
            Some(why) => Err(TakeError {
                number,
                source: why.into(),
            }),
            None => Ok(()),
        }
    }

    /// Returns the number of the generation in force, beside which something is to be stored. Returns an error while
    /// writing in the cluster is paused.
    fn may_note(&self) -> Result<u64, TakeError> {
        let in_force = self.state().known.in_force;
        let number = in_force.map_or(0, |number| number.generation.0);
        self.may_write(number)?;
        Ok(number)
    }

    async fn save(&self, stored: StoredGeneration) -> Result<Arc<StoredGeneration>, TakeError> {
        let number = stored.generation.0;
        self.may_write(number)?;
        let saved = self.store.lock().await.save(&stored).await;
        saved.map_err(|source| TakeError {
            number,
            source: Box::new(source),
        })?;
        let stored = Arc::new(stored);
        let mut state = self.state();
        state.known = Known {
            term: stored.term,
            incarnation: stored.incarnation.clone(),
            in_force: Some(Numbered {
                generation: stored.generation,
                content: stored.hash,
            }),
            record: stored.record.clone(),
            is_record_foreign: false,
        };
        state.stored = Some(Arc::clone(&stored));
        state.unread = None;
        drop(state);
        self.trouble.send_replace(None);
        Ok(stored)
    }
}

/// The reason why the stored generation is not applied.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    StoredGeneration(#[from] GenerationStoreError),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Returns what an agent with this enrolment knows from the stored pointer. The hub's term is dropped if it belongs to
/// another enrolment, because that may be another fleet. The generation in force and the fleet record are always known.
fn known(pointer: &Pointer, enrolment: &str) -> Known {
    let known = Known {
        term: pointer.term,
        incarnation: pointer.incarnation.clone(),
        in_force: Some(Numbered {
            generation: pointer.generation,
            content: pointer.hash,
        }),
        record: pointer.record.clone(),
        is_record_foreign: false,
    };
    if pointer.enrolment.is_empty() || pointer.enrolment == enrolment {
        return known;
    }
    Known {
        in_force: known.in_force,
        record: known.record,
        is_record_foreign: true,
        ..Known::default()
    }
}

impl Cluster for ClusterClient {
    fn known(&self) -> Known {
        self.state().known.clone()
    }

    fn holds(&self, hash: ContentHash) -> bool {
        let state = self.state();
        state
            .stored
            .as_ref()
            .is_some_and(|stored| stored.bundles.iter().any(|b| b.hash() == hash))
    }

    async fn note_term(&self, term: Term, incarnation: &str) -> Result<(), TakeError> {
        let number = self.may_note()?;
        let mut store = self.store.lock().await;
        let noted = store.note_term(term, incarnation, &self.enrolment).await;
        let noted = noted.map_err(|source| TakeError {
            number,
            source: Box::new(source),
        })?;
        if noted {
            let mut state = self.state();
            state.known.term = term;
            incarnation.clone_into(&mut state.known.incarnation);
        }
        Ok(())
    }

    async fn note_record(&self, record: SealedRecord) -> Result<(), TakeError> {
        let number = self.may_note()?;
        let mut store = self.store.lock().await;
        let noted = store.note_record(record.clone(), &self.enrolment).await;
        noted.map_err(|source| TakeError {
            number,
            source: Box::new(source),
        })?;
        let mut state = self.state();
        state.known.record = Some(record);
        state.known.is_record_foreign = false;
        Ok(())
    }

    async fn take(&self, generation: Arrived) -> Result<(), TakeError> {
        let number = generation.number.generation.0;
        let before = self.state().stored.clone();
        let already_stored: HashMap<ContentHash, &StoredBundle> = before
            .iter()
            .flat_map(|stored| stored.bundles.iter().map(|bundle| (bundle.hash(), bundle)))
            .collect();
        let mut bundles = Vec::with_capacity(generation.bundles.len());
        let mut room = self.room;
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| TakeError { number, source };
        for arrived in generation.bundles {
            let bundle = match (arrived.packed, already_stored.get(&arrived.hash)) {
                (Some(packed), _) => {
                    let encoded = packed.unpack().map_err(|error| fail(Box::new(error)))?;
                    StoredBundle::from_encoded(&encoded).map_err(|error| fail(Box::new(error)))?
                }
                (None, Some(already_stored)) => StoredBundle::clone(already_stored),
                (None, None) => return Err(fail("a bundle was neither stored nor sent".into())),
            };
            room.add(&bundle).map_err(|error| fail(Box::new(error)))?;
            bundles.push(bundle);
        }
        let stored = StoredGeneration {
            generation: generation.number.generation,
            hash: generation.number.content,
            term: generation.term,
            incarnation: generation.incarnation,
            enrolment: self.enrolment.clone(),
            prune: generation.prune,
            record: generation.record,
            bundles,
        };
        let stored = self.save(stored).await?;
        tracing::info!(generation = number, "generation is in force");
        self.in_force.send_replace(Some(Arc::clone(&stored)));
        self.applier.set_desired(stored);
        Ok(())
    }

    fn level(&self) -> watch::Receiver<Arc<Level>> {
        self.level.clone()
    }

    fn objects(&self, app: &str) -> Vec<v1::ObjectState> {
        let observed = self.applier.observed().borrow().clone();
        let bundles = observed
            .bundles
            .iter()
            .filter(|b| app.is_empty() || b.app.as_str() == app);
        let mut objects: Vec<v1::ObjectState> = bundles
            .flat_map(|bundle| bundle.objects.iter().map(move |object| (bundle, object)))
            .map(|(bundle, object)| {
                let (state, why) = object_state(&object.state);
                v1::ObjectState {
                    app: bundle.app.to_string(),
                    api_version: object.id.gvk.api_version(),
                    kind: object.id.gvk.kind.clone(),
                    namespace: object.id.namespace.clone().unwrap_or_default(),
                    name: object.id.name.clone(),
                    uid: object.uid.clone().unwrap_or_default(),
                    state: state.to_owned(),
                    health: object.health.to_string(),
                    message: why
                        .or(object.message.as_deref())
                        .unwrap_or_default()
                        .to_owned(),
                }
            })
            .collect();
        let leftovers = observed
            .leftovers
            .iter()
            .filter(|l| app.is_empty() || l.app.as_str() == app);
        objects.extend(leftovers.map(|leftover| v1::ObjectState {
            app: leftover.app.to_string(),
            api_version: leftover.id.gvk.api_version(),
            kind: leftover.id.gvk.kind.clone(),
            namespace: leftover.id.namespace.clone().unwrap_or_default(),
            name: leftover.id.name.clone(),
            state: "Leaving".to_owned(),
            message: leftover.message.clone(),
            ..v1::ObjectState::default()
        }));
        objects
    }
}

fn object_state(object_state: &ObjectState) -> (&'static str, Option<&str>) {
    match object_state {
        ObjectState::Pending => ("Pending", None),
        ObjectState::Applied => ("Applied", None),
        ObjectState::Waiting(why) => ("Waiting", Some(why)),
        ObjectState::Failed(why) => ("Failed", Some(why)),
        ObjectState::Approval { why, .. } => ("Approval", Some(why)),
        ObjectState::LeftAlone(why) => ("LeftAlone", Some(why)),
        ObjectState::Drifted(why) => ("Drifted", Some(why)),
    }
}

/// Removes the bundles of older generations from the cluster once a generation has settled.
async fn tidy(
    mut observed: watch::Receiver<Arc<Observed>>,
    store: Arc<tokio::sync::Mutex<GenerationStore>>,
    resting: watch::Receiver<Option<String>>,
) {
    let mut tidied = None;
    loop {
        let (settled, generation) = {
            let now = observed.borrow_and_update();
            (now.settled, now.generation)
        };
        let rests = resting.borrow().is_some();
        if settled && !rests && generation.is_some() && generation != tidied {
            match store.lock().await.sweep().await {
                Ok(()) => tidied = generation,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "older bundles were not removed; trying again with the next change")
                }
            }
        }
        if observed.changed().await.is_err() {
            return;
        }
    }
}
