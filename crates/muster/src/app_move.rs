//! `muster app move`: hands an app's writer over to another region, and shows how far the hub has come.

use anyhow::bail;
use clap::{Args, ValueEnum};
use muster_proto::v1;
use serde_json::json;

use crate::{
    admin::said,
    client::Client,
    output::{Output, print},
    status::terminal::one_line,
};

/// A check that a person can override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overridable {
    /// The old side must prove that it no longer writes.
    Proof,
}

/// The arguments of `muster app move`, which exits with 0 once the writer is in the region, and with 1 if the hub
/// refuses.
#[derive(Debug, Clone, Args)]
pub(crate) struct MoveArgs {
    /// The app.
    name: String,
    /// The region that gets the writer. While the old side is fenced, its own region ends the move.
    #[arg(long = "to", value_name = "REGION")]
    region: String,
    /// Only show what would be done, and what would prevent it.
    #[arg(long)]
    dry_run: bool,
    /// Return once the move has begun, and do not wait until it is finished.
    #[arg(long)]
    no_wait: bool,
    /// The reason, for the audit log.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
    /// Move the writer although nothing proves that the old side no longer writes. With this you confirm that it does
    /// not, and never will again before its agent has fenced it.
    #[arg(long = "override", value_name = "GUARDRAIL", requires_all = ["reason", "accept_loss"])]
    overridden: Option<Overridable>,
    /// Accept that data is lost that was not replicated to the new side.
    #[arg(long, requires = "overridden")]
    accept_loss: bool,
}

/// Orders a move and waits until it is finished. Returns false if the hub refuses.
pub(crate) async fn run(
    mut client: Client,
    args: &MoveArgs,
    output: Output,
) -> anyhow::Result<bool> {
    let mut request = v1::MoveAppRequest {
        app: args.name.clone(),
        region: args.region.clone(),
        dry_run: true,
        reason: args.reason.clone(),
        without_proof: args.overridden == Some(Overridable::Proof),
    };
    let plan = client.move_app(request.clone()).await.map_err(said)?;
    let plan = plan.into_inner();
    let is_possible = plan.refusals.is_empty();
    let mut is_good = is_possible;
    if output == Output::Table {
        print(&describe(args, &plan));
    }
    let mut epoch = plan.epoch;
    if is_possible && !plan.nothing && !args.dry_run {
        request.dry_run = false;
        let ordered = client.move_app(request).await.map_err(said)?;
        epoch = ordered.into_inner().epoch;
        if args.no_wait && output == Output::Table {
            print(
                "The hub has accepted the order. `muster status` shows what the move waits for.\n",
            );
        }
    }
    let mut finished = plan.finished;
    if is_possible && !args.dry_run && !args.no_wait {
        finished = follow(&mut client, args, epoch, output).await?;
        is_good &= finished;
    }
    if output != Output::Table {
        output.document(&json!({
            "app": args.name,
            "from": {"region": plan.from_region, "cluster": plan.from_cluster},
            "to": {"region": plan.to_region, "cluster": plan.to_cluster},
            "refusals": plan.refusals,
            "dryRun": args.dry_run,
            "finished": finished,
        }));
    }
    Ok(is_good)
}

/// Describes a move for people: its steps, and what prevents it.
fn describe(args: &MoveArgs, plan: &v1::MoveAppResponse) -> String {
    let v1::MoveAppResponse {
        from_cluster: from,
        to_cluster: to,
        refusals,
        ..
    } = plan;
    let app = &args.name;
    let mut text = if plan.finished {
        format!("The writer of {app} is in {to}: nothing to do.\n")
    } else if plan.nothing {
        format!("The writer of {app} is on its way to {to}.\n")
    } else if plan.vouches {
        format!(
            "{to} is the primary of {app}. You vouch that the writer has stopped where it was before, so nothing waits for \
             its proof any more.\n"
        )
    } else if plan.gives_back {
        format!(
            "{from} is fenced. This ends the move: {from} becomes the primary of {app} again.\n"
        )
    } else if !refusals.is_empty() && from == to {
        format!("The writer of {app} stays in {from}.\n")
    } else {
        let proof = match args.overridden {
            None => format!(
                "  1. {from} is fenced, and proves that it no longer writes{}\n",
                match plan.rule_says.as_str() {
                    "" => String::new(),
                    says => format!(" (`writer.stopped` says now: {})", one_line(says)),
                }
            ),
            Some(Overridable::Proof) => {
                format!(
                    "  1. {from} is fenced once its agent can be reached. NOTHING PROVES that it no longer writes\n"
                )
            }
        };
        format!(
            "Move the writer of {app} from {from} ({}) to {to} ({}):\n{proof}  2. the fleet record names {to} as the holder\n  \
             3. {to} becomes the primary, and is healthy\n  4. {from} follows\n",
            plan.from_region, plan.to_region
        )
    };
    if !refusals.is_empty() {
        text.push_str("The hub refuses this now:\n");
        for refusal in refusals {
            text.push_str(&format!("  - {}\n", one_line(refusal)));
        }
    }
    text
}

/// Shows each step of an app's move until it is finished. `epoch` is the epoch of the fleet record after the order.
/// A move without proof is waited for only until the new side is healthy. Returns false if another order has ended the
/// move.
async fn follow(
    client: &mut Client,
    args: &MoveArgs,
    epoch: u64,
    output: Output,
) -> anyhow::Result<bool> {
    let app = args.name.as_str();
    let request = v1::StatusRequest {
        apps: vec![app.to_owned()],
        clusters: Vec::new(),
    };
    let goes_on = "The move goes on without this command; `muster status` shows it";
    let stream = client.watch_status(request).await.map_err(said)?;
    let mut stream = stream.into_inner();
    let mut shown = String::new();
    loop {
        let Some(status) = stream.message().await.map_err(|status| {
            let error = said(status);
            error.context(goes_on)
        })?
        else {
            bail!("the hub has ended the connection. {goes_on}");
        };
        if status.epoch < epoch {
            continue;
        }
        let summary = status.apps.into_iter().find(|summary| summary.name == app);
        let Some(writer) = summary.and_then(|summary| summary.writer) else {
            bail!("app {app} has no writer any more");
        };
        let text = match &writer.r#move {
            None => format!(
                "finished: {} is the primary since epoch {}",
                writer.cluster, writer.epoch
            ),
            Some(step) => format!("{}: {}", step.step, one_line(&step.waits)),
        };
        if text != shown && output == Output::Table {
            print(&format!("{text}\n"));
            shown = text;
        }
        let is_left = |step: &v1::Move| step.unproven && step.promoted;
        if writer.r#move.as_ref().is_some_and(is_left) && writer.region == args.region {
            if output == Output::Table {
                print(&format!(
                    "{} is the primary. The old side stays fenced until its agent has shown that it has stopped\n",
                    writer.cluster
                ));
            }
            return Ok(true);
        }
        if writer.r#move.is_none() {
            let is_there = writer.region == args.region;
            if !is_there {
                anstream::eprintln!("another order has ended this move");
            }
            return Ok(is_there);
        }
    }
}
