//! The connection to an API server.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client,
    client::{Body, ConfigExt as _},
};
use tower::{BoxError, ServiceBuilder};
use tower_http::decompression::DecompressionLayer;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Creates a client for the cluster that `config` names. The client does not retry; this crate
/// does.
///
/// `kube`'s own client leaves Nagle's algorithm on (TCP_NODELAY off). That delays the first request
/// of a new connection, and each request that takes two writes, by the other side's delayed
/// acknowledgement of 40 ms. `kube`'s client is used nevertheless if the configuration has a proxy
/// or a credential plugin.
///
/// # Errors
/// [`kube::Error`] if the configuration can't be used.
pub fn connect(mut config: kube::Config) -> Result<Client, kube::Error> {
    // A newer generation could not interrupt the client's own retries.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_WITHIN);
    if config.proxy_url.is_some() || config.auth_info.exec.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let mut connector = TimeoutConnector::new(connector);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let client = HyperClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let gzip = DecompressionLayer::new()
        .no_br()
        .no_deflate()
        .no_zstd()
        .gzip(!config.disable_compression);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(gzip)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace))
}
