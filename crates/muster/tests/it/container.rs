//! The hub as it runs in a container: its settings come from the environment, there is no shell, and a backup or
//! restore goes through standard input and output.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_testkit::{
    fleet::{Fleet, FleetOptions, get},
    ports,
    process::Process,
    repository,
    wait::eventually,
};

const SOON: Duration = Duration::from_secs(30);

/// Returns a command with only the settings of the hub's container in its environment.
fn muster(fleet: &Fleet) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.env_clear();
    command.env("MUSTER_REPO", fleet.repo().path());
    command.env("MUSTER_STATE_DIR", fleet.state_dir());
    command
}

/// Runs `muster hub` with these arguments and this standard input.
fn hub(fleet: &Fleet, arguments: &[&str], input: &[u8]) -> anyhow::Result<Output> {
    let mut command = muster(fleet);
    command.arg("hub").args(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn()?;
    // A command that fails before it has read all of its input closes the pipe.
    let _ = child
        .stdin
        .take()
        .context("the child has no standard input")?
        .write_all(input);
    Ok(child.wait_with_output()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_leaves_and_comes_back_through_pipes() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[])).await?;
    let files = repository::fleet("container", "{}", [("one", "west")]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    let token = fleet.run(&["cluster", "join-token", "one"])?;
    ensure!(token.starts_with("muster-join."), "{token}");

    let saved = hub(&fleet, &["backup", "-"], b"")?;
    let said = String::from_utf8_lossy(&saved.stderr).into_owned();
    ensure!(
        saved.status.success() && said.contains("keep it secret"),
        "{said}"
    );
    let refused = hub(&fleet, &["restore", "-"], &saved.stdout)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("in use by another process"),
        "{said}"
    );
    fleet.stop_hub()?;

    let http = format!("127.0.0.1:{}", ports::free()?);
    let mut command = muster(&fleet);
    command
        .args(["hub", "--maintenance"])
        .env("MUSTER_HTTP", &http);
    let log = fleet.directory().join("maintenance.log");
    let maintenance = Process::spawn("maintenance", command, &log)?;
    eventually("maintenance mode to answer probes", SOON, async || {
        for path in ["/healthz", "/readyz"] {
            let page = get(&http, path).await?;
            ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
        }
        Ok(())
    })
    .await?;
    ensure!(
        maintenance.tail().contains("muster hub restore - < BACKUP"),
        "{}",
        maintenance.tail()
    );
    let cut = hub(
        &fleet,
        &["restore", "-"],
        &saved.stdout[..saved.stdout.len() / 2],
    )?;
    ensure!(!cut.status.success());
    let restored = hub(&fleet, &["restore", "-"], &saved.stdout)?;
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    ensure!(restored.status.success(), "{said}");
    ensure!(maintenance.stop(SOON)?.success(), "{}", maintenance.tail());

    fleet.start_hub().await?;
    let log = std::fs::read_to_string(fleet.hub()?.log())?;
    ensure!(log.contains("was restored from a backup"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_is_created_or_the_error_names_it() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[])).await?;
    let files = repository::fleet("container", "{}", [("one", "west")]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    let http = format!("127.0.0.1:{}", ports::free()?);
    let start = |dir: &std::path::Path| {
        let mut command = muster(&fleet);
        command.arg("hub").env("MUSTER_STATE_DIR", dir);
        command
            .env("MUSTER_LISTEN", "127.0.0.1:0")
            .env("MUSTER_HTTP", &http);
        command
    };
    // Not even root can write to these folders. They take the place of a volume that is mounted read-only.
    for dir in ["/proc/sys/muster", "/proc/sys"] {
        let refused = start(dir.as_ref()).output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        let named = said.contains("the hub's state can't be opened") && said.contains(dir);
        ensure!(!refused.status.success() && named, "{said}");
    }
    let deep = fleet.directory().join("not/yet/there");
    let log = fleet.directory().join("deep.log");
    let hub = Process::spawn("hub", start(&deep), &log)?;
    eventually("the hub to be ready", SOON, async || {
        hub.check()?;
        let page = get(&http, "/readyz").await?;
        ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
        Ok(())
    })
    .await?;
    ensure!(deep.join("admin.yaml").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_backup_comes_back_with_its_identity_alone() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[])).await?;
    let files = repository::fleet("encrypted", "{}", [("one", "west")]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    let [ours, theirs] = [(); 2].map(|()| age::x25519::Identity::generate());
    let file = fleet.directory().join("hub.backup.age");
    let path = file.to_string_lossy().into_owned();
    let recipient = ours.to_public().to_string();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    let no = hub(&fleet, &["backup", &path, "--recipient", "age1nobody"], b"")?;
    ensure!(!no.status.success() && !file.exists(), "{}", said(&no));
    let saved = hub(&fleet, &["backup", &path, "--recipient", &recipient], b"")?;
    ensure!(saved.status.success(), "{}", said(&saved));
    let again = hub(&fleet, &["backup", &path, "--recipient", &recipient], b"")?;
    ensure!(!again.status.success() && said(&again).contains("exists already"));
    let bytes = std::fs::read(&file)?;
    ensure!(bytes.starts_with(b"age-encryption.org/v1"));
    ensure!(
        !bytes.windows(11).any(|part| part == b"PRIVATE KEY"),
        "the backup holds the CA's key unencrypted"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata()?.permissions());
    ensure!(mode & 0o077 == 0, "others can read the backup: {mode:o}");
    let piped = hub(&fleet, &["backup", "-", "--recipient", &recipient], b"")?;
    ensure!(piped.stdout.starts_with(b"age-encryption.org/v1"));

    fleet.stop_hub()?;
    let identity = |name: &str, identity: &age::x25519::Identity| {
        use age::secrecy::ExposeSecret as _;
        let file = fleet.directory().join(name);
        let secret = identity.to_string();
        std::fs::write(&file, format!("# a key\n{}\n", secret.expose_secret()))?;
        anyhow::Ok(file.to_string_lossy().into_owned())
    };
    let (right, wrong) = (identity("ours", &ours)?, identity("theirs", &theirs)?);
    for (arguments, words) in [
        (vec!["restore", &path], "--identity"),
        (
            vec!["restore", &path, "--identity", &wrong],
            "No matching keys found",
        ),
        (
            vec!["restore", &path, "--identity", "/nowhere"],
            "not a file of age identities",
        ),
    ] {
        let no = hub(&fleet, &arguments, b"")?;
        ensure!(
            !no.status.success() && said(&no).contains(words),
            "{}",
            said(&no)
        );
    }
    // A truncated backup is not restored.
    let cut = &piped.stdout[..piped.stdout.len() - 100];
    let no = hub(&fleet, &["restore", "-", "--identity", &right], cut)?;
    ensure!(!no.status.success(), "a truncated backup was restored");
    let restored = hub(&fleet, &["restore", &path, "--identity", &right], b"")?;
    ensure!(restored.status.success(), "{}", said(&restored));
    fleet.start_hub().await?;
    let log = std::fs::read_to_string(fleet.hub()?.log())?;
    ensure!(log.contains("was restored from a backup"), "{log}");
    let piped = hub(
        &fleet,
        &["restore", "-", "--identity", &right],
        &piped.stdout,
    )?;
    ensure!(
        said(&piped).contains("in use by another process"),
        "{}",
        said(&piped)
    );
    Ok(())
}
