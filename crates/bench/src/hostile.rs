//! Measures ten thousand agents while an attacker in the network tries to use up the hub's connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muster_pki::{HUB_SERVER_NAME, Login, client_config};
use muster_proto::v1;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::{
    fanout::{Crowd, memory},
    report::{Row, Section},
};

const AGENTS: usize = 10_000;
const COMMITS: usize = 5;
/// The number of connections that the attacker attempts per second.
const TRIED: usize = 5_000;
/// The duration of the attack.
const FOR: Duration = Duration::from_secs(60);
/// The time that each connection stays open.
const STAYS: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);

/// Returns the bytes that a connection sends before it goes silent.
fn words(hello: &[u8], number: usize) -> &[u8] {
    const GARBAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n";
    match number % 4 {
        // The most expensive for a hub, which answers with a key exchange and a signature.
        0 | 1 => hello,
        2 => &hello[..hello.len() / 2],
        _ => GARBAGE,
    }
}

/// Opens one hostile connection, from one of 250 addresses.
async fn one(hub: SocketAddr, hello: Arc<Vec<u8>>, number: usize, made: Arc<AtomicUsize>) {
    let Ok(socket) = TcpSocket::new_v4() else {
        return;
    };
    let last = 2 + u8::try_from(number % 250).unwrap_or(0);
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    if socket.set_reuseaddr(true).is_err() || socket.bind(from).is_err() {
        return;
    }
    let connected = tokio::time::timeout(STAYS, socket.connect(hub)).await;
    let Ok(Ok(mut stream)) = connected else {
        return;
    };
    made.fetch_add(1, Ordering::Relaxed);
    // An error is expected: the hub may close the connection at any time.
    let _ = stream.write_all(words(&hello, number)).await;
    tokio::time::sleep(STAYS).await;
}

/// Attempts `TRIED` connections per second until it is stopped.
async fn attack(
    hub: SocketAddr,
    hello: Arc<Vec<u8>>,
    tried: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    let began = Instant::now();
    while !stop.is_cancelled() {
        tick.tick().await;
        let due = began.elapsed().as_secs_f64() * TRIED as f64;
        while (tried.load(Ordering::Relaxed) as f64) < due {
            let number = tried.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(one(hub, Arc::clone(&hello), number, Arc::clone(&made)));
        }
    }
}

/// Returns the first TLS message of a real client.
fn client_hello(login: &Login) -> anyhow::Result<Vec<u8>> {
    let (trust, _) = login.open()?;
    let config = client_config(&trust, None)?;
    let name = HUB_SERVER_NAME.try_into()?;
    let mut client = rustls::ClientConnection::new(config, name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// Measures commits without and during the attack, and returns the section of the report.
pub(crate) fn measure(_: u32) -> anyhow::Result<Section> {
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, most)?;
    let muster = crate::machine::muster()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut crowd = Crowd::gather(muster, AGENTS, 1).await?;
        let pid = crowd.fleet.hub()?.pid();
        let mut quiet = Vec::new();
        for _ in 0..COMMITS {
            quiet.push(crowd.commit().await?.0.as_secs_f64());
        }
        let (resident, _) = memory(pid)?;
        let ended = crowd.ended.load(Ordering::Relaxed);

        let login = Login::read(&crowd.fleet.login())?;
        let hub: SocketAddr = login.hub.parse().context("can't parse the hub's address")?;
        let hello = Arc::new(client_hello(&login)?);
        let (tried, made) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let stop = CancellationToken::new();
        let attacking = attack(
            hub,
            hello,
            Arc::clone(&tried),
            Arc::clone(&made),
            stop.clone(),
        );
        let attacking = tokio::spawn(attacking);
        let began = Instant::now();
        let (mut attacked, mut answers, mut highest) = (Vec::new(), Vec::new(), resident);
        while began.elapsed() < FOR {
            attacked.push(crowd.commit().await?.0.as_secs_f64());
            let asked = Instant::now();
            crowd.admin.get_status(v1::StatusRequest::default()).await?;
            answers.push(asked.elapsed().as_secs_f64());
            highest = highest.max(memory(pid)?.0);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let took = began.elapsed().as_secs_f64();
        stop.cancel();
        let _ = attacking.await;
        let lost = crowd.ended.load(Ordering::Relaxed) - ended;
        let rate = |count: &AtomicUsize| vec![count.load(Ordering::Relaxed) as f64 / took];
        let mebibytes = |bytes: u64| vec![bytes as f64 / 1_048_576.0];
        let rows = vec![
            Row::new("without attack: push to the last acknowledgement", "s", quiet),
            Row::new("under attack: push to the last acknowledgement", "s", attacked),
            Row::new("under attack: status of the whole fleet", "s", answers),
            Row::new("under attack: streams lost", "", vec![lost as f64]),
            Row::new("under attack: connections attempted", "1/s", rate(&tried)),
            Row::new("under attack: connections established", "1/s", rate(&made)),
            Row::new("without attack: hub, resident memory", "MiB", mebibytes(resident)),
            Row::new("under attack: hub, highest resident memory", "MiB", mebibytes(highest)),
        ];
        crowd.close().await;
        let notes = vec![
            format!("{AGENTS} agents with real streams, one app and an instant apply. They share the machine with the hub and the attacker."),
            "Of the hostile connections, half send a complete ClientHello and nothing more, a quarter send half a ClientHello, and a quarter send data that is not TLS. They come from 250 addresses. Each stays open for one second.".to_owned(),
        ];
        Ok(Section::new(
            "hostile",
            "10,000 agents under an attack of 5,000 connections per second",
            rows,
            notes,
        ))
    })
}
