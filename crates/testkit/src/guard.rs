//! The guard, which kills child processes when this process ends for any reason.
//!
//! Each process that uses this crate starts one small shell, and writes to its standard input which process groups are
//! alive. When this process ends, even by SIGKILL, the kernel closes the pipe, and the shell kills the remaining
//! groups. The guard needs only POSIX, reaches grandchildren (they are in their parent's process group), and does not
//! depend on the thread that started a child.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::Context;

/// The guard's script. It maintains the lists of live process groups, containers and networks, and ends them when its
/// input ends. The shell has its own process group, so that Ctrl-C in the terminal does not reach it first.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=' '
containers=
networks=
while read -r change group; do
  case $change in
    +) groups="$groups$group " ;;
    -) before=${groups%%" $group "*}
       [ "$before" = "$groups" ] || groups="$before ${groups#*" $group "}" ;;
    container) containers="$containers $group" ;;
    network) networks="$networks $group" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
[ -z "$containers" ] || docker rm --force --volumes $containers
[ -z "$networks" ] || docker network rm $networks
"#;

static GUARD: Mutex<Option<Child>> = Mutex::new(None);

/// Adds a process group to the guard.
pub(crate) fn add(group: u32) -> anyhow::Result<()> {
    tell("+", group)
}

/// Removes a process group that has ended, because its number can be reused by other processes.
pub(crate) fn remove(group: u32) -> anyhow::Result<()> {
    tell("-", group)
}

/// Adds a Docker container or network to the guard by its name. It may be gone when the guard removes it.
pub(crate) fn add_docker(kind: &str, name: &str) -> anyhow::Result<()> {
    tell(kind, name)
}

fn tell(change: &str, what: impl Display) -> anyhow::Result<()> {
    let mut guard = GUARD
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if guard.is_none() {
        let child = Command::new("sh")
            .args(["-c", SCRIPT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the guard of child processes (sh)")?;
        *guard = Some(child);
    }
    let input = guard.as_mut().and_then(|child| child.stdin.as_mut());
    let input = input.context("the guard of child processes has no input")?;
    writeln!(input, "{change} {what}").context("the guard of child processes is gone")
}
