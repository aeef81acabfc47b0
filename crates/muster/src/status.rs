//! `muster status`.

use clap::Args;

use crate::{client::Client, output::Output};

/// What to show.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// Stay and show every change.
    #[arg(short, long)]
    watch: bool,
}

/// Shows the fleet. False where something is wrong.
pub(crate) async fn run(
    _client: Client,
    _args: &StatusArgs,
    _output: Output,
) -> anyhow::Result<bool> {
    Ok(true)
}
