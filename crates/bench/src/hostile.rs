//! Ten thousand agents, and somebody in the network who tries to take the hub's room from them.

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
/// Connections that are tried in a second, and for how long.
const TRIED: usize = 5_000;
const FOR: Duration = Duration::from_secs(60);
/// How long each of them stays.
const STAYS: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);

/// What a connection says before it is silent.
fn words(hello: &[u8], number: usize) -> &[u8] {
    const GARBAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n";
    match number % 4 {
        // The dearest for a hub: it answers with a key exchange and a signature.
        0 | 1 => hello,
        2 => &hello[..hello.len() / 2],
        _ => GARBAGE,
    }
}

/// One of them, from one of 250 addresses.
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
    // The hub may end it at any moment.
    let _ = stream.write_all(words(&hello, number)).await;
    tokio::time::sleep(STAYS).await;
}

/// Tries so many in a second until it is told to stop.
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

/// The first message of a real client.
fn client_hello(login: &Login) -> anyhow::Result<Vec<u8>> {
    let (trust, _) = login.open()?;
    let config = client_config(&trust, None)?;
    let name = HUB_SERVER_NAME.try_into()?;
    let mut client = rustls::ClientConnection::new(config, name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// Measures commits in peace, and while the attack goes on.
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
        let hub: SocketAddr = login.hub.parse().context("the hub's address")?;
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
            Row::new("in peace: push to the last acknowledgement", "s", quiet),
            Row::new("attacked: push to the last acknowledgement", "s", attacked),
            Row::new("attacked: a status of the whole fleet", "s", answers),
            Row::new("attacked: streams lost", "", vec![lost as f64]),
            Row::new("attacked: connections tried", "1/s", rate(&tried)),
            Row::new("attacked: connections made", "1/s", rate(&made)),
            Row::new("in peace: hub, resident", "MiB", mebibytes(resident)),
            Row::new("attacked: hub, resident, at its highest", "MiB", mebibytes(highest)),
        ];
        crowd.close().await;
        let notes = vec![
            format!("{AGENTS} agents with real streams, one app and an instant apply, on the machine of the hub and of the attacker."),
            "Half of the hostile connections send a real ClientHello and nothing more, a quarter the half of one, a quarter something that is not TLS; each stays for a second, from 250 addresses.".to_owned(),
        ];
        Ok(Section::new(
            "hostile",
            "10,000 agents while 5,000 hostile connections are tried a second",
            rows,
            notes,
        ))
    })
}
