//! Real Git remotes for tests: repositories that are created with `git` and served by nginx over HTTPS and by sshd, on
//! loopback ports.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::process::Process;

mod https;
mod repo;
mod ssh;

pub use https::HttpsGit;
pub use repo::GitRepo;
pub use ssh::SshGit;

/// The longest time that a server may take until it listens.
const START: Duration = Duration::from_secs(20);
/// How many ports are tried for a server, in case another process takes the chosen one.
const PORTS: usize = 5;

/// Returns the program's path. If the program is missing, installs its Debian package where that is possible.
fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    if let Some(found) = find(name) {
        return Ok(found);
    }
    anyhow::ensure!(
        rustix::process::geteuid().is_root() && find("apt-get").is_some(),
        "`{name}` is missing; install the package {package} (Debian's name for it)"
    );
    // All test processes share this lock, so that only one installs at a time.
    let lock_path = std::env::temp_dir().join("muster-apt.lock");
    let lock = File::create(&lock_path).and_then(|lock| lock.lock().map(|()| lock));
    let _lock = lock.with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if find(name).is_none() {
        apt_get(&["update", "-q"])?;
        apt_get(&["install", "-q", "-y", "--no-install-recommends", package])?;
    }
    find(name).with_context(|| format!("the package {package} provides no `{name}`"))
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    // In runlevel 1, packages don't start their services.
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1");
    output(&mut command).map(drop)
}

/// Finds a program on the PATH, and in the `sbin` directories, which hold servers and are not on every user's PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// Runs a command to its end and returns its output.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let result = command.output();
    let name = command.get_program().to_string_lossy();
    let result = result.with_context(|| format!("cannot start `{name}`"))?;
    let arguments: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    anyhow::ensure!(
        result.status.success(),
        "`{name} {}` failed ({}):\n{}{}",
        arguments.join(" "),
        result.status,
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(String::from_utf8_lossy(&result.stdout)
        .trim_end()
        .to_owned())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Waits until the server listens on the port. Returns an error with its log if it ends or does not listen in time.
fn listening(server: &Process, port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + START;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        server.check()?;
        anyhow::ensure!(
            Instant::now() < end,
            "{} does not listen on port {port}:\n{}",
            server.name(),
            server.tail()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    server.check()
}
