//! The commands that change a hub: join tokens, removal of clusters, `muster hub confirm`, and logins.

use std::{error::Error as _, io::IsTerminal as _, path::Path};

use anyhow::{anyhow, bail};
use muster_model::kinds::Span;
use muster_pki::{Key, Login};
use muster_proto::v1;
use muster_runtime::log::Chain;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    approve::agreed,
    backup::is_stream,
    client::Client,
    output::{Output, print},
};

/// Converts the status of a failed call to an error: what the hub says, or why it could not be asked.
pub(crate) fn said(status: Status) -> anyhow::Error {
    if is_answer(&status) {
        return anyhow!("the hub says: {}", status.message());
    }
    let why = status.source().map(|source| Chain(source).to_string());
    let why = why.unwrap_or_else(|| status.message().to_owned());
    anyhow!("the connection to the hub broke: {why}")
}

/// Returns true if the hub sent this status. Otherwise the connection broke, and tonic made the status: with the
/// transport's error as its source, or with [`Code::Unknown`], which the hub never sends, if the answer is incomplete.
pub(crate) fn is_answer(status: &Status) -> bool {
    status.source().is_none() && status.code() != Code::Unknown
}

/// Runs `muster cluster join-token NAME`.
pub(crate) async fn join_token(
    mut client: Client,
    cluster: &str,
    valid: Option<Span>,
    output: Output,
) -> anyhow::Result<()> {
    let valid_seconds = valid.map_or(0, |span| span.duration.as_secs());
    let request = v1::JoinTokenRequest {
        cluster: cluster.to_owned(),
        valid_seconds,
    };
    let token = client
        .create_join_token(request)
        .await
        .map_err(said)?
        .into_inner();
    if !token.known {
        anstream::eprintln!(
            "note: the fleet repository has no cluster `{cluster}` yet; its agent can join, and waits until the cluster is added"
        );
    }
    match output {
        Output::Table => print(&format!("{}\n", token.token)),
        Output::Json | Output::Yaml => output.document(&json!({
            "cluster": cluster, "token": token.token, "expiresAt": token.expires_at,
        })),
    }
    Ok(())
}

/// Runs `muster cluster remove NAME`. Returns true if an agent had joined.
pub(crate) async fn remove(
    mut client: Client,
    request: v1::RemoveClusterRequest,
    output: Output,
) -> anyhow::Result<bool> {
    let (cluster, lose_writers) = (request.cluster.clone(), request.lose_writers);
    let answer = client.remove_cluster(request).await.map_err(said)?;
    let v1::RemoveClusterResponse {
        revoked: removed,
        writers,
    } = answer.into_inner();
    match output {
        Output::Table => {
            print(&match removed {
                0 => format!("no agent has joined as {cluster}\n"),
                1 => format!("{cluster}: 1 enrolment revoked. Its workloads keep running.\n"),
                more => {
                    format!("{cluster}: {more} enrolments revoked. Its workloads keep running.\n")
                }
            });
            print(&match writers.is_empty() {
                true => "Remove its document from the fleet repository yourself.\n".to_owned(),
                false => format!(
                    "It still holds the writer of {}, so no other cluster becomes the primary. Let it join again with \
                     `muster cluster join-token {cluster}`. If its data is lost, remove its document from the fleet \
                     repository, then run `muster cluster remove {cluster} --override writers --reason TEXT`.\n",
                    writers.join(", ")
                ),
            });
        }
        Output::Json | Output::Yaml => {
            output.document(&json!({"cluster": cluster, "revoked": removed, "writers": writers}))
        }
    }
    Ok(removed > 0 || lose_writers)
}

