//! Sends single requests to one cluster's API server. The number of concurrent requests adapts to
//! the server. The duration of a request and the size of its answer are limited. A request is
//! retried if that may help, and its error contains the server's message.

mod answer;
mod connect;

use std::{collections::BTreeMap, error::Error, future::Future, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    client::Body,
    core::Status,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

pub use connect::connect;

use crate::{
    APP_LABEL, FIELD_MANAGER,
    limit::{Limiter, Sign, Turn},
    managed_fields::{FieldsDigest, Managers},
};

/// The longest time that the API server may work on one request.
pub(crate) const SERVER_TIMEOUT: &str = "timeout=20s";
/// The longest time that the agent waits for an answer. It is longer than [`SERVER_TIMEOUT`].
/// Otherwise the agent could give up a request and send a newer one, and the server could still
/// carry out the older one afterwards.
pub(crate) const LONGEST_REQUEST: Duration = Duration::from_secs(25);
/// The time after which a request makes room for others.
const SLOW: Duration = Duration::from_secs(1);

/// The number of attempts after which a request counts as failed.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The `Accept` header for an answer that holds only the object's metadata.
pub(crate) const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server, or a proxy in front of it, refused the request.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The API server could not be reached, or its answer could not be read.
    #[error("the API server did not answer")]
    NoAnswer(#[source] Box<dyn Error + Send + Sync>),
    /// The API server did not answer within this time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The request was not sent, because its run was cancelled first.
    #[error("not sent: a newer generation replaced it")]
    NotSent,
}

impl RequestError {
    /// Returns the HTTP status of the answer, or 0 if there was no answer.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Refused(status) => status.code,
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => 0,
        }
    }

    /// Returns true if Kubernetes says that the object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.reason == "NotFound")
    }

    /// Returns true if nothing exists under this path: the API server does not serve the kind, or
    /// the answer came from something that is not an API server. Such an answer proves nothing
    /// about an object.
    pub(crate) fn is_no_path(&self) -> bool {
        self.code() == 404 && !self.is_not_found()
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }

    /// Returns the causes that the API server gave, each as reason, message and field.
    pub(crate) fn causes(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let details = match self {
            Self::Refused(status) => status.details.as_ref(),
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => None,
        };
        let causes = details.into_iter().flat_map(|details| &details.causes);
        causes.map(|cause| {
            (
                cause.reason.as_str(),
                cause.message.as_str(),
                cause.field.as_str(),
            )
        })
    }

    pub(crate) fn already_exists(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_already_exists())
    }

    /// Returns true if the namespace of the object is being deleted. Nothing can be created in it
    /// until it is gone.
    pub(crate) fn namespace_terminating(&self) -> bool {
        matches!(self, Self::Refused(status) if status.details.as_ref().is_some_and(|details| {
            details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        }))
    }

    /// Returns true if the namespace of the object does not exist.
    pub(crate) fn namespace_missing(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404
            && status.details.as_ref().is_some_and(|details| details.kind == "namespaces"))
    }

    /// Returns true if the same request may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.code, 429 | 500 | 502 | 503 | 504),
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => true,
        }
    }

    /// Returns how long the server asked clients to wait (`Retry-After`).
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(status) => {
                let seconds = status.details.as_ref()?.retry_after_seconds;
                (seconds > 0).then(|| Duration::from_secs(seconds.into()))
            }
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => None,
        }
    }

    fn pause(&self, attempt: u32) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.min(16));
        let pause = pause
            .max(self.retry_after().unwrap_or_default())
            .min(LONGEST_PAUSE);
        pause.mul_f64(rand::random_range(1.0..1.5))
    }

    /// Returns what this error says about the server's load. Only answers of the API server about
    /// itself count, because a failing webhook or aggregated API says nothing about other kinds.
    fn sign(&self) -> Sign {
        match self {
            Self::Refused(status) if status.code == 429 => Sign::TooMany(self.retry_after()),
            Self::Refused(status) if status.code == 504 => Sign::TooSlow,
            Self::TimedOut(_) => Sign::TooSlow,
            Self::Refused(_) => Sign::Answered,
            Self::NoAnswer(_) | Self::NotSent => Sign::None,
        }
    }
}

