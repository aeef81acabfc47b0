//! The requests that change objects, or that predict a change in a dry run.

use bytes::Bytes;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    FIELD_MANAGER,
    cluster::{Cluster, Deleted, Live, LiveMeta, METADATA_ONLY, RequestError, SERVER_TIMEOUT},
};

/// The content type of an apply request. Its body is JSON, which is also YAML, except for the
/// characters that [`as_yaml`] escapes.
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";

/// What happens to the dependents of an object that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dependents {
    /// The dependents are deleted together with the object.
    Go,
    /// The dependents stay, and another object will take them over.
    Stay,
}

impl Cluster {
    /// Applies one object with server-side apply. With `force`, it takes over fields of other
    /// managers.
    pub(crate) async fn apply(
        &self,
        path: &str,
        body: Bytes,
        force: bool,
    ) -> Result<LiveMeta, RequestError> {
        let query = format!("force={force}");
        let live: Live = self.apply_for(path, body, &query, METADATA_ONLY).await?;
        Ok(live.metadata)
    }

    /// Returns what the object would be after a forced apply.
    pub(crate) async fn predict(&self, path: &str, body: &Value) -> Result<Value, RequestError> {
        let body = body.to_string().into();
        self.apply_for(path, body, "force=true&dryRun=All", JSON)
            .await
    }

    async fn apply_for<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
        query: &str,
        accept: &str,
    ) -> Result<T, RequestError> {
        let uri = format!(
            "{path}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict&{query}&{SERVER_TIMEOUT}"
        );
        let body = as_yaml(body);
        self.send(Method::PATCH, &uri, APPLY, accept, body).await
    }

    /// Creates an object in the collection at `path`. With `dry_run`, it only asks whether that is
    /// possible.
    pub(crate) async fn create(
        &self,
        path: &str,
        body: &Value,
        dry_run: bool,
    ) -> Result<LiveMeta, RequestError> {
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        let uri = format!("{path}?fieldManager={FIELD_MANAGER}{dry_run}&{SERVER_TIMEOUT}");
        let body = body.to_string().into();
        let live: Live = self
            .send(Method::POST, &uri, JSON, METADATA_ONLY, body)
            .await?;
        Ok(live.metadata)
    }

    /// Returns the whole object, or `None` if it does not exist.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Value>, RequestError> {
        match self.read(path, JSON).await {
            Ok(live) => Ok(Some(live)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes an object with a JSON patch (RFC 6902).
    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Result<LiveMeta, RequestError> {
        let uri = format!("{path}?fieldManager={FIELD_MANAGER}&{SERVER_TIMEOUT}");
        let body = patch.to_string().into();
        let live: Live = self
            .send(Method::PATCH, &uri, JSON_PATCH, METADATA_ONLY, body)
            .await?;
        Ok(live.metadata)
    }

    /// Deletes the object with this UID and no other.
    pub(crate) async fn delete(
        &self,
        path: &str,
        uid: &str,
        dependents: Dependents,
    ) -> Result<Deleted, RequestError> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": match dependents {
                Dependents::Go => "Background",
                Dependents::Stay => "Orphan",
            },
        });
        let body = options.to_string().into();
        let uri = format!("{path}?{SERVER_TIMEOUT}");
        let answer = self
            .send::<Live>(Method::DELETE, &uri, JSON, METADATA_ONLY, body)
            .await;
        match answer {
            Ok(Live { metadata }) if metadata.deletion_timestamp.is_some() => {
                Ok(Deleted::Terminating(metadata.finalizers))
            }
            // Some kinds answer with the deleted object, some with a `Status`.
            Ok(_) => Ok(Deleted::Gone),
            Err(error) if error.is_not_found() => Ok(Deleted::Gone),
            Err(error) if error.is_conflict() => Ok(Deleted::Other),
            Err(error) => Err(error),
        }
    }
}

/// Escapes JSON so that a YAML reader reads the same text. An API server reads an apply request as
/// YAML 1.1. JSON leaves some characters unescaped that YAML folds as line breaks, and others that
/// YAML refuses. All of them are inside strings, where both languages support `\u`.
fn as_yaml(json: Bytes) -> Bytes {
    // The first bytes of all characters that are escaped.
    let suspicious = |byte: &u8| matches!(byte, 0x7f | 0xc2 | 0xe2 | 0xef);
    if !json.iter().any(suspicious) {
        return json;
    }
    let Ok(text) = str::from_utf8(&json) else {
        return json;
    };
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(at) = rest.find(is_escaped) {
        let (before, tail) = rest.split_at(at);
        let mut tail = tail.chars();
        out.push_str(before);
        if let Some(char) = tail.next() {
            out.push_str(&format!("\\u{:04x}", u32::from(char)));
        }
        rest = tail.as_str();
    }
    if out.is_empty() {
        return json;
    }
    out.push_str(rest);
    out.into()
}

fn is_escaped(char: char) -> bool {
    matches!(
        char,
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

#[cfg(test)]
mod tests;
