//! Identifies and checks the caller by the certificate of its connection.

use std::sync::Arc;

use muster_model::ids::{ClusterName, InstanceId};
use muster_pki::{Certified, Identity, clock};
use muster_runtime::log::Chain;
use tonic::{Request, Status};

use super::Services;
use crate::{
    authority::{AuthorityError, Peer},
    session::Caller,
};

impl Services {
    pub(super) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        peer.ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// Returns the agent that calls. Its certificate may have expired, in which case the agent may only renew it.
    pub(super) fn agent<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(Peer, ClusterName, InstanceId), Status> {
        let peer = Self::peer(request)?;
        match peer.certified.as_ref().map(|certified| &certified.identity) {
            Some(Identity::Agent { cluster, instance }) => {
                let (cluster, instance) = (cluster.clone(), instance.clone());
                self.signed_by_today(&peer)?;
                Ok((peer, cluster, instance))
            }
            Some(Identity::Admin(_)) => {
                Err(self.turn_away(&peer, "not_an_agent", "this is not an agent's certificate"))
            }
            None => Err(self.turn_away(
                &peer,
                "no_certificate",
                "an agent needs a certificate: enrol with a join token",
            )),
        }
    }

    pub(super) fn no_certificate() -> Status {
        Status::unauthenticated("an agent needs a certificate: enrol with a join token")
    }

    /// Returns the serial number of the presented certificate; empty if there is none.
    pub(super) fn serial(peer: &Peer) -> &str {
        let certified = peer.certified.as_ref();
        certified.map_or("", |certified| certified.serial.as_str())
    }

    /// Returns the agent that calls, if its certificate is valid and its instance still belongs to the fleet.
    pub(super) async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let (peer, cluster, instance) = self.agent(request)?;
        self.in_time(&peer)?;
        let certified = peer.certified.as_deref().ok_or_else(Self::no_certificate)?;
        let authority = &self.0.authority;
        let admitted = authority.admit_shown(&cluster, &instance, &certified.serial);
        let who = peer.address.to_string();
        let trust = admitted.await.map_err(|error| self.denied(&who, &error))?;
        Ok(Caller {
            cluster,
            instance,
            not_after: certified.not_after,
            trust,
            address: peer.address,
        })
    }

    /// Refuses a certificate whose CA the fleet no longer trusts. The check in the TLS handshake is not enough, since
    /// the CA may have been dropped while the connection was open.
    pub(super) fn signed_by_today(&self, peer: &Peer) -> Result<(), Status> {
        let cas = self.0.authority.cas();
        match peer.certified.as_deref() {
            Some(certified) if !cas.have_signed(certified) => Err(self.turn_away(
                peer,
                "old_ca",
                "this certificate was signed by a CA that the fleet no longer trusts",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn in_time(&self, peer: &Peer) -> Result<(), Status> {
        let ended = |certified: &&Arc<Certified>| certified.not_after <= clock::now();
        match peer.certified.as_ref().filter(ended) {
            Some(_) => {
                Err(self.turn_away(peer, "expired", "this certificate has expired; renew it"))
            }
            None => Ok(()),
        }
    }

    /// Returns the name of the person that calls, if their login is valid.
    pub(super) async fn admin(&self, peer: Peer) -> Result<String, Status> {
        self.in_time(&peer)?;
        self.signed_by_today(&peer)?;
        match peer.certified.as_deref() {
            Some(Certified {
                identity: Identity::Admin(name),
                serial,
                ..
            }) => {
                let admitted = self.0.authority.admit_login(serial).await;
                admitted.map_err(|error| self.denied(&name.to_string(), &error))?;
                Ok(name.to_string())
            }
            Some(_) => Err(self.turn_away(&peer, "not_an_admin", "an agent may not do this")),
            None => Err(self.turn_away(
                &peer,
                "no_certificate",
                "this needs a login: `muster login FILE`",
            )),
        }
    }

    pub(super) fn turn_away(&self, peer: &Peer, reason: &str, why: &'static str) -> Status {
        self.0
            .metrics
            .refuse(reason, &peer.address.to_string(), why);
        Status::unauthenticated(why)
    }

    /// Logs an error of the authority, and returns the status for the caller.
    pub(super) fn denied(&self, who: &str, error: &AuthorityError) -> Status {
        match error.refusal() {
            Some(reason) => {
                self.0
                    .metrics
                    .refuse(reason, who, &Chain(error).to_string());
                Status::permission_denied(error.to_string())
            }
            None => {
                tracing::error!(error = %Chain(error), who, "a request failed");
                Status::unavailable("the hub's store fails; see its log")
            }
        }
    }
}
