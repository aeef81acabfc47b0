//! `muster hub ca`: the fleet's certificate authority.

use std::io::IsTerminal as _;

use anyhow::bail;
use muster_proto::v1;
use serde_json::{Value, json};

use crate::{
    admin::said,
    approve::agreed,
    client::Client,
    output::{Output, print},
};

/// The options of `muster hub ca rotate`.
pub(crate) struct Rotate {
    pub(crate) finish: bool,
    pub(crate) dry_run: bool,
    pub(crate) yes: bool,
    pub(crate) reason: String,
}

/// Runs `muster hub ca`.
pub(crate) async fn show(mut client: Client, output: Output) -> anyhow::Result<()> {
    let info = client.get_ca(v1::GetCaRequest {}).await.map_err(said)?;
    tell(&info.into_inner(), output);
    Ok(())
}

/// Runs `muster hub ca rotate`. Returns false if the person declined.
pub(crate) async fn rotate(
    mut client: Client,
    rotate: Rotate,
    output: Output,
) -> anyhow::Result<bool> {
    let Rotate {
        finish,
        dry_run,
        yes,
        reason,
    } = rotate;
    let now = client.get_ca(v1::GetCaRequest {}).await.map_err(said)?;
    let now = now.into_inner();
    let (question, effect) = match (finish, now.next.is_empty()) {
        (true, true) => bail!("no CA is being replaced; start with `muster hub ca rotate`"),
        (false, false) => {
            tell(&now, output);
            return Ok(true);
        }
        (false, true) => (
            "Replace the fleet's CA",
            "Agents and logins get certificates of a new CA automatically, and the clusters keep running. When all \
             have one, the old CA is no longer trusted. This can't be undone: agents and people with a new \
             certificate do not trust a hub that is restored from an older backup. Take one backup when the \
             replacement has begun, and one when it has finished."
                .to_owned(),
        ),
        (true, false) => (
            "End the old CA now",
            match waiting(&now) {
                waiting if waiting.is_empty() => "Nothing needs the old CA any more.".to_owned(),
                waiting => format!(
                    "These still need the old CA and lose access until they get a new join token or login:\n{waiting}"
                ),
            },
        ),
    };
    if output == Output::Table {
        print(&format!("{effect}\n"));
    }
    if dry_run {
        if output != Output::Table {
            tell(&now, output);
        }
        return Ok(true);
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            bail!(
                "there is no terminal to ask for confirmation; check with --dry-run, then use --yes"
            );
        }
        if output != Output::Table {
            anstream::eprintln!("{effect}");
        }
        if !agreed(question)? {
            anstream::eprintln!("nothing was changed");
            return Ok(false);
        }
    }
    let request = v1::RotateCaRequest { finish, reason };
    let info = client.rotate_ca(request).await.map_err(said)?.into_inner();
    tell(&info, output);
    Ok(true)
}

/// Returns a distinguished name without its `CN=`.
fn named(name: &str) -> &str {
    name.strip_prefix("CN=").unwrap_or(name)
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

fn waiting(info: &v1::CaInfo) -> String {
    let mut text = String::new();
    for (what, names) in [
        ("clusters", &info.clusters),
        ("logins", &info.logins),
        ("join tokens of", &info.join_tokens),
    ] {
        if !names.is_empty() {
            text.push_str(&format!("  {what:14} {}\n", names.join(", ")));
        }
    }
    text.trim_end().to_owned()
}

fn tell(info: &v1::CaInfo, output: Output) {
    let is_rotating = !info.next.is_empty();
    match output {
        Output::Table => {
            print(&format!(
                "{}, valid until {}\n",
                named(&info.name),
                time(info.expires_at)
            ));
            if is_rotating {
                print(&format!(
                    "being replaced by {} since {}\n",
                    named(&info.next),
                    time(info.since)
                ));
                match waiting(info) {
                    waiting if waiting.is_empty() => {
                        print("nothing needs the old CA any more; it will be removed soon\n");
                    }
                    waiting => print(&format!("the old CA is still needed by:\n{waiting}\n")),
                }
            }
        }
        Output::Json | Output::Yaml => {
            let next = match is_rotating {
                true => json!({
                    "name": named(&info.next),
                    "since": time(info.since),
                    "waitingClusters": info.clusters,
                    "waitingLogins": info.logins,
                    "waitingJoinTokens": info.join_tokens,
                }),
                false => Value::Null,
            };
            output.document(&json!({
                "name": named(&info.name),
                "until": time(info.expires_at),
                "next": next,
            }));
        }
    }
}
