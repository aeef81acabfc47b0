//! A real cluster: what arrives is kept in it and applied to it, and its level is what the applier
//! observes.

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
use muster_model::ids::ContentHash;
use muster_plan::delivery::{Known, Numbered, Term};
use muster_proto::v1;
use muster_runtime::{backoff::Backoff, log::Chain};
use tokio::sync::{Notify, watch};

use crate::{
    cluster::{Arrived, Cluster, Level, TakeError},
    memory_budget::{MemoryBudget, TooLarge},
    report::summarise,
};

/// What could not be read of what is in force is read again after this, and then after up to that.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why a cluster can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("the generation in force can't be read from the cluster")]
pub struct OpenError(#[from] GenerationStoreError);

/// A cluster behind an API server.
pub struct ClusterClient {
    store: Arc<tokio::sync::Mutex<GenerationStore>>,
    applier: Applier,
    state: Mutex<State>,
    level: watch::Receiver<Arc<Level>>,
    rest: watch::Sender<Option<String>>,
    /// What is wrong with what is kept.
    trouble: watch::Sender<Option<String>>,
    /// What is known is less than it was.
    forgotten: Notify,
    /// The enrolment of this agent.
    enrolment: String,
    room: MemoryBudget,
}

#[derive(Default)]
struct State {
    known: Known,
    /// The generation in force, once its bundles are in memory.
    kept: Option<Arc<StoredGeneration>>,
    /// The generation in force, until then.
    unread: Option<Pointer>,
}

impl State {
    /// Whether this generation is still the one to be read.
    fn is_unread(&self, pointer: &Pointer) -> bool {
        let unread = self.unread.as_ref();
        unread.is_some_and(|unread| unread.generation == pointer.generation)
    }
}

impl ClusterClient {
    /// Opens a cluster. Of the generation in force its number is known then; [`ClusterClient::load`] goes on with
    /// it. Where the record of it is damaged, that is told, and nothing is known.
    ///
    /// # Errors
    /// [`OpenError`] where it can't be asked.
    pub async fn open(client: Client, config: Config, enrolment: &str) -> Result<Self, OpenError> {
        let mut store = GenerationStore::new(client.clone(), &config.namespace);
        let mut trouble = None;
        let pointer = match store.open().await {
            Err(error @ GenerationStoreError::DamagedPointer(_)) => {
                tracing::error!(error = %Chain(&error), "the agent goes on without it");
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
            kept: None,
            unread: pointer,
        };
        let applier = Applier::start(client, config);
        let trouble = watch::Sender::new(trouble);
        let (sender, level) = watch::channel(Arc::default());
        tokio::spawn(summarise(applier.observed(), trouble.subscribe(), sender));
        let store = Arc::new(tokio::sync::Mutex::new(store));
        let (rest, resting) = watch::channel(None);
        tokio::spawn(tidy(applier.observed(), Arc::clone(&store), resting));
        Ok(Self {
            store,
            applier,
            state: Mutex::new(state),
            enrolment: enrolment.to_owned(),
            level,
            rest,
            trouble,
            forgotten: Notify::new(),
            room: MemoryBudget::of_this_process(),
        })
    }

    /// Reads what is in force and goes on with it, unless a newer generation comes first. Returns when the agent
    /// can do all of its work.
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
                // The number still counts. The hub sends the content again under the next one.
                self.forget(&pointer);
                continue;
            }
            if self.state().is_unread(&pointer) {
                self.trouble.send_replace(Some(Chain(&error).to_string()));
            }
            if let ReadError::TooLarge(_) = error {
                // Only another generation can help, which comes over the stream.
                break;
            }
            let pause = backoff.next_delay();
            tokio::time::sleep(pause).await;
        }
        self.applier.started().await;
    }

    /// Reads a generation's bundles and makes it the wanted one, unless another has come.
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
        let kept = Arc::new(pointer.clone().with(bundles));
        {
            let mut state = self.state();
            if !state.is_unread(pointer) {
                return Ok(());
            }
            state.unread = None;
            state.kept = Some(Arc::clone(&kept));
        }
        self.trouble.send_replace(None);
        self.applier.want(kept);
        Ok(())
    }

    /// Its content is lost: the same number may come again.
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

    /// Returns when what is known is less than it was, which the hub has to be told.
    pub async fn forgotten(&self) {
        self.forgotten.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes nothing for as long as there is a reason. What is in force stays so, and what is seen is
    /// told.
    pub fn pause(&self, why: Option<String>) {
        self.rest.send_replace(why.clone());
        self.applier.pause(why);
    }

    /// Ends all work in the cluster. When this returns, no request is under way.
    pub async fn stop(self) {
        self.applier.stop().await;
    }

    /// Whether anything may be written in the cluster.
    fn may_write(&self, number: u64) -> Result<(), TakeError> {
        match self.rest.borrow().clone() {
            Some(why) => Err(TakeError {
                number,
                source: why.into(),
            }),
            None => Ok(()),
        }
    }

    async fn save(&self, kept: StoredGeneration) -> Result<Arc<StoredGeneration>, TakeError> {
        let number = kept.generation.0;
        self.may_write(number)?;
        let saved = self.store.lock().await.save(&kept).await;
        saved.map_err(|source| TakeError {
            number,
            source: Box::new(source),
        })?;
        let kept = Arc::new(kept);
        let mut state = self.state();
        state.known = Known {
            term: kept.term,
            incarnation: kept.incarnation.clone(),
            in_force: Some(Numbered {
                generation: kept.generation,
                content: kept.hash,
            }),
        };
        state.kept = Some(Arc::clone(&kept));
        state.unread = None;
        drop(state);
        self.trouble.send_replace(None);
        Ok(kept)
    }
}

