//! The part that runs in the parent process. It starts workers, sends them the changed files, reads their answers, and
//! finds out which app crashed a worker.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream as StdStream, process::ExitStatusExt as _},
    },
    path::PathBuf,
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_model::{
    ids::{AppName, ObjectId},
    problem::{Problem, Scope},
    tree::{Entry, Tree},
};
use muster_render::Part;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    journal::Journal,
    outcome::Outcome,
    overseer::{problem, too_slow},
    pack::Received,
    sizes,
    verdicts::TRY_AGAIN_AFTER,
    wire::{self, AsRole, Ask, Job, PutEntry, Tell, Writers},
};

/// The time within which a worker must answer, or it is killed. Each app has its own, much lower limit.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);
/// The time within which a worker must stop after it was asked to.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// The time after which a commit that is blocked as a whole is tried again, unless it crashed [`MOST_ENDS`] workers.
const HELD_FOR: Duration = Duration::from_secs(60);
/// The number of workers that one commit may crash before it is blocked as a whole.
const MOST_ENDS: usize = 32;
/// The number of lines of a worker's standard error that are included in messages.
const LAST_WORDS: usize = 5;
/// The maximum length of each of these lines, in bytes.
const LONGEST_WORD: usize = 300;

/// The command that starts a worker: a program, with arguments that make it call [`crate::serve`].
#[derive(Debug, Clone)]
pub struct Program {
    /// The path of the program.
    pub program: PathBuf,
    /// The arguments of the program.
    pub args: Vec<String>,
}

/// The limits of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The memory limit in bytes (`RLIMIT_AS`).
    pub memory: u64,
    /// The processor time that each app may take for a commit. A single piece of work, such as one template for one
    /// cluster, may take three times as long in wall-clock time.
    pub app: Duration,
}

/// The default memory limit of a worker, and the highest one that [`Limits::within`] returns, in bytes.
const MEMORY: u64 = 2 * 1024 * 1024 * 1024;

impl Limits {
    /// Returns the limits for a container with this memory limit, in bytes: half of its memory, at most 2 GiB, and 2 s
    /// for each app. `None` means that the container has no memory limit.
    #[must_use]
    pub fn within(container: Option<u64>) -> Self {
        Self {
            memory: container.map_or(MEMORY, |limit| (limit / 2).min(MEMORY)),
            app: Duration::from_secs(2),
        }
    }
}

impl Default for Limits {
    /// Returns the limits for a container without a memory limit.
    fn default() -> Self {
        Self::within(None)
    }
}

