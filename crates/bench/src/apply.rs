//! Applying: how fast objects get into an API server, what it costs when nothing has changed, and what
//! the agent needs. All clients speak to the same API server, in turn.

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

/// How many requests at a time are tried without a client around them.
const AT_A_TIME: [usize; 4] = [8, 16, 32, 64];
const ROUNDS: usize = 5;
/// Sets in the large measurement.
const LARGE: usize = 10;
/// How long nothing happens before memory is read and requests are counted.
const QUIET: Duration = Duration::from_secs(130);

const PER_SECOND: &str = "objects/s";

/// Who applies.
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
            Self::Bare => "bare PATCH requests, at the best number at a time",
            Self::Kubectl => "`kubectl apply --server-side`",
            Self::Flux => "Flux's `ssa` package",
        }
    }
}

/// One client's turn with objects that are new to the API server.
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

    /// For somebody who waits.
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

/// What the large measurement finds out about Muster besides.
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
            anyhow::bail!("as many kubeconfigs as clients")
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

    /// A process of Muster's engine, whose records are in a namespace of their own. It is there before,
    /// as that of an agent that has joined is.
    async fn agent(&self, name: &str) -> anyhow::Result<Worker> {
        let records = format!("{name}-records");
        audit::namespace(&self.cluster.client().await?, &records).await?;
        let kubeconfig = self.agent_kubeconfig.to_string_lossy();
        Worker::start(&self.agent, &[&kubeconfig, &records])
    }

    /// New objects for a client.
    fn objects(
        &self,
        name: &str,
        sets: usize,
    ) -> anyhow::Result<(Vec<Vec<serde_json::Value>>, Files)> {
        let sets = objects::sets(name, sets);
        let files = write(self.scratch.path(), name, &sets)?;
        Ok((sets, files))
    }

    /// Bare requests with new objects.
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

    /// A peer with new objects.
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

    /// Muster with new objects, in a process that is new, too.
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

    /// What the agent needs when nothing happens, and for a new start.
    async fn rest(&mut self, name: &str, agent: Worker, bundles: &Path) -> anyhow::Result<Agent> {
        let (_, peak) = agent.memory()?;
        // What the last apply begot is over.
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

/// Measures, for the report.
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
            // Everybody is first once.
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
            "Of 1,010 objects 600 are ConfigMaps, 200 Deployments (without replicas), 200 Services (headless) and 10 \
             Namespaces. All are new to the API server at the first apply. {ROUNDS} rounds, with the \
             clients in another order each; the {} objects once.",
            LARGE * objects::SET
        ),
        format!(
            "Bare PATCH requests at a time, and objects a second with 1,010 objects: {}; the best is \
             compared.",
            all.join(", ")
        ),
    ];
    if let Some(agent) = agent {
        rows.extend(agent.rows());
        notes.push(agent.note());
    }
    notes.extend(requests(&large));
    notes.extend([
        "kubectl is timed as a whole process, all others without reading their files. Flux's package \
         runs in a process that lives on, with its controller's four dry runs at a time and without \
         client-side throttling."
            .to_owned(),
        "One etcd without fsync and one API server, without controllers, so that nobody pays for what \
         another's objects set off; they share the machine with the client. The API server's own audit \
         log is what is counted."
            .to_owned(),
    ]);
    // The large measurement's clients end before their API server does.
    bench.flux.stop()?;
    drop(bench.cluster);
    Ok(Section::new("apply", "Applying", rows, notes))
}

fn of(turns: &[Turn], who: Who) -> impl Iterator<Item = &Turn> {
    turns.iter().filter(move |turn| turn.who == who)
}

/// Everybody's objects a second, Muster's first, and how it stands to its targets.
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

/// What an apply costs when nothing has changed.
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

/// Everybody's requests.
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
                format!("Muster started again with {objects} objects, nothing changed"),
                "ms",
                vec![self.restart.as_secs_f64() * 1e3],
            ),
            Row::new(
                format!("Muster with {objects} objects, resident at its highest"),
                "MiB",
                mebibytes(self.peak.max(self.restart_peak)),
            ),
            Row::new(
                format!("Muster with {objects} objects, resident when settled"),
                "MiB",
                mebibytes(self.settled),
            ),
            Row::new(
                format!("Muster's requests in {} s of quiet", QUIET.as_secs()),
                "requests",
                vec![self.quiet.total() as f64],
            ),
        ]
    }

    fn note(&self) -> String {
        format!(
            "Muster's requests in {} s of quiet: {}; when started again: {}.",
            QUIET.as_secs(),
            self.quiet.text(),
            self.restart_requests.text()
        )
    }
}
