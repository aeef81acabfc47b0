//! Measures applying: how fast objects get into an API server, the cost of an apply that changes nothing, and
//! the agent's memory. All clients use the same API server, one after the other.

mod audit;
mod clients;
mod objects;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kube::{Client, config::KubeConfigOptions};
use muster_testkit::{
    local::{Cluster, ClusterOptions},
    scratch::Scratch,
};

use self::{
    audit::{Audit, Counts, account, prepare},
    clients::{Files, Kubectl, Worker, bare, disown, write},
};
use crate::{
    machine,
    peers::Peer,
    report::{Row, Section, Spread},
};

/// The numbers of parallel bare PATCH requests that are measured.
const AT_A_TIME: [usize; 4] = [8, 16, 32, 64];
const ROUNDS: usize = 5;
/// The number of sets in the large measurement.
const LARGE: usize = 10;
/// The time without changes during which requests are counted. Memory is read at its end.
const QUIET: Duration = Duration::from_secs(130);

const PER_SECOND: &str = "objects/s";

/// A client that applies objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Muster,
    Bare,
    Kubectl,
    Flux,
}

const ALL: [Who; 4] = [Who::Muster, Who::Bare, Who::Kubectl, Who::Flux];

impl Who {
    fn account(self) -> &'static str {
        match self {
            Self::Muster => "muster",
            Self::Bare => "bare",
            Self::Kubectl => "kubectl",
            Self::Flux => "flux",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Muster => "Muster",
            Self::Bare => "bare PATCH requests, at the best concurrency",
            Self::Kubectl => "`kubectl apply --server-side`",
            Self::Flux => "Flux's `ssa` package",
        }
    }
}

/// The result of one client's turn. The client applies the same objects twice. The first time, they do not exist yet.
struct Turn {
    who: Who,
    first: Duration,
    second: Duration,
    first_requests: Counts,
    second_requests: Counts,
}

impl Turn {
    fn rate(&self, objects: usize) -> f64 {
        objects as f64 / self.first.as_secs_f64()
    }

    /// Prints the times to standard error, to show progress.
    fn say(self, what: &str) -> Self {
        eprintln!(
            "{what}: {} in {:.2?}, again in {:.2?}",
            self.who.account(),
            self.first,
            self.second
        );
        self
    }
}

/// Further figures of Muster in the large measurement. Memory is in bytes.
struct Agent {
    peak: u64,
    settled: u64,
    quiet: Counts,
    restart: Duration,
    restart_requests: Counts,
    restart_peak: u64,
}

