//! Single requests to one cluster's API server: as many at a time as it takes, bounded in time and
//! size, retried where the server asks for it, and with errors that say what the server said.

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
    APP_LABEL,
    limit::{Limiter, Sign, Turn},
    managed_fields::{FieldsDigest, Managers},
};

/// How long the API server may work on one request, and how long its answer is awaited. The second is
/// longer: a request whose answer was not awaited could still be carried out after a newer one.
pub(crate) const SERVER_TIMEOUT: &str = "timeout=20s";
pub(crate) const LONGEST_REQUEST: Duration = Duration::from_secs(25);
/// After so long a request makes room for others.
const SLOW: Duration = Duration::from_secs(1);

/// How often a request is sent before its failure counts.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a person reads about the answer that only names the object and not its content.
pub(crate) const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server, or something in front of it, said no.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// It could not be reached, or its answer not be read.
    #[error("the API server did not answer")]
    NoAnswer(#[source] Box<dyn Error + Send + Sync>),
    /// No answer within the time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It was not sent, because the run that it was for was ended first.
    #[error("not sent: a newer generation replaced it")]
    NotSent,
}

impl RequestError {
    /// The HTTP status that was answered; 0 where there was no answer.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Refused(status) => status.code,
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => 0,
        }
    }

    /// Whether Kubernetes says that there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.reason == "NotFound")
    }

    /// Whether there is nothing at all under this path: the kind is not served, or what answered is
    /// no API server. It proves nothing about an object.
    pub(crate) fn is_no_path(&self) -> bool {
        self.code() == 404 && !self.is_not_found()
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }

    /// The causes that the API server gives, each as reason, message and field.
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

    /// Whether the namespace of the object is on its way out: nothing can be created in it, and
    /// waiting is the only remedy.
    pub(crate) fn namespace_terminating(&self) -> bool {
        matches!(self, Self::Refused(status) if status.details.as_ref().is_some_and(|details| {
            details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        }))
    }

    /// Whether the namespace of the object is not there.
    pub(crate) fn namespace_missing(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404
            && status.details.as_ref().is_some_and(|details| details.kind == "namespaces"))
    }

    /// Whether the same request may well succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.code, 429 | 500 | 502 | 503 | 504),
            Self::NoAnswer(_) | Self::TimedOut(_) | Self::NotSent => true,
        }
    }

    /// How long the server asked to be left alone.
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

    /// What this says about the server's load. One kind's server or webhook that fails says nothing
    /// about the others, so that only what Kubernetes says of itself counts.
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
            // Its own Display repeats its sources.
            kube::Error::HyperError(source) => Self::NoAnswer(source.into()),
            kube::Error::Service(source) => Self::NoAnswer(source),
            other => Self::NoAnswer(other.into()),
        }
    }
}

/// An error with all its causes, for the message of an object.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Libraries below repeat their causes.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Awaits an answer for a bounded time.
pub(crate) async fn bounded<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(LONGEST_REQUEST, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::TimedOut(LONGEST_REQUEST)),
    }
}

tokio::task_local! {
    /// What ends the wait of a request for its turn.
    static INTERRUPT: CancellationToken;
}

/// Repeats a request while its failure is transient, with growing, jittered pauses. A cancellation
/// ends the pauses and the wait for a turn, never a request that is under way.
pub(crate) async fn retried<T, F: Future<Output = Result<T, RequestError>>>(
    cancel: &CancellationToken,
    request: impl FnMut() -> F,
) -> Result<T, RequestError> {
    repeated(cancel, request, |error, attempt| {
        error.is_transient() && attempt < ATTEMPTS
    })
    .await
}

/// Like [`retried`], for an object that has a time of its own to be tried again: only a server that
/// is too busy, and a first failure that may be gone in a moment, are waited for.
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

/// What is read of an answer: never the object's content.
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
    /// Whether this agent has applied it, whatever the inventory says.
    pub(crate) fn is_ours(&self) -> bool {
        self.labels.contains_key(APP_LABEL) && self.managed_fields.own.is_some()
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

    /// The digest of the fields that are Muster's.
    pub(crate) fn owned(&self) -> Option<FieldsDigest> {
        self.managed_fields.own
    }

    /// Other managers of its fields.
    pub(crate) fn others(&self) -> &[String] {
        &self.managed_fields.others
    }

    /// The digest of the fields that people's tools have.
    pub(crate) fn people(&self) -> Option<FieldsDigest> {
        self.managed_fields.people
    }
}

/// What became of a delete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// It is gone.
    Gone,
    /// It waits for its finalizers.
    Terminating(Vec<String>),
    /// The live object is not the one that was meant.
    Other,
}

/// One cluster's API server. Clones share its limit of requests under way.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    limiter: Limiter,
}

impl Cluster {
    /// Never more than so many requests are under way at the same time.
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

    /// Writes JSON that is to be written even at the end: a cancellation ends the wait for a turn, and the
    /// request leaves without one.
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
                // A webhook may hang. That keeps no turn from others.
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

    /// The metadata of an object; `None` where there is none.
    pub(crate) async fn metadata(&self, path: &str) -> Result<Option<LiveMeta>, RequestError> {
        match self.read::<Live>(path, METADATA_ONLY).await {
            Ok(live) => Ok(Some(live.metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the namespace of the agent's own records exist.
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

/// Metadata of the agent's own records, for people who list them.
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
