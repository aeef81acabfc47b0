//! Measures one commit to thousands of clusters. Streams, mTLS and the hub process are real. Only the cluster behind
//! each agent is simulated; it applies instantly.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::report::{Row, Section};
use anyhow::{Context, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use muster_agent::{Arrived, Cluster, Level, TakeError, dial, follow};
use muster_model::{
    fleet_record::SealedRecord,
    ids::{ClusterName, ContentHash},
};
use muster_pki::{Credentials, JoinToken, Key, Login, TrustBundle};
use muster_plan::delivery::{Known, Term};
use muster_proto::v1::{self, admin_client::AdminClient, enrolment_client::EnrolmentClient};
use muster_runtime::backoff::Backoff;
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    wait::eventually,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

const COMMITS: usize = 30;
const REGIONS: usize = 20;
const APPS: usize = 10;
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// The results of one run.
pub(crate) struct Fanout {
    /// The number of connected agents.
    pub(crate) agents: usize,
    /// For each commit, the time from the end of `git push` until the hub has the last acknowledgement.
    pub(crate) last: Vec<Duration>,
    /// For each commit and agent, the time from the end of `git push` until the agent has the new generation in force.
    pub(crate) each: Vec<Duration>,
    /// The time from the first connection until all agents are connected and in sync.
    pub(crate) joined: Duration,
    /// The hub's resident memory before the first agent, in bytes.
    pub(crate) before: u64,
    /// The hub's resident memory while all agents are idle, in bytes.
    pub(crate) idle: u64,
    /// The hub's peak resident memory, in bytes.
    pub(crate) peak: u64,
}

/// A simulated cluster that applies instantly.
struct Instantly {
    state: Mutex<State>,
    level: watch::Sender<Arc<Level>>,
    taken: watch::Sender<(u64, Instant)>,
}

#[derive(Default)]
struct State {
    known: Known,
    held: HashSet<ContentHash>,
}

impl Instantly {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            level: watch::Sender::new(Arc::default()),
            taken: watch::Sender::new((0, Instant::now())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster for Instantly {
    fn known(&self) -> Known {
        self.state().known.clone()
    }

    fn holds(&self, hash: ContentHash) -> bool {
        self.state().held.contains(&hash)
    }

    async fn note_term(&self, term: Term, incarnation: &str) -> Result<(), TakeError> {
        let mut state = self.state();
        state.known.term = term;
        incarnation.clone_into(&mut state.known.incarnation);
        Ok(())
    }

    async fn note_record(&self, record: SealedRecord) -> Result<(), TakeError> {
        self.state().known.record = Some(record);
        Ok(())
    }

    async fn take(&self, generation: Arrived) -> Result<(), TakeError> {
        {
            let mut state = self.state();
            state.known = Known {
                term: generation.term,
                incarnation: generation.incarnation,
                in_force: Some(generation.number),
                record: generation.record,
                is_record_foreign: false,
            };
            state.held = generation
                .bundles
                .iter()
                .map(|bundle| bundle.hash)
                .collect();
        }
        let apps = generation.bundles.iter().map(|bundle| {
            let report = v1::AppReport {
                app: bundle.app.to_string(),
                hash: bundle.hash.0.to_vec(),
                phase: v1::Phase::Applied.into(),
                objects: 5,
                applied: 5,
                health: "Healthy".to_owned(),
                ..v1::AppReport::default()
            };
            (report.app.clone(), Arc::new(report))
        });
        let (in_force, apps) = (Some(generation.number), apps.collect());
        self.level.send_replace(Arc::new(Level {
            in_force,
            apps,
            problems: Vec::new(),
            settled: true,
            cluster_scoped: Vec::new(),
        }));
        self.taken
            .send_replace((generation.number.generation.0, Instant::now()));
        Ok(())
    }

    fn level(&self) -> watch::Receiver<Arc<Level>> {
        self.level.subscribe()
    }

    fn objects(&self, _app: &str) -> Vec<v1::ObjectState> {
        Vec::new()
    }
}

fn cluster_name(index: usize) -> String {
    format!("c{index:04}")
}

/// A template of five common objects. The ConfigMap contains the cluster's name, so that every cluster has a
/// different bundle, which is the worst case for a hub.
const TEMPLATE: &str = include_str!("fanout.template.yaml");

/// Returns the files of the fleet repository, with the values before the first commit.
fn files(clusters: usize, apps: usize) -> repository::Files {
    let clusters =
        (0..clusters).map(|index| (cluster_name(index), format!("r{:02}", index % REGIONS)));
    let mut files = repository::fleet("fanout", "{}", clusters);
    for app in 0..apps {
        let name = format!("app{app}");
        files.insert(
            format!("apps/{name}/app.yaml"),
            document("App", &name, "{tier: basic, mode: active-active}"),
        );
        files.insert(
            format!("apps/{name}/templates/all.yaml"),
            TEMPLATE.to_owned(),
        );
        files.insert(format!("apps/{name}/values.yaml"), values(0));
    }
    files
}

fn values(commit: usize) -> String {
    format!("image: registry.example.com/app:v{commit}\nreplicas: 3\nport: 8080\n")
}

/// Returns the current and the peak resident memory of a process and its children, such as a hub's worker, in bytes.
pub(crate) fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let mut all = memory_of(pid)?;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has ended in the meantime has no memory.
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.and_then(|parent| parent.trim().parse().ok()) == Some(pid)
            && let Ok((now, peak)) = memory_of(child)
        {
            all = (all.0 + now, all.1 + peak);
        }
    }
    Ok(all)
}

fn memory_of(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| -> anyhow::Result<u64> {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .context("the status of the process has no memory figures")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("the memory figure has no number")?
            .parse()?;
        Ok(kib * 1024)
    };
    Ok((line("VmRSS:")?, line("VmHWM:")?))
}

/// Returns an admin client that uses the login in this file.
async fn admin(login: &Path) -> anyhow::Result<AdminClient<Channel>> {
    let login = Login::read(login)?;
    let (trust, credentials) = login.open()?;
    let channel = dial(&login.hub, &trust, Some(&credentials)).await?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Joins one cluster. Returns its name, the address of the hub, the trust bundle and the credentials.
async fn join(
    mut admin: AdminClient<Channel>,
    name: String,
) -> anyhow::Result<(ClusterName, String, TrustBundle, Credentials)> {
    let request = v1::JoinTokenRequest {
        cluster: name.clone(),
        valid_seconds: 0,
    };
    let token: JoinToken = admin
        .create_join_token(request)
        .await?
        .into_inner()
        .token
        .parse()?;
    let key = Key::generate()?;
    let channel = dial(&token.hub, &token.trust, None).await?;
    let request = v1::EnrolRequest {
        token: token.secret.expose(),
        csr: key.request()?,
    };
    let granted = EnrolmentClient::new(channel)
        .enrol(request)
        .await?
        .into_inner();
    let credentials = Credentials::new(&granted.certificate, key)?;
    Ok((
        name.parse()?,
        token.hub,
        TrustBundle::from_pem(&granted.trust)?,
        credentials,
    ))
}

/// A hub with simulated agents, all in sync.
pub(crate) struct Crowd {
    pub(crate) fleet: Fleet,
    pub(crate) admin: AdminClient<Channel>,
    /// The hub's resident memory before the first agent, in bytes.
    pub(crate) before: u64,
    /// The time from the first connection until all agents were connected and in sync.
    pub(crate) joined: Duration,
    clusters: Vec<Arc<Instantly>>,
    /// The number of streams that ended with an error.
    pub(crate) ended: Arc<AtomicUsize>,
    stop: CancellationToken,
    following: tokio::task::JoinSet<()>,
    apps: usize,
    commits: usize,
}

impl Crowd {
    pub(crate) async fn gather(
        muster: PathBuf,
        agents: usize,
        apps: usize,
    ) -> anyhow::Result<Self> {
        let mut fleet = Fleet::start(FleetOptions::new(muster, &[])).await?;
        let files = files(agents, apps);
        fleet.repo().publish("begin", &repository::listed(&files))?;
        fleet.start_hub().await?;
        let mut admin = admin(&fleet.login()).await?;
        eventually("the first commit", Duration::from_secs(120), async || {
            let status = admin
                .get_status(v1::StatusRequest::default())
                .await?
                .into_inner();
            ensure!(
                status.clusters.len() == agents,
                "{} clusters",
                status.clusters.len()
            );
            Ok(())
        })
        .await?;
        let pid = fleet.hub()?.pid();
        let joined: Vec<_> = futures::stream::iter(
            (0..agents).map(|index| join(admin.clone(), cluster_name(index))),
        )
        .buffer_unordered(16)
        .try_collect()
        .await?;
        let (before, _) = memory(pid)?;
        let began = Instant::now();
        let stop = CancellationToken::new();
        let ended = Arc::new(AtomicUsize::new(0));
        let mut clusters = Vec::with_capacity(agents);
        let mut following = tokio::task::JoinSet::new();
        // This machine computes both sides of each handshake, so their number is limited.
        let dialling = Arc::new(Semaphore::new(64));
        for (process, (name, hub, trust, credentials)) in (1_u64..).zip(joined) {
            let cluster = Arc::new(Instantly::new());
            clusters.push(Arc::clone(&cluster));
            let (stop, ended, dialling) = (stop.clone(), Arc::clone(&ended), Arc::clone(&dialling));
            following.spawn(async move {
                // The same back-off as in agents.
                let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
                while !stop.is_cancelled() {
                    let dialled = {
                        let _turn = dialling.acquire().await;
                        dial(&hub, &trust, Some(&credentials)).await
                    };
                    let channel = match dialled {
                        Ok(channel) => channel,
                        Err(error) => {
                            eprintln!("{name}: {error}");
                            tokio::time::sleep(backoff.next_delay()).await;
                            continue;
                        }
                    };
                    if let Err(error) = follow(
                        channel,
                        &name,
                        process,
                        cluster.as_ref(),
                        &stop,
                        &tokio::sync::Notify::new(),
                        || {},
                    )
                    .await
                    {
                        ended.fetch_add(1, Ordering::Relaxed);
                        eprintln!("{name}: {error}");
                    }
                }
            });
        }
        acknowledged(&mut admin, agents, Duration::from_secs(300)).await?;
        Ok(Self {
            fleet,
            admin,
            before,
            joined: began.elapsed(),
            clusters,
            ended,
            stop,
            following,
            apps,
            commits: 0,
        })
    }

    /// Pushes one commit. Returns the time until the hub has the last acknowledgement, and the time until each agent
    /// has the commit.
    pub(crate) async fn commit(&mut self) -> anyhow::Result<(Duration, Vec<Duration>)> {
        self.commits += 1;
        let before: Vec<u64> = self
            .clusters
            .iter()
            .map(|cluster| cluster.taken.borrow().0)
            .collect();
        let path = format!("apps/app{}/values.yaml", self.commits % self.apps);
        let files = [(path.as_str(), values(self.commits))];
        let files = files.each_ref().map(|(path, text)| (*path, text.as_str()));
        let subject = format!("commit {}", self.commits);
        self.fleet.repo().publish(&subject, &files)?;
        let pushed = Instant::now();
        let mut each = Vec::with_capacity(before.len());
        for (cluster, before) in self.clusters.iter().zip(before) {
            let mut taken = cluster.taken.subscribe();
            let taken = tokio::time::timeout(
                Duration::from_secs(60),
                taken.wait_for(|(n, _)| *n > before),
            );
            let (_, at) = *taken
                .await
                .context("a cluster did not get the commit within a minute")??;
            each.push(at.saturating_duration_since(pushed));
        }
        let agents = self.clusters.len();
        acknowledged(&mut self.admin, agents, Duration::from_secs(60)).await?;
        Ok((pushed.elapsed(), each))
    }

    /// Stops all agents.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.following.join_all().await;
    }
}

/// Runs the benchmark with this many agents.
pub(crate) async fn run(muster: PathBuf, agents: usize, commits: usize) -> anyhow::Result<Fanout> {
    let mut crowd = Crowd::gather(muster, agents, APPS).await?;
    let pid = crowd.fleet.hub()?.pid();
    let (idle, _) = settled(pid).await?;
    let (mut last, mut each) = (Vec::new(), Vec::new());
    for _ in 0..commits {
        let (all, of_each) = crowd.commit().await?;
        last.push(all);
        each.extend(of_each);
    }
    let (_, peak) = memory(pid)?;
    let (before, joined) = (crowd.before, crowd.joined);
    crowd.close().await;
    Ok(Fanout {
        agents,
        last,
        each,
        joined,
        before,
        idle,
        peak,
    })
}

/// Waits until the hub has every cluster's acknowledgement of its desired generation.
async fn acknowledged(
    admin: &mut AdminClient<Channel>,
    agents: usize,
    within: Duration,
) -> anyhow::Result<()> {
    eventually("the last acknowledgement", within, async || {
        let status = admin
            .get_status(v1::StatusRequest::default())
            .await?
            .into_inner();
        let done = status
            .clusters
            .iter()
            .filter(|cluster| cluster.in_force == cluster.wanted && cluster.connected);
        let done = done.count();
        ensure!(done == agents, "{done} of {agents} clusters");
        Ok(())
    })
    .await
}

/// Returns the memory once it no longer falls. The memory for a burst of handshakes is only freed after a while.
async fn settled(pid: u32) -> anyhow::Result<(u64, u64)> {
    let mut lowest = memory(pid)?;
    let mut same = 0;
    while same < 5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = memory(pid)?;
        same = if now.0 + 256 * 1024 < lowest.0 {
            0
        } else {
            same + 1
        };
        lowest = if now.0 < lowest.0 { now } else { lowest };
    }
    Ok(lowest)
}

