//! Clients without a certificate try to exhaust the hub's memory and connections.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use muster_agent::dial;
use muster_pki::JoinToken;
use muster_proto::v1::{self, enrolment_client::EnrolmentClient};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet};

/// Returns the peak resident memory of a process, in kB.
fn peak(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = line
        .context("the process status has no VmHWM")?
        .trim()
        .trim_end_matches(" kB");
    Ok(peak.parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_exhaust_neither_memory_nor_connections() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[])).await?;
    let files = repository::fleet("strangers", "{}", [("one", "west")]);
    fleet.repo().publish("begin", &repository::listed(&files))?;
    fleet.start_hub().await?;
    let token: JoinToken = fleet
        .run(&["cluster", "join-token", "one"])?
        .trim()
        .parse()?;
    let hub: SocketAddr = token.hub.parse()?;
    let pid = fleet.hub()?.pid();
    let before = peak(pid)?;

    // Many clients connect and send nothing.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, most)?;
    let mut silent = Vec::new();
    for _ in 0..2500 {
        silent.push(TcpStream::connect(hub).await?);
    }
    // Others send many enrolment requests, each of almost the largest size.
    let mut loud = JoinSet::new();
    for _ in 0..40 {
        let (address, trust) = (token.hub.clone(), token.trust.clone());
        loud.spawn(async move {
            let Ok(channel) = dial(&address, &trust, None).await else {
                return 0;
            };
            let mut calls = JoinSet::new();
            for _ in 0..16 {
                let mut client = EnrolmentClient::new(channel.clone());
                calls.spawn(async move {
                    let request = v1::EnrolRequest {
                        token: "t".repeat(3_900_000),
                        csr: String::new(),
                    };
                    client.enrol(request).await.is_err()
                });
            }
            calls
                .join_all()
                .await
                .into_iter()
                .filter(|refused| *refused)
                .count()
        });
    }
    let status = fleet.status()?;
    ensure!(status["clusters"][0]["name"] == "one", "{status:#}");
    let refused: usize = loud.join_all().await.into_iter().sum();
    ensure!(refused > 0, "no enrolment was refused");
    let status = fleet.status()?;
    ensure!(status["clusters"][0]["name"] == "one", "{status:#}");
    let grown = peak(pid)?.saturating_sub(before);
    ensure!(grown < 100 * 1024, "the hub grew by {grown} kB");

    // The hub has closed the oldest of the silent connections to make room for newer ones.
    let mut first = silent.swap_remove(0);
    let mut nothing = [0; 1];
    let read = tokio::time::timeout(Duration::from_secs(15), first.read(&mut nothing));
    ensure!(
        matches!(read.await?, Ok(0) | Err(_)),
        "the oldest silent connection is still open"
    );
    Ok(())
}
