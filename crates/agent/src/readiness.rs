//! What a new agent proves before it is ready to take the place of one that runs: that this very build
//! can go on from what is kept in the cluster, and that the hub would serve it. It acts on nothing.
//! Whoever rolls out a new agent ends the old one only when the new one is ready, so a broken one
//! changes nothing.

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

/// What was proven is proven again this often, for as long as another agent leads.
const AGAIN: Duration = Duration::from_secs(60);
/// A hub that says nothing for so long can't be reached.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why an agent is not fit to take the lead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("this agent ({VERSION}) can't use the identity that is kept in the cluster")]
    Identity(#[from] IdentityError),
    #[error("this agent ({VERSION}) can't go on from the generation that is kept in the cluster")]
    StoredGeneration(#[from] GenerationStoreError),
    #[error("this agent ({VERSION}) can't go on from the inventory that is kept in the cluster")]
    Inventory(#[from] InventoryError),
    #[error(
        "this agent ({VERSION}) has too little memory for the generation that is kept in the cluster"
    )]
    MemoryBudget(#[from] TooLarge),
    #[error(
        "this agent ({VERSION}) could no longer look after {object}, which is applied here: {why}"
    )]
    Reach { object: String, why: String },
    #[error("this agent ({VERSION}) and the hub at {hub} don't accept each other's certificates")]
    Tls {
        hub: String,
        #[source]
        source: DialError,
    },
    #[error("the hub at {hub} does not take this agent ({VERSION}): {why}")]
    Refused { hub: String, why: String },
}

/// Proves and says so.
pub(crate) struct Prover {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// What of its cluster it may touch.
    pub(crate) reach: NamespaceAccess,
    pub(crate) identities: IdentityStore,
    pub(crate) join_token: Option<JoinToken>,
    /// The hub's address, where it is another than the one that is kept.
    pub(crate) hub: Option<String>,
}

impl Prover {
    /// Proves again and again until it is dropped. `fit` and the readiness follow what comes of it.
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
        let kept = self.identities.kept(self.join_token.as_ref()).await?;
        let denied = check_inventory(self.client.clone(), &self.namespace, &self.reach).await?;
        if let Some((object, why)) = denied {
            return Err(NotReady::Reach { object, why });
        }
        let mut store = GenerationStore::new(self.client.clone(), &self.namespace);
        if let Some(pointer) = store.open().await? {
            let reader = store.reader();
            let mut bundles = std::pin::pin!(reader.bundles(&pointer));
            // One after the other: all of them at once are for the agent that leads.
            let mut room = MemoryBudget::of_this_process();
            while let Some(bundle) = bundles.try_next().await? {
                room.add(&bundle)?;
            }
        }
        // Where nobody leads, nobody waits for a hub that may be far away.
        fit.send_if_modified(|fit| fit.is_none() && fit.replace(true).is_none());
        match (kept, &self.join_token) {
            (Some(identity), _) => self.ask(&identity).await,
            // The token itself is kept for when this agent leads: it works once. Where it brings nothing, the
            // agent goes on as who it is.
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

    /// Asks the hub whether it would serve this agent.
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

/// A connection to the hub; none where it can't be reached, which is no fault of this build.
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
            tracing::info!(error = %Chain(&error), "the hub can't be asked whether it takes this agent");
            Ok(None)
        }
    }
}

/// What a hub's answer says about this build. One that does not know the question is older, and says no
/// more than that; one that fails says nothing.
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
            // The certificate has ended. It is renewed when this agent leads.
            Code::Unauthenticated => return Ok(()),
            // Under TLS 1.3 a refused certificate shows itself only now.
            _ if is_about_tls(&status) => "it refuses this agent's certificate".to_owned(),
            _ => return Ok(()),
        },
    };
    Err(NotReady::Refused {
        hub: hub.to_owned(),
        why,
    })
}

/// Whether an error comes from the other side's certificate, or from its opinion of ours.
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
mod tests {
    use super::*;

    fn told(answer: Result<v1::Checked, Status>) -> Option<String> {
        judge("hub:7443", answer)
            .err()
            .map(|doubt| doubt.to_string())
    }

    #[test]
    fn what_a_hub_says_counts_and_what_it_can_not_say_does_not() {
        let checked = |protocol| v1::Checked {
            protocol,
            version: "9.9.9".to_owned(),
        };
        assert_eq!(told(Ok(checked(PROTOCOL_VERSION))), None);
        insta::assert_snapshot!(told(Ok(checked(99))).unwrap(), @"the hub at hub:7443 does not take this agent (0.1.0): it (version 9.9.9) speaks protocol 99, this agent 2; upgrade the older one");
        let refused = told(Err(Status::failed_precondition("upgrade the older one")));
        insta::assert_snapshot!(refused.unwrap(), @"the hub at hub:7443 does not take this agent (0.1.0): upgrade the older one");
        assert!(told(Err(Status::permission_denied("removed"))).is_some());
        for silent in [
            Code::Unimplemented,
            Code::Unavailable,
            Code::Internal,
            Code::Unauthenticated,
        ] {
            assert_eq!(told(Err(Status::new(silent, "?"))), None);
        }
    }
}
