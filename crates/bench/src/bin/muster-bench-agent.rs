//! Runs Muster's apply engine alone in a process, so that its memory can be measured. `muster-bench` starts it.
//!
//! Its arguments are a kubeconfig and a namespace for its records. Each line on standard input has a
//! generation's number and a directory of encoded bundles. The bundles are read before the clock starts. For each
//! line it prints a line of JSON with the time until everything was applied and recorded.

use std::{collections::HashMap, fs, io::stdin, path::Path, sync::Arc, time::Instant};

use anyhow::Context;
use kube::{
    Config as KubeConfig,
    config::{KubeConfigOptions, Kubeconfig},
};
use muster_apply::{Applier, Config, Observed, StoredBundle, StoredGeneration};
use muster_model::{
    ids::{ContentHash, Generation},
    policy::PruneOrders,
};
use muster_plan::delivery::{Proof, Term};
// Links the same allocator as the agent.
use muster_runtime as _;

fn main() -> anyhow::Result<()> {
    // The same runtime as the agent's.
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let kubeconfig = args.next().context("no kubeconfig")?;
    let config = Config {
        namespace: args.next().context("no namespace")?,
        ..Config::default()
    };
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let options = KubeConfigOptions::default();
    let kube = KubeConfig::from_custom_kubeconfig(kubeconfig, &options).await?;
    let client = muster_apply::connect(kube)?;
    let applier = Applier::start(client, config);
    let mut observed = applier.observed();
    let mut held = HashMap::new();
    for line in stdin().lines() {
        let line = line?;
        let (number, folder) = line.split_once(' ').context("no number and directory")?;
        let generation = Generation(number.parse()?);
        let kept = Arc::new(read(generation, Path::new(folder), &mut held)?);
        let start = Instant::now();
        applier.set_desired(kept);
        let done = |level: &Observed| {
            let ours = level.generation.is_some_and(|(g, _)| g == generation);
            let mut bundles = level.bundles.iter();
            ours && level.settled && bundles.all(|b| b.counts.applied == b.counts.total)
        };
        observed.wait_for(|level| done(level)).await?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds }));
    }
    applier.stop().await;
    Ok(())
}

/// Reads the bundles in a folder and returns them as a generation. As in the agent, a bundle that is already in
/// `held` is not decoded again.
fn read(
    generation: Generation,
    folder: &Path,
    held: &mut HashMap<ContentHash, StoredBundle>,
) -> anyhow::Result<StoredGeneration> {
    let mut files: Vec<_> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut bundles = Vec::with_capacity(files.len());
    for file in files {
        let encoded = fs::read(file)?;
        let bundle = match held.get(&ContentHash::of(&encoded)) {
            Some(bundle) => bundle.clone(),
            None => StoredBundle::from_encoded(&encoded)?,
        };
        held.insert(bundle.hash(), bundle.clone());
        bundles.push(bundle);
    }
    let hashes: String = bundles.iter().map(|b| b.hash().to_string()).collect();
    Ok(StoredGeneration {
        generation,
        hash: ContentHash::of(hashes.as_bytes()),
        term: Term {
            number: 1,
            nonce: 1,
            proof: Proof::default(),
        },
        incarnation: "bench".to_owned(),
        enrolment: String::new(),
        prune: PruneOrders::default(),
        record: None,
        bundles,
    })
}
