//! Starts a local cluster with three nodes for each name given, says where it is, what the start
//! took and what memory it holds, and runs until it is killed or its input ends.

use std::io::Read;
use std::time::Instant;

use anyhow::Context;
use muster_testkit::local::{Cluster, ClusterOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let options = names.iter().map(|name| ClusterOptions {
        nodes: 3,
        ..ClusterOptions::new(name)
    });
    let start = Instant::now();
    let clusters = Cluster::start_many(options.collect()).await?;
    println!("started in {:.1?}", start.elapsed());
    for (cluster, name) in clusters.iter().zip(&names) {
        println!(
            "{name}: export KUBECONFIG={}",
            cluster.kubeconfig_path().display()
        );
        let options = ClusterOptions {
            nodes: 3,
            ..ClusterOptions::new(name)
        };
        for component in options.components() {
            let pid = cluster.pid(component)?;
            println!(
                "  {} {pid} {} MB",
                component.name(),
                resident_megabytes(pid)?
            );
        }
    }
    println!("ready");
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("cannot read the input")?;
    Ok(())
}

fn resident_megabytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kilobytes.parse::<u64>()? / 1024)
}
