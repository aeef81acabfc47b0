//! Measures rendering: how many objects per second Muster, Helm and Kustomize render for the same fleet.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Context;
use muster_model::{bundle::Bundle, load::Loader, tree::Tree};
use muster_plan::placement::place_first;
use muster_render::{Rendered, Renderer};
use muster_testkit::scratch::Scratch;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fleet::{
        OBJECTS, Repository, Shape, app_name, cluster_name, helm_values, write_charts,
        write_overlay,
    },
    machine,
    peers::{self, Peer},
    report::{Row, Section},
};

const FLEET: Shape = Shape {
    apps: 50,
    regions: 10,
    clusters_per_region: 20,
    all_differ: false,
};

/// The number of clusters in the sample for Helm's engine. One per region would be enough; two give steadier figures.
const ENGINE_CLUSTERS: usize = 20;
/// The number of app and cluster pairs in the sample for whole processes.
const PROCESS_PAIRS: usize = 40;

const PER_SECOND: &str = "objects/s";

/// Measures Muster and its peers in turn, and returns the section of the report.
pub(crate) fn measure(repeat: u32) -> anyhow::Result<Section> {
    let memory = Memory::measure()?;
    let scratch = Scratch::temporary("bench-render")?;
    let peers = Peers::new(Sample::new(scratch.path())?)?;
    rounds(repeat, memory, Some(peers))
}

/// Measures Muster alone.
pub(crate) fn alone(repeat: u32) -> anyhow::Result<Section> {
    rounds(repeat, Memory::measure()?, None)
}

/// The peak memory of this process before and after a first round, which is not timed, in MiB.
struct Memory {
    before: f64,
    after: f64,
}

impl Memory {
    fn measure() -> anyhow::Result<Self> {
        let before = machine::peak_memory_mib();
        Muster::measure(FLEET)?;
        let after = machine::peak_memory_mib();
        Ok(Self { before, after })
    }
}

fn rounds(repeat: u32, memory: Memory, mut peers: Option<Peers>) -> anyhow::Result<Section> {
    let (mut usual, mut worst) = (Vec::new(), Vec::new());
    for round in 1..=repeat {
        eprintln!("round {round} of {}", repeat);
        usual.push(Muster::measure(FLEET)?);
        worst.push(Muster::measure(Shape {
            all_differ: true,
            ..FLEET
        })?);
        if let Some(peers) = &mut peers {
            peers.round()?;
        }
    }

    let per_second = |what: &str, figure: fn(&Muster) -> f64, all: &[Muster]| {
        Row::new(what, PER_SECOND, all.iter().map(figure).collect())
    };
    let cold = per_second("Muster, cold", |m| m.cold, &usual);
    let worst = per_second("Muster, cold, all objects different", |m| m.cold, &worst);
    let commit = per_second(
        "Muster, after a commit to one app: objects of that app",
        |m| m.commit,
        &usual,
    );
    let commit_ms = Row::new(
        "Muster, after a commit to one app: time until all bundles are ready",
        "ms",
        usual.iter().map(|m| m.commit_ms).collect(),
    );
    let mut notes = vec![
        format!(
            "{} apps in {} clusters in {} regions, {OBJECTS} objects each. A Deployment depends on its \
             region, a ConfigMap on its cluster, and the other objects only on the app. A template runs \
             again only if something that it read is different. In the row \"all objects different\", \
             every object contains its cluster's name, so that nothing can be shared.",
            FLEET.apps,
            FLEET.clusters(),
            FLEET.regions,
        ),
        "Muster starts with files in memory and ends with checked, placed, encoded and hashed bundles for \
         all clusters. Merging the values is included. Nothing is cached between rounds."
            .to_owned(),
        format!(
            "Muster's peak memory for the whole fleet and one commit: {:.0} MiB ({:.0} MiB before the \
             start).",
            memory.after, memory.before
        ),
    ];
    let mut rows = Vec::new();
    if let Some(peers) = peers {
        notes.extend(peers.notes(repeat, &worst));
        rows.extend(peers.rows().map(|row| row.beside(&cold)));
    }
    rows.splice(0..0, [cold, worst, commit, commit_ms]);
    let title = format!("Rendering {} objects", FLEET.objects());
    Ok(Section::new("render", title, rows, notes))
}