struct Bench {
    cluster: Cluster,
    scratch: Scratch,
    audit: Audit,
    bare: Client,
    kubectl: Kubectl,
    flux: Worker,
    agent: PathBuf,
    agent_kubeconfig: PathBuf,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let (kubectl, flux) = (Peer::Kubectl.build()?, Peer::FluxSsa.build()?);
        let scratch = Scratch::temporary("bench-apply")?;
        let options = ClusterOptions {
            audit: true,
            ..ClusterOptions::new("bench-apply")
        };
        let cluster = Cluster::start(options).await?;
        prepare(&cluster.client().await?).await?;
        let mut kubeconfigs = Vec::new();
        for who in ALL {
            let kubeconfig = account(&cluster, who.account()).await?;
            let file = scratch.path().join(format!("{}.kubeconfig", who.account()));
            fs::write(&file, serde_json::to_vec(&kubeconfig)?)?;
            kubeconfigs.push((kubeconfig, file));
        }
        let [muster, bare, kubectl_config, flux_config] = &kubeconfigs[..] else {
            anyhow::bail!("there must be one kubeconfig for each client")
        };
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(bare.0.clone(), &options).await?;
        let kubectl = Kubectl {
            program: kubectl,
            kubeconfig: kubectl_config.1.clone(),
            cache: scratch.path().join("kubectl-cache"),
        };
        kubectl.warm_up()?;
        Ok(Self {
            audit: Audit::of(&cluster),
            bare: Client::try_from(config)?,
            kubectl,
            flux: Worker::start(&flux, &[&flux_config.1.to_string_lossy()])?,
            agent: machine::beside("muster-bench-agent")?,
            agent_kubeconfig: muster.1.clone(),
            cluster,
            scratch,
        })
    }

    /// Starts a process with Muster's apply engine, with its own namespace for its records. The namespace is
    /// created first, because the namespace of a real agent also exists before the agent starts.
    async fn agent(&self, name: &str) -> anyhow::Result<Worker> {
        let records = format!("{name}-records");
        audit::namespace(&self.cluster.client().await?, &records).await?;
        let kubeconfig = self.agent_kubeconfig.to_string_lossy();
        Worker::start(&self.agent, &[&kubeconfig, &records])
    }

    /// Creates new objects for a client and writes them to files.
    fn objects(
        &self,
        name: &str,
        sets: usize,
    ) -> anyhow::Result<(Vec<Vec<serde_json::Value>>, Files)> {
        let sets = objects::sets(name, sets);
        let files = write(self.scratch.path(), name, &sets)?;
        Ok((sets, files))
    }

    /// Applies new objects with bare requests.
    async fn bare(&mut self, name: &str, sets: usize, at_a_time: usize) -> anyhow::Result<Turn> {
        let sets = objects::sets(name, sets);
        self.audit.take("").await?;
        let first = bare(&self.bare, &sets, at_a_time).await?;
        let first_requests = self.audit.take(Who::Bare.account()).await?;
        let second = bare(&self.bare, &sets, at_a_time).await?;
        Ok(Turn {
            who: Who::Bare,
            first,
            second,
            first_requests,
            second_requests: self.audit.take(Who::Bare.account()).await?,
        })
    }

    /// Applies new objects with a peer.
    async fn peer(&mut self, who: Who, name: &str, sets: usize) -> anyhow::Result<Turn> {
        let (_, files) = self.objects(name, sets)?;
        self.audit.take("").await?;
        let apply = |this: &mut Self| match who {
            Who::Kubectl => this.kubectl.apply(&files.list),
            _ => this.flux.apply(&files.plain.to_string_lossy()),
        };
        let first = apply(self)?;
        let first_requests = self.audit.take(who.account()).await?;
        let second = apply(self)?;
        Ok(Turn {
            who,
            first,
            second,
            first_requests,
            second_requests: self.audit.take(who.account()).await?,
        })
    }

    /// Applies new objects with Muster, in a new process.
    async fn muster(&mut self, name: &str, sets: usize) -> anyhow::Result<(Turn, Worker, PathBuf)> {
        let (_, files) = self.objects(name, sets)?;
        self.audit.take("").await?;
        let mut agent = self.agent(name).await?;
        let bundles = files.bundles.to_string_lossy();
        let first = agent.apply(&format!("1 {bundles}"))?;
        let first_requests = self.audit.take(Who::Muster.account()).await?;
        let second = agent.apply(&format!("2 {bundles}"))?;
        let turn = Turn {
            who: Who::Muster,
            first,
            second,
            first_requests,
            second_requests: self.audit.take(Who::Muster.account()).await?,
        };
        Ok((turn, agent, files.bundles))
    }

    /// Measures the agent's memory and requests while nothing changes, and the time, memory and requests of a
    /// restart.
    async fn rest(&mut self, name: &str, agent: Worker, bundles: &Path) -> anyhow::Result<Agent> {
        let (_, peak) = agent.memory()?;
        // Waits until the requests of the last apply are finished and logged.
        self.audit.take(Who::Muster.account()).await?;
        tokio::time::sleep(QUIET).await;
        let (settled, _) = agent.memory()?;
        let quiet = self.audit.take(Who::Muster.account()).await?;
        agent.stop()?;
        self.audit.take(Who::Muster.account()).await?;
        let start = Instant::now();
        let mut agent = self.agent(name).await?;
        agent.apply(&format!("2 {}", bundles.to_string_lossy()))?;
        let restart = start.elapsed();
        let restart_requests = self.audit.take(Who::Muster.account()).await?;
        let (_, restart_peak) = agent.memory()?;
        agent.stop()?;
        Ok(Agent {
            peak,
            settled,
            quiet,
            restart,
            restart_requests,
            restart_peak,
        })
    }
}

