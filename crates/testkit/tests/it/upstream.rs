//! Tests that the pinned manifests can be downloaded, and have the sizes that other tests rely on.

use muster_testkit::upstream::{Upstream, manifests};

/// Returns the number of files, the number of documents with a top-level kind, and true if a file is over 500 KB.
fn measure(upstream: Upstream) -> anyhow::Result<(usize, usize, bool)> {
    let files = manifests(upstream)?;
    let objects = files.iter().flat_map(|(_, text)| text.lines());
    let objects = objects.filter(|line| line.starts_with("kind: ")).count();
    let large = files.iter().any(|(_, text)| text.len() > 500_000);
    Ok((files.len(), objects, large))
}

#[test]
fn the_sets_are_what_they_are_said_to_be() -> anyhow::Result<()> {
    assert_eq!(measure(Upstream::PrometheusOperator)?, (1, 15, true));
    assert_eq!(measure(Upstream::CertManager)?, (6, 6, false));
    assert_eq!(measure(Upstream::GatewayApi)?, (14, 15, true));
    assert_eq!(measure(Upstream::GatewayApiConformance)?, (1, 453, false));
    assert_eq!(measure(Upstream::ArgoCd)?, (1, 59, true));
    assert_eq!(measure(Upstream::Lists)?, (3, 3, false));
    Ok(())
}
