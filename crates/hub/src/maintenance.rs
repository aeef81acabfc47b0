//! Maintenance mode: the process answers probes, so that it is not restarted, and leaves the store free for a person
//! who restores it.

use std::{net::SocketAddr, sync::Arc};

use muster_runtime::{http::Readiness, process, shutdown::Shutdown};
use prometheus_client::registry::Registry;

use crate::{HubError, listen};

/// Answers probes until `shutdown` begins. Calls `started` with the address. Opens and locks no file.
///
/// # Errors
/// [`HubError::Listen`] if the hub can't listen on the address.
pub async fn maintain(
    http: SocketAddr,
    shutdown: Shutdown,
    started: impl FnOnce(SocketAddr) + Send,
) -> Result<(), HubError> {
    let failed = |source| HubError::Listen {
        address: http,
        source,
    };
    let listener = listen(http).await?;
    let address = listener.local_addr().map_err(failed)?;
    let mut registry = Registry::default();
    process::register(&mut registry);
    let readiness = Readiness::new();
    readiness.part("maintenance").ready();
    let routes = muster_runtime::http::routes(readiness, Arc::new(registry));
    started(address);
    muster_runtime::http::serve(listener, routes, shutdown)
        .await
        .map_err(failed)
}
