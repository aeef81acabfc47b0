//! The worker process. It reads requests from its standard input, which is a socket, and writes its answers to the
//! same socket.

use std::{
    collections::HashMap,
    io::{self, BufReader, BufWriter, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use muster_model::{
    ids::{AppName, ObjectId},
    load::{Loaded, Loader},
    problem::Scope,
    tree::Tree,
};
use muster_plan::placement::{Known, Placed, place};
use muster_render::{Rendered, Renderer};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use crate::{
    overseer::Watch,
    pack::Sent,
    wire::{self, AsRole, Ask, Job, PutEntry, Tell},
};

/// How often the watchdog checks for a piece of work that takes too long.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The wall-clock limit for one piece of an app's work, such as one template for one cluster, as a multiple of the
/// app's budget. A piece of work can't be interrupted, so the whole worker exits when one exceeds the limit.
const STUCK_AFTER: u32 = 3;

/// The exit code of a worker that ends because one piece of an app's work takes too long.
const STUCK: u8 = 3;

type Out = Mutex<BufWriter<UnixStream>>;

/// Serves the process at the other end of standard input until that process closes the socket.
#[must_use]
pub fn serve() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the worker can't continue: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    limit(Resource::Core, 0)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let out: Out = Mutex::new(BufWriter::new(socket.try_clone()?));
    let mut from = BufReader::new(socket);
    let (Ask::Begin { memory, bundles }, _) = wire::read(&mut from)? else {
        return Err(io::Error::other(
            "the first message does not set the limits",
        ));
    };
    limit(Resource::As, memory)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let (jobs, next) = mpsc::sync_channel(1);
    thread::spawn({
        let stopped = Arc::clone(&stopped);
        move || {
            listen(&mut from, &stopped, &jobs);
            // The other process is gone, so nobody can receive an answer.
            std::process::exit(0);
        }
    });
    let mut shop = Shop::default();
    while let Ok((tree, job)) = next.recv() {
        shop.work(tree, &job, bundles, &stopped, &out)?;
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = Some(most);
    setrlimit(
        resource,
        Rlimit {
            current: most,
            maximum: most,
        },
    )?;
    Ok(())
}

/// Maintains the tree and passes on jobs, until the other process closes the socket or sends an invalid message.
fn listen(
    from: &mut BufReader<UnixStream>,
    stopped: &AtomicBool,
    jobs: &mpsc::SyncSender<(Arc<Tree>, Job)>,
) {
    let mut tree = Arc::new(Tree::default());
    let mut contents: HashMap<ObjectId, Arc<[u8]>> = HashMap::new();
    while let Ok((ask, bytes)) = wire::read(from) {
        match ask {
            Ask::Put { path, entry, sent } => {
                let bytes = match (&entry, sent) {
                    (PutEntry::File(id), true) => match contents.get(id) {
                        Some(bytes) => Arc::clone(bytes),
                        None => return,
                    },
                    (PutEntry::File(id), false) => {
                        let bytes: Arc<[u8]> = bytes.into();
                        contents.insert(*id, Arc::clone(&bytes));
                        bytes
                    }
                    _ => bytes.into(),
                };
                let entry = entry.join(bytes);
                Arc::make_mut(&mut tree).entries.insert(path, entry);
            }
            Ask::Gone { path } => {
                Arc::make_mut(&mut tree).entries.remove(&path);
            }
            Ask::Work(job) => {
                // Drop the contents that no file has any more.
                contents.retain(|_, bytes| Arc::strong_count(bytes) > 1);
                stopped.store(false, Ordering::Relaxed);
                if jobs.send((Arc::clone(&tree), *job)).is_err() {
                    return;
                }
            }
            Ask::Stop => stopped.store(true, Ordering::Relaxed),
            Ask::Begin { .. } => return,
        }
    }
}

fn tell(out: &Out, what: &Tell) -> io::Result<()> {
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    wire::write(&mut *out, what, &[])?;
    out.flush()
}

/// The state that is retained from one job to the next.
#[derive(Default)]
struct Shop {
    loader: Loader,
    renderer: Renderer,
    sent: Sent,
}

impl Shop {
    fn work(
        &mut self,
        tree: Arc<Tree>,
        job: &Job,
        most_bytes: u64,
        stopped: &AtomicBool,
        out: &Out,
    ) -> io::Result<()> {
        let begun = |app: Option<&AppName>| {
            // An error means that the other process is gone. The listening thread then ends this process.
            let _ = tell(out, &Tell::Begun(app.cloned()));
        };
        let watch = Watch::new(job, stopped, &begun);
        let mut work = || {
            let mut loaded = self.loader.load_overseen(&tree, &watch);
            let placed = placed(&loaded, job);
            if placed.problems.iter().any(|p| p.scope == Scope::Fleet) {
                loaded.model = None;
            }
            let rendered = match &loaded.model {
                Some(model) => {
                    self.renderer
                        .render_overseen(model, &placed.roles, &placed.record, &watch)
                }
                None => Rendered::default(),
            };
            (loaded, placed, rendered)
        };
        let worked = thread::scope(|scope| {
            let (done, waiting) = mpsc::channel();
            let watch = &watch;
            scope.spawn(move || guard(watch, &waiting, out));
            let worked = if job.careful {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                pool.map(|pool| pool.install(work))
                    .map_err(io::Error::other)
            } else {
                Ok(work())
            };
            drop::<mpsc::Sender<()>>(done);
            worked
        })?;
        // Without this reference, `listen` can change the tree in place instead of copying it.
        drop(tree);
        if watch.is_stopped() {
            return tell(out, &Tell::Stopped);
        }
        let (loaded, placed, rendered) = worked;
        let part = |id, file: &str, namespace: &str, lines: &str| {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            let (file, namespace) = (file.to_owned(), namespace.to_owned());
            let part = Tell::Part {
                id,
                file,
                namespace,
            };
            wire::write(&mut *out, &part, lines.as_bytes())
        };
        let mut answer = self
            .sent
            .answer(loaded, placed, rendered, most_bytes, part)?;
        answer.slow = watch.is_slow();
        tell(out, &Tell::Answer(Box::new(answer)))
    }
}

fn placed(loaded: &Loaded, job: &Job) -> Placed {
    let Some(model) = &loaded.model else {
        return Placed::default();
    };
    let known = Known {
        record: &job.writers.record,
        broken: &loaded.broken,
        frozen: job.writers.frozen.as_deref(),
    };
    let mut placed = place(model, known);
    if let Some(AsRole { cluster, app, role }) = &job.role {
        for (name, places) in &mut placed.roles {
            let wanted = app.as_ref().is_none_or(|app| app == name.as_str());
            if let Some(place) = places.get_mut(cluster).filter(|_| wanted) {
                *place = *role;
            }
        }
    }
    placed
}

/// Ends the process if one piece of an app's work takes too long.
fn guard(watch: &Watch<'_>, done: &mpsc::Receiver<()>, out: &Out) {
    while done.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
        match watch.longest() {
            Some((app, took)) if took > watch.budget() * STUCK_AFTER => {
                let _ = tell(out, &Tell::Stuck(app));
                std::process::exit(i32::from(STUCK));
            }
            _ => {}
        }
    }
}
