//! The gRPC services: who calls is known from the certificate, and each call checks it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use muster_git::{RepoView, Watcher};
use muster_model::{
    ids::{ClusterName, InstanceId, InvalidId},
    problem::{Problem, Scope},
};
use muster_pki::{AdminName, Ca, Certified, Identity, clock};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::log::Chain;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    approvals,
    authority::{Authority, AuthorityError, Granted, Peer, admit},
    fleet::Published,
    leadership::Leadership,
    metrics::Metrics,
    observed::Observed,
    records::seconds,
    session::{Caller, Sessions},
    status, suspects,
};

/// How long a join token works where nothing else is asked for.
const TOKEN_VALID: Duration = Duration::from_secs(60 * 60);
/// The longest that a join token and a login work.
const TOKEN_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const LOGIN_MOST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long a login works where nothing else is asked for.
const LOGIN_VALID: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A watched status is sent at most this often.
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// A reason is a sentence, in characters.
const MAX_REASON: usize = 500;
/// Messages that wait for a slow agent before its session waits too.
const OUTGOING: usize = 4;

/// All services of a hub.
#[derive(Clone)]
pub(crate) struct Services(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) authority: Arc<Authority>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) published: Arc<Published>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) repo: Arc<Watcher>,
    pub(crate) views: watch::Receiver<RepoView>,
    pub(crate) metrics: Metrics,
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        peer.ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// The agent that calls. Its certificate may have ended: then it may only renew it.
    fn agent<T>(&self, request: &Request<T>) -> Result<(Peer, ClusterName, InstanceId), Status> {
        let peer = Self::peer(request)?;
        match peer.certified.as_ref().map(|certified| &certified.identity) {
            Some(Identity::Agent { cluster, instance }) => {
                let (cluster, instance) = (cluster.clone(), instance.clone());
                self.signed_by_today(&peer)?;
                Ok((peer, cluster, instance))
            }
            Some(Identity::Admin(_)) => {
                Err(self.turn_away(&peer, "not_an_agent", "this is no agent's certificate"))
            }
            None => Err(self.turn_away(
                &peer,
                "no_certificate",
                "an agent needs a certificate: enrol with a join token",
            )),
        }
    }

    fn no_certificate() -> Status {
        Status::unauthenticated("an agent needs a certificate: enrol with a join token")
    }

    /// The number of the certificate that was shown; empty where there is none.
    fn serial(peer: &Peer) -> &str {
        let certified = peer.certified.as_ref();
        certified.map_or("", |certified| certified.serial.as_str())
    }

    /// The agent that calls, if its instance is still one of the fleet.
    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
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

    /// A connection may be older than the end of the CA that its certificate is of.
    fn signed_by_today(&self, peer: &Peer) -> Result<(), Status> {
        let cas = self.0.authority.cas();
        match peer.certified.as_deref() {
            Some(certified) if !cas.have_signed(certified) => Err(self.turn_away(
                peer,
                "old_ca",
                "this certificate is of a CA that the fleet no longer trusts",
            )),
            _ => Ok(()),
        }
    }

    fn in_time(&self, peer: &Peer) -> Result<(), Status> {
        let ended = |certified: &&Arc<Certified>| certified.not_after <= clock::now();
        match peer.certified.as_ref().filter(ended) {
            Some(_) => Err(self.turn_away(peer, "expired", "this certificate has ended; renew it")),
            None => Ok(()),
        }
    }

    /// The person that calls, if their login is good.
    async fn admin(&self, peer: Peer) -> Result<String, Status> {
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

    fn turn_away(&self, peer: &Peer, reason: &str, why: &'static str) -> Status {
        self.0
            .metrics
            .refuse(reason, &peer.address.to_string(), why);
        Status::unauthenticated(why)
    }

    /// An authority's error as the caller sees it.
    fn denied(&self, who: &str, error: &AuthorityError) -> Status {
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

    pub(crate) fn status(&self, request: &v1::StatusRequest) -> v1::Status {
        let parts = &self.0;
        let state = parts.published.borrow().clone();
        let view = parts.views.borrow().state.clone();
        let mut repo = v1::Repo {
            url: view.remote,
            reference: view.reference,
            commit: state.in_force.commit.clone(),
            subject: state.in_force.subject.clone(),
            author: state.in_force.author.clone(),
            committed_at: state.in_force.committed_at,
            tip: view
                .tip
                .map(|tip| tip.commit.to_string())
                .unwrap_or_default(),
            last_read: view.last_attempt.map_or(0, time),
            ..v1::Repo::default()
        };
        if let Some(problem) = view.problem {
            repo.problem = problem.text;
            repo.problem_since = time(problem.since);
            repo.retry_at = time(problem.retry_at);
        }
        let mut status =
            status::status(&state, |cluster| parts.observed.get(cluster), repo, request);
        let mut first = state.suspects.problems();
        let held = !status.repo.clone().unwrap_or_default().problem.is_empty()
            || status
                .problems
                .iter()
                .any(|problem| problem.scope == "fleet");
        if !state.current && held {
            first.push(of_fleet(
                "this hub has read no good commit since it was started, and delivers nothing until it has",
                "clusters go on with what they run",
            ));
        }
        let failed = state.failed.iter();
        first.extend(
            failed.map(|why| of_fleet(why, "the hub tries again; what is in force stays so")),
        );
        first.extend(parts.authority.warnings());
        if parts.leadership.now().is_none() {
            let problem = of_fleet(
                "this hub has stepped down: another hub leads with a copy of its store",
                "stop one of the two and start the other again",
            );
            first.insert(0, problem);
        }
        let first = first.iter().map(v1::RepoProblem::from);
        status.problems.splice(0..0, first);
        status
    }
}

impl Services {
    async fn ca_info(&self) -> Result<v1::CaInfo, AuthorityError> {
        let authority = &self.0.authority;
        let (cas, behind) = (authority.cas(), authority.behind().await?);
        let since = cas.next.as_ref().map_or(0, |_| cas.since());
        Ok(v1::CaInfo {
            name: cas.current.name()?,
            expires_at: time(cas.current.not_after()),
            next: cas
                .next
                .as_ref()
                .map(Ca::name)
                .transpose()?
                .unwrap_or_default(),
            since: i64::try_from(since).unwrap_or_default(),
            clusters: behind.clusters,
            logins: behind.logins,
            join_tokens: behind.join_tokens,
        })
    }
}

/// A problem of the hub itself, which concerns the whole fleet.
fn of_fleet(message: &str, help: &str) -> Problem {
    Problem::new(Scope::Fleet, "", message).help(help)
}

fn time(time: std::time::SystemTime) -> i64 {
    i64::try_from(seconds(time)).unwrap_or_default()
}

/// A time that somebody asked for, within a bound.
fn bounded(seconds: u64, most: Duration) -> Result<Duration, Status> {
    let asked = Duration::from_secs(seconds);
    if asked > most {
        let days = most.as_secs() / 86_400;
        return Err(Status::invalid_argument(format!(
            "that is too long; at most {days} days"
        )));
    }
    Ok(asked)
}

fn certificate(granted: Granted) -> v1::Certificate {
    v1::Certificate {
        certificate: granted.certificate,
        trust: granted.trust,
        cluster: granted.cluster.to_string(),
        instance: granted.instance.to_string(),
    }
}

fn admin_name(text: &str) -> Result<AdminName, Status> {
    text.parse()
        .map_err(|error: muster_pki::InvalidAdminName| Status::invalid_argument(error.to_string()))
}

fn cluster_name(text: &str) -> Result<ClusterName, Status> {
    text.parse()
        .map_err(|error: InvalidId| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl v1::enrolment_server::Enrolment for Services {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Answer<v1::Certificate> {
        let who = Self::peer(&request)?.address.to_string();
        let v1::EnrolRequest { token, csr } = request.into_inner();
        let granted = self.0.authority.enrol(&token, &csr).await;
        let granted = granted.map_err(|error| self.denied(&who, &error))?;
        self.0
            .sessions
            .end_others(&granted.cluster, &granted.instance);
        Ok(Response::new(certificate(granted)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Answer<v1::Certificate> {
        let (peer, cluster, instance) = self.agent(&request)?;
        let csr = request.into_inner().csr;
        let granted = self
            .0
            .authority
            .renew(&cluster, &instance, Self::serial(&peer), &csr)
            .await;
        if let Err(AuthorityError::Held(why)) = &granted {
            self.0.sessions.end(&cluster);
            self.0
                .observed
                .update(&cluster, |level| level.held = Some(why.clone()));
        }
        let who = peer.address.to_string();
        Ok(Response::new(certificate(
            granted.map_err(|error| self.denied(&who, &error))?,
        )))
    }
}

#[tonic::async_trait]
impl v1::agents_server::Agents for Services {
    type FollowStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Answer<Self::FollowStream> {
        let caller = self.caller(&request).await?;
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        tokio::spawn(Arc::clone(&self.0.sessions).run(caller, request.into_inner(), outgoing));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn check(&self, request: Request<v1::Hello>) -> Answer<v1::Checked> {
        let caller = self.caller(&request).await?;
        if let Err((reason, status)) = Sessions::check(&caller, request.get_ref()) {
            let who = caller.address.to_string();
            self.0.metrics.refuse(reason, &who, status.message());
            return Err(status);
        }
        Ok(Response::new(v1::Checked {
            protocol: PROTOCOL_VERSION,
            version: VERSION.to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Services {
    type WatchStatusStream = Messages<v1::Status>;
    type GetObjectsStream = Messages<v1::ClusterObjects>;

    async fn get_status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::Status> {
        self.admin(Self::peer(&request)?).await?;
        Ok(Response::new(self.status(request.get_ref())))
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
            let mut observed = services.0.observed.watch();
            let mut published = services.0.published.subscribe();
            let mut views = services.0.views.clone();
            while sender.send(Ok(services.status(&request))).await.is_ok() {
                tokio::time::sleep(STATUS_EVERY).await;
                tokio::select! {
                    () = services.0.sessions.stop.cancelled() => return,
                    () = sender.closed() => return,
                    _ = observed.changed() => {}
                    _ = published.changed() => {}
                    _ = views.changed() => {}
                }
                // A login may end, or be taken back, while somebody watches.
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
        let state = self.0.published.borrow().clone();
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
        let valid = match valid_seconds {
            0 => TOKEN_VALID,
            seconds => bounded(seconds, TOKEN_MOST)?,
        };
        let state = self.0.published.borrow().clone();
        let known = state
            .in_force
            .clusters
            .iter()
            .any(|(name, _)| *name == cluster);
        let token = self.0.authority.join_token(cluster, valid, &who).await;
        let token = token.map_err(|error| self.denied(&who, &error))?;
        let expires_at = time(token.expires);
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
        let cluster = cluster_name(&request.into_inner().cluster)?;
        let revoked = self.0.authority.remove(&cluster, &who).await;
        let revoked = revoked.map_err(|error| self.denied(&who, &error))?;
        self.0.sessions.end(&cluster);
        self.0.observed.forget(&cluster);
        Ok(Response::new(v1::RemoveClusterResponse { revoked }))
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
        let valid = match valid_seconds {
            0 => LOGIN_VALID,
            seconds => bounded(seconds, LOGIN_MOST)?,
        };
        let granted = self.0.authority.admin(&name, &csr, valid, &who).await;
        let (certificate, trust) = granted.map_err(|error| self.denied(&who, &error))?;
        Ok(Response::new(v1::AdminCertificate {
            certificate,
            trust,
            hub: self.0.authority.advertised().to_owned(),
            expires_at: time(clock::now() + valid),
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
            reason: reason.chars().take(MAX_REASON).collect(),
        };
        let parts = &self.0;
        let Some(lead) = parts.leadership.now() else {
            return Err(Status::unavailable(
                "this hub has stepped down; another hub leads",
            ));
        };
        let state = parts.published.borrow().clone();
        let current = state.wanted.get(&request.cluster);
        let current = current.map(|wanted| wanted.since..=wanted.number.generation);
        let level = parts.observed.get(&request.cluster);
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
        let now = crate::records::now();
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
        let Some(lead) = parts.leadership.now() else {
            return Err(Status::unavailable(
                "this hub has stepped down; another hub leads",
            ));
        };
        let store = parts.sessions.store.as_ref();
        let failed = |error: suspects::ConfirmError| {
            tracing::error!(error = %Chain(&error), who, "a confirmation failed");
            Status::unavailable("the hub's store fails; see its log")
        };
        let loaded = suspects::Suspects::load(store).await;
        let suspicions = loaded.map_err(|error| failed(error.into()))?.texts();
        if !dry_run {
            let reason: String = reason.chars().take(MAX_REASON).collect();
            let confirmed = suspects::confirm(store, lead, &who, &reason).await;
            confirmed.map_err(failed)?;
        }
        Ok(Response::new(v1::ConfirmStateResponse { suspicions }))
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
        let reason: String = reason.chars().take(MAX_REASON).collect();
        let services = self.clone();
        // Goes to its end also where nobody waits for it any more.
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

    async fn refresh(&self, request: Request<v1::RefreshRequest>) -> Answer<v1::RefreshResponse> {
        self.admin(Self::peer(&request)?).await?;
        self.0.repo.poke();
        Ok(Response::new(v1::RefreshResponse {}))
    }
}
