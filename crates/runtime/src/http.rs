//! The HTTP endpoints for probes and monitoring: `/healthz`, `/readyz` and `/metrics`. Callers merge in their other
//! routes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::shutdown::Shutdown;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The readiness of this process. Each part of the process reports its own state by name. Clones share the same state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<RwLock<BTreeMap<String, Result<(), String>>>>);

impl Readiness {
    /// Returns a readiness without parts, which counts as ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part with this name. It is not ready (`starting`) until it reports another state.
    #[must_use]
    pub fn part(&self, name: impl Into<String>) -> Part {
        let part = Part {
            readiness: self.clone(),
            name: name.into(),
        };
        part.not_ready("starting");
        part
    }

    /// Returns true if all parts are ready, and a page with the state of each.
    fn page(&self) -> (bool, String) {
        let parts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        for (name, state) in parts.iter() {
            let state = state.as_ref().map_or_else(String::as_str, |()| "ok");
            let _ = writeln!(page, "{name}: {state}");
        }
        let ready = parts.values().all(Result::is_ok);
        if ready {
            page += "ready\n";
        }
        (ready, page)
    }
}

/// The handle with which one part reports its readiness.
#[derive(Debug)]
pub struct Part {
    readiness: Readiness,
    name: String,
}

impl Part {
    /// Reports that the part is ready.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// Reports that the part is not ready, with a short reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Err(reason.into()));
    }

    fn set(&self, state: Result<(), String>) {
        let mut parts = self
            .readiness
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        parts.insert(self.name.clone(), state);
    }
}

/// Returns the routes of the three endpoints. `/healthz` always answers 200. `/readyz` answers 503 and the reasons
/// while a part is not ready. `/metrics` answers in the OpenMetrics text format.
pub fn routes(readiness: Readiness, metrics: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || {
                let (ready, page) = readiness.page();
                let status = if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                (status, page)
            }),
        )
        .route(
            "/metrics",
            get(async move || {
                let mut page = String::new();
                match encode(&mut page, &metrics) {
                    Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
                    Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                }
            }),
        )
}

/// Serves `routes` until the shutdown begins, and then finishes the open requests.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: Shutdown) -> io::Result<()> {
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move { shutdown.begun().await })
        .await
}