/// The peers, and their figures of each round.
struct Peers {
    sample: Sample,
    helm: PathBuf,
    engine: PathBuf,
    kustomize: PathBuf,
    /// The number of objects that were compared and found equal.
    same: usize,
    engines: Vec<Engine>,
    helms: Vec<f64>,
    kustomizes: Vec<f64>,
}

impl Peers {
    /// Builds the peers and checks that they render the same objects as Muster.
    fn new(sample: Sample) -> anyhow::Result<Self> {
        let helm = Peer::Helm.build()?;
        let engine = Peer::HelmEngine.build()?;
        let kustomize = Peer::Kustomize.build()?;
        let same = sample.compare(&helm, &sample.helm_runs())?;
        sample.compare(&kustomize, &sample.kustomize_runs())?;
        eprintln!("{same} objects of Muster, Helm and Kustomize are equal");
        Ok(Self {
            sample,
            helm,
            engine,
            kustomize,
            same,
            engines: Vec::new(),
            helms: Vec::new(),
            kustomizes: Vec::new(),
        })
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let sample = &self.sample;
        let processes = |program: &Path, runs: &[Vec<String>]| -> anyhow::Result<f64> {
            let took = peers::time_all(program, runs)?;
            Ok((runs.len() * OBJECTS) as f64 / took.as_secs_f64())
        };
        self.engines.push(sample.helm_engine(&self.engine)?);
        self.helms.push(processes(&self.helm, &sample.helm_runs())?);
        let kustomize = processes(&self.kustomize, &sample.kustomize_runs())?;
        self.kustomizes.push(kustomize);
        Ok(())
    }

    fn rows(&self) -> [Row; 4] {
        let engine = |what: &str, seconds: fn(&Engine) -> f64| {
            let samples = self.engines.iter().map(|e| e.objects / seconds(e));
            Row::new(what, PER_SECOND, samples.collect())
        };
        let processes = |what: &str, samples: &[f64]| Row::new(what, PER_SECOND, samples.to_vec());
        [
            engine("Helm's engine in process, text only", |e| e.text_seconds),
            engine("Helm's engine in process, text parsed into objects", |e| {
                e.object_seconds
            }),
            processes("`helm template`, one process per release", &self.helms),
            processes(
                "`kustomize build`, one process per release",
                &self.kustomizes,
            ),
        ]
    }

    fn notes(&self, repeat: u32, worst: &Row) -> [String; 3] {
        let [text, objects, ..] = self.rows();
        let memory = self.engines.iter().map(|e| e.peak_memory_kib);
        [
            format!(
                "Helm's engine v3.22.0 in process: charts are loaded and values are merged before the clock \
                 starts; {} releases per round; peak memory {:.0} MiB. Whole processes: {PROCESS_PAIRS} \
                 releases per round with Helm v3.22.0 and Kustomize v5.8.2 (base and overlay). All use \
                 every core. In each of {repeat} rounds, every program has one turn.",
                self.sample.engine_releases().len(),
                memory.fold(0.0, f64::max) / 1024.0,
            ),
            format!(
                "The ratios compare with Muster's first row. With all objects different, Muster is {:.1} times \
                 as fast as Helm's engine with text only, and {:.1} times as fast as with text parsed into \
                 objects.",
                worst.spread.median / text.spread.median,
                worst.spread.median / objects.spread.median,
            ),
            format!(
                "Before the rounds, all three rendered {} objects, which were compared and are equal.",
                self.same
            ),
        ]
    }
}

