//! A real cluster: what arrives is kept in it and applied to it, and its level is what the applier
//! observes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::Client;
use muster_apply::{
    Applier, Config, Kept, KeptBundle, KeptError, KeptStore, Observed, Standing, StartError,
};
use muster_model::ids::ContentHash;
use muster_plan::delivery::{Known, Numbered, Term};
use muster_proto::v1;
use muster_runtime::log::Chain;
use tokio::sync::watch;

use crate::{
    cluster::{Arrived, Cluster, Level, TakeError},
    summary::summarise,
};

/// Why a cluster can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The generation in force can't be read.
    #[error("the generation in force can't be read from the cluster")]
    Kept(#[from] KeptError),
    /// Applying can't begin.
    #[error("applying can't begin")]
    Start(#[from] StartError),
}

/// A cluster behind an API server.
pub struct RealCluster {
    store: Arc<tokio::sync::Mutex<KeptStore>>,
    applier: Applier,
    state: Mutex<State>,
    level: watch::Receiver<Arc<Level>>,
    rest: watch::Sender<Option<String>>,
    /// The enrolment of this agent.
    enrolment: String,
}

#[derive(Default)]
struct State {
    known: Known,
    kept: Option<Arc<Kept>>,
}

impl RealCluster {
    /// Opens a cluster and goes on with what is in force there.
    ///
    /// # Errors
    /// [`OpenError`] where what is in force or the inventory can't be read.
    pub async fn open(client: Client, config: Config, enrolment: &str) -> Result<Self, OpenError> {
        let mut store = KeptStore::new(client.clone(), &config.namespace);
        let applier = Applier::start(client, config).await?;
        let state = match store.load().await {
            Ok(Some(kept)) => State {
                known: known(&kept, enrolment),
                kept: Some(Arc::new(kept)),
            },
            Ok(None) => State::default(),
            Err(KeptError::DamagedBundle { app, pointer }) => {
                // The number still counts. The hub sends the content again under the next one.
                tracing::error!(%app, generation = %pointer.generation, "a bundle of the generation in force is lost from the cluster");
                let number = Numbered {
                    generation: pointer.generation,
                    content: ContentHash::of(b""),
                };
                let known = Known {
                    term: pointer.term,
                    incarnation: pointer.incarnation,
                    in_force: Some(number),
                };
                let known = under(known, &pointer.enrolment, enrolment);
                State { known, kept: None }
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(kept) = &state.kept {
            applier.want(Arc::clone(kept));
        }
        let (sender, level) = watch::channel(Arc::default());
        tokio::spawn(summarise(applier.observed(), sender));
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
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes nothing for as long as there is a reason. What is in force stays so, and what is seen is
    /// told.
    pub fn rest(&self, why: Option<String>) {
        self.rest.send_replace(why.clone());
        self.applier.rest(why);
    }

    /// Ends all work in the cluster. When this returns, no request is under way.
    pub async fn stop(self) {
        self.applier.stop().await;
    }

    async fn save(&self, kept: Kept) -> Result<Arc<Kept>, TakeError> {
        let number = kept.generation.0;
        if let Some(why) = self.rest.borrow().clone() {
            let source = why.into();
            return Err(TakeError { number, source });
        }
        let saved = self.store.lock().await.save(&kept).await;
        saved.map_err(|source| TakeError {
            number,
            source: Box::new(source),
        })?;
        let kept = Arc::new(kept);
        let mut state = self.state();
        state.known = known(&kept, &self.enrolment);
        state.kept = Some(Arc::clone(&kept));
        Ok(kept)
    }
}

fn known(kept: &Kept, enrolment: &str) -> Known {
    let known = Known {
        term: kept.term,
        incarnation: kept.incarnation.clone(),
        in_force: Some(Numbered {
            generation: kept.generation,
            content: kept.hash,
        }),
    };
    under(known, &kept.enrolment, enrolment)
}

/// What is known under an enrolment. The terms of the hub of another one are nothing to this one's; the number of
/// what is in force counts on.
fn under(known: Known, came_under: &str, enrolment: &str) -> Known {
    if came_under.is_empty() || came_under == enrolment {
        return known;
    }
    Known {
        in_force: known.in_force,
        ..Known::default()
    }
}

impl Cluster for RealCluster {
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
        let Some(kept) = self.state().kept.clone() else {
            return Ok(());
        };
        let noted = Kept {
            term,
            incarnation: incarnation.to_owned(),
            enrolment: self.enrolment.clone(),
            ..Kept::clone(&kept)
        };
        self.save(noted).await?;
        Ok(())
    }

    async fn take(&self, generation: Arrived) -> Result<(), TakeError> {
        let number = generation.number.generation.0;
        let before = self.state().kept.clone();
        let held: HashMap<ContentHash, &KeptBundle> = before
            .iter()
            .flat_map(|kept| kept.bundles.iter().map(|bundle| (bundle.hash(), bundle)))
            .collect();
        let mut bundles = Vec::with_capacity(generation.bundles.len());
        for arrived in generation.bundles {
            let fail =
                |source: Box<dyn std::error::Error + Send + Sync>| TakeError { number, source };
            let bundle = match (arrived.encoded, held.get(&arrived.hash)) {
                (Some(encoded), _) => {
                    KeptBundle::from_encoded(&encoded).map_err(|error| fail(Box::new(error)))?
                }
                (None, Some(held)) => KeptBundle::clone(held),
                (None, None) => return Err(fail("a bundle was neither held nor sent".into())),
            };
            bundles.push(bundle);
        }
        let kept = Kept {
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
                let (state, why) = standing(&object.standing);
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

fn standing(standing: &Standing) -> (&'static str, Option<&str>) {
    match standing {
        Standing::Pending => ("Pending", None),
        Standing::Applied => ("Applied", None),
        Standing::Waiting(why) => ("Waiting", Some(why)),
        Standing::Failed(why) => ("Failed", Some(why)),
        Standing::Approval { why, .. } => ("Approval", Some(why)),
        Standing::LeftAlone(why) => ("LeftAlone", Some(why)),
        Standing::Drifted(why) => ("Drifted", Some(why)),
    }
}

/// Removes what older generations left in the cluster, once a generation has settled.
async fn tidy(
    mut observed: watch::Receiver<Arc<Observed>>,
    store: Arc<tokio::sync::Mutex<KeptStore>>,
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
