//! The guard that ends child processes when this process dies, however it dies.
//!
//! One small shell per process of ours reads from a pipe which process groups are alive. The
//! kernel closes the pipe when we end, by SIGKILL too, and the shell then kills what is left. It
//! needs no more than POSIX, reaches grandchildren (they share their parent's process group), and
//! does not depend on which of our threads started the child.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::Context;

/// Keeps the list of live groups and of containers; at the end of its input ends them. It stands in its own
/// process group, so that a Ctrl-C in the terminal does not reach it before us.
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

/// Puts the process group under guard.
pub(crate) fn add(group: u32) -> anyhow::Result<()> {
    tell("+", group)
}

/// Ends the guard over a group that is gone, so that its number can be used by others.
pub(crate) fn remove(group: u32) -> anyhow::Result<()> {
    tell("-", group)
}

/// Puts a Docker container or network under guard, by its name; one that is gone at the end is no harm.
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
