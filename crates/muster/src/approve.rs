//! `muster app approve`: shows the deletions and recreations that are pending approval, and approves exactly those.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Write as _},
};

use anyhow::{Context as _, bail};
use clap::Args;
use muster_model::ids::ContentHash;
use muster_proto::v1;
use serde::Serialize;
use tonic::Status;

use crate::{
    admin::is_answer,
    client::Client,
    output::{Output, print, print_paged},
    status::{
        ask,
        document::{Document, Filter, Hold},
        terminal::{Terminal, count, one_line},
        value,
    },
};

/// What a person is told if the hub's answer to an approval is missing.
const BROKEN: &str = "the connection broke; whether the hub has written the approval is unknown; run `muster status`";

/// The arguments of `muster app approve`, which exits with 1 if nothing was pending, nothing was approved, or the
/// hub refused or did not answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApproveArgs {
    /// The app whose objects are pending approval.
    name: String,
    /// Only in this cluster; can be repeated.
    #[arg(long = "cluster", value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// The reason, for the audit log.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Only show what is pending approval.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// The result for one hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    /// Neither approved nor refused: the objects are still pending approval.
    Waiting,
    Approved,
    Refused,
    /// The hub's answer is missing. It may have written the approval.
    Unknown,
}

/// Objects of a cluster that are pending approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    cluster: String,
    #[serde(flatten)]
    hold: Hold,
    verdict: Verdict,
    /// The hub's reason for refusing, or why the verdict is unknown.
    refusal: Option<String>,
}

/// The document that `-o json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Approvals {
    app: String,
    holds: Vec<Waiting>,
}

/// Shows what is pending approval and approves it. Returns false if nothing was approved, or the hub refused or did
/// not answer.
pub(crate) async fn run(
    mut client: Client,
    args: &ApproveArgs,
    output: Output,
) -> anyhow::Result<bool> {
    let filter = Filter {
        clusters: args.clusters.clone(),
        apps: vec![args.name.clone()],
        ..Filter::default()
    };
    let document = ask(&mut client, &filter).await?;
    let mut approvals = Approvals::of(&args.name, document);
    let shown = approvals.shown(Terminal::of_stdout(None));
    if output == Output::Table {
        print_paged(&shown);
    }
    if approvals.holds.is_empty() || args.dry_run {
        return approvals.end(output);
    }
    if !args.yes {
        let terminal = std::io::stdin().is_terminal();
        if !terminal {
            bail!(
                "this deletes objects, and there is no terminal to ask for confirmation; check with --dry-run, then use --yes"
            );
        }
        if output != Output::Table {
            anstream::eprint!("{shown}");
        }
        if !agreed(&approvals.question())? {
            anstream::eprintln!("nothing was approved");
            approvals.end(output)?;
            return Ok(false);
        }
    }
    for waiting in &mut approvals.holds {
        waiting
            .approve(&mut client, &args.name, &args.reason)
            .await?;
        if output == Output::Table {
            waiting.tell();
        }
    }
    approvals.end(output)
}