impl From<kube::Error> for RequestError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            // kube's own `Display` repeats the sources of these errors.
            kube::Error::HyperError(source) => Self::NoAnswer(source.into()),
            kube::Error::Service(source) => Self::NoAnswer(source),
            other => Self::NoAnswer(other.into()),
        }
    }
}

/// Returns the message of an error followed by the messages of all its causes.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries already repeat their causes.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Awaits an answer for at most [`LONGEST_REQUEST`].
pub(crate) async fn bounded<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(LONGEST_REQUEST, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::TimedOut(LONGEST_REQUEST)),
    }
}

tokio::task_local! {
    /// When this token is cancelled, a request stops waiting for its turn.
    static INTERRUPT: CancellationToken;
}

/// Repeats a request while its failure is transient, with growing, jittered pauses. A cancellation
/// ends the pauses and the wait for a turn, but never a request that is under way.
pub(crate) async fn retried<T, F: Future<Output = Result<T, RequestError>>>(
    cancel: &CancellationToken,
    request: impl FnMut() -> F,
) -> Result<T, RequestError> {
    repeated(cancel, request, |error, attempt| {
        error.is_transient() && attempt < ATTEMPTS
    })
    .await
}

/// Like [`retried`], for an object that has its own back-off. It repeats a request several times if
/// the server has too many requests, never after a timeout, and once after any other transient
/// failure.
pub(crate) async fn asked_again<T, F: Future<Output = Result<T, RequestError>>>(
    cancel: &CancellationToken,
    request: impl FnMut() -> F,
) -> Result<T, RequestError> {
    repeated(cancel, request, |error, attempt| match error {
        RequestError::Refused(status) if status.code == 429 => attempt < ATTEMPTS,
        RequestError::Refused(status) if status.code == 504 => false,
        RequestError::TimedOut(_) => false,
        error => error.is_transient() && attempt < 2,
    })
    .await
}

