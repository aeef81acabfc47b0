//! `muster`: the hub, the agent and the command line, in one binary.

mod admin;
mod app_move;
mod approve;
mod backup;
mod ca;
mod client;
mod demo;
mod get;
mod health;
mod offline;
mod output;
mod problems;
#[cfg(test)]
mod reference;
mod servers;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use muster_model::{
    ids::Role,
    kinds::{Kind, Span},
};
use output::Output;

/// Keeps a fleet of Kubernetes clusters in sync with one Git repository.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    /// The output format.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    /// The login file to use, instead of your own or that of a hub on this machine.
    #[arg(long, value_name = "FILE", env = "MUSTER_LOGIN", global = true)]
    login: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole fleet on this machine, on real Kubernetes API servers.
    Demo(demo::DemoArgs),
    /// Check a fleet repository offline.
    Validate {
        /// The directory of the fleet repository.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Print the objects of a cluster, as its agent would apply them
    ///
    /// The output includes each object's namespace and the label muster.dev/app. A Secret's stringData
    /// is converted to data. Problems go to standard error, so standard output is always valid YAML
    /// or JSON.
    ///
    /// To compare a cluster with the repository:
    ///
    ///   muster render --cluster C -o yaml | kubectl diff --server-side --field-manager=muster -f -
    ///
    /// If the cluster is in sync, this shows only fields that others may set: those of `ignore`
    /// rules, and replicas set by an autoscaler.
    #[command(verbatim_doc_comment)]
    Render {
        /// The directory of the fleet repository.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The cluster to render for.
        #[arg(long)]
        cluster: String,
        /// Only this app.
        #[arg(long)]
        app: Option<String>,
        /// Render this role instead of the current one.
        #[arg(long)]
        role: Option<Role>,
    },
    /// Print the JSON Schema of a kind, for editors.
    Schema {
        /// The kind: Fleet, Tier, Region, Cluster, App or HealthRule.
        kind: Kind,
    },
    /// Show the health of Kubernetes objects from files or standard input.
    ///
    /// Health is determined from the objects alone. The health values and field names match the agents' reports.
    /// With `-o json` each object is one line; with `-o yaml` the output is a stream of documents. The exit code is
    /// 0 if all objects are Healthy or Suspended, 1 if one is not, and 2 if a document is not a Kubernetes object.
    Health(health::HealthArgs),
    /// Run the hub, or manage its state.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Hub {
        #[command(flatten)]
        run: Box<servers::HubArgs>,
        #[command(subcommand)]
        command: Option<HubCommand>,
    },
    /// Run the agent of a cluster.
    Agent(servers::AgentArgs),
    /// Show the state of the fleet, problems first.
    ///
    /// The exit code is 0 if everything shown is in sync and healthy, otherwise 1.
    Status(status::StatusArgs),
    /// List regions, clusters, apps or objects.
    ///
    /// The exit code is 1 if the name does not exist or an agent can't be asked.
    Get(get::GetArgs),
    /// Move an app's writer, or approve deletions and recreations of its objects.
    #[command(subcommand)]
    App(AppCommand),
    /// Let clusters join the fleet, or remove them.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Log in with a file that `muster hub admin` has created.
    #[command(name = "login")]
    KeepLogin {
        /// The login file.
        file: PathBuf,
    },
    /// Reads and renders commits for the process that starts it.
    #[command(name = servers::WORKER, hide = true)]
    RenderWorker,
    /// Print a shell completion script.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Back up the hub's state, even while it runs.
    Backup(backup::BackupArgs),
    /// Replace the hub's state with a backup, while no hub runs.
    Restore(backup::RestoreArgs),
    /// After a restore, show what may be outdated in the hub's state, and allow deletions again.
    ///
    /// Until then, a restored hub deletes nothing without an approval.
    Confirm {
        /// Only show what would be confirmed.
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// The reason, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Show or replace the fleet's CA.
    Ca {
        #[command(subcommand)]
        command: Option<CaCommand>,
    },
    /// Create, list or remove logins for people and scripts.
    #[command(
        args_conflicts_with_subcommands = true,
        subcommand_negates_reqs = true,
        arg_required_else_help = true
    )]
    Admin {
        #[command(flatten)]
        make: Option<MakeLogin>,
        #[command(subcommand)]
        command: Option<AdminCommand>,
    },
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Replace the fleet's CA while the fleet runs.
    ///
    /// Agents and logins get certificates of the new CA automatically. When all have one, the old CA is no longer
    /// trusted. `muster hub ca` shows which are missing.
    Rotate {
        /// End the old CA now; clusters and logins that still need it must join or log in again.
        #[arg(long)]
        finish: bool,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// The reason, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct MakeLogin {
    /// The name of the person or script, as shown in the audit log.
    name: String,
    /// How long the login is valid, such as 30d (the default); at most 365d.
    #[arg(long)]
    valid: Option<Span>,
    /// The file to write; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// List the valid logins.
    List,
    /// Remove all logins of a name, with immediate effect.
    Remove {
        /// The name of the logins.
        name: String,
    },
}

