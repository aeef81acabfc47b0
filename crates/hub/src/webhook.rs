//! The webhook for Git hosts. A call only makes the hub read the repository now; its content is not used.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use muster_git::Watcher;
use ring::hmac;
use tokio::sync::Semaphore;

/// The longest request body whose signature is checked, in bytes. GitHub's body for a push has some tens of kilobytes.
const LONGEST: usize = 2 * 1024 * 1024;
/// The most calls whose bodies are read at the same time. This and [`LONGEST`] bound the memory.
const AT_ONCE: usize = 8;
/// The time within which a call must send its body.
const WITHIN: Duration = Duration::from_secs(10);

/// Headers that contain the token itself: GitLab's, and those that scripts use.
const TOKENS: [&str; 3] = ["x-gitlab-token", "authorization", "x-muster-token"];
/// Headers with the body's HMAC-SHA256 under the token (RFC 2104), in hexadecimal: GitHub's, which Gitea and Forgejo
/// send too, and their own.
const SIGNATURES: [&str; 3] = [
    "x-hub-signature-256",
    "x-gitea-signature",
    "x-forgejo-signature",
];

struct Hook {
    repo: Arc<Watcher>,
    token: Option<String>,
    reading: Semaphore,
}

/// Returns the route `POST /hook`. It accepts callers that know the token, and nobody if there is no token.
pub(crate) fn route(repo: Arc<Watcher>, token: Option<String>) -> Router {
    let hook = Hook {
        repo,
        token,
        reading: Semaphore::new(AT_ONCE),
    };
    Router::new()
        .route("/hook", post(hooked))
        .with_state(Arc::new(hook))
}

async fn hooked(
    State(hook): State<Arc<Hook>>,
    headers: HeaderMap,
    body: Body,
) -> (StatusCode, &'static str) {
    let Some(token) = &hook.token else {
        return (
            StatusCode::FORBIDDEN,
            "this hub has no token for a webhook: start it with --hook-token-file\n",
        );
    };
    if !shows(token, &headers) {
        let signatures = signatures(&headers);
        if signatures.is_empty() {
            return (StatusCode::UNAUTHORIZED, WRONG);
        }
        let Ok(_reading) = hook.reading.try_acquire() else {
            return (StatusCode::TOO_MANY_REQUESTS, "too many calls at once\n");
        };
        let body = match tokio::time::timeout(WITHIN, to_bytes(body, LONGEST)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                return (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the body is incomplete or over 2 MiB\n",
                );
            }
            Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
        let right = |signature: &Vec<u8>| hmac::verify(&key, &body, signature).is_ok();
        if !signatures.iter().any(right) {
            return (StatusCode::UNAUTHORIZED, WRONG);
        }
    }
    hook.repo.poke();
    (StatusCode::ACCEPTED, "reading the repository now\n")
}

const WRONG: &str = "the webhook's token or signature is missing or wrong\n";

/// Returns true if a header contains the token.
fn shows(token: &str, headers: &HeaderMap) -> bool {
    // Both are hashed first, so that the duration of the comparison reveals nothing about the token.
    let hash = |text: &str| blake3::hash(text.as_bytes());
    TOKENS.into_iter().any(|name| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        let given = value.map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
        given.is_some_and(|given| hash(given) == hash(token))
    })
}

fn signatures(headers: &HeaderMap) -> Vec<Vec<u8>> {
    let named = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        unhex(value.strip_prefix("sha256=").unwrap_or(value))
    };
    SIGNATURES.into_iter().filter_map(named).collect()
}

/// Decodes the 32 bytes of a SHA-256 from hexadecimal.
fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    (0..64).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests;