/// Asks a question on the terminal. Returns true if the answer is yes.
pub(crate) fn agreed(question: &str) -> anyhow::Result<bool> {
    anstream::eprint!("{question}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    let answer = answer.trim().to_lowercase();
    Ok(answer == "y" || answer == "yes")
}

/// Returns the verdict of the hub's answer, and the reason if the hub has not approved.
fn verdict(answer: Result<(), Status>) -> (Verdict, Option<String>) {
    match answer {
        Ok(()) => (Verdict::Approved, None),
        Err(status) if is_answer(&status) => (Verdict::Refused, Some(status.message().to_owned())),
        Err(_) => (Verdict::Unknown, Some(BROKEN.to_owned())),
    }
}

impl Waiting {
    async fn approve(
        &mut self,
        client: &mut Client,
        app: &str,
        reason: &str,
    ) -> anyhow::Result<()> {
        let set: ContentHash = self
            .hold
            .set
            .parse()
            .context("the hub sent an invalid set")?;
        let request = v1::ApproveSetRequest {
            cluster: self.cluster.clone(),
            app: app.to_owned(),
            set: set.0.to_vec(),
            reason: reason.to_owned(),
        };
        let answer = client.approve_set(request).await;
        (self.verdict, self.refusal) = verdict(answer.map(drop));
        Ok(())
    }

    fn tell(&self) {
        let objects = count(self.hold.count as usize, "object");
        match &self.refusal {
            None => print(&format!("{}: approved, {objects}\n", self.cluster)),
            Some(why) => anstream::eprintln!(
                "\x1b[1;31merror\x1b[0m: {}: {}",
                self.cluster,
                one_line(why)
            ),
        }
    }
}

impl Approvals {
    fn of(app: &str, document: Document) -> Self {
        let mut holds = Vec::new();
        for cluster in document.clusters {
            for placed in cluster.apps.into_iter().filter(|placed| placed.app == app) {
                holds.extend(placed.holds.into_iter().map(|hold| Waiting {
                    cluster: cluster.name.clone(),
                    hold,
                    verdict: Verdict::Waiting,
                    refusal: None,
                }));
            }
        }
        let app = app.to_owned();
        Self { app, holds }
    }

    /// Returns the question that a person must agree to.
    fn question(&self) -> String {
        let objects = |recreate: bool| {
            let holds = self.holds.iter().map(|waiting| &waiting.hold);
            let holds = holds.filter(|hold| hold.recreate == recreate);
            let objects: usize = holds.map(|hold| hold.count as usize).sum();
            (objects > 0).then(|| count(objects, "object"))
        };
        match (objects(false), objects(true)) {
            (Some(gone), Some(anew)) => {
                format!("Delete {gone}, and delete and recreate {anew}")
            }
            (None, Some(anew)) => format!("Delete and recreate {anew}"),
            (gone, None) => format!("Delete {}", gone.unwrap_or_default()),
        }
    }

    /// Returns what would be deleted and why it is pending approval. Clusters with the same objects and reason are
    /// shown together.
    fn shown(&self, terminal: Terminal) -> String {
        if self.holds.is_empty() {
            return format!("nothing of {} is pending approval\n", self.app);
        }
        let mut same: BTreeMap<(&str, &[String], u32, bool), Vec<&str>> = BTreeMap::new();
        for Waiting { cluster, hold, .. } in &self.holds {
            let what = (
                hold.reason.as_str(),
                hold.objects.as_slice(),
                hold.count,
                hold.recreate,
            );
            same.entry(what).or_default().push(cluster);
        }
        let mut text = String::new();
        for ((reason, objects, number, recreate), clusters) in same {
            let each = if clusters.len() > 1 {
                " in each of"
            } else {
                " in"
            };
            let number = number as usize;
            let anew = if recreate { " and recreated" } else { "" };
            let title = format!(
                "{}: {}{each} {} would be deleted{anew}",
                self.app,
                count(number, "object"),
                clusters.join(", ")
            );
            text.push_str(&terminal.fold("", "  ", &title));
            text.push_str(&terminal.fold(
                "  ",
                "  ",
                &format!("pending approval because {}", one_line(reason)),
            ));
            for object in objects {
                text.push_str(&terminal.fold("    ", "      ", &one_line(object)));
            }
            let more = number.saturating_sub(objects.len());
            if more > 0 {
                text.push_str(&format!("    and {more} more\n"));
            }
        }
        text
    }

    /// Prints the document if the output is not a table. Returns true if something was pending, and the hub neither
    /// refused nor failed to answer.
    fn end(&self, output: Output) -> anyhow::Result<bool> {
        if output != Output::Table {
            output.document(&value(self)?);
        }
        let failed =
            |waiting: &Waiting| matches!(waiting.verdict, Verdict::Refused | Verdict::Unknown);
        Ok(!self.holds.is_empty() && !self.holds.iter().any(failed))
    }
}

#[cfg(test)]
mod tests;