/// The reason why a commit could not be read and rendered.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The worker can't be started.
    #[error("the render worker can't be started: {program}", program = program.display())]
    Start {
        /// The path of the program.
        program: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The worker is still running, but its answer can't be read.
    #[error("the answer of the render worker can't be read")]
    Answer(#[source] io::Error),
}

/// Reads and renders one commit after the other in a worker process, which it starts when needed.
#[derive(Debug)]
pub struct Worker {
    program: Program,
    limits: Limits,
    journal: Journal,
    role: Option<AsRole>,
    running: Option<Running>,
    /// The number of workers that ended unexpectedly.
    ended: u64,
    /// The time after which the same commit is worth trying again.
    again: Option<Duration>,
}

/// A running worker process, with the files that were sent to it and the bundles received from it.
#[derive(Debug)]
struct Running {
    child: Child,
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    last_words: JoinHandle<String>,
    tree: Arc<Tree>,
    received: Received,
}

/// The reason why an attempt ended without an answer.
enum Ended {
    /// The job was cancelled.
    Interrupted,
    /// The worker can't be started, or its answer can't be read.
    Failed(WorkError),
    /// The worker died, took too long over one app, or did not answer.
    Dead {
        /// The app that the worker was processing, if known.
        app: Option<AppName>,
        why: Why,
    },
}

/// The reason why a worker ended unexpectedly.
enum Why {
    /// A piece of one app's work took too long.
    Stuck,
    /// The worker did not answer in time.
    Silent,
    /// The worker died. Holds a description of how.
    Died(String),
}

impl Worker {
    /// Returns a `Worker` that starts processes with this program. It writes the work in progress to the file
    /// `journal`, if given.
    #[must_use]
    pub fn new(program: Program, limits: Limits, journal: Option<PathBuf>) -> Self {
        Self {
            program,
            limits,
            journal: Journal::open(journal),
            role: None,
            running: None,
            ended: 0,
            again: None,
        }
    }

    /// Sets a role that apps get instead of the one that placement gives.
    pub fn show_as(&mut self, role: Option<AsRole>) {
        self.role = role;
    }

    /// Cancels the work in progress, because this process is about to exit normally.
    pub fn abandon(&mut self) {
        self.running = None;
        self.journal.end();
    }

    /// Returns the time after which the newest commit is worth trying again. Work that took too long or needed too
    /// much memory may have failed because of a temporary condition of this machine.
    #[must_use]
    pub fn again(&self) -> Option<Duration> {
        self.again
    }

    /// Returns the number of workers that ended unexpectedly.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Reads and renders a commit's files. `writers` says where the primaries of apps are. The caller completes `newer` to cancel the work; the result is then `None`.
    ///
    /// # Errors
    /// Returns [`WorkError`] if the worker can't be started or its answer can't be read. Problems of the commit itself
    /// are part of the outcome.
    pub async fn work(
        &mut self,
        commit: &str,
        tree: &Arc<Tree>,
        writers: &Writers,
        newer: impl Future<Output = ()>,
    ) -> Result<Option<Outcome>, WorkError> {
        let mut newer = std::pin::pin!(newer);
        let mut interrupted = false;
        self.journal.verdicts().trim(tree);
        let (tree, too_large) = sizes::without_large(tree, self.limits.memory / 4);
        let tree = &tree;
        let mut careful = self.journal.ended_over(commit);
        if let Some(app) = self.journal.guilty(commit) {
            let message = "the hub process ended twice while it read or rendered this app";
            let problem = problem(&app, message).help(SMALLER);
            self.journal.verdicts().add(app, tree, problem);
        }
        for _ in 0..MOST_ENDS {
            self.journal.begin(commit, None);
            // Processing the apps one at a time is never cancelled. Otherwise a steady stream of commits could keep the
            // faulty app from being found.
            let interrupt = (!careful).then_some((newer.as_mut(), &mut interrupted));
            let attempt = self.attempt(commit, tree, writers, careful, &too_large, interrupt);
            let (app, why) = match attempt.await {
                Ok((outcome, slow)) => {
                    self.journal.end();
                    let refused = slow || !self.journal.verdicts().is_empty();
                    self.again = refused.then_some(TRY_AGAIN_AFTER);
                    return Ok(Some(outcome));
                }
                Err(Ended::Interrupted) => {
                    self.journal.end();
                    return Ok(None);
                }
                Err(Ended::Failed(error)) => return Err(error),
                Err(Ended::Dead { app, why }) => (app, why),
            };
            self.ended += 1;
            let found = match (&why, &app) {
                (Why::Died(how), app) => {
                    tracing::warn!(%commit, app = app.as_ref().map(AppName::as_str), how, "the render worker crashed on this commit");
                    app.as_ref().map(|app| died(app, how))
                }
                (Why::Stuck, app) => app.as_ref().map(|app| too_slow(app, self.limits.app)),
                (Why::Silent, _) => None,
            };
            match (app, found) {
                (Some(app), Some(problem)) => {
                    self.journal.verdicts().add(app, tree, problem);
                    if interrupted {
                        self.journal.end();
                        return Ok(None);
                    }
                }
                _ if careful || matches!(why, Why::Silent) => {
                    self.journal.end();
                    self.again = Some(HELD_FOR);
                    return Ok(Some(held(&why)));
                }
                _ => careful = true,
            }
        }
        self.journal.end();
        self.again = Some(TRY_AGAIN_AFTER);
        let how = format!("it crashed {MOST_ENDS} workers in a row");
        Ok(Some(held(&Why::Died(how))))
    }

    async fn attempt(
        &mut self,
        commit: &str,
        tree: &Arc<Tree>,
        writers: &Writers,
        careful: bool,
        too_large: &BTreeMap<AppName, Problem>,
        interrupt: Option<Interrupt<'_, impl Future<Output = ()>>>,
    ) -> Result<(Outcome, bool), Ended> {
        // If this future is dropped, the worker is dropped with it, because a frame may have been transferred only in
        // part.
        let mut running = match self.running.take().filter(|_| !careful) {
            Some(running) => running,
            None => Running::start(&self.program, self.limits)
                .await
                .map_err(Ended::Failed)?,
        };
        let job = Job {
            budget: u64::try_from(self.limits.app.as_millis()).unwrap_or(u64::MAX),
            careful,
            refused: {
                let mut refused = self.journal.verdicts().problems();
                refused.extend(too_large.clone());
                refused
            },
            role: self.role.clone(),
            writers: writers.clone(),
        };
        let mut app = None;
        let journal = &mut self.journal;
        let begun = |turn: Option<AppName>| {
            if turn.is_some() {
                journal.begin(commit, turn.as_ref());
            }
            app = turn;
        };
        let asked = running.ask(tree, job, begun, interrupt);
        match timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(Some(outcome))) => {
                self.running = Some(running);
                Ok(outcome)
            }
            Ok(Ok(None)) => {
                self.running = Some(running);
                Err(Ended::Interrupted)
            }
            Ok(Err(Broken::Stuck(app))) => Err(Ended::Dead {
                app: Some(app),
                why: Why::Stuck,
            }),
            Ok(Err(Broken::Interrupted)) => Err(Ended::Interrupted),
            Ok(Err(Broken::Lost(error))) => match running.end().await {
                Some(how) => Err(Ended::Dead {
                    app,
                    why: Why::Died(how),
                }),
                None => Err(Ended::Failed(WorkError::Answer(error))),
            },
            Err(_) => Err(Ended::Dead {
                app,
                why: Why::Silent,
            }),
        }
    }
}

