//! Child processes that end with their parent.
//!
//! A [`Process`] writes its output to a file. It is stopped and waited for when it is dropped, and killed with its
//! whole process group when this process ends for any reason.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::io::Errno;
use rustix::process::{Pid, kill_process_group};

use crate::guard;

pub use rustix::process::Signal;

/// How long a process may take to end after SIGTERM when it is dropped.
const GRACE: Duration = Duration::from_secs(3);
/// The number of bytes at the end of a log that an error shows.
const TAIL: u64 = 4096;

/// A child process in its own process group, with its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the command. Its output is appended to `log`, and its input is empty.
    ///
    /// # Errors
    /// Fails if the log can't be opened or the program can't be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let output = open().with_context(|| format!("cannot open the log {}", log.display()))?;
        let errors = output
            .try_clone()
            .context("cannot share the log between two streams")?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({program})"))?;
        let pid = child.id();
        if let Err(error) = guard::add(pid) {
            child
                .kill()
                .and_then(|()| child.wait().map(drop))
                .with_context(|| {
                    format!("{name} (pid {pid}) has no guard process and could not be killed")
                })?;
            return Err(error);
        }
        Ok(Self {
            name: name.to_owned(),
            pid,
            log: log.to_owned(),
            state: Mutex::new(State {
                child,
                status: None,
            }),
        })
    }

    /// The process's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The path of the process's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns the last lines of the log, for error messages.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Returns the exit status if the process has ended.
    ///
    /// # Errors
    /// Fails if the operating system can't report the status.
    pub fn exited(&self) -> anyhow::Result<Option<ExitStatus>> {
        self.reap(&mut self.state())
    }

    /// Checks that the process is still running.
    ///
    /// # Errors
    /// Fails if the process has ended. The error contains the exit status and the end of the log.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => anyhow::bail!(
                "{} ended ({status}); the end of {}:\n{}",
                self.name,
                self.log.display(),
                self.tail()
            ),
        }
    }

    /// Sends a signal to the process and its whole group. Does nothing if the process has ended.
    ///
    /// # Errors
    /// Fails if the signal can't be sent.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let mut state = self.state();
        if self.reap(&mut state)?.is_some() {
            return Ok(());
        }
        kill_process_group(Pid::from_child(&state.child), signal)
            .with_context(|| format!("cannot signal {} (pid {})", self.name, self.pid))
    }

    /// Pauses the process (SIGSTOP) until [`Process::resume`].
    ///
    /// # Errors
    /// Fails like [`Process::signal`].
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Resumes a paused process.
    ///
    /// # Errors
    /// Fails like [`Process::signal`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Stops the process with SIGTERM, kills it after `grace`, and waits until it has ended.
    ///
    /// # Errors
    /// Fails if the process can't be signalled or waited for.
    pub fn stop(&self, grace: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        // A paused process does not handle SIGTERM.
        self.resume()?;
        match self.wait(grace)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills the process and its group with SIGKILL and waits until it has ended.
    ///
    /// # Errors
    /// Fails if the process can't be signalled or waited for.
    pub fn kill(&self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        let status = self.wait(Duration::from_secs(30))?;
        status.with_context(|| format!("{} (pid {}) survives SIGKILL", self.name, self.pid))
    }

    /// Waits up to `timeout` until the process ends. Returns `None` if it is still running.
    ///
    /// # Errors
    /// Fails if the operating system can't report the status.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let end = Instant::now() + timeout;
        loop {
            let status = self.exited()?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the exit status if the process has ended. When it has, kills the rest of its group and removes the group
    /// from the guard.
    fn reap(&self, state: &mut State) -> anyhow::Result<Option<ExitStatus>> {
        if state.status.is_none() {
            let status = state.child.try_wait();
            state.status = status.with_context(|| format!("cannot wait for {}", self.name))?;
            if state.status.is_some() {
                match kill_process_group(Pid::from_child(&state.child), Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => {
                        let left = format!("cannot kill the process group of {}", self.name);
                        return Err(error).context(left);
                    }
                }
                guard::remove(self.pid)?;
            }
        }
        Ok(state.status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop(GRACE) {
            eprintln!(
                "{} (pid {}) could not be ended: {error:#}",
                self.name, self.pid
            );
        }
    }
}

/// Returns the last lines of a file for error messages, or a text that says why the file can't be read.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let start = length.saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // The first line is incomplete, unless it is the file's first line. Drop it.
        let text = if start == 0 {
            &text
        } else {
            text.split_once('\n').map_or("", |cut| cut.1)
        };
        Ok(text.trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
}
