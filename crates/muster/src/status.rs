//! `muster status`: shows the status once, follows it, or waits until everything is in sync.

pub(crate) mod document;
mod live;
pub(crate) mod report;
pub(crate) mod terminal;
mod wait;

#[cfg(test)]
mod tests;

use anyhow::bail;
use clap::Args;
use muster_model::{kinds::Span, problem::suggest};
use muster_proto::v1;
use serde::Serialize;

use crate::{
    admin::said,
    client::Client,
    output::{Output, print},
};
use document::{Document, Filter};
use terminal::Terminal;

/// The arguments of `muster status`, which exits with 0 if everything shown is in sync and healthy, otherwise 1.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    filter: Filter,
    /// Keep running and show every change.
    #[arg(short, long)]
    watch: bool,
    /// Wait until the newest commit runs everywhere and is healthy, for at most TIME (default 5m).
    ///
    /// The hub first checks the repository for new commits.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        default_missing_value = "5m",
        conflicts_with = "watch"
    )]
    wait: Option<Span>,
}

/// Runs `muster status`. Returns false if something is not in sync.
pub(crate) async fn run(
    mut client: Client,
    args: &StatusArgs,
    output: Output,
) -> anyhow::Result<bool> {
    let document = ask(&mut client, &args.filter).await?;
    if args.watch {
        return live::watch(client, &args.filter, output, document).await;
    }
    let document = match &args.wait {
        Some(span) => wait::wait(client, &args.filter, span.duration, document).await?,
        None => document,
    };
    match output {
        Output::Table => print(&report::render(
            &document,
            Terminal::of_stdout(document.now),
        )),
        Output::Json | Output::Yaml => output.document(&value(&document)?),
    }
    Ok(document.synced)
}

/// Gets the status from the hub once. An unknown name in the filter is an error with a suggestion.
pub(crate) async fn ask(client: &mut Client, filter: &Filter) -> anyhow::Result<Document> {
    let status = client.get_status(filter.request()).await.map_err(said)?;
    let status = status.into_inner();
    if unknown(&status, filter).is_some() {
        // The filtered status lacks the names to suggest, so get all of it.
        let whole = client.get_status(v1::StatusRequest::default()).await;
        if let Some(error) = unknown(&whole.map_err(said)?.into_inner(), filter) {
            bail!(error);
        }
    }
    Ok(Document::of(status, filter))
}

/// Returns the error for a name in the filter that does not exist.
fn unknown(status: &v1::Status, filter: &Filter) -> Option<String> {
    let regions = || status.regions.iter().map(|region| region.name.as_str());
    let clusters = || status.clusters.iter().map(|cluster| cluster.name.as_str());
    let placed = || status.clusters.iter().flat_map(|cluster| &cluster.apps);
    let apps = || status.apps.iter().map(|app| app.name.as_str());
    let any_app =
        |name: &str| apps().any(|app| app == name) || placed().any(|placed| placed.app == name);
    let strange_app = || filter.apps.iter().find(|name| !any_app(name));
    nobody("region", &filter.regions, regions)
        .or_else(|| nobody("cluster", &filter.clusters, clusters))
        .or_else(|| strange_app().map(|name| no_such("app", name, apps())))
}

fn nobody<'a, I: Iterator<Item = &'a str>>(
    noun: &str,
    asked: &[String],
    known: impl Fn() -> I,
) -> Option<String> {
    let strange = asked
        .iter()
        .find(|name| !known().any(|known| known == *name))?;
    Some(no_such(noun, strange, known()))
}

/// Returns the error for a name that does not exist, with a suggestion.
pub(crate) fn no_such<'a>(
    noun: &str,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    match suggest(name, known) {
        Some(help) => format!("there is no {noun} `{name}`; {help}"),
        None => format!("there is no {noun} `{name}`"),
    }
}

/// Converts a value to JSON.
pub(crate) fn value(document: &impl Serialize) -> anyhow::Result<serde_json::Value> {
    Ok(serde_json::to_value(document)?)
}
