//! A bad API server: a proxy in front of a real one that spoils what a test tells it to, and counts
//! what comes.
//!
//! It listens without TLS on a loopback port and speaks to the cluster as its administrator. Answers
//! are passed on as they come, so that watches work.

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

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It does not arrive; this is the answer.
    Answer {
        /// The HTTP status.
        code: StatusCode,
        /// Seconds in `Retry-After`.
        retry_after: Option<u32>,
        /// The answer's `Content-Type`.
        content_type: &'static str,
        /// The answer's content.
        body: String,
    },
    /// It arrives, is carried out and never answered.
    Hang,
    /// It arrives and is carried out, and is answered when this is released.
    Held(Hold),
    /// It arrives and is carried out, and the connection breaks in the middle of the answer.
    Cut,
}

impl Fault {
    /// What an API server's priority and fairness answers: plain text, with the header or without.
    pub fn too_many(retry_after: Option<u32>) -> Self {
        Self::Answer {
            code: StatusCode::TOO_MANY_REQUESTS,
            retry_after,
            content_type: "text/plain; charset=utf-8",
            body: "Too many requests, please try again later.\n".to_owned(),
        }
    }

    /// What an API server answers when it says no or fails.
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

    /// What a load balancer answers whose API server is away.
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
    /// How often it still happens.
    left: usize,
    happened: Arc<AtomicUsize>,
}

/// Holds answers back until it is released.
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
    /// Lets all answers go, now and later.
    pub fn release(&self) {
        self.0.send_replace(true);
    }
}

/// How often a fault has happened so far.
#[derive(Debug, Clone)]
pub struct Happened(Arc<AtomicUsize>);

impl Happened {
    /// That number.
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

/// The proxy. It ends when it is dropped.
pub struct FaultProxy {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// A proxy in front of this cluster, without faults.
    ///
    /// # Errors
    /// When there is no port, or the cluster's credentials can't be read.
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
            // It only ends by being aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, task })
    }

    /// How a client reaches the API server through it; no credentials are needed.
    ///
    /// # Errors
    /// None that can be thought of: the address is one.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::new(self.url.parse().context("its own address is none")?);
        config.default_retry = false;
        Ok(config)
    }

    /// Does this to the next `times` requests that match and that no earlier fault takes.
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

    /// Ends all faults. What hangs goes on hanging.
    pub fn heal(&self) {
        locked(&self.shared.rules).clear();
    }

    /// How many requests of each kind have come, spoilt or not.
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
    /// Counts the request; its fault, where it has one.
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
            // Until the client gives up.
            std::future::pending().await
        }
        Some(Fault::Held(hold)) => {
            let answer = forward(&shared.upstream, request).await;
            // The sender lives in the fault itself.
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
    // What can't be passed on is seen by the client as a broken connection.
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

/// Content that begins with these bytes and then fails.
fn broken(bytes: Vec<u8>, why: String) -> Body {
    Body::from_stream(stream::iter([Ok(bytes), Err(io::Error::other(why))]))
}