const SMALLER: &str = "look for values that contain themselves or each other many times, for macros and \
     loops with very large output, and for very large files";

fn died(app: &AppName, how: &str) -> Problem {
    let message = format!("reading and rendering this app crashes the render worker: {how}");
    problem(app, message).help(SMALLER)
}

/// Returns an outcome that blocks the whole commit.
fn held(why: &Why) -> Outcome {
    let message = match why {
        Why::Died(how) => format!("reading this commit crashes the render worker: {how}"),
        Why::Stuck | Why::Silent => format!(
            "reading and rendering this commit takes over {} s",
            ANSWER_WITHIN.as_secs()
        ),
    };
    let problem = Problem::new(Scope::Fleet, "fleet.yaml", message);
    let help = "no single app causes this; check the files outside of apps/, and the total size of the repository";
    Outcome {
        problems: vec![problem.help(help)],
        ..Outcome::default()
    }
}

/// The reason why a worker gave no answer.
enum Broken {
    Stuck(AppName),
    Interrupted,
    Lost(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl Running {
    async fn start(program: &Program, limits: Limits) -> Result<Self, WorkError> {
        let failed = |source| WorkError::Start {
            program: program.program.clone(),
            source,
        };
        let start = || -> io::Result<(Child, UnixStream)> {
            let (ours, theirs) = StdStream::pair()?;
            ours.set_nonblocking(true)?;
            let child = Command::new(&program.program)
                .args(&program.args)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            Ok((child, UnixStream::from_std(ours)?))
        };
        let (mut child, socket) = start().map_err(failed)?;
        let (from, mut to) = socket.into_split();
        let last_words = tokio::spawn(last_words(child.stderr.take()));
        let begin = Ask::Begin {
            memory: limits.memory,
            bundles: limits.memory / 3,
        };
        let frame = wire::frame(&begin, &[]).map_err(failed)?;
        to.write_all(&frame).await.map_err(failed)?;
        Ok(Self {
            child,
            from: BufReader::with_capacity(256 * 1024, from),
            to,
            last_words,
            tree: Arc::default(),
            received: Received::default(),
        })
    }

    /// Runs a job and returns its outcome, and true if an app took too long. Returns `None` if the job was cancelled.
    async fn ask(
        &mut self,
        tree: &Arc<Tree>,
        job: Job,
        mut begun: impl FnMut(Option<AppName>),
        mut interrupt: Option<Interrupt<'_, impl Future<Output = ()>>>,
    ) -> Result<Option<(Outcome, bool)>, Broken> {
        self.tell_changes(tree).await?;
        self.to
            .write_all(&wire::frame(&Ask::Work(Box::new(job)), &[])?)
            .await?;
        self.to.flush().await?;
        let mut stopping = false;
        loop {
            let read = read(&mut self.from);
            let (told, bytes) = if stopping {
                match timeout(STOP_WITHIN, read).await {
                    Ok(read) => read?,
                    Err(_) => return Err(Broken::Interrupted),
                }
            } else {
                // `read` continues after the interrupt, so that a frame that was read in part is read to its end.
                let mut read = std::pin::pin!(read);
                tokio::select! {
                    read = &mut read => read?,
                    () = until(interrupt.as_mut()) => {
                        // The interrupt has fired, so its future must not be polled again.
                        interrupt = None;
                        stopping = true;
                        self.to.write_all(&wire::frame(&Ask::Stop, &[])?).await?;
                        match timeout(STOP_WITHIN, read).await {
                            Ok(read) => read?,
                            Err(_) => return Err(Broken::Interrupted),
                        }
                    }
                }
            };
            match told {
                Tell::Begun(app) => begun(app),
                Tell::Stuck(app) => return Err(Broken::Stuck(app)),
                Tell::Stopped => return Ok(None),
                Tell::Part {
                    id,
                    file,
                    namespace,
                } => {
                    let lines = std::str::from_utf8(&bytes).map_err(io::Error::other)?;
                    let part = Part::read(&file, &namespace, lines).map_err(io::Error::other)?;
                    self.received.part(id, part);
                }
                Tell::Answer(answer) => {
                    let slow = answer.slow;
                    return Ok(Some((self.received.outcome(*answer)?, slow)));
                }
            }
        }
    }

    /// Sends the differences between this tree and the files that the worker has.
    async fn tell_changes(&mut self, tree: &Arc<Tree>) -> io::Result<()> {
        let mut frames = Vec::new();
        // Each content is sent only once, even if several files have it.
        let mut contents: HashSet<ObjectId> =
            self.tree.entries.values().filter_map(id_of).collect();
        for path in self
            .tree
            .entries
            .keys()
            .filter(|path| !tree.entries.contains_key(*path))
        {
            let path = path.clone();
            frames.extend(wire::frame(&Ask::Gone { path }, &[])?);
        }
        for (path, entry) in &tree.entries {
            let known = self.tree.entries.get(path);
            if known.is_some_and(|known| is_same(known, entry)) {
                continue;
            }
            let sent = id_of(entry).is_some_and(|id| !contents.insert(id));
            let (entry, bytes) = PutEntry::split(entry);
            let bytes = if sent { &[][..] } else { bytes };
            let path = path.clone();
            frames.extend(wire::frame(&Ask::Put { path, entry, sent }, bytes)?);
            if frames.len() > 1024 * 1024 {
                self.to.write_all(&frames).await?;
                frames.clear();
            }
        }
        self.to.write_all(&frames).await?;
        self.tree = Arc::clone(tree);
        Ok(())
    }

    /// Waits until the worker exits and describes how. Returns `None` if the worker is still running.
    async fn end(mut self) -> Option<String> {
        let status = timeout(STOP_WITHIN, self.child.wait()).await.ok()?.ok()?;
        let words = timeout(STOP_WITHIN, self.last_words).await;
        let words = words.ok().and_then(Result::ok).unwrap_or_default();
        Some(in_words(status, &words))
    }
}

fn id_of(entry: &Entry) -> Option<ObjectId> {
    match entry {
        Entry::File { id, .. } => Some(*id),
        Entry::TooLarge { .. } | Entry::Symlink { .. } | Entry::Submodule => None,
    }
}

/// Returns true if both entries have the same content. Files are compared by id.
fn is_same(a: &Entry, b: &Entry) -> bool {
    match (a, b) {
        (Entry::File { id: a, .. }, Entry::File { id: b, .. }) => a == b,
        _ => a == b,
    }
}

/// The future that cancels a job, and a flag that is set when it completes.
type Interrupt<'a, F> = (Pin<&'a mut F>, &'a mut bool);

/// Waits until the job should be cancelled. Never completes if `interrupt` is `None`.
async fn until<F: Future<Output = ()>>(interrupt: Option<&mut Interrupt<'_, F>>) {
    match interrupt {
        Some((newer, fired)) => {
            newer.as_mut().await;
            **fired = true;
        }
        None => std::future::pending().await,
    }
}

async fn read(from: &mut BufReader<OwnedReadHalf>) -> io::Result<(Tell, Vec<u8>)> {
    let mut start = [0; 8];
    from.read_exact(&mut start).await?;
    let (head, bytes) = wire::lengths(start)?;
    let mut content = vec![0; head + bytes];
    from.read_exact(&mut content).await?;
    let bytes = content.split_off(head);
    Ok((serde_json::from_slice(&content)?, bytes))
}

/// Reads a standard error stream to its end and returns the last lines.
async fn last_words(stderr: Option<ChildStderr>) -> String {
    let mut lines = VecDeque::new();
    if let Some(stderr) = stderr {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = u64::try_from(LONGEST_WORD).unwrap_or_default();
            let mut some = (&mut stderr).take(most);
            match some.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    let line = String::from_utf8_lossy(&line).trim().to_owned();
                    if !line.is_empty() {
                        lines.push_back(line);
                    }
                    if lines.len() > LAST_WORDS {
                        lines.pop_front();
                    }
                }
            }
        }
    }
    lines.make_contiguous().join("; ")
}

/// Describes how a worker ended, for error messages.
fn in_words(status: ExitStatus, words: &str) -> String {
    // In safe code, only a stack overflow causes a segmentation fault.
    let fault = Some(Signal::SEGV.as_raw());
    if words.contains("overflowed its stack") || status.signal() == fault {
        return "it nests too deep (stack overflow)".to_owned();
    }
    if words.contains("memory allocation of") {
        return "it needs more memory than the worker may use".to_owned();
    }
    if words.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {words}")
    }
}
