//! Makes Docker available: uses a running engine, installs and starts one as root, or returns an error that says what
//! to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::tools::{self, cache_dir};

/// The Debian packages of the engine and of the tools that its set-up needs.
const PACKAGES: [&str; 2] = ["docker.io", "jq"];
/// The longest time that a Docker engine may take to start.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// The bit of CAP_SYS_RESOURCE in a capability set. A host may lack this capability; see [`RUNTIME`].
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// A wrapper around `runc` for hosts whose root lacks CAP_SYS_RESOURCE. Docker requests all capabilities for a
/// privileged container, and the kernel refuses to grant one that the caller lacks.
const RUNTIME: &str = r#"#!/bin/sh
# Runs runc without CAP_SYS_RESOURCE and without a negative oomScoreAdj, because root on this host cannot set them.
set -eu
strip='(.process // .) |= (
  if .capabilities then .capabilities |= map_values(map(select(. != "CAP_SYS_RESOURCE"))) else . end
  | if (.oomScoreAdj // 0) < 0 then .oomScoreAdj = 0 else . end)'
rewrite() {
  jq "$1" "$2" >"$2.stripped"
  mv "$2.stripped" "$2"
}
before=
for argument; do
  case $before in
    --bundle | -b) rewrite "${strip}" "$argument/config.json" ;;
    --process | -p) rewrite "${strip#(.process // .) |= }" "$argument" ;;
  esac
  before=$argument
done
exec runc "$@"
"#;

/// Runs `docker` with these arguments and returns its output.
///
/// # Errors
/// Fails if the command can't be started or fails. The error contains its output.
pub fn docker<A: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = A>,
) -> anyhow::Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    run(&mut command)
}

/// Runs a command to its end and returns its output.
///
/// # Errors
/// Fails if the command can't be started or fails. The error contains its output.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&stdout).trim_end().to_owned();
    anyhow::ensure!(
        status.success(),
        "`{}` failed ({status}): {}",
        shown(command),
        format!("{}\n{text}", String::from_utf8_lossy(&stderr).trim()).trim()
    );
    Ok(text)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Makes sure that Docker works. An engine that this function starts keeps running, like a service.
///
/// # Errors
/// Fails if Docker does not work and can't be installed or started here. The error says what to do.
pub fn ready() -> anyhow::Result<()> {
    if works() {
        return Ok(());
    }
    let _lock = tools::lock(&cache_dir()?.join("docker.lock"), "Docker's set-up")?;
    if works() {
        return Ok(());
    }
    let how = "install Docker (https://docs.docker.com/engine/install/), start it, and let this user reach it";
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "kind needs Docker, which does not work here; {how}"
    );
    install(&PACKAGES.map(|package| {
        (
            if package == "docker.io" {
                "dockerd"
            } else {
                package
            },
            package,
        )
    }))
    .with_context(|| format!("Docker can't be installed here; {how}"))?;
    start().with_context(|| format!("Docker can't be started here; {how}"))
}

fn works() -> bool {
    docker(["version", "--format", "{{.Server.Version}}"]).is_ok()
}

/// Installs the Debian packages of those programs that are missing.
///
/// # Errors
/// Fails if apt is missing or fails.
pub fn install(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    tools::say(&format!("installing {}", missing.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        run(&mut apt)
    };
    apt(&["update", "-q"])?;
    apt(&[
        &["install", "-q", "-y", "--no-install-recommends"],
        missing.as_slice(),
    ]
    .concat())?;
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.iter().any(|folder| folder.join(program).is_file())
}

fn start() -> anyhow::Result<()> {
    if Path::new("/run/systemd/system").is_dir() {
        run(Command::new("systemctl").args(["start", "docker"]))?;
    } else {
        let directory = cache_dir()?.join("docker");
        fs::create_dir_all(&directory)?;
        let log = directory.join("dockerd.log");
        let file =
            fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut dockerd = Command::new("setsid");
        dockerd.args(["--fork", "dockerd", "--default-cgroupns-mode=private"]);
        if !has_sys_resource()? {
            let runtime = directory.join("runc-without-sys-resource");
            fs::write(&runtime, RUNTIME)?;
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
            dockerd.arg(format!(
                "--add-runtime=without-sys-resource={}",
                runtime.display()
            ));
            dockerd.arg("--default-runtime=without-sys-resource");
        }
        let status = dockerd
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status();
        status.context("cannot start dockerd")?;
        tools::say(&format!(
            "started Docker's engine, which stays up; its log is {}",
            log.display()
        ));
    }
    let started = Instant::now();
    while !works() {
        anyhow::ensure!(
            started.elapsed() < UP_WITHIN,
            "the engine did not answer within {UP_WITHIN:.0?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn has_sys_resource() -> anyhow::Result<bool> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let bounding = bounding.context("/proc/self/status names no capabilities")?;
    Ok(bounding & CAP_SYS_RESOURCE != 0)
}