/// Why a generation that is kept is not applied.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    StoredGeneration(#[from] GenerationStoreError),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// What is known under an enrolment. The terms of the hub of another one are nothing to this one's; the number of
/// what is in force counts on.
fn known(pointer: &Pointer, enrolment: &str) -> Known {
    let known = Known {
        term: pointer.term,
        incarnation: pointer.incarnation.clone(),
        in_force: Some(Numbered {
            generation: pointer.generation,
            content: pointer.hash,
        }),
    };
    if pointer.enrolment.is_empty() || pointer.enrolment == enrolment {
        return known;
    }
    Known {
        in_force: known.in_force,
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
            .kept
            .as_ref()
            .is_some_and(|kept| kept.bundles.iter().any(|b| b.hash() == hash))
    }

    async fn note_term(&self, term: Term, incarnation: &str) -> Result<(), TakeError> {
        let number = self
            .known()
            .in_force
            .map_or(0, |number| number.generation.0);
        self.may_write(number)?;
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

    async fn take(&self, generation: Arrived) -> Result<(), TakeError> {
        let number = generation.number.generation.0;
        let before = self.state().kept.clone();
        let held: HashMap<ContentHash, &StoredBundle> = before
            .iter()
            .flat_map(|kept| kept.bundles.iter().map(|bundle| (bundle.hash(), bundle)))
            .collect();
        let mut bundles = Vec::with_capacity(generation.bundles.len());
        let mut room = self.room;
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| TakeError { number, source };
        for arrived in generation.bundles {
            let bundle = match (arrived.packed, held.get(&arrived.hash)) {
                (Some(packed), _) => {
                    let encoded = packed.unpack().map_err(|error| fail(Box::new(error)))?;
                    StoredBundle::from_encoded(&encoded).map_err(|error| fail(Box::new(error)))?
                }
                (None, Some(held)) => StoredBundle::clone(held),
                (None, None) => return Err(fail("a bundle was neither held nor sent".into())),
            };
            room.add(&bundle).map_err(|error| fail(Box::new(error)))?;
            bundles.push(bundle);
        }
        let kept = StoredGeneration {
            generation: generation.number.generation,
            hash: generation.number.content,
            term: generation.term,
            incarnation: generation.incarnation,
            enrolment: self.enrolment.clone(),
            prune: generation.prune,
            bundles,
        };
        let kept = self.save(kept).await?;
        tracing::info!(generation = number, "generation is in force");
        self.applier.want(kept);
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

/// Removes what older generations left in the cluster, once a generation has settled.
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
