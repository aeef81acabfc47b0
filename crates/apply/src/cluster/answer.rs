//! Reads an answer. Its size is limited, and an error becomes a readable message, even if it does
//! not come from the API server.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::{
    client::Body,
    core::{Status, response::StatusDetails},
};
use serde::Deserialize;

use super::RequestError;

/// The largest answer that is read, in bytes. An object, or the list of all kinds of a cluster, has
/// a few megabytes at most.
const LONGEST_ANSWER: usize = 32 * 1024 * 1024;
/// The largest error, in bytes, that is read as a `Status`.
const LONGEST_ERROR: usize = 1024 * 1024;
/// The number of characters that are shown of an error that is not a `Status`.
const SHOWN: usize = 200;

/// A header that the API server sets on the answer to every request that API priority and fairness
/// has handled, including those that it refused.
const FAIRNESS: &str = "x-kubernetes-pf-prioritylevel-uid";

/// Returns the content of an answer, or the error that it describes.
pub(super) async fn read(answer: Response<Body>) -> Result<Bytes, RequestError> {
    let (parts, body) = answer.into_parts();
    if parts.status.is_success() {
        return match Limited::new(body, LONGEST_ANSWER).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(RequestError::NoAnswer(error)),
        };
    }
    let body = match Limited::new(body, LONGEST_ERROR).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => Default::default(),
        Err(error) => return Err(RequestError::NoAnswer(error)),
    };
    let status = status(parts.status, &parts.headers, &body);
    Err(RequestError::Refused(Box::new(status)))
}

/// Returns the error as a `Status`, with a readable message and the `Retry-After` of the headers.
fn status(code: StatusCode, headers: &HeaderMap, body: &[u8]) -> Status {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let is_status = serde_json::from_slice(body).is_ok_and(|Kind { kind }| kind == "Status");
    let status = is_status.then(|| serde_json::from_slice::<Status>(body).ok());
    let mut status = status
        .flatten()
        .unwrap_or_else(|| Status::failure(&foreign(code, headers, body), ""));
    status.code = code.as_u16();
    status.message = in_words(&status.message);
    let causes = status
        .details
        .iter_mut()
        .flat_map(|details| &mut details.causes);
    causes.for_each(|cause| cause.message = in_words(&cause.message));
    let seconds = headers.get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.trim().parse().ok());
    // A date is ignored; no API server sends one.
    if let Some(seconds) = seconds {
        let details = status.details.get_or_insert(StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        });
        details.retry_after_seconds = details.retry_after_seconds.max(seconds);
    }
    status
}

/// Removes the Go syntax that an API server writes around an unexpected value, as in `expected
/// string, got &value.valueUnstructured{Value:8080}` or `expected map, got &{[a]}`.
fn in_words(message: &str) -> String {
    const FOUND: &str = ", got &";
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, found)) = rest.split_once(FOUND) {
        out.push_str(before);
        let typed = found.strip_prefix("value.valueUnstructured{Value:");
        let Some(value) = typed.or_else(|| found.strip_prefix('{')) else {
            out.push_str(FOUND);
            rest = found;
            continue;
        };
        let end = closing_brace(value);
        let shown = &value[..end];
        out.push_str(", got ");
        out.push_str(match shown.as_bytes() {
            [b'm', b'a', b'p', b'[', ..] => "a map",
            [b'[', ..] => "a list",
            _ => shown,
        });
        rest = value.get(end + 1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Returns the position of the brace that ends a value, or the length of the text.
fn closing_brace(value: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (1_usize, false, false);
    let end = value.char_indices().find(|(_, char)| {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '{' if !quoted => depth += 1,
            '}' if !quoted => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    end.map_or(value.len(), |(end, _)| end)
}

/// Returns the message for an error that is not a `Status`. Such an error comes from the outermost
/// layers of the API server or from a proxy in front of it.
fn foreign(code: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    if code == StatusCode::TOO_MANY_REQUESTS && headers.contains_key(FAIRNESS) {
        return "the API server has too many requests at the moment (priority and fairness)".into();
    }
    let text = String::from_utf8_lossy(body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = if text.starts_with('<') {
        let title = text.split_once("<title>").map(|(_, rest)| rest);
        let title = title.and_then(|rest| Some(rest.split_once("</title>")?.0));
        let title = title.unwrap_or("an HTML page");
        format!("{title}; something in front of the API server answers in its place")
    } else {
        text
    };
    let mut message = format!("the answer is {code}");
    if !shown.is_empty() {
        message.push_str(": ");
        message.extend(shown.chars().take(SHOWN));
    }
    message
}

#[cfg(test)]
mod tests;