/// Runs the benchmark with 500 and with 2,000 agents, to show the growth, and returns its section of the report.
pub(crate) fn measure(_: u32) -> anyhow::Result<Section> {
    let muster = crate::machine::muster()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    for agents in [500, 2_000] {
        let found = runtime.block_on(run(muster.clone(), agents, COMMITS))?;
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect();
        let agents = found.agents;
        let each = (found.idle.saturating_sub(found.before)) as f64 / agents as f64 / 1024.0;
        let mebibytes = |bytes: u64| vec![bytes as f64 / 1_048_576.0];
        rows.push(Row::new(
            format!("{agents} agents: push to the last acknowledgement"),
            "s",
            seconds(&found.last),
        ));
        rows.push(Row::new(
            format!("{agents} agents: push to an agent"),
            "s",
            seconds(&found.each),
        ));
        rows.push(Row::new(
            format!("{agents} agents: connect all and bring them in sync"),
            "s",
            vec![found.joined.as_secs_f64()],
        ));
        rows.push(Row::new(
            format!("{agents} agents: hub memory for each idle agent"),
            "KiB",
            vec![each],
        ));
        rows.push(Row::new(
            format!("{agents} agents: hub, resident memory, idle"),
            "MiB",
            mebibytes(found.idle),
        ));
        rows.push(Row::new(
            format!("{agents} agents: hub, peak resident memory"),
            "MiB",
            mebibytes(found.peak),
        ));
    }
    let notes = vec![
        format!("{COMMITS} commits. Each changes one of {APPS} apps in every cluster. The app's bundle is different in every cluster, which is the worst case for a hub."),
        "Streams, mTLS and the hub process are real. The agents apply instantly and share the machine with the hub.".to_owned(),
    ];
    Ok(Section::new(
        "fanout",
        "One commit to thousands of clusters",
        rows,
        notes,
    ))
}