/// Runs the benchmark and returns its section of the report.
pub(crate) fn measure(_: u32) -> anyhow::Result<Section> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> anyhow::Result<Section> {
    let mut bench = Bench::start().await?;
    let mut bares: [Vec<Turn>; AT_A_TIME.len()] = Default::default();
    let mut small = Vec::new();
    for round in 0..ROUNDS {
        for turn in 0..ALL.len() {
            // The order changes with each round, so that every client is first at least once.
            let who = ALL[(turn + round) % ALL.len()];
            let what = format!("round {} of {ROUNDS}", round + 1);
            match who {
                Who::Bare => {
                    for (bares, at_a_time) in bares.iter_mut().zip(AT_A_TIME) {
                        let name = format!("bare-{round}-{at_a_time}");
                        let turn = bench.bare(&name, 1, at_a_time).await?;
                        bares.push(turn.say(&format!("{what}, {at_a_time} at a time")));
                    }
                }
                Who::Muster => {
                    let (turn, agent, _) = bench.muster(&format!("muster-{round}"), 1).await?;
                    agent.stop()?;
                    disown(&bench.bare, &objects::sets(&format!("muster-{round}"), 1)).await?;
                    small.push(turn.say(&what));
                }
                peer => {
                    let name = format!("{}-{round}", peer.account());
                    small.push(bench.peer(peer, &name, 1).await?.say(&what));
                }
            }
        }
    }
    let rate = |turns: &[Turn]| {
        let rates: Vec<f64> = turns.iter().map(|turn| turn.rate(objects::SET)).collect();
        Spread::of(&rates).median
    };
    let best = (0..AT_A_TIME.len())
        .max_by(|a, b| rate(&bares[*a]).total_cmp(&rate(&bares[*b])))
        .unwrap_or_default();
    let all: Vec<String> = AT_A_TIME
        .iter()
        .zip(&bares)
        .map(|(at_a_time, turns)| format!("{at_a_time}: {:.0}", rate(turns)))
        .collect();
    let mut large = Vec::new();
    let mut agent = None;
    for who in [Who::Bare, Who::Muster, Who::Flux, Who::Kubectl] {
        let name = format!("{}-large", who.account());
        let turn = match who {
            Who::Bare => bench.bare(&name, LARGE, AT_A_TIME[best]).await?,
            Who::Muster => {
                let (turn, worker, bundles) = bench.muster(&name, LARGE).await?;
                agent = Some(bench.rest(&name, worker, &bundles).await?);
                turn
            }
            peer => bench.peer(peer, &name, LARGE).await?,
        };
        large.push(turn.say(&format!("{} objects", LARGE * objects::SET)));
    }
    small.extend(bares.into_iter().nth(best).unwrap_or_default());
    let mut rows = rates("first apply", &small, objects::SET);
    rows.extend(rates("first apply", &large, LARGE * objects::SET));
    rows.extend(unchanged(&large));
    let mut notes = vec![
        format!(
            "A set of 1,010 objects has 600 ConfigMaps, 200 Deployments (without replicas), 200 headless Services \
             and 10 Namespaces. All are new to the API server at the first apply. One set is measured in \
             {ROUNDS} rounds, each with the clients in another order; the {} objects are measured once.",
            LARGE * objects::SET
        ),
        format!(
            "Objects per second with 1,010 objects, by the number of parallel bare PATCH requests: {}. The best \
             result is in the table.",
            all.join(", ")
        ),
    ];
    if let Some(agent) = agent {
        rows.extend(agent.rows());
        notes.push(agent.note());
    }
    notes.extend(requests(&large));
    notes.extend([
        "kubectl is timed as a whole process. The times of all others exclude reading their files. Flux's \
         package runs in a long-lived process, with four parallel dry runs as in its controller and \
         without client-side throttling."
            .to_owned(),
        "All clients use one etcd without fsync and one API server. No controllers run, so that no client \
         pays for work that another client's objects cause. Both servers share the machine with the \
         client. Requests are counted from the API server's audit log."
            .to_owned(),
    ]);
    // The last client process must end before the API server does.
    bench.flux.stop()?;
    drop(bench.cluster);
    Ok(Section::new("apply", "Applying", rows, notes))
}

