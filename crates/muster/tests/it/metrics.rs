//! The metrics that the charts' alerts and dashboards query exist and have the right values.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use muster_testkit::{
    documents::block_is,
    fleet::{Fleet, FleetOptions, get},
    ports,
    process::Process,
    repository::{self, document},
    wait::eventually,
};

const LONG: Duration = Duration::from_secs(60);
const CLUSTERS: [(&str, &str); 2] = [("one", "west"), ("two", "west")];

/// Returns the names of Muster's metrics that a chart uses.
fn asked_for(chart: &str) -> anyhow::Result<BTreeSet<String>> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../charts")
        .join(chart);
    let name = chart
        .file_name()
        .context("the chart has no name")?
        .to_string_lossy()
        .into_owned();
    let mut names = BTreeSet::new();
    for file in [
        "templates/monitoring.yaml".to_owned(),
        format!("dashboards/{name}.json"),
    ] {
        let text = std::fs::read_to_string(chart.join(file))?;
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let words = words.filter(|word| word.starts_with("muster_"));
        names.extend(words.map(|word| {
            let suffixes = ["_total", "_bucket", "_count", "_sum"];
            let bare = suffixes.iter().find_map(|suffix| word.strip_suffix(suffix));
            bare.unwrap_or(word).to_owned()
        }));
    }
    ensure!(!names.is_empty());
    Ok(names)
}

fn all_there(page: &str, chart: &str) -> anyhow::Result<()> {
    for name in asked_for(chart)? {
        ensure!(
            page.contains(&format!("# TYPE {name} ")),
            "the metric {name} is missing in {page}"
        );
    }
    Ok(())
}

/// The metrics of a page as a Markdown table, with the labels that samples have.
fn table(page: &str) -> String {
    let mut text = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    let line = |kind: &str, name: &str| {
        let begin = format!("# {kind} {name} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap_or_default().to_owned()
    };
    for name in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap_or_default();
        let samples = page.lines().filter(|line| line.starts_with(name));
        let labels: BTreeSet<&str> = samples
            .filter_map(|line| line.split_once('{')?.1.split_once('}'))
            .flat_map(|(labels, _)| labels.split(','))
            .filter_map(|label| Some(label.split_once('=')?.0))
            .collect();
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = line("TYPE", name);
        let suffix = if kind == "counter" { "_total" } else { "" };
        text.push_str(&format!(
            "| `{name}{suffix}` | {kind} | {} | {} |\n",
            labels.join(", "),
            line("HELP", name)
        ));
    }
    text
}

async fn until(address: &str, line: &str) -> anyhow::Result<()> {
    eventually(line, LONG, async || {
        let page = get(address, "/metrics").await?;
        ensure!(page.lines().any(|each| each == line), "{page}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_and_dashboards_have_what_they_ask_for() -> anyhow::Result<()> {
    let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS[..1]);
    let mut fleet = Fleet::start(options).await?;
    let mut files = repository::fleet("metrics", "{}", CLUSTERS);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop, namespace: default}\n";
    files.extend([
        (
            "apps/shop/app.yaml".to_owned(),
            document("App", "shop", "{tier: basic, mode: active-active}"),
        ),
        ("apps/shop/templates/map.yaml".to_owned(), map.to_owned()),
        (
            "apps/db/app.yaml".to_owned(),
            document("App", "db", "{tier: basic, mode: singleton}"),
        ),
        (
            "apps/db/templates/map.yaml".to_owned(),
            map.replace("shop", "db"),
        ),
    ]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    let http = format!("127.0.0.1:{}", ports::free()?);
    let mut command = fleet.agent_command("one")?;
    command.args(["--http", &http]);
    let log = fleet.directory().join("agent.log");
    let agent = Process::spawn("agent", command, &log)?;

    let state = |cluster: &str, state: &str| {
        format!(
            "muster_hub_cluster_state{{cluster=\"{cluster}\",region=\"west\",state=\"{state}\"}} 1"
        )
    };
    until(&fleet.http(), &state("one", "synced")).await?;
    until(&fleet.http(), &state("two", "unjoined")).await?;
    until(&fleet.http(), "muster_hub_commit_behind 0").await?;
    all_there(&get(&fleet.http(), "/metrics").await?, "muster-hub")?;
    all_there(&get(&http, "/metrics").await?, "muster-agent")?;
    let page = get(&fleet.http(), "/metrics").await?;
    block_is("reference.md", "hub-metrics", &table(&page))?;
    let page = get(&http, "/metrics").await?;
    block_is("reference.md", "agent-metrics", &table(&page))?;

    let bad = map.replace("name: shop", "name: Not A Name");
    fleet
        .repo()
        .publish("refused", &[("apps/shop/templates/map.yaml", &bad)])?;
    until(&fleet.http(), &state("one", "failing")).await?;
    // An app that can't be read is blocked, but the rest of the commit is in force.
    fleet
        .repo()
        .publish("broken", &[("apps/shop/app.yaml", "kind: [")])?;
    until(&fleet.http(), "muster_hub_problems 1").await?;
    until(&fleet.http(), "muster_hub_commit_behind 0").await?;
    fleet
        .repo()
        .publish("more broken", &[("fleet.yaml", "kind: [")])?;
    until(&fleet.http(), "muster_hub_commit_behind 1").await?;
    ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());
    until(&fleet.http(), &state("one", "offline")).await?;
    let gone = fleet.directory().join("gone.git");
    std::fs::rename(fleet.repo().path(), &gone)?;
    until(&fleet.http(), "muster_hub_repository_unreadable 1").await?;
    std::fs::rename(&gone, fleet.repo().path())?;
    until(&fleet.http(), "muster_hub_repository_unreadable 0").await
}