async fn repeated<T, F: Future<Output = Result<T, RequestError>>>(
    cancel: &CancellationToken,
    mut request: impl FnMut() -> F,
    again: impl Fn(&RequestError, u32) -> bool,
) -> Result<T, RequestError> {
    let mut attempt = 0;
    loop {
        match INTERRUPT.scope(cancel.clone(), request()).await {
            Err(RequestError::NotSent) => return Err(RequestError::NotSent),
            Err(error) if again(&error, attempt + 1) => {
                let pause = tokio::time::sleep(error.pause(attempt));
                if cancel.run_until_cancelled(pause).await.is_none() {
                    return Err(error);
                }
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

/// An object in an answer, of which only the metadata is read.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Live {
    #[serde(default)]
    pub(crate) metadata: LiveMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LiveMeta {
    pub(crate) uid: String,
    pub(crate) resource_version: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) finalizers: Vec<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    managed_fields: Box<Managers>,
}

impl LiveMeta {
    /// Returns true if Muster has applied or created the object, even if the inventory does not know it.
    /// Somebody may have removed the label since.
    pub(crate) fn is_ours(&self) -> bool {
        let managers = &self.managed_fields;
        let created = managers.others.iter().any(|name| name == FIELD_MANAGER);
        managers.own.is_some() || (created && self.labels.contains_key(APP_LABEL))
    }

    pub(crate) fn app(&self) -> Option<&str> {
        self.labels.get(APP_LABEL).map(String::as_str)
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// Returns the digest of the fields that Muster owns.
    pub(crate) fn owned(&self) -> Option<FieldsDigest> {
        self.managed_fields.own
    }

    /// Returns the names of the other field managers.
    pub(crate) fn others(&self) -> &[String] {
        &self.managed_fields.others
    }

    /// Returns the digest of the fields that people's tools own.
    pub(crate) fn people(&self) -> Option<FieldsDigest> {
        self.managed_fields.people
    }
}

/// The result of a delete request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// The object is gone.
    Gone,
    /// The object is being deleted and waits for these finalizers.
    Terminating(Vec<String>),
    /// The live object has another UID than the one to be deleted.
    Other,
}

/// One cluster's API server. All clones share one limit on concurrent requests.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    limiter: Limiter,
}

impl Cluster {
    /// Creates a client that has at most `most` requests under way at the same time.
    pub(crate) fn new(client: Client, most: usize) -> Self {
        Self {
            client,
            limiter: Limiter::new(most),
        }
    }

    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<T, RequestError> {
        let turn = match INTERRUPT.try_with(Clone::clone) {
            Ok(interrupt) => interrupt.run_until_cancelled(self.limiter.turn()).await,
            Err(_) => Some(self.limiter.turn().await),
        };
        let turn = turn.ok_or(RequestError::NotSent)?;
        self.ask(Some(turn), method, uri, content, accept, body)
            .await
    }

    /// Writes JSON that must be written even after a cancellation: a cancellation ends the wait for
    /// a turn, and the request is sent without one.
    pub(crate) async fn record(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        cancel: &CancellationToken,
    ) -> Result<LiveMeta, RequestError> {
        let turn = cancel.run_until_cancelled(self.limiter.turn()).await;
        let content = "application/json";
        let asked = self.ask::<Live>(turn, method, uri, content, METADATA_ONLY, body);
        Ok(asked.await?.metadata)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        turn: Option<Turn<'_>>,
        method: Method,
        uri: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<T, RequestError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, content)
            .header(header::ACCEPT, accept)
            .body(Body::from(body))
            .map_err(|error| RequestError::NoAnswer(error.into()))?;
        let answer = async { answer::read(self.client.send(request).await?).await };
        let answer = tokio::time::timeout(LONGEST_REQUEST, answer);
        tokio::pin!(answer);
        let mut turn = turn;
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = tokio::time::sleep(SLOW) => {
                // A webhook may hang. The request then gives its place to another one.
                if let Some(turn) = &mut turn {
                    turn.step_aside();
                }
                answer.await
            }
        };
        let answer = answer.unwrap_or(Err(RequestError::TimedOut(LONGEST_REQUEST)));
        if let Some(turn) = turn {
            turn.end(match &answer {
                Ok(_) => Sign::Answered,
                Err(error) => error.sign(),
            });
        }
        let answer = answer?;
        serde_json::from_slice(&answer).map_err(|error| RequestError::NoAnswer(error.into()))
    }

    /// Reads JSON.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        uri: &str,
        accept: &str,
    ) -> Result<T, RequestError> {
        self.send(Method::GET, uri, "application/json", accept, Bytes::new())
            .await
    }

    /// Returns the metadata of an object, or `None` if the object does not exist.
    pub(crate) async fn metadata(&self, path: &str) -> Result<Option<LiveMeta>, RequestError> {
        match self.read::<Live>(path, METADATA_ONLY).await {
            Ok(live) => Ok(Some(live.metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the namespace of the agent's own records if it does not exist.
    pub(crate) async fn ensure_namespace(&self, name: &str) -> Result<(), RequestError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..own_metadata()
            },
            ..Namespace::default()
        };
        match bounded(namespaces.create(&PostParams::default(), &namespace)).await {
            Err(error) if !error.already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Returns the metadata that all of the agent's own records have.
pub(crate) fn own_metadata() -> ObjectMeta {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    ObjectMeta {
        labels: Some(BTreeMap::from([label(
            "app.kubernetes.io/managed-by",
            "muster",
        )])),
        ..ObjectMeta::default()
    }
}