/// A check that a person may override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Guardrail {
    /// A cluster that is removed keeps the writers of apps that it holds.
    Writers,
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Show which objects of an app are pending approval and why, and approve exactly those.
    ///
    /// The exit code is 1 if nothing was pending, nothing was approved, or the hub refused or did not answer.
    Approve(approve::ApproveArgs),
    /// Hand an app's writer over to another region.
    ///
    /// The old side is fenced and must prove that it no longer writes (`writer` in the app's document). Only then does
    /// the new side become the primary. Until then, a move back to the old region ends it; afterwards it only goes
    /// forward. The hub carries out the move, so it goes on if this command is interrupted. The exit code is 0 once the
    /// writer is there and healthy, and 1 if the hub refuses.
    Move(app_move::MoveArgs),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Print a one-time token that an agent uses to join as this cluster.
    JoinToken {
        /// The cluster.
        name: String,
        /// How long the token is valid, such as 1h (the default).
        #[arg(long)]
        valid: Option<Span>,
    },
    /// Revoke every certificate of a cluster's agents and close their connections.
    ///
    /// The cluster keeps the writers of apps that it holds, until you say that they are lost.
    Remove {
        /// The cluster.
        name: String,
        /// Take the writers of apps from it. With this you confirm that none of them runs there any more, and that
        /// their data there is lost. Each app gets a new writer in the first region that the fleet repository names.
        #[arg(long = "override", value_name = "GUARDRAIL", requires = "reason")]
        overridden: Option<Guardrail>,
        /// The reason for the override, for the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::RenderWorker) {
        return muster_worker::serve();
    }
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("\x1b[1;31merror\x1b[0m: {error:#}");
            match error.is::<problems::WrongUse>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<bool> {
    let Cli {
        output,
        login,
        command,
    } = cli;
    match command {
        Command::Validate { dir } => offline::validate(&dir, output),
        Command::Render {
            dir,
            cluster,
            app,
            role,
        } => {
            let app = app.as_deref();
            offline::render(
                &offline::RenderRequest {
                    dir: &dir,
                    cluster: &cluster,
                    app,
                    role,
                },
                output,
            )
        }
        Command::Schema { kind } => {
            let schema = kind.schema();
            match output {
                Output::Yaml => output.document(&schema),
                Output::Table | Output::Json => Output::Json.document(&schema),
            }
            Ok(true)
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "muster", &mut std::io::stdout());
            Ok(true)
        }
        Command::Health(args) => health::run(&args, output),
        Command::KeepLogin { file } => client::login(&file).map(|()| true),
        Command::Hub {
            command: Some(HubCommand::Backup(args)),
            ..
        } => backup::backup(&args).map(|()| true),
        Command::Hub {
            command: Some(HubCommand::Restore(args)),
            ..
        } => backup::restore(&args).map(|()| true),
        connected => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(run_connected(connected, login, output)),
    }
}

/// Runs the commands that need an async runtime: those that connect to a hub, and the servers.
async fn run_connected(
    command: Command,
    login: Option<PathBuf>,
    output: Output,
) -> anyhow::Result<bool> {
    let connect = || client::connect(login.as_deref());
    match command {
        Command::Demo(args) => demo::run(&args).await?,
        Command::Hub {
            command: Some(HubCommand::Admin { make, command }),
            ..
        } => match (command, make) {
            (Some(AdminCommand::List), _) => admin::logins(connect().await?, output).await?,
            (Some(AdminCommand::Remove { name }), _) => {
                return admin::remove_logins(connect().await?, &name, output).await;
            }
            (None, Some(MakeLogin { name, valid, out })) => {
                admin::admin(connect().await?, &name, valid, &out).await?;
            }
            (None, None) => {}
        },
        Command::Hub {
            command: Some(HubCommand::Ca { command }),
            ..
        } => match command {
            None => ca::show(connect().await?, output).await?,
            Some(CaCommand::Rotate {
                finish,
                dry_run,
                yes,
                reason,
            }) => {
                let rotate = ca::Rotate {
                    finish,
                    dry_run,
                    yes,
                    reason,
                };
                return ca::rotate(connect().await?, rotate, output).await;
            }
        },
        Command::Hub {
            command:
                Some(HubCommand::Confirm {
                    dry_run,
                    yes,
                    reason,
                }),
            ..
        } => return admin::confirm(connect().await?, dry_run, yes, reason, output).await,
        Command::Hub { run, .. } => servers::hub(&run).await?,
        Command::Agent(args) => servers::agent(&args).await?,
        Command::Status(args) => return status::run(connect().await?, &args, output).await,
        Command::Get(args) => return get::run(connect().await?, &args, output).await,
        Command::App(AppCommand::Move(args)) => {
            return app_move::run(connect().await?, &args, output).await;
        }
        Command::App(AppCommand::Approve(args)) => {
            return approve::run(connect().await?, &args, output).await;
        }
        Command::Cluster(ClusterCommand::JoinToken { name, valid }) => {
            admin::join_token(connect().await?, &name, valid, output).await?;
        }
        Command::Cluster(ClusterCommand::Remove {
            name,
            overridden,
            reason,
        }) => {
            let lose_writers = overridden == Some(Guardrail::Writers);
            let request = muster_proto::v1::RemoveClusterRequest {
                cluster: name,
                lose_writers,
                reason: reason.unwrap_or_default(),
            };
            return admin::remove(connect().await?, request, output).await;
        }
        // `run` handles the other commands without a runtime.
        _ => {}
    }
    Ok(true)
}