/// Muster's figures of one round.
struct Muster {
    /// The objects per second of a cold start.
    cold: f64,
    /// The objects per second of the changed app after a commit.
    commit: f64,
    /// The time after a commit until all bundles are ready, in milliseconds.
    commit_ms: f64,
}

impl Muster {
    fn measure(shape: Shape) -> anyhow::Result<Self> {
        let mut repository = Repository::new(shape);
        let mut loader = Loader::default();
        let mut renderer = Renderer::default();
        let mut timed = |tree: &Tree| -> anyhow::Result<f64> {
            let started = Instant::now();
            let rendered = render(&mut loader, &mut renderer, tree)?;
            let took = started.elapsed().as_secs_f64();
            let bundles = rendered.bundles.values().flat_map(BTreeMap::values);
            let objects: usize = bundles.map(|bundle| bundle.objects).sum();
            anyhow::ensure!(
                objects == shape.objects(),
                "{objects} objects were rendered"
            );
            Ok(took)
        };
        let cold = timed(&repository.0)?;
        repository.commit(shape.apps / 2, 1);
        let commit = timed(&repository.0)?;
        Ok(Self {
            cold: shape.objects() as f64 / cold,
            commit: (shape.objects() / shape.apps) as f64 / commit,
            commit_ms: commit * 1000.0,
        })
    }
}

fn render(loader: &mut Loader, renderer: &mut Renderer, tree: &Tree) -> anyhow::Result<Rendered> {
    let loaded = loader.load(tree);
    let model = loaded
        .model
        .with_context(|| format!("the fleet has problems: {:?}", loaded.problems))?;
    let placed = place_first(&model);
    let rendered = renderer.render(&model, &placed.roles, &placed.record);
    anyhow::ensure!(
        rendered.problems.is_empty(),
        "rendering found problems: {:?}",
        rendered.problems
    );
    Ok(rendered)
}

/// The figures of Helm's engine for the sample.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Engine {
    objects: f64,
    text_seconds: f64,
    object_seconds: f64,
    #[serde(rename = "peakMemoryKiB")]
    peak_memory_kib: f64,
}

/// The part of the fleet that the peers render.
struct Sample {
    dir: PathBuf,
    /// The app, region and cluster that each whole process renders, as indices.
    pairs: Vec<(usize, usize, usize)>,
    /// The objects that Muster renders for each of `pairs`.
    wanted: Vec<Vec<Value>>,
}