/// Runs `muster hub confirm`. Returns true if nothing is left to confirm.
pub(crate) async fn confirm(
    mut client: Client,
    dry_run: bool,
    yes: bool,
    reason: String,
    output: Output,
) -> anyhow::Result<bool> {
    let request = v1::ConfirmStateRequest {
        dry_run: true,
        reason: String::new(),
    };
    let shown = client.confirm_state(request).await.map_err(said)?;
    let suspicions = shown.into_inner().suspicions;
    let clean = suspicions.is_empty();
    if output == Output::Table {
        for suspicion in &suspicions {
            print(&format!("{suspicion}\n"));
        }
        if clean {
            print("there is nothing to confirm\n");
        }
    }
    let mut confirmed = false;
    if !clean && !dry_run {
        if !yes {
            if !std::io::stdin().is_terminal() {
                bail!(
                    "this lets clusters delete objects within their budgets, and there is no terminal to ask for confirmation; check with --dry-run, then use --yes"
                );
            }
            if output != Output::Table {
                for suspicion in &suspicions {
                    anstream::eprintln!("{suspicion}");
                }
            }
            if !agreed(
                "Is the fleet as it should be? Then clusters may again delete objects within their budgets, and apps may again get their first writers. Continue",
            )? {
                anstream::eprintln!("nothing was confirmed");
                return Ok(false);
            }
        }
        let request = v1::ConfirmStateRequest {
            dry_run: false,
            reason,
        };
        client.confirm_state(request).await.map_err(said)?;
        confirmed = true;
    }
    match output {
        Output::Table if confirmed => print("confirmed\n"),
        Output::Table => {}
        Output::Json | Output::Yaml => {
            output.document(&json!({"suspicions": suspicions, "confirmed": confirmed}));
        }
    }
    Ok(clean || confirmed)
}

/// Runs `muster hub admin list`.
pub(crate) async fn logins(mut client: Client, output: Output) -> anyhow::Result<()> {
    let listed = client.list_logins(v1::ListLoginsRequest {}).await;
    let mut logins = listed.map_err(said)?.into_inner().logins;
    logins.sort_by(|a, b| (&a.name, a.issued_at).cmp(&(&b.name, b.issued_at)));
    let time = |seconds: i64| {
        jiff::Timestamp::from_second(seconds)
            .map_or_else(|_| "?".to_owned(), |time| time.to_string())
    };
    match output {
        Output::Table => {
            let width = logins
                .iter()
                .map(|login| login.name.len())
                .max()
                .unwrap_or(0)
                .max(4);
            print(&format!(
                "{:width$}  {:20}  {:20}  MADE BY\n",
                "NAME", "SINCE", "UNTIL"
            ));
            for login in &logins {
                print(&format!(
                    "{:width$}  {:20}  {:20}  {}\n",
                    login.name,
                    time(login.issued_at),
                    time(login.expires_at),
                    login.by
                ));
            }
        }
        Output::Json | Output::Yaml => {
            let logins = logins.iter().map(|login| {
                json!({
                    "name": login.name,
                    "serial": login.serial,
                    "since": time(login.issued_at),
                    "until": time(login.expires_at),
                    "by": login.by,
                })
            });
            output.document(&json!({"logins": logins.collect::<Vec<_>>()}));
        }
    }
    Ok(())
}

/// Runs `muster hub admin remove NAME`. Returns true if a login was removed.
pub(crate) async fn remove_logins(
    mut client: Client,
    name: &str,
    output: Output,
) -> anyhow::Result<bool> {
    let request = v1::RemoveLoginsRequest {
        name: name.to_owned(),
    };
    let removed = client.remove_logins(request).await.map_err(said)?;
    let removed = removed.into_inner().removed;
    match output {
        Output::Table if removed == 0 => print(&format!("{name} has no login\n")),
        Output::Table => print(&format!("logins of {name} removed: {removed}\n")),
        Output::Json | Output::Yaml => {
            output.document(&json!({"name": name, "removed": removed}));
        }
    }
    Ok(removed > 0)
}

/// Runs `muster hub admin NAME`: creates a login for a person or script. The key is generated here and is written
/// only to the login file, or to standard output.
pub(crate) async fn admin(
    mut client: Client,
    name: &str,
    valid: Option<Span>,
    out: &Path,
) -> anyhow::Result<()> {
    if !is_stream(out) && out.exists() {
        bail!("{} exists already; name another file", out.display());
    }
    let key = Key::generate()?;
    let request = v1::CreateAdminRequest {
        name: name.to_owned(),
        valid_seconds: valid.map_or(0, |span| span.duration.as_secs()),
        csr: key.request()?,
    };
    let granted = client
        .create_admin(request)
        .await
        .map_err(said)?
        .into_inner();
    let login = Login {
        hub: granted.hub,
        name: name.to_owned(),
        ca: granted.trust,
        certificate: granted.certificate,
        key: key.to_pem(),
    };
    if is_stream(out) {
        print(&serde_yaml::to_string(&login)?);
        return Ok(());
    }
    login.write(out)?;
    print(&format!(
        "{}: give this file to {name}, who logs in with `muster login {}`\n",
        out.display(),
        out.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests;
