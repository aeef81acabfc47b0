//! The side that asks: starts workers, tells them what changed, reads their answers, and finds out which app
//! it was where one ends.

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
    wire::{self, AsRole, Ask, Job, PutEntry, Tell},
};

/// A worker that answers nothing for so long is ended. Each app has a bound of its own, far below.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);
/// A worker that was told to give up has so long to do it.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// A commit that was held as a whole is tried again after this.
const HELD_FOR: Duration = Duration::from_secs(60);
/// Workers that one commit may end, before it is held as a whole.
const MOST_ENDS: usize = 32;
/// Lines of a worker's last words that are kept, and characters of each.
const LAST_WORDS: usize = 5;
const LONGEST_WORD: usize = 300;

/// How a worker is started: a program whose arguments make it call [`crate::serve`].
#[derive(Debug, Clone)]
pub struct Program {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What a worker may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of memory (`RLIMIT_AS`).
    pub memory: u64,
    /// Processor time that an app may take for a commit. A piece of its work, such as one template for one
    /// cluster, may take three times as long by the clock.
    pub app: Duration,
}

/// The memory of a worker on a machine that has enough.
const MEMORY: u64 = 2 * 1024 * 1024 * 1024;

impl Limits {
    /// Half of the memory that this container is limited to, where it is, and at most 2 GiB; 2 s for an app.
    #[must_use]
    pub fn within(container: Option<u64>) -> Self {
        Self {
            memory: container.map_or(MEMORY, |limit| (limit / 2).min(MEMORY)),
            app: Duration::from_secs(2),
        }
    }
}

impl Default for Limits {
    /// Of a machine that has enough.
    fn default() -> Self {
        Self::within(None)
    }
}

/// Why nothing came of a commit.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// It can't be started.
    #[error("the worker that renders can't be started: {program}", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it says can't be read, though it lives.
    #[error("what the worker that renders says can't be read")]
    Answer(#[source] io::Error),
}

/// Works on commit after commit.
#[derive(Debug)]
pub struct Worker {
    program: Program,
    limits: Limits,
    journal: Journal,
    role: Option<AsRole>,
    running: Option<Running>,
    /// How many workers have ended that should not have.
    ended: u64,
    /// After what time the same commit may come to something else.
    again: Option<Duration>,
}

/// A worker, and what it has.
#[derive(Debug)]
struct Running {
    child: Child,
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    last_words: JoinHandle<String>,
    tree: Arc<Tree>,
    received: Received,
}

/// How an attempt ended without an answer.
enum Ended {
    /// It was told to give up.
    Interrupted,
    /// It can't be used at all.
    Failed(WorkError),
    /// It is gone.
    Dead {
        /// The app that it was working on, where that is known.
        app: Option<AppName>,
        why: Why,
    },
}

/// Why a worker is gone.
enum Why {
    /// One app's work did not end.
    Stuck,
    /// It said nothing for too long.
    Silent,
    /// It died. What is known of that.
    Died(String),
}

impl Worker {
    /// Starts workers with this program. What is being worked on is written to `journal`, if there is one.
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

    /// Shows apps in another role than the one that placement gives.
    pub fn show_as(&mut self, role: Option<AsRole>) {
        self.role = role;
    }

    /// Gives up what is being worked on, since this process is about to end in good order.
    pub fn abandon(&mut self) {
        self.running = None;
        self.journal.end();
    }

    /// After what time the newest commit may come to something else: what took too long or too much may have
    /// done so for a reason of this machine's.
    #[must_use]
    pub fn again(&self) -> Option<Duration> {
        self.again
    }

