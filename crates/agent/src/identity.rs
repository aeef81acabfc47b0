//! Who this agent is: a key made in its cluster, and the certificate that the hub gave for it. Both are
//! kept in the cluster, so that the agent itself keeps nothing.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use muster_model::ids::{ClusterName, ContentHash, InvalidId};
use muster_pki::{
    Certified, Credentials, Identity as Subject, JoinToken, Key, PkiError, SKEW, TrustBundle,
    rotate_at,
};
use muster_proto::v1::{self, enrolment_client::EnrolmentClient};
use muster_runtime::log::Chain;
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

use crate::dial::{DialError, dial};

const SECRET: &str = muster_model::records::IDENTITY;
const KEY: &str = "key.pem";
const NEXT_KEY: &str = "next-key.pem";
/// Of an enrolment that has begun and is not granted yet: the key, the request and the token's hash. They
/// stand beside an identity that is there already, and take its place only when they are granted.
const JOIN_KEY: &str = "join-key.pem";
const REQUEST: &str = "request.pem";
const JOINING: &str = "join-token-hash";
const CERTIFICATE: &str = "certificate.pem";
const TRUST: &str = "trust.pem";
const HUB: &str = "hub";
/// Which token the certificate came from: another one means another enrolment.
const TOKEN: &str = "token-hash";

/// Why an agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Secret can't be read or written.
    #[error("the Secret {SECRET} can't be used")]
    Cluster(#[source] Box<kube::Error>),
    /// There is neither an identity nor a token to get one.
    #[error(
        "this cluster has not joined a fleet; start the agent once with --join-token, from `muster cluster join-token`"
    )]
    NotJoined,
    /// A part of the Secret is missing or damaged.
    #[error("the Secret {SECRET} is damaged; delete it and join again with a new token")]
    Damaged,
    /// Keys or certificates fail.
    #[error("keys or certificates can't be used")]
    Pki(#[from] PkiError),
    /// The hub can't be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub said no.
    #[error("the hub refuses: {}", .0.message())]
    Refused(Status),
    /// The certificate names no cluster.
    #[error("the hub's certificate is no agent's")]
    NoAgent,
    /// A name is none.
    #[error("the hub's answer can't be read")]
    Answer(#[from] InvalidId),
}

/// An agent's identity.
pub struct Identity {
    /// Where its hub is.
    pub hub: String,
    /// Whom it trusts.
    pub trust: TrustBundle,
    /// What it shows.
    pub credentials: Credentials,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Which of its cluster's enrolments it is.
    pub enrolment: String,
    /// When the certificate ends.
    pub not_after: SystemTime,
    /// When a new certificate is due, by this process's own steady clock: of one that has just come it is
    /// known whatever the wall clocks of hub and agent say.
    pub renew_at: Instant,
}

/// Where identities are kept.
#[derive(Clone)]
pub struct IdentityStore {
    client: Client,
    namespace: String,
}

type Data = BTreeMap<String, ByteString>;

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn put(data: &mut Data, key: &str, value: impl Into<String>) {
    data.insert(key.to_owned(), ByteString(value.into().into_bytes()));
}

fn cluster_error(error: kube::Error) -> IdentityError {
    IdentityError::Cluster(Box::new(error))
}

impl IdentityStore {
    /// In a namespace of a cluster.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The identity that is kept; `None` where it is to be had with this token first.
    ///
    /// # Errors
    /// [`IdentityError`] where there is neither, or it can't be read.
    pub async fn kept(&self, token: Option<&JoinToken>) -> Result<Option<Identity>, IdentityError> {
        let secret = self.secrets().get_opt(SECRET).await;
        kept(secret.map_err(cluster_error)?.as_ref(), token)
    }

    /// The identity that is kept, whatever token it came from; `None` where there is none.
    ///
    /// # Errors
    /// [`IdentityError`] where it can't be read.
    pub async fn current(&self) -> Result<Option<Identity>, IdentityError> {
        match self.kept(None).await {
            Err(IdentityError::NotJoined) => Ok(None),
            current => current,
        }
    }

    /// The identity that is kept; or a new one, for a token that was not used for it. Where that token
    /// brings none, the agent goes on with the identity that it has: a token that is wrong or old, as after
    /// a rollback of its chart, is no reason to lose a cluster.
    ///
    /// # Errors
    /// [`IdentityError`] where there is none and none can be had.
    pub async fn open(&self, token: Option<&JoinToken>) -> Result<Identity, IdentityError> {
        let secret = self
            .secrets()
            .get_opt(SECRET)
            .await
            .map_err(cluster_error)?;
        let token = match (kept(secret.as_ref(), token)?, token) {
            (Some(identity), _) => return Ok(identity),
            (None, Some(token)) => token,
            (None, None) => return Err(IdentityError::NotJoined),
        };
        let current = kept(secret.as_ref(), None).ok().flatten();
        match (self.enrol(secret, token, hash_of(token)).await, current) {
            (Err(error @ (IdentityError::Refused(_) | IdentityError::Dial(_))), Some(current)) => {
                tracing::error!(
                    error = %Chain(&error),
                    cluster = %current.cluster,
                    "the join token brings no identity; the agent goes on with the one that it has. Take the \
                     token away, or give it a new one from `muster cluster join-token`"
                );
                Ok(current)
            }
            (enrolled, _) => enrolled,
        }
    }

    /// The key and the request are kept before they are used: an agent that is killed between the
    /// hub's answer and its own next breath asks again with the same ones, and is answered again.
    async fn enrol(
        &self,
        kept: Option<Secret>,
        token: &JoinToken,
        hash: String,
    ) -> Result<Identity, IdentityError> {
        let mut secret = kept.unwrap_or_else(|| self.empty());
        let begun = secret
            .data
            .as_ref()
            .is_some_and(|data| text(data, JOINING).as_ref() == Some(&hash));
        if !begun {
            let key = Key::generate()?;
            let data = secret.data.get_or_insert_default();
            put(data, REQUEST, key.request()?);
            put(data, JOIN_KEY, key.to_pem());
            put(data, JOINING, hash.clone());
            secret = self.save(secret).await?;
        }
        let data = secret.data.clone().unwrap_or_default();
        let csr = text(&data, REQUEST).ok_or(IdentityError::Damaged)?;
        let channel = dial(&token.hub, &token.trust, None).await?;
        let request = v1::EnrolRequest {
            token: token.secret.expose(),
            csr,
        };
        let granted = EnrolmentClient::new(channel).enrol(request).await;
        let granted = granted.map_err(IdentityError::Refused)?.into_inner();
        let data = secret.data.get_or_insert_default();
        data.remove(REQUEST);
        data.remove(JOINING);
        put(data, TOKEN, hash);
        put(data, HUB, token.hub.clone());
        self.keep(secret, granted, JOIN_KEY).await
    }

    /// Keeps what was granted for the key under this name.
    async fn keep(
        &self,
        mut secret: Secret,
        granted: v1::Certificate,
        key: &str,
    ) -> Result<Identity, IdentityError> {
        let data = secret.data.get_or_insert_default();
        let key = data.remove(key).ok_or(IdentityError::Damaged)?;
        data.insert(KEY.to_owned(), key);
        put(data, CERTIFICATE, granted.certificate);
        put(data, TRUST, granted.trust);
        let opened = identity(data, true)?;
        self.save(secret).await?;
        Ok(opened)
    }

    /// A new certificate for a new key.
    ///
    /// # Errors
    /// [`IdentityError`] where the hub says no or the Secret can't be written; the old one stays.
    pub async fn renew(&self, channel: Channel) -> Result<Identity, IdentityError> {
        let mut secret = self.secrets().get(SECRET).await.map_err(cluster_error)?;
        let key = Key::generate()?;
        let csr = key.request()?;
        put(secret.data.get_or_insert_default(), NEXT_KEY, key.to_pem());
        let granted = EnrolmentClient::new(channel)
            .renew(v1::RenewRequest { csr })
            .await;
        let granted = granted.map_err(IdentityError::Refused)?.into_inner();
        self.keep(secret, granted, NEXT_KEY).await
    }

    fn empty(&self) -> Secret {
        let metadata = ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        };
        Secret {
            metadata,
            ..Secret::default()
        }
    }

    /// Writes the Secret; somebody else's write in between is an error, not overwritten.
    async fn save(&self, secret: Secret) -> Result<Secret, IdentityError> {
        let secrets = self.secrets();
        if secret.metadata.resource_version.is_some() {
            return secrets
                .replace(SECRET, &PostParams::default(), &secret)
                .await
                .map_err(cluster_error);
        }
        let options = PostParams::default();
        let create = || secrets.create(&options, &secret);
        let created = match create().await {
            // The namespace is what is missing. An agent with rights in some namespaces only may not even
            // look, so that it is not asked before.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.create_namespace().await.map_err(cluster_error)?;
                create().await
            }
            created => created,
        };
        created.map_err(cluster_error)
    }

    async fn create_namespace(&self) -> Result<(), kube::Error> {
        let metadata = ObjectMeta {
            name: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        };
        let namespace = Namespace {
            metadata,
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }

    /// Makes the agent's own namespace exist.
    pub(crate) async fn ensure_namespace(&self) -> Result<(), IdentityError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces.get_opt(&self.namespace).await {
            Ok(Some(_)) => Ok(()),
            // An agent with rights in some namespaces only may not look; then it is there.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            Ok(None) => self.create_namespace().await.map_err(cluster_error),
            Err(error) => Err(cluster_error(error)),
        }
    }
}

