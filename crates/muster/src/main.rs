//! `muster`: the hub, the agent and the commands of people, in one binary.

mod admin;
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
mod servers;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use muster_model::{
    ids::Role,
    kinds::{Kind, Span},
};
use output::Output;

/// Keeps a fleet of Kubernetes clusters in the state that one Git repository says.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    /// The login to use, instead of one's own or that of a hub on this machine.
    #[arg(long, value_name = "FILE", env = "MUSTER_LOGIN", global = true)]
    login: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole fleet on this machine, on real Kubernetes API servers.
    Demo(demo::DemoArgs),
    /// Check a fleet repository, offline.
    Validate {
        /// The repository's folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Print what a cluster would get, as its agent would apply it.
    ///
    /// Objects have their namespaces and the label muster.dev/app; a Secret's stringData is data. What is wrong
    /// goes to standard error, and standard output is a document all the same. What a cluster has otherwise:
    ///
    ///   muster render --cluster C -o yaml | kubectl diff --server-side --field-manager=muster -f -
    ///
    /// That shows nothing on a cluster in sync, but for fields that others may set there: those of `ignore`
    /// rules, and replicas that an autoscaler sets.
    #[command(verbatim_doc_comment)]
    Render {
        /// The repository's folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The cluster.
        #[arg(long)]
        cluster: String,
        /// Only this app.
        #[arg(long)]
        app: Option<String>,
        /// In this role instead of the one that it has now.
        #[arg(long)]
        role: Option<Role>,
    },
    /// Print the JSON Schema of a kind, for editors.
    Schema {
        /// Fleet, Tier, Region, Cluster, App or HealthRule.
        kind: Kind,
    },
    /// Tell how well objects are, from what they say of themselves.
    ///
    /// The words and fields are those with which agents report. JSON is a document a line, one for each object;
    /// YAML is a stream of documents. Exits 0 where all objects are Healthy or Suspended, 1 where one isn't, and
    /// 2 where something is no Kubernetes object.
    Health(health::HealthArgs),
    /// Run the hub, or look after its state.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Hub {
        #[command(flatten)]
        run: Box<servers::HubArgs>,
        #[command(subcommand)]
        command: Option<HubCommand>,
    },
    /// Run the agent of a cluster.
    Agent(servers::AgentArgs),
    /// Show what is in sync where, problems first.
    Status(status::StatusArgs),
    /// List regions, clusters, apps or objects.
    Get(get::GetArgs),
    /// Let clusters delete what they hold back of an app.
    #[command(subcommand)]
    App(AppCommand),
    /// Let clusters join the fleet, or remove them.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Keep a login that `muster hub admin` made as one's own.
    #[command(name = "login")]
    KeepLogin {
        /// The login's file.
        file: PathBuf,
    },
    /// Reads and renders commits for the process that starts it.
    #[command(name = servers::WORKER, hide = true)]
    RenderWorker,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Write a backup of the hub's state, also while it runs.
    Backup(backup::BackupArgs),
    /// Put a backup in place of the hub's state, while no hub runs.
    Restore(backup::RestoreArgs),
    /// Show what of a hub's state may be older than its clusters, and say that a person has seen that all is well.
    ///
    /// A hub whose state was restored deletes nothing unasked until then.
    Confirm {
        /// Only show it.
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Why, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Show the fleet's CA, or replace it.
    Ca {
        #[command(subcommand)]
        command: Option<CaCommand>,
    },
    /// Make a login for a person or script, list them, or take them back.
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
    /// Replace the CA: agents and logins get certificates of a new one by themselves, and when all have, the old
    /// one is good for nothing. `muster hub ca` shows who has not.
    Rotate {
        /// Do not wait for those who have not followed: their clusters and logins have to join anew.
        #[arg(long)]
        finish: bool,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
        /// Why, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct MakeLogin {
    /// Their name, as the audit log will show it.
    name: String,
    /// How long it works, such as 30d; at most 365d.
    #[arg(long)]
    valid: Option<Span>,
    /// Where to write it; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// List the logins that are good.
    List,
    /// Take back every login of a name, at once.
    Remove {
        /// The name.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Show what clusters would delete of an app and why they ask, and let them.
    Approve(approve::ApproveArgs),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Print a one-time token with which an agent joins as this cluster.
    JoinToken {
        /// The cluster.
        name: String,
        /// How long it works, such as 1h.
        #[arg(long)]
        valid: Option<Span>,
    },
    /// Revoke every certificate of a cluster's agents and end their streams.
    Remove {
        /// The cluster.
        name: String,
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

/// The commands that speak to somebody.
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
        Command::App(AppCommand::Approve(args)) => {
            return approve::run(connect().await?, &args, output).await;
        }
        Command::Cluster(ClusterCommand::JoinToken { name, valid }) => {
            admin::join_token(connect().await?, &name, valid, output).await?;
        }
        Command::Cluster(ClusterCommand::Remove { name }) => {
            return admin::remove(connect().await?, &name, output).await;
        }
        // The others were answered without a runtime.
        _ => {}
    }
    Ok(true)
}
