//! A faulty API server: a proxy in front of a real one that injects the faults that a test asks for, and counts the
//! requests.
//!
//! The proxy listens without TLS on a loopback port and talks to the cluster as its administrator. It streams
//! responses, so that watches work.

mod request;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use futures::stream;
use http::{StatusCode, header};
use kube::{Client, Config};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::local::Cluster;
pub use request::{Asked, Verb};

/// A fault that the proxy injects into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The request does not reach the API server; the proxy sends this response.
    Answer {
        /// The HTTP status.
        code: StatusCode,
        /// The value of `Retry-After`, in seconds.
        retry_after: Option<u32>,
        /// The response's `Content-Type`.
        content_type: &'static str,
        /// The response's body.
        body: String,
    },
    /// The API server handles the request, but the client never gets a response.
    Hang,
    /// The API server handles the request, and the client gets the response when the hold is released.
    Held(Hold),
    /// The API server handles the request, and the connection breaks in the middle of the response.
    Cut,
}

impl Fault {
    /// The response of an API server that rejects a request because of API Priority and Fairness: plain text, with or
    /// without `Retry-After`.
    pub fn too_many(retry_after: Option<u32>) -> Self {
        Self::Answer {
            code: StatusCode::TOO_MANY_REQUESTS,
            retry_after,
            content_type: "text/plain; charset=utf-8",
            body: "Too many requests, please try again later.\n".to_owned(),
        }
    }

    /// The response of an API server that refuses a request or fails: a `Status` object.
    pub fn status(code: StatusCode, reason: &str, message: &str) -> Self {
        let body = serde_json::json!({
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": reason,
            "message": message,
            "code": code.as_u16(),
        });
        Self::Answer {
            code,
            retry_after: None,
            content_type: "application/json",
            body: body.to_string(),
        }
    }

    /// The response of a load balancer whose API server is down: an HTML page.
    pub fn page(code: StatusCode) -> Self {
        Self::Answer {
            code,
            retry_after: None,
            content_type: "text/html",
            body: format!(
                "<html>\r\n<head><title>{code}</title></head>\r\n<body>\r\n<center><h1>{code}</h1>\
                 </center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
            ),
        }
    }
}

type Matches = Box<dyn Fn(&Asked) -> bool + Send + Sync>;

struct Rule {
    matches: Matches,
    fault: Fault,
    /// How many more requests get this fault.
    left: usize,
    happened: Arc<AtomicUsize>,
}

/// Delays responses until it is released.
#[derive(Debug, Clone)]
pub struct Hold(Arc<watch::Sender<bool>>);

impl Default for Hold {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl PartialEq for Hold {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Hold {}

impl Hold {
    /// Sends the delayed responses. Later ones are not delayed.
    pub fn release(&self) {
        self.0.send_replace(true);
    }
}

/// Counts how often a fault has happened.
#[derive(Debug, Clone)]
pub struct Happened(Arc<AtomicUsize>);

impl Happened {
    /// Returns how often the fault has happened so far.
    pub fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Shared {
    upstream: Client,
    rules: Mutex<Vec<Rule>>,
    counts: Mutex<BTreeMap<Verb, usize>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy that injects faults. It stops when it is dropped.
pub struct FaultProxy {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy without faults in front of this cluster.
    ///
    /// # Errors
    /// Fails if no port is free, or the cluster's credentials can't be read.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            upstream: cluster.client().await?,
            rules: Mutex::default(),
            counts: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.context("no port for the proxy")?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move {
            // The server runs until the task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, task })
    }

    /// Returns the configuration of a client that uses the proxy. It needs no credentials.
    ///
    /// # Errors
    /// Fails if the proxy's address is not a valid URL, which is not expected.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::new(
            self.url
                .parse()
                .context("the proxy's address is not a URL")?,
        );
        config.default_retry = false;
        Ok(config)
    }

    /// Injects this fault into the next `times` requests that match and that get no earlier fault.
    pub fn spoil(
        &self,
        times: usize,
        fault: Fault,
        matches: impl Fn(&Asked) -> bool + Send + Sync + 'static,
    ) -> Happened {
        let happened = Arc::new(AtomicUsize::new(0));
        locked(&self.shared.rules).push(Rule {
            matches: Box::new(matches),
            fault,
            left: times,
            happened: happened.clone(),
        });
        Happened(happened)
    }

    /// Removes all faults. Requests that hang already continue to hang.
    pub fn heal(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Returns the number of requests of each kind so far, with or without a fault.
    pub fn counts(&self) -> BTreeMap<Verb, usize> {
        locked(&self.shared.counts).clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Counts the request and returns its fault, if it gets one.
    fn take(&self, asked: &Asked) -> Option<Fault> {
        *locked(&self.counts).entry(asked.verb).or_default() += 1;
        let mut rules = locked(&self.rules);
        let mut open = rules.iter_mut();
        let rule = open.find(|rule| rule.left > 0 && (rule.matches)(asked))?;
        rule.left -= 1;
        rule.happened.fetch_add(1, Ordering::SeqCst);
        Some(rule.fault.clone())
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Infallible> {
    let fault = shared.take(&Asked::of(request.method(), request.uri()));
    let answer = match fault {
        None => forward(&shared.upstream, request).await,
        Some(Fault::Hang) => {
            let _ = forward(&shared.upstream, request).await;
            // Wait until the client gives up.
            std::future::pending().await
        }
        Some(Fault::Held(hold)) => {
            let answer = forward(&shared.upstream, request).await;
            // This can't fail: the fault owns the sender.
            let _ = hold.0.subscribe().wait_for(|released| *released).await;
            answer
        }
        Some(Fault::Cut) => match forward(&shared.upstream, request).await {
            Ok(answer) => cut(answer).await,
            Err(error) => Err(error),
        },
        Some(Fault::Answer {
            code,
            retry_after,
            content_type,
            body,
        }) => {
            let mut answer = Response::builder()
                .status(code)
                .header(header::CONTENT_TYPE, content_type);
            if let Some(seconds) = retry_after {
                answer = answer.header(header::RETRY_AFTER, seconds);
            }
            answer.body(Body::from(body)).map_err(Into::into)
        }
    };
    // If the request can't be forwarded, the client sees a broken connection.
    Ok(answer.unwrap_or_else(|error| Response::new(broken(Vec::new(), format!("{error:#}")))))
}

async fn forward(upstream: &Client, request: Request) -> anyhow::Result<Response> {
    let (mut parts, body) = request.into_parts();
    for hop in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING] {
        parts.headers.remove(hop);
    }
    let body = to_bytes(body, usize::MAX).await?;
    let request = Request::from_parts(parts, kube::client::Body::from(body));
    let (mut parts, body) = upstream.send(request).await?.into_parts();
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
        parts.headers.remove(hop);
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}

async fn cut(answer: Response) -> anyhow::Result<Response> {
    let (mut parts, body) = answer.into_parts();
    let mut bytes = to_bytes(body, usize::MAX).await?.to_vec();
    parts
        .headers
        .insert(header::CONTENT_LENGTH, bytes.len().into());
    bytes.truncate(bytes.len() / 2);
    Ok(Response::from_parts(
        parts,
        broken(bytes, "cut on purpose".to_owned()),
    ))
}

/// Returns a body that begins with these bytes and then fails.
fn broken(bytes: Vec<u8>, why: String) -> Body {
    Body::from_stream(stream::iter([Ok(bytes), Err(io::Error::other(why))]))
}