impl Sample {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        write_charts(FLEET, dir)?;
        let repository = Repository::new(FLEET);
        let rendered = render(
            &mut Loader::default(),
            &mut Renderer::default(),
            &repository.0,
        )?;
        let objects = |app: usize, region: usize, cluster: usize| -> anyhow::Result<Vec<Value>> {
            let places = rendered.bundles.get(app_name(app).as_str());
            let name = cluster_name(region, cluster);
            let bundle = places.and_then(|places| places.get(name.as_str()));
            let bundle = Bundle::decode(&bundle.context("an app was not rendered")?.bytes)?;
            let parsed = bundle.objects.iter().map(|o| serde_json::from_str(&o.json));
            parsed
                .collect::<Result<_, _>>()
                .context("an object is not JSON")
        };
        // The pairs are spread over apps, regions and clusters. No pair occurs twice.
        let pairs: Vec<_> = (0..PROCESS_PAIRS)
            .map(|i| {
                let cluster = (i * 7 + 1) % FLEET.clusters_per_region;
                (i % FLEET.apps, i % FLEET.regions, cluster)
            })
            .collect();
        let mut wanted = Vec::new();
        for (app, region, cluster) in &pairs {
            let here = objects(*app, *region, *cluster)?;
            let base = objects(*app, 0, 0)?;
            let name = cluster_name(*region, *cluster);
            write_overlay(dir, &app_name(*app), &name, &base, &here)?;
            wanted.push(here);
        }
        Ok(Self {
            dir: dir.to_owned(),
            pairs,
            wanted,
        })
    }

    fn helm_runs(&self) -> Vec<Vec<String>> {
        let run = |(app, region, cluster): &(usize, usize, usize)| {
            let app = app_name(*app);
            let chart = self.dir.join("charts").join(&app).display().to_string();
            let mut args = vec![
                "template".into(),
                app.clone(),
                chart,
                "--namespace".into(),
                app,
            ];
            for file in helm_values(*region, *cluster) {
                args.push("--values".into());
                args.push(self.dir.join("values").join(file).display().to_string());
            }
            args
        };
        self.pairs.iter().map(run).collect()
    }

    fn kustomize_runs(&self) -> Vec<Vec<String>> {
        let run = |(app, region, cluster): &(usize, usize, usize)| {
            let folder = self.dir.join("kustomize").join(app_name(*app));
            let overlay = folder.join(cluster_name(*region, *cluster));
            vec!["build".into(), overlay.display().to_string()]
        };
        self.pairs.iter().map(run).collect()
    }

    /// Checks that a peer renders the same objects as Muster, and returns their number.
    fn compare(&self, program: &Path, runs: &[Vec<String>]) -> anyhow::Result<usize> {
        let mut count = 0;
        for (args, wanted) in runs.iter().zip(&self.wanted) {
            let text = peers::output(program, args)?;
            let parsed = muster_model::yaml::parse(&text).context("a peer prints bad YAML")?;
            let found = parsed.into_iter().map(|node| node.into_json());
            let found = by_kind(found.filter(|object| !object.is_null()))?;
            let wanted = by_kind(wanted.iter().cloned())?;
            for (kind, object) in &wanted {
                anyhow::ensure!(
                    found.get(kind) == Some(object),
                    "{} {args:?} renders a different {kind}:\n{}\nMuster renders:\n{object}",
                    program.display(),
                    found.get(kind).unwrap_or(&Value::Null),
                );
            }
            anyhow::ensure!(found.len() == wanted.len(), "{args:?} renders more objects");
            count += wanted.len();
        }
        Ok(count)
    }

    fn engine_releases(&self) -> Vec<Value> {
        let step = FLEET.clusters() / ENGINE_CLUSTERS;
        let clusters: Vec<_> = FLEET.places().step_by(step).collect();
        let releases =
            (0..FLEET.apps).flat_map(|app| clusters.iter().map(move |place| (app, *place)));
        releases
            .map(|(app, (region, cluster))| {
                json!({"app": app_name(app), "values": helm_values(region, cluster)})
            })
            .collect()
    }

    fn helm_engine(&self, program: &Path) -> anyhow::Result<Engine> {
        let mut child = Command::new(program)
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start the program around Helm's engine")?;
        let releases = self.engine_releases();
        // `take` moves the pipe out of the child, so that it is closed after writing and the program sees the end of
        // its input.
        let input = child.stdin.take().context("no input to write to")?;
        serde_json::to_writer(input, &releases)
            .context("can't send the releases to the program")?;
        let output = child
            .wait_with_output()
            .context("can't wait for the program")?;
        anyhow::ensure!(output.status.success(), "Helm's engine failed; see above");
        let engine: Engine = serde_json::from_slice(&output.stdout).context("no result")?;
        let expected = (releases.len() * OBJECTS) as f64;
        anyhow::ensure!(
            engine.objects == expected,
            "Helm's engine rendered {} objects instead of {expected}",
            engine.objects
        );
        Ok(engine)
    }
}

fn by_kind(objects: impl Iterator<Item = Value>) -> anyhow::Result<BTreeMap<String, Value>> {
    let kind = |object: Value| {
        let kind = object["kind"].as_str().context("an object has no kind")?;
        Ok((kind.to_owned(), object))
    };
    objects.map(kind).collect()
}