fn hash_of(token: &JoinToken) -> String {
    ContentHash::of(token.secret.hash().as_bytes()).to_string()
}

/// The identity in the Secret, unless this token was not used for it.
fn kept(
    secret: Option<&Secret>,
    token: Option<&JoinToken>,
) -> Result<Option<Identity>, IdentityError> {
    let data = secret.and_then(|secret| secret.data.as_ref());
    let same_token =
        |data: &&Data| token.is_none_or(|token| text(data, TOKEN) == Some(hash_of(token)));
    match data
        .filter(|data| data.contains_key(CERTIFICATE))
        .filter(same_token)
    {
        Some(data) => identity(data, false).map(Some),
        None if token.is_none() => Err(IdentityError::NotJoined),
        None => Ok(None),
    }
}

/// The identity in these parts; whether it has just come from the hub.
fn identity(data: &Data, is_new: bool) -> Result<Identity, IdentityError> {
    let part = |key| text(data, key).ok_or(IdentityError::Damaged);
    let credentials = Credentials::new(&part(CERTIFICATE)?, Key::from_pem(&part(KEY)?)?)?;
    let certified = Certified::of(credentials.certificate())?;
    let Subject::Agent { cluster, instance } = certified.identity else {
        return Err(IdentityError::NoAgent);
    };
    let due = rotate_at(certified.not_before, certified.not_after);
    let longest = due.duration_since(certified.not_before + SKEW);
    let longest = longest.unwrap_or_default();
    let left = match is_new {
        true => longest,
        false => {
            let left = due.duration_since(muster_pki::clock::now());
            left.unwrap_or_default().min(longest)
        }
    };
    Ok(Identity {
        hub: part(HUB)?,
        trust: TrustBundle::from_pem(&part(TRUST)?)?,
        cluster,
        enrolment: instance.to_string(),
        not_after: certified.not_after,
        renew_at: Instant::now() + left,
        credentials,
    })
}
