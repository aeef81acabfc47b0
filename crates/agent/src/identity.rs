//! The agent's identity: a private key generated in its cluster, and the certificate that the hub issued
//! for it. Both are stored in a Secret in the cluster, so that the agent process itself has no state.

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

const SECRET: &str = muster_model::agent_records::IDENTITY;
const KEY: &str = "key.pem";
const NEXT_KEY: &str = "next-key.pem";
// An enrolment that the hub has not granted yet: its key, its request and the hash of its token. They are
// stored next to an existing identity and replace it only after the hub has granted the request.
const JOIN_KEY: &str = "join-key.pem";
const REQUEST: &str = "request.pem";
const JOINING: &str = "join-token-hash";
const CERTIFICATE: &str = "certificate.pem";
const TRUST: &str = "trust.pem";
const HUB: &str = "hub";
/// The hash of the join token that the identity came from. Another token means another enrolment.
const TOKEN: &str = "token-hash";

/// The reason why an agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Secret can't be read or written.
    #[error("can't read or write the Secret {SECRET}")]
    Cluster(#[source] Box<kube::Error>),
    /// The agent has neither an identity nor a token to get one with.
    #[error(
        "this cluster has not joined a fleet; start the agent once with --join-token, from `muster cluster join-token`"
    )]
    NotJoined,
    /// A part of the Secret is missing or damaged.
    #[error("the Secret {SECRET} is damaged; delete it and join again with a new token")]
    Damaged,
    /// A key or certificate can't be used.
    #[error("keys or certificates can't be used")]
    Pki(#[from] PkiError),
    /// The hub can't be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub refused the request.
    #[error("the hub refuses: {}", .0.message())]
    Refused(Status),
    /// The certificate that the hub issued does not name an agent.
    #[error("the certificate from the hub is not an agent's certificate")]
    NoAgent,
    /// The hub's answer contains an invalid name.
    #[error("the hub's answer can't be read")]
    Answer(#[from] InvalidId),
}

/// An agent's identity.
pub struct Identity {
    /// The address of the hub, as `HOST:PORT`.
    pub hub: String,
    /// The certificate authorities that the agent trusts.
    pub trust: TrustBundle,
    /// The key and certificate that the agent presents to the hub.
    pub credentials: Credentials,
    /// The agent's cluster.
    pub cluster: ClusterName,
    /// The instance ID of this enrolment of the cluster.
    pub enrolment: String,
    /// The time when the certificate expires.
    pub not_after: SystemTime,
    /// The time when the certificate must be renewed, by the monotonic clock. For a certificate that was just
    /// issued it does not depend on the wall clocks of hub and agent.
    pub renew_at: Instant,
}

/// Reads and writes the Secret with the agent's identity.
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
    /// Returns the identity store in this namespace of the cluster.
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

    /// Returns the stored identity, or `None` if the agent must enrol with this token first.
    ///
    /// # Errors
    /// [`IdentityError`] if there is neither an identity nor a token, or the identity can't be read.
    pub async fn stored(
        &self,
        token: Option<&JoinToken>,
    ) -> Result<Option<Identity>, IdentityError> {
        let secret = self.secrets().get_opt(SECRET).await;
        stored(secret.map_err(cluster_error)?.as_ref(), token)
    }

    /// Returns the stored identity, whatever token it came from, or `None` if there is none.
    ///
    /// # Errors
    /// [`IdentityError`] if it can't be read.
    pub async fn current(&self) -> Result<Option<Identity>, IdentityError> {
        match self.stored(None).await {
            Err(IdentityError::NotJoined) => Ok(None),
            current => current,
        }
    }

    /// Returns the stored identity, or enrols if the token is not the one that the identity came from. If
    /// that enrolment fails, the agent continues with its stored identity: a wrong or used token, as after a
    /// rollback of the agent's chart, must not disconnect the cluster. `hub` is the hub's address, if it differs
    /// from the one in the token.
    ///
    /// # Errors
    /// [`IdentityError`] if there is no identity and the agent can't get one.
    pub async fn open(
        &self,
        token: Option<&JoinToken>,
        hub: Option<&str>,
    ) -> Result<Identity, IdentityError> {
        let secret = self
            .secrets()
            .get_opt(SECRET)
            .await
            .map_err(cluster_error)?;
        let token = match (stored(secret.as_ref(), token)?, token) {
            (Some(identity), _) => return Ok(identity),
            (None, Some(token)) => token,
            (None, None) => return Err(IdentityError::NotJoined),
        };
        let current = stored(secret.as_ref(), None).ok().flatten();
        let hub = hub.unwrap_or(&token.hub);
        match (self.enrol(secret, token, hub).await, current) {
            (Err(error @ (IdentityError::Refused(_) | IdentityError::Dial(_))), Some(current)) => {
                tracing::error!(
                    error = %Chain(&error),
                    cluster = %current.cluster,
                    "the agent can't join with its join token and continues with its current identity. Remove \
                     the token, or replace it with a new one from `muster cluster join-token`"
                );
                Ok(current)
            }
            (enrolled, _) => enrolled,
        }
    }

    /// Gets a new identity with a join token. The key and the request are stored before they are sent. If the
    /// agent crashes before it has stored the hub's answer, it sends the same request again, and the hub
    /// answers again.
    async fn enrol(
        &self,
        stored: Option<Secret>,
        token: &JoinToken,
        hub: &str,
    ) -> Result<Identity, IdentityError> {
        let hash = hash_of(token);
        let mut secret = stored.unwrap_or_else(|| self.empty());
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
        let channel = dial(hub, &token.trust, None).await?;
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

    /// Stores the granted certificate together with the key that is stored under `key`.
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

    /// Gets a new certificate for a new key and stores both.
    ///
    /// # Errors
    /// [`IdentityError`] if the hub refuses or the Secret can't be written. The old identity then stays.
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

    /// Writes the Secret. If somebody else has changed it since it was read, this fails with a conflict.
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
            // The namespace is missing. This is not checked beforehand, because an agent that has rights in only some
            // namespaces can't read Namespaces.
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

    /// Creates the agent's own namespace if it does not exist.
    pub(crate) async fn ensure_namespace(&self) -> Result<(), IdentityError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces.get_opt(&self.namespace).await {
            Ok(Some(_)) => Ok(()),
            // An agent that has rights in only some namespaces can't read Namespaces. Its own namespace then exists.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            Ok(None) => self.create_namespace().await.map_err(cluster_error),
            Err(error) => Err(cluster_error(error)),
        }
    }
}

fn hash_of(token: &JoinToken) -> String {
    ContentHash::of(token.secret.hash().as_bytes()).to_string()
}

/// Returns the identity in the Secret, or `None` if it does not come from this token.
fn stored(
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

/// Reads the identity from the data of the Secret. `is_new` means that the hub issued it just now.
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
