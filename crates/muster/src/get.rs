//! `muster get`.

use clap::Args;

use crate::{client::Client, output::Output};

/// What to list.
#[derive(Debug, Clone, Args)]
pub(crate) struct GetArgs {
    /// Only this one.
    name: Option<String>,
}

/// Lists. False where the name is nobody's.
pub(crate) async fn run(_client: Client, _args: &GetArgs, _output: Output) -> anyhow::Result<bool> {
    Ok(true)
}
