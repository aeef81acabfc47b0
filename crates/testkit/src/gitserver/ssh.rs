//! Serves Git repositories with sshd, for one key of the user who runs the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{PORTS, listening, output, program, write};
use crate::ports;
use crate::process::Process;
use crate::scratch::Scratch;

/// An sshd on a port of `127.0.0.1`, with a new host key. It stops when it is dropped.
#[derive(Debug)]
pub struct SshGit {
    _sshd: Process,
    port: u16,
    user: String,
    scratch: Scratch,
}

impl SshGit {
    /// Starts sshd. Its clients can access every repository that the current user can read.
    ///
    /// # Errors
    /// Fails if OpenSSH is missing and cannot be installed, or does not start.
    pub fn start() -> anyhow::Result<Self> {
        Self::with_settings("ed25519", "")
    }

    /// Starts sshd with a host key of this type and further lines of `sshd_config`.
    ///
    /// # Errors
    /// Fails like [`SshGit::start`].
    pub fn with_settings(host_key: &str, further: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::temporary("ssh-git")?;
        let directory = scratch.path();
        for (name, kind) in [
            ("host", host_key),
            ("key", "ed25519"),
            ("stranger", host_key),
        ] {
            keygen(&directory.join(name), &["-t", kind, "-N", ""])?;
        }
        let read = |name: &str| {
            fs::read_to_string(directory.join(name)).with_context(|| format!("no file {name}"))
        };
        write(&directory.join("authorized"), &read("key.pub")?)?;
        let user = output(Command::new("id").arg("-un"))?;
        // sshd must be started by its absolute path, and needs this directory when it runs as root.
        let sshd = program("sshd", "openssh-server")?;
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        }
        for attempt in 1.. {
            let port = ports::free()?;
            write(
                &directory.join("sshd_config"),
                &(settings(directory, port) + further),
            )?;
            let mut command = Command::new(&sshd);
            command
                .args(["-D", "-e", "-f"])
                .arg(directory.join("sshd_config"));
            let process = Process::spawn("sshd", command, &directory.join("sshd.log"))?;
            match listening(&process, port) {
                Ok(()) => {
                    let known = |key: &str| format!("[127.0.0.1]:{port} {key}");
                    write(&directory.join("known_hosts"), &known(&read("host.pub")?))?;
                    let other = known(&read("stranger.pub")?);
                    write(&directory.join("other_hosts"), &other)?;
                    return Ok(Self {
                        _sshd: process,
                        port,
                        user,
                        scratch,
                    });
                }
                Err(error) if attempt == PORTS => return Err(error),
                Err(_) => {}
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The URL of a repository with this absolute path.
    pub fn url(&self, repository: &Path) -> String {
        format!(
            "ssh://{}@127.0.0.1:{}{}",
            self.user,
            self.port,
            repository.display()
        )
    }

    /// Creates a key pair with these arguments of `ssh-keygen`, and makes sshd accept the key. Returns the path of the
    /// private key.
    ///
    /// # Errors
    /// Fails if `ssh-keygen` fails, or the files can't be written.
    pub fn accept_new_key(&self, name: &str, arguments: &[&str]) -> anyhow::Result<PathBuf> {
        let path = self.scratch.path().join(name);
        keygen(&path, arguments)?;
        let authorized = self.scratch.path().join("authorized");
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
        };
        let keys = read(&authorized)? + &read(&path.with_extension("pub"))?;
        write(&authorized, &keys)?;
        Ok(path)
    }

    /// The path of the private key that sshd accepts.
    pub fn key_file(&self) -> PathBuf {
        self.scratch.path().join("key")
    }

    /// The path of a private key that sshd does not accept.
    pub fn strangers_key_file(&self) -> PathBuf {
        self.scratch.path().join("stranger")
    }

    /// The path of a `known_hosts` file with the host's key.
    pub fn known_hosts_file(&self) -> PathBuf {
        self.scratch.path().join("known_hosts")
    }

    /// The path of a `known_hosts` file with a wrong key for this host.
    pub fn other_hosts_file(&self) -> PathBuf {
        self.scratch.path().join("other_hosts")
    }

    /// Returns the fingerprint of the host's key, as `ssh-keygen` shows it.
    ///
    /// # Errors
    /// Fails if `ssh-keygen` fails.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        let mut keygen = Command::new(program("ssh-keygen", "openssh-client")?);
        let text = output(keygen.arg("-lf").arg(self.scratch.path().join("host.pub")))?;
        text.split(' ')
            .nth(1)
            .map(str::to_owned)
            .context("ssh-keygen shows no fingerprint")
    }
}

/// Makes a key pair without asking.
fn keygen(path: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut keygen = Command::new(program("ssh-keygen", "openssh-client")?);
    keygen.arg("-q").args(arguments).args(["-C", "test", "-f"]);
    output(keygen.arg(path)).map(drop)
}

fn settings(directory: &Path, port: u16) -> String {
    let dir = directory.display();
    format!(
        "ListenAddress 127.0.0.1
Port {port}
HostKey {dir}/host
AuthorizedKeysFile {dir}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"
    )
}
