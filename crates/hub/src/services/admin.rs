//! The service for people and scripts.

use std::collections::BTreeSet;

use muster_model::{
    ids::{ClusterName, InvalidId},
    problem::Problem,
};
use muster_pki::clock;
use muster_plan::placement::lost_holder;
use muster_proto::v1;
use muster_runtime::log::Chain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Answer, LOGIN_MOST, LOGIN_VALID, Messages, Parts, STATUS_EVERY, Services, TOKEN_MOST,
    TOKEN_VALID, admin_name, cluster_name, cut_reason, timestamp, validity,
};
use crate::{
    approvals,
    authority::{AuthorityError, admit},
    fleet_record::Loss,
    moves::{self, Kind, MoveError, Ordered},
    unconfirmed,
};

impl Services {
    /// Checks that a cluster may be removed although it holds writers: there is a reason, and its document is no longer
    /// in the repository. Otherwise the writers would be placed in the same cluster again.
    fn may_lose(&self, cluster: &ClusterName, reason: &str) -> Result<(), Status> {
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument(
                "an override needs a reason for the audit log",
            ));
        }
        let state = self.0.view.published.borrow().clone();
        let in_force = &state.in_force;
        let mut clusters = in_force.clusters.iter();
        let lost = |problem: &Problem| lost_holder(problem).as_ref() == Some(cluster);
        if !clusters.any(|(name, _)| name == cluster) || in_force.problems.iter().any(lost) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "{cluster} is still in the fleet repository, so the writers would be placed there again. Remove its \
             document first; that commit is blocked until you repeat this command"
        )))
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Services {
    type WatchStatusStream = Messages<v1::Status>;
    type GetObjectsStream = Messages<v1::ClusterObjects>;

    async fn get_status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::Status> {
        self.admin(Self::peer(&request)?).await?;
        Ok(Response::new(self.0.view.status(request.get_ref())))
    }

    async fn watch_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Answer<Self::WatchStatusStream> {
        let peer = Self::peer(&request)?;
        self.admin(peer.clone()).await?;
        let request = request.into_inner();
        let services = self.clone();
        let (sender, messages) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut observed = services.0.view.observed.watch();
            let mut published = services.0.view.published.subscribe();
            let mut views = services.0.view.repository.clone();
            while sender
                .send(Ok(services.0.view.status(&request)))
                .await
                .is_ok()
            {
                tokio::time::sleep(STATUS_EVERY).await;
                tokio::select! {
                    () = services.0.sessions.stop.cancelled() => return,
                    () = sender.closed() => return,
                    _ = observed.changed() => {}
                    _ = published.changed() => {}
                    _ = views.changed() => {}
                }
                // The login may expire or be removed while somebody watches.
                if let Err(status) = services.admin(peer.clone()).await {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn get_objects(
        &self,
        request: Request<v1::ObjectsRequest>,
    ) -> Answer<Self::GetObjectsStream> {
        self.admin(Self::peer(&request)?).await?;
        let request = request.into_inner();
        let state = self.0.view.published.borrow().clone();
        let asked = |name: &ClusterName| {
            request.clusters.is_empty() || request.clusters.iter().any(|c| c == name.as_str())
        };
        let clusters: Vec<ClusterName> = state
            .in_force
            .clusters
            .iter()
            .map(|(name, _)| name.clone())
            .filter(asked)
            .collect();
        let (sender, messages) = mpsc::channel(4);
        let services = self.clone();
        tokio::spawn(async move {
            let ask = |cluster: ClusterName| {
                let (services, app) = (services.clone(), request.app.clone());
                async move {
                    let (objects, problem) = match services.0.sessions.objects(&cluster, &app).await
                    {
                        Ok(objects) => (objects, String::new()),
                        Err(problem) => (Vec::new(), problem.to_owned()),
                    };
                    v1::ClusterObjects {
                        cluster: cluster.to_string(),
                        objects,
                        problem,
                    }
                }
            };
            use futures::StreamExt as _;
            let mut answers = futures::stream::iter(clusters).map(ask).buffered(32);
            while let Some(answer) = answers.next().await {
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::JoinTokenRequest>,
    ) -> Answer<v1::JoinToken> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::JoinTokenRequest {
            cluster,
            valid_seconds,
        } = request.into_inner();
        let cluster = cluster_name(&cluster)?;
        let valid = validity(valid_seconds, TOKEN_VALID, TOKEN_MOST)?;
        let state = self.0.view.published.borrow().clone();
        let known = state
            .in_force
            .clusters
            .iter()
            .any(|(name, _)| *name == cluster);
        let token = self.0.authority.join_token(cluster, valid, &who).await;
        let token = token.map_err(|error| self.denied(&who, &error))?;
        let expires_at = timestamp(token.expires);
        Ok(Response::new(v1::JoinToken {
            token: token.expose(),
            expires_at,
            known,
        }))
    }

    async fn remove_cluster(
        &self,
        request: Request<v1::RemoveClusterRequest>,
    ) -> Answer<v1::RemoveClusterResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::RemoveClusterRequest {
            cluster,
            lose_writers,
            reason,
        } = request.into_inner();
        let cluster = cluster_name(&cluster)?;
        let reason = cut_reason(&reason);
        let loss = match lose_writers {
            true => {
                self.may_lose(&cluster, &reason)?;
                Some(Loss {
                    lead: self.lead()?,
                    reason: &reason,
                })
            }
            false => None,
        };
        let removed = self.0.authority.remove(&cluster, loss, &who).await;
        let removed = removed.map_err(|error| self.denied(&who, &error))?;
        self.0.sessions.end(&cluster);
        self.0.view.observed.forget(&cluster);
        Ok(Response::new(v1::RemoveClusterResponse {
            revoked: removed.revoked,
            writers: removed.writers.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn create_admin(
        &self,
        request: Request<v1::CreateAdminRequest>,
    ) -> Answer<v1::AdminCertificate> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::CreateAdminRequest {
            name,
            valid_seconds,
            csr,
        } = request.into_inner();
        let name = admin_name(&name)?;
        let valid = validity(valid_seconds, LOGIN_VALID, LOGIN_MOST)?;
        let granted = self.0.authority.admin(&name, &csr, valid, &who).await;
        let (certificate, trust) = granted.map_err(|error| self.denied(&who, &error))?;
        Ok(Response::new(v1::AdminCertificate {
            certificate,
            trust,
            hub: self.0.authority.advertised().to_owned(),
            expires_at: timestamp(clock::now() + valid),
        }))
    }

    async fn approve_set(
        &self,
        request: Request<v1::ApproveSetRequest>,
    ) -> Answer<v1::ApproveSetResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::ApproveSetRequest {
            cluster,
            app,
            set,
            reason,
        } = request.into_inner();
        let invalid = |error: InvalidId| Status::invalid_argument(error.to_string());
        let request = approvals::Request {
            cluster: cluster_name(&cluster)?,
            app: app.parse().map_err(invalid)?,
            set: set.as_slice().try_into().map_err(invalid)?,
            reason: cut_reason(&reason),
        };
        let parts = &self.0;
        let lead = self.lead()?;
        let state = parts.view.published.borrow().clone();
        let current = state.desired.get(&request.cluster);
        let current = current.map(|desired| desired.since..=desired.number.generation);
        let level = parts.view.observed.get(&request.cluster);
        let judged = approvals::judge(&request, current, level.as_ref())
            .map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
        let store = parts.sessions.store.as_ref();
        let admitted = admit(store, &request.cluster, judged.1).await;
        admitted.map_err(|error| self.denied(&who, &error))?;
        let approved = approvals::approve(store, lead, &request, judged, &who).await;
        approved.map_err(|error| self.denied(&who, &error.into()))?;
        Ok(Response::new(v1::ApproveSetResponse {}))
    }

    async fn list_logins(
        &self,
        request: Request<v1::ListLoginsRequest>,
    ) -> Answer<v1::ListLoginsResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let logins = self.0.authority.logins().await;
        let mut logins = logins.map_err(|error| self.denied(&who, &error))?;
        let now = crate::store_schema::now();
        logins.retain(|(_, record)| !record.removed && record.expires > now);
        let time = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let logins = logins.into_iter().map(|(serial, record)| v1::LoginInfo {
            name: record.name,
            serial,
            issued_at: time(record.issued),
            expires_at: time(record.expires),
            by: record.by,
        });
        Ok(Response::new(v1::ListLoginsResponse {
            logins: logins.collect(),
        }))
    }

    async fn remove_logins(
        &self,
        request: Request<v1::RemoveLoginsRequest>,
    ) -> Answer<v1::RemoveLoginsResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let name = admin_name(&request.into_inner().name)?;
        let removed = self.0.authority.remove_logins(&name, &who).await;
        let removed = removed.map_err(|error| self.denied(&who, &error))?;
        Ok(Response::new(v1::RemoveLoginsResponse { removed }))
    }

    async fn confirm_state(
        &self,
        request: Request<v1::ConfirmStateRequest>,
    ) -> Answer<v1::ConfirmStateResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::ConfirmStateRequest { dry_run, reason } = request.into_inner();
        let parts = &self.0;
        let lead = self.lead()?;
        let store = parts.sessions.store.as_ref();
        let failed = |error: unconfirmed::ConfirmError| {
            tracing::error!(error = %Chain(&error), who, "a confirmation failed");
            Status::unavailable("the hub's store fails; see its log")
        };
        let loaded = unconfirmed::Unconfirmed::load(store).await;
        let unconfirmed = loaded.map_err(|error| failed(error.into()))?;
        let is_whole = unconfirmed.is_whole();
        let silent = match is_whole {
            true => parts.view.silent(),
            false => BTreeSet::new(),
        };
        let unconfirmed = unconfirmed.texts_with(&silent);
        if !dry_run {
            let reason = cut_reason(&reason);
            let confirmed = unconfirmed::confirm(store, lead, &who, &reason, &silent).await;
            confirmed.map_err(failed)?;
            if is_whole {
                parts.view.observed.answered();
            }
        }
        Ok(Response::new(v1::ConfirmStateResponse {
            suspicions: unconfirmed,
        }))
    }

    async fn get_ca(&self, request: Request<v1::GetCaRequest>) -> Answer<v1::CaInfo> {
        let who = self.admin(Self::peer(&request)?).await?;
        let info = self.ca_info().await;
        Ok(Response::new(
            info.map_err(|error| self.denied(&who, &error))?,
        ))
    }

    async fn rotate_ca(&self, request: Request<v1::RotateCaRequest>) -> Answer<v1::CaInfo> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::RotateCaRequest { finish, reason } = request.into_inner();
        let reason = cut_reason(&reason);
        let services = self.clone();
        // A separate task, so that the step completes even if the caller disconnects.
        let rotating = tokio::spawn(async move {
            let Parts {
                authority,
                leadership,
                ..
            } = services.0.as_ref();
            let done = match finish {
                true => authority.finish_rotation(leadership, &who, &reason).await,
                false => authority.rotate(leadership, &who, &reason).await,
            };
            match done {
                Ok(()) => services.ca_info().await,
                Err(error) => Err(error),
            }
            .map_err(|error| services.denied(&who, &error))
        });
        let info = rotating.await;
        let info = info.map_err(|_| Status::internal("the hub failed; see its log"))?;
        Ok(Response::new(info?))
    }

    async fn follow_ca(
        &self,
        request: Request<v1::FollowCaRequest>,
    ) -> Answer<v1::FollowCaResponse> {
        let peer = Self::peer(&request)?;
        let who = self.admin(peer.clone()).await?;
        let csr = request.into_inner().csr;
        let certified = peer.certified.as_deref().ok_or_else(Self::no_certificate)?;
        let authority = &self.0.authority;
        let denied = |error: AuthorityError| self.denied(&who, &error);
        if csr.is_empty() {
            let needed = authority.login_is_behind(&certified.serial).await;
            return Ok(Response::new(v1::FollowCaResponse {
                needed: needed.map_err(denied)?,
                ..v1::FollowCaResponse::default()
            }));
        }
        let followed = authority.follow(certified, &admin_name(&who)?, &csr).await;
        let answer = followed
            .map_err(denied)?
            .map(|followed| v1::FollowCaResponse {
                needed: true,
                certificate: followed.certificate.unwrap_or_default(),
                trust: followed.trust,
            });
        Ok(Response::new(answer.unwrap_or_default()))
    }

    async fn move_app(&self, request: Request<v1::MoveAppRequest>) -> Answer<v1::MoveAppResponse> {
        let who = self.admin(Self::peer(&request)?).await?;
        let v1::MoveAppRequest {
            app,
            region,
            dry_run,
            reason,
            without_proof,
        } = request.into_inner();
        let invalid = |error: InvalidId| Status::invalid_argument(error.to_string());
        let request = moves::Request {
            app: app.parse().map_err(invalid)?,
            region: region.parse().map_err(invalid)?,
            dry_run,
            reason: cut_reason(reason.trim()),
            without_proof,
        };
        if without_proof && request.reason.is_empty() {
            return Err(Status::invalid_argument(
                "a move without proof needs a reason for the audit log",
            ));
        }
        let ordered = match self.0.moves.order(&request, &who).await {
            Ok(ordered) => ordered,
            Err(MoveError::NoWriter(why)) => return Err(Status::not_found(why)),
            Err(error) => {
                tracing::error!(error = %Chain(&error), who, "a move could not be ordered");
                return Err(Status::unavailable(error.to_string()));
            }
        };
        if !dry_run && !ordered.refusals.is_empty() {
            return Err(Status::failed_precondition(ordered.refusals.join("\n")));
        }
        let Ordered {
            from,
            to,
            refusals,
            kind,
            finished,
            rule_says,
            epoch,
        } = ordered;
        Ok(Response::new(v1::MoveAppResponse {
            from_region: from.region.to_string(),
            from_cluster: from.cluster.to_string(),
            to_region: to.region.to_string(),
            to_cluster: to.cluster.to_string(),
            refusals,
            nothing: kind == Kind::Nothing,
            gives_back: kind == Kind::GiveBack,
            vouches: kind == Kind::Vouch,
            finished,
            rule_says,
            epoch: epoch.0,
        }))
    }

    async fn refresh(&self, request: Request<v1::RefreshRequest>) -> Answer<v1::RefreshResponse> {
        self.admin(Self::peer(&request)?).await?;
        self.0.repo.poke();
        Ok(Response::new(v1::RefreshResponse {}))
    }
}
