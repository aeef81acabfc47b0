//! The checks that a new agent must pass before it is ready to replace a running one: this build must be
//! able to continue from the records in the cluster, and the hub must accept it. The checks change nothing.
//! A rollout stops the old agent only when the new one is ready, so a broken build does no harm.

use std::{convert::Infallible, error::Error, io, time::Duration};

use futures::TryStreamExt as _;
use kube::Client;
use muster_apply::{
    GenerationStore, GenerationStoreError, InventoryError, NamespaceAccess, check_inventory,
};
use muster_pki::{Credentials, JoinToken, TrustBundle};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1, v1::agents_client::AgentsClient};
use muster_runtime::{backoff::Backoff, http::Part, log::Chain};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::{
    RECONNECT,
    dial::{DialError, dial},
    identity::{Identity, IdentityError, IdentityStore},
    memory_budget::{MemoryBudget, TooLarge},
};

/// The pause between successful checks while another agent leads.
const AGAIN: Duration = Duration::from_secs(60);
/// A hub that does not answer within this time counts as unreachable.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The reason why an agent is not ready to take the lead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("this agent ({VERSION}) can't use the identity that is stored in the cluster")]
    Identity(#[from] IdentityError),
    #[error(
        "this agent ({VERSION}) can't continue from the generation that is stored in the cluster"
    )]
    StoredGeneration(#[from] GenerationStoreError),
    #[error(
        "this agent ({VERSION}) can't continue from the inventory that is stored in the cluster"
    )]
    Inventory(#[from] InventoryError),
    #[error(
        "this agent ({VERSION}) has too little memory for the generation that is stored in the cluster"
    )]
    MemoryBudget(#[from] TooLarge),
    #[error("this agent ({VERSION}) could no longer manage {object}, which is applied here: {why}")]
    Reach { object: String, why: String },
    #[error("this agent ({VERSION}) and the hub at {hub} don't accept each other's certificates")]
    Tls {
        hub: String,
        #[source]
        source: DialError,
    },
    #[error("the hub at {hub} does not accept this agent ({VERSION}): {why}")]
    Refused { hub: String, why: String },
}

/// Runs the readiness checks and publishes their result.
pub(crate) struct Prover {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The namespaces that the agent may touch.
    pub(crate) namespaces: NamespaceAccess,
    pub(crate) identities: IdentityStore,
    pub(crate) join_token: Option<JoinToken>,
    /// The hub's address, if it differs from the stored one.
    pub(crate) hub: Option<String>,
}

impl Prover {
    /// Runs the checks repeatedly until it is dropped. `fit` and the readiness probe follow the result.
    pub(crate) async fn run(&self, ready: &Part, fit: watch::Sender<Option<bool>>) -> Infallible {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut said = String::new();
        loop {
            let wait = match self.prove(&fit).await {
                Ok(()) => {
                    fit.send_replace(Some(true));
                    ready.ready();
                    if !said.is_empty() {
                        tracing::info!("this agent can take the lead now");
                        said.clear();
                    }
                    backoff.reset();
                    AGAIN
                }
                Err(doubt) => {
                    fit.send_replace(Some(false));
                    let why = Chain(&doubt).to_string();
                    if why != said {
                        tracing::error!(why, "this agent is not ready to take the lead");
                        said.clone_from(&why);
                    }
                    ready.not_ready(why);
                    backoff.next_delay()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn prove(&self, fit: &watch::Sender<Option<bool>>) -> Result<(), NotReady> {
        let stored = self.identities.stored(self.join_token.as_ref()).await?;
        let denied =
            check_inventory(self.client.clone(), &self.namespace, &self.namespaces).await?;
        if let Some((object, why)) = denied {
            return Err(NotReady::Reach { object, why });
        }
        let mut store = GenerationStore::new(self.client.clone(), &self.namespace);
        if let Some(pointer) = store.open().await? {
            let reader = store.reader();
            let mut bundles = std::pin::pin!(reader.bundles(&pointer));
            // Only one bundle is in memory at a time. Only the leading agent needs all of them in memory.
            let mut room = MemoryBudget::of_this_process();
            while let Some(bundle) = bundles.try_next().await? {
                room.add(&bundle)?;
            }
        }
        // If no agent leads, this one can take the lead before the hub has answered.
        fit.send_if_modified(|fit| fit.is_none() && fit.replace(true).is_none());
        match (stored, &self.join_token) {
            (Some(identity), _) => self.ask(&identity).await,
            // The token works only once, so it is not used before this agent leads. If joining with it fails then,
            // the agent continues with its stored identity, so that identity is checked here.
            (None, Some(token)) => {
                if let Some(current) = self.identities.current().await? {
                    return self.ask(&current).await;
                }
                let hub = self.hub.as_ref().unwrap_or(&token.hub);
                reach(hub, &token.trust, None).await.map(drop)
            }
            (None, None) => Err(IdentityError::NotJoined.into()),
        }
    }

    /// Asks the hub whether it accepts this agent.
    async fn ask(&self, identity: &Identity) -> Result<(), NotReady> {
        let hub = self.hub.as_ref().unwrap_or(&identity.hub);
        let Some(mut agents) = reach(hub, &identity.trust, Some(&identity.credentials)).await?
        else {
            return Ok(());
        };
        let hello = v1::Hello {
            protocol: PROTOCOL_VERSION,
            version: VERSION.to_owned(),
            cluster: identity.cluster.to_string(),
            ..v1::Hello::default()
        };
        match tokio::time::timeout(ANSWER_WITHIN, agents.check(hello)).await {
            Ok(answer) => judge(hub, answer.map(tonic::Response::into_inner)),
            Err(_) => Ok(()),
        }
    }
}

/// Connects to the hub. Returns `None` if the hub can't be reached, which is not the fault of this build.
async fn reach(
    hub: &str,
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
) -> Result<Option<AgentsClient<tonic::transport::Channel>>, NotReady> {
    match dial(hub, trust, credentials).await {
        Ok(channel) => Ok(Some(AgentsClient::new(channel))),
        Err(source) if matches!(source, DialError::Pki(_)) || is_about_tls(&source) => {
            let hub = hub.to_owned();
            Err(NotReady::Tls { hub, source })
        }
        Err(error) => {
            tracing::info!(error = %Chain(&error), "can't ask the hub whether it accepts this agent");
            Ok(None)
        }
    }
}

/// Decides from a hub's answer whether the hub accepts this build. An older hub that does not know the call,
/// and a hub that fails to answer it, do not count against this build.
fn judge(hub: &str, answer: Result<v1::Checked, Status>) -> Result<(), NotReady> {
    let why = match answer {
        Ok(hub) if hub.protocol != PROTOCOL_VERSION => format!(
            "it (version {}) speaks protocol {}, this agent {PROTOCOL_VERSION}; upgrade the older one",
            hub.version, hub.protocol
        ),
        Ok(_) => return Ok(()),
        Err(status) => match status.code() {
            Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => {
                status.message().to_owned()
            }
            // The certificate has expired. It is renewed when this agent leads.
            Code::Unauthenticated => return Ok(()),
            // Under TLS 1.3 a client sees only now that its certificate was refused.
            _ if is_about_tls(&status) => "it refuses this agent's certificate".to_owned(),
            _ => return Ok(()),
        },
    };
    Err(NotReady::Refused {
        hub: hub.to_owned(),
        why,
    })
}

/// Returns true if an error is about a certificate: the hub's, or this agent's, which the hub refused.
fn is_about_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