    /// How many workers have ended that should not have.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Reads and renders a commit's files. `newer` ends when something else is to be done instead; then there
    /// is no outcome.
    ///
    /// # Errors
    /// [`WorkError`] where there is no worker to be had. What is wrong with the commit is in its outcome.
    pub async fn work(
        &mut self,
        commit: &str,
        tree: &Arc<Tree>,
        newer: impl Future<Output = ()>,
    ) -> Result<Option<Outcome>, WorkError> {
        let mut newer = std::pin::pin!(newer);
        let mut interrupted = false;
        self.journal.verdicts().trim(tree);
        let (tree, too_large) = sizes::without_large(tree, self.limits.memory / 4);
        let tree = &tree;
        let mut careful = self.journal.ended_over(commit);
        if let Some(app) = self.journal.guilty(commit) {
            let message = "the hub ended twice while it worked on this app";
            let problem = problem(&app, message).help(SMALLER);
            self.journal.verdicts().add(app, tree, problem);
        }
        for _ in 0..MOST_ENDS {
            self.journal.begin(commit, None);
            // Going through the apps one by one is not given up: what it finds would never be found.
            let interrupt = (!careful).then_some((newer.as_mut(), &mut interrupted));
            let attempt = self.attempt(commit, tree, careful, &too_large, interrupt);
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
                    tracing::warn!(%commit, app = app.as_ref().map(AppName::as_str), how, "the worker that renders ended over this commit");
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
        let how = format!("{MOST_ENDS} workers ended over it, one after the other");
        Ok(Some(held(&Why::Died(how))))
    }

    async fn attempt(
        &mut self,
        commit: &str,
        tree: &Arc<Tree>,
        careful: bool,
        too_large: &BTreeMap<AppName, Problem>,
        interrupt: Option<Interrupt<'_, impl Future<Output = ()>>>,
    ) -> Result<(Outcome, bool), Ended> {
        // Whoever lets go of this future lets go of the worker, too: it may be in the middle of a word.
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

const SMALLER: &str = "look for values that hold themselves or each other many times over, for macros and \
     loops that make much of little, and for very large files";

fn died(app: &AppName, how: &str) -> Problem {
    let message = format!("reading and rendering this app ends the process that does it: {how}");
    problem(app, message).help(SMALLER)
}

/// The whole commit is held.
fn held(why: &Why) -> Outcome {
    let message = match why {
        Why::Died(how) => format!("reading this commit ends the process that does it: {how}"),
        Why::Stuck | Why::Silent => format!(
            "reading and rendering this commit takes over {} s",
            ANSWER_WITHIN.as_secs()
        ),
    };
    let problem = Problem::new(Scope::Fleet, "fleet.yaml", message);
    let help =
        "it is no single app's doing; look at what is outside of apps/, and at the size of it all";
    Outcome {
        problems: vec![problem.help(help)],
        ..Outcome::default()
    }
}

/// Why there is no answer.
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

    /// What comes of a job; nothing where it was given up.
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
                // A frame that has begun is read to its end.
                let mut read = std::pin::pin!(read);
                tokio::select! {
                    read = &mut read => read?,
                    () = until(interrupt.as_mut()) => {
                        // It has fired, and is not asked again.
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

    /// Sends what differs from the files that it has.
    async fn tell_changes(&mut self, tree: &Arc<Tree>) -> io::Result<()> {
        let mut frames = Vec::new();
        // A content is sent once, however many files have it.
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

    /// Waits for its end; `None` where it lives.
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

/// The same content, by its id.
fn is_same(a: &Entry, b: &Entry) -> bool {
    match (a, b) {
        (Entry::File { id: a, .. }, Entry::File { id: b, .. }) => a == b,
        _ => a == b,
    }
}

/// What interrupts a job, and whether it has.
type Interrupt<'a, F> = (Pin<&'a mut F>, &'a mut bool);

/// Waits until a job is to be interrupted; for ever where nothing does that.
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

/// The last lines of what it writes to standard error.
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

/// How a worker ended, for people.
fn in_words(status: ExitStatus, words: &str) -> String {
    // Safe code has no other way to a segmentation fault.
    let fault = Some(Signal::SEGV.as_raw());
    if words.contains("overflowed its stack") || status.signal() == fault {
        return "it nests too deep (stack overflow)".to_owned();
    }
    if words.contains("memory allocation of") {
        return "it needs more memory than there is for it".to_owned();
    }
    if words.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {words}")
    }
}
