//! `muster demo`.

use clap::Args;

/// The demo's flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {}

/// Runs the demo until it is told to stop.
pub(crate) async fn run(_args: &DemoArgs) -> anyhow::Result<()> {
    Ok(())
}
