//! Rendering: how many objects a second Muster, Helm and Kustomize make of the same fleet.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Context;
use muster_model::{bundle::Bundle, ids::Epoch, load::Loader, tree::Tree};
use muster_plan::placement::place;
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

/// Clusters of a sample for Helm's engine: one of each region would do, two are steadier.
const ENGINE_CLUSTERS: usize = 20;
/// App and cluster pairs of a sample for whole processes.
const PROCESS_PAIRS: usize = 40;

const PER_SECOND: &str = "objects/s";

/// Runs the benchmark.
pub(crate) fn measure(repeat: u32) -> anyhow::Result<Section> {
    let helm = Peer::Helm.build()?;
    let engine = Peer::HelmEngine.build()?;
    let kustomize = Peer::Kustomize.build()?;
    let scratch = Scratch::temporary("bench-render")?;

    let before = machine::peak_memory_mib();
    let first = Muster::measure(FLEET)?;
    let memory = machine::peak_memory_mib();
    eprintln!("muster: {:.0} objects/s", first.cold);

    write_charts(FLEET, scratch.path())?;
    let sample = Sample::new(scratch.path(), &helm, &kustomize)?;
    let same = sample.compare()?;
    eprintln!("{same} objects of muster, helm and kustomize are the same");

    let mut ours: Vec<Muster> = Vec::new();
    let mut worst: Vec<Muster> = Vec::new();
    let mut engines: Vec<Engine> = Vec::new();
    let (mut helms, mut kustomizes) = (Vec::new(), Vec::new());
    for round in 1..=repeat {
        eprintln!("round {round} of {repeat}");
        ours.push(Muster::measure(FLEET)?);
        worst.push(Muster::measure(Shape {
            all_differ: true,
            ..FLEET
        })?);
        engines.push(sample.helm_engine(&engine)?);
        helms.push(sample.whole_processes(&sample.helm, &sample.helm_runs())?);
        kustomizes.push(sample.whole_processes(&sample.kustomize, &sample.kustomize_runs())?);
    }

    let row = |what: &str, figure: fn(&Muster) -> f64, all: &[Muster]| {
        Row::new(what, PER_SECOND, all.iter().map(figure).collect())
    };
    let cold = row("Muster, cold", |m| m.cold, &ours);
    let worst_cold = row(
        "Muster, cold, every object different in every cluster",
        |m| m.cold,
        &worst,
    );
    let commit = row(
        "Muster, after a commit to one app (its objects only)",
        |m| m.commit,
        &ours,
    );
    let commit_ms = Row::new(
        "Muster, after a commit to one app: until all bundles are known",
        "ms",
        ours.iter().map(|m| m.commit_ms).collect(),
    );
    let engine_row = |what: &str, figure: fn(&Engine) -> f64| {
        Row::new(what, PER_SECOND, engines.iter().map(figure).collect())
    };
    let peers = [
        engine_row("Helm's engine in process, text only", |e| {
            e.objects / e.text_seconds
        }),
        engine_row("Helm's engine in process, text read into objects", |e| {
            e.objects / e.object_seconds
        }),
        Row::new("`helm template`, whole processes", PER_SECOND, helms),
        Row::new("`kustomize build`, whole processes", PER_SECOND, kustomizes),
    ]
    .map(|row| row.beside(&cold));
    let against_worst = engines_ratio(&worst_cold, &peers);
    let helm_memory = engines
        .iter()
        .map(|e| e.peak_memory_kib)
        .fold(0.0, f64::max)
        / 1024.0;
    let notes = vec![
        format!(
            "{} apps by {} clusters in {} regions, {OBJECTS} objects each: {} objects. A Deployment \
             depends on its region, a ConfigMap on its cluster, the rest on the app alone; a template \
             is run again only where something that it read is different.",
            FLEET.apps,
            FLEET.clusters(),
            FLEET.regions,
            FLEET.objects(),
        ),
        "Muster: files in memory to checked, placed, encoded and hashed bundles of all clusters, with \
         values layered; nothing is kept from one round to the next."
            .to_owned(),
        format!(
            "Where every object differs in every cluster, nothing can be shared: Muster is then \
             {against_worst}."
        ),
        format!(
            "Helm v3.22.0 in process: charts loaded and values merged before the clock starts, {} \
             releases a round. Whole processes: {PROCESS_PAIRS} releases a round with Helm v3.22.0 and \
             Kustomize v5.8.2 (base and overlay). All use every core; {repeat} rounds in turn, after \
             one that does not count.",
            sample.engine_releases().len(),
        ),
        format!(
            "Before the rounds, {same} objects were rendered by all three and compared: they are equal."
        ),
        format!(
            "Peak memory: Muster {memory:.0} MiB for the whole fleet and a commit ({before:.0} MiB \
             before it began), Helm's engine {helm_memory:.0} MiB for its sample."
        ),
    ];
    let mut rows = vec![cold, worst_cold, commit, commit_ms];
    rows.extend(peers);
    Ok(Section::new(
        "render",
        format!("Rendering {} objects", FLEET.objects()),
        rows,
        notes,
    ))
}

