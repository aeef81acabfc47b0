//! Repositories that are made to crash or exhaust the program that reads them.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository,
    wait::eventually,
};

const SOON: Duration = Duration::from_secs(60);

/// Files of an app, each with its text and a part of the message that is reported for it.
const BOMBS: [(&str, &str, &str); 6] = [
    (
        "templates/dropped.yaml",
        "{% set n = namespace(v=1) %}{% for i in range(100000) %}{% set n.v = [n.v] %}{% endfor %}",
        "it nests too deep",
    ),
    (
        "templates/compared.yaml",
        "{% set n = namespace(v=1, w=1) %}{% for i in range(90000) %}{% set n.v = [n.v] %}{% set n.w = [n.w] %}{% endfor %}{{ n.v == n.w }}",
        "it nests too deep",
    ),
    (
        "templates/printed.yaml",
        "{% set n = namespace(v=1) %}{% set n.v = n %}{{ n|tojson }}",
        "it nests too deep",
    ),
    (
        "templates/doubled.yaml",
        "{% set n = namespace(v=[1]) %}{% for i in range(40) %}{% set n.v = n.v + n.v %}{% endfor %}{{ n.v|list|length }}",
        "of processor time",
    ),
    (
        "values.yaml",
        "a: &a xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
        "aliases expand",
    ),
    (
        "templates/larger.yaml",
        "{% for i in range(30000) %}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"n{{ i }}\"}\n{% endfor %}",
        "at most 20000 objects",
    ),
];

/// Returns a fleet of one cluster and one app that contains this file.
fn with(app: &str, file: &str, text: &str) -> repository::Files {
    let mut files = repository::fleet("hostile", "{}", [("one", "west")]);
    let spec = "{tier: basic, mode: active-active}";
    let document = repository::document("App", app, spec);
    files.insert(format!("apps/{app}/app.yaml"), document);
    files.insert(format!("apps/{app}/{file}"), text.to_owned());
    files
}

#[test]
fn validate_names_the_app_and_survives() -> anyhow::Result<()> {
    for (file, text, told) in BOMBS {
        let dir = tempfile::tempdir()?;
        for (path, text) in &with("bomb", file, text) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().context("the file has no folder")?)?;
            fs::write(path, text)?;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(["validate", "-o", "json"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .output()?;
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{file}: {out}{err}");
        ensure!(
            out.contains("apps/bomb") && out.contains(told),
            "{file}: {out}{err}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_was_killed_over_a_commit_goes_on() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[])).await?;
    let files = repository::fleet("hostile", "{}", [("one", "west")]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    let (file, text, told) = BOMBS[3];
    let files = with("slow", file, text);
    let slow = fleet.repo().publish("slow", &repository::listed(&files))?;
    let working = fleet.state_dir().join("working.json");
    eventually("the hub to work on the commit", SOON, async || {
        ensure!(fs::read_to_string(&working)?.contains(&slow));
        Ok(())
    })
    .await?;
    fleet.kill_hub()?;
    ensure!(
        fs::read_to_string(&working)?.contains(&slow),
        "the hub finished the commit before it was killed"
    );
    fleet.start_hub().await?;
    eventually(
        "the commit to be in force except for the app",
        SOON,
        async || {
            let status = fleet.status()?;
            ensure!(status["repo"]["commit"] == slow.as_str(), "{status:#}");
            ensure!(status.to_string().contains(told), "{status:#}");
            Ok(())
        },
    )
    .await
}