fn of(turns: &[Turn], who: Who) -> impl Iterator<Item = &Turn> {
    turns.iter().filter(move |turn| turn.who == who)
}

/// Returns a row with the objects per second of each client, Muster's first, with the ratio of Muster to each peer.
fn rates(what: &str, turns: &[Turn], objects: usize) -> Vec<Row> {
    let row = |who: Who| {
        let rates = of(turns, who).map(|turn| turn.rate(objects)).collect();
        Row::new(
            format!("{what}, {objects} objects: {}", who.label()),
            PER_SECOND,
            rates,
        )
    };
    let ours = row(Who::Muster);
    let mut rows: Vec<Row> = [Who::Bare, Who::Kubectl, Who::Flux]
        .map(|who| row(who).beside(&ours))
        .into();
    rows.insert(0, ours);
    rows
}

/// Returns a row with the time of the second apply, which changes nothing, for each client.
fn unchanged(turns: &[Turn]) -> Vec<Row> {
    let row = |who: Who| {
        let times = of(turns, who).map(|turn| turn.second.as_secs_f64() * 1e3);
        Row::new(
            format!("second apply, nothing changed: {}", who.label()),
            "ms",
            times.collect(),
        )
    };
    [Who::Muster, Who::Bare, Who::Kubectl, Who::Flux]
        .map(row)
        .into()
}

/// Returns a note with the number of requests for each client.
fn requests(turns: &[Turn]) -> Vec<String> {
    let note = |turn: &Turn| {
        let text = |counts: &Counts| {
            format!(
                "{} writes, {} dry runs, {} reads",
                counts.writes(),
                counts.dry_runs(),
                counts.reads()
            )
        };
        format!(
            "Requests of {}: first apply {}; second apply {}.",
            turn.who.label(),
            text(&turn.first_requests),
            text(&turn.second_requests)
        )
    };
    turns.iter().map(note).collect()
}

impl Agent {
    fn rows(&self) -> Vec<Row> {
        let mebibytes = |bytes: u64| vec![bytes as f64 / 1_048_576.0];
        let objects = LARGE * objects::SET;
        vec![
            Row::new(
                format!("Muster restarted with {objects} objects, nothing changed"),
                "ms",
                vec![self.restart.as_secs_f64() * 1e3],
            ),
            Row::new(
                format!("Muster with {objects} objects, peak resident memory"),
                "MiB",
                mebibytes(self.peak.max(self.restart_peak)),
            ),
            Row::new(
                format!("Muster with {objects} objects, resident memory when settled"),
                "MiB",
                mebibytes(self.settled),
            ),
            Row::new(
                format!("Muster's requests in {} s without changes", QUIET.as_secs()),
                "requests",
                vec![self.quiet.total() as f64],
            ),
        ]
    }

    fn note(&self) -> String {
        format!(
            "Muster's requests in {} s without changes: {}; after a restart: {}.",
            QUIET.as_secs(),
            self.quiet.text(),
            self.restart_requests.text()
        )
    }
}