/// How the worst case compares with Helm's engine, in words.
fn engines_ratio(worst: &Row, peers: &[Row; 4]) -> String {
    let [text, objects, ..] = peers;
    format!(
        "{:.1} times as fast as Helm's engine without and {:.1} times as fast as with reading its text",
        worst.spread.median / text.spread.median,
        worst.spread.median / objects.spread.median,
    )
}

/// One round of Muster's figures.
struct Muster {
    /// Objects a second from nothing.
    cold: f64,
    /// Objects of the changed app a second.
    commit: f64,
    /// Milliseconds until everything is known again.
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
    let rendered = renderer.render(&model, &place(&model), Epoch(1));
    anyhow::ensure!(
        rendered.problems.is_empty(),
        "rendering found problems: {:?}",
        rendered.problems
    );
    Ok(rendered)
}

/// What Helm's engine took for the sample.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Engine {
    objects: f64,
    text_seconds: f64,
    object_seconds: f64,
    #[serde(rename = "peakMemoryKiB")]
    peak_memory_kib: f64,
}

/// The part of the fleet that peers render.
struct Sample {
    dir: PathBuf,
    helm: PathBuf,
    kustomize: PathBuf,
    /// App, region and cluster of each whole process.
    pairs: Vec<(usize, usize, usize)>,
    /// What Muster renders for these.
    wanted: Vec<Vec<Value>>,
}

impl Sample {
    fn new(dir: &Path, helm: &Path, kustomize: &Path) -> anyhow::Result<Self> {
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
                .context("an object is no JSON")
        };
        // Spread over apps, regions and clusters; none twice.
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
            helm: helm.to_owned(),
            kustomize: kustomize.to_owned(),
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

    /// Checks that all three render the same objects, and says how many.
    fn compare(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for (program, runs) in [
            (&self.helm, self.helm_runs()),
            (&self.kustomize, self.kustomize_runs()),
        ] {
            count = 0;
            for (args, wanted) in runs.iter().zip(&self.wanted) {
                let text = peers::output(program, args)?;
                let parsed = muster_model::yaml::parse(&text).context("a peer prints bad YAML")?;
                let found = parsed.into_iter().map(|node| node.into_json());
                let found = by_kind(found.filter(|object| !object.is_null()))?;
                let wanted = by_kind(wanted.iter().cloned())?;
                for (kind, object) in &wanted {
                    anyhow::ensure!(
                        found.get(kind) == Some(object),
                        "{} {args:?} renders another {kind}:\n{}\nthan muster:\n{object}",
                        program.display(),
                        found.get(kind).unwrap_or(&Value::Null),
                    );
                }
                anyhow::ensure!(found.len() == wanted.len(), "{args:?} renders more objects");
                count += wanted.len();
            }
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
        // Taken, so that the program sees the end of its input.
        let input = child.stdin.take().context("no input to write to")?;
        serde_json::to_writer(input, &releases).context("can't tell it what to render")?;
        let output = child.wait_with_output().context("can't wait for it")?;
        anyhow::ensure!(output.status.success(), "Helm's engine failed; see above");
        let engine: Engine = serde_json::from_slice(&output.stdout).context("no result")?;
        let expected = (releases.len() * OBJECTS) as f64;
        anyhow::ensure!(engine.objects == expected, "{} objects", engine.objects);
        Ok(engine)
    }

    /// Objects a second of a program that renders one release a run.
    fn whole_processes(&self, program: &Path, runs: &[Vec<String>]) -> anyhow::Result<f64> {
        let took = peers::time_all(program, runs)?;
        Ok((runs.len() * OBJECTS) as f64 / took.as_secs_f64())
    }
}

fn by_kind(objects: impl Iterator<Item = Value>) -> anyhow::Result<BTreeMap<String, Value>> {
    let kind = |object: Value| {
        let kind = object["kind"].as_str().context("an object has no kind")?;
        Ok((kind.to_owned(), object))
    };
    objects.map(kind).collect()
}
