//! Tests with a real process: its HTTP endpoints, its shutdown by signals and its log.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_runtime::{http, log, process, shutdown::Shutdown};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn pages_tell_health_readiness_and_metrics() {
    let mut registry = Registry::default();
    process::register(&mut registry);
    let commits = Counter::<u64>::default();
    let own = registry.sub_registry_with_prefix("muster");
    own.register("commits", "Commits seen", commits.clone());
    commits.inc();
    let readiness = http::Readiness::new();
    let git = readiness.part("git");
    readiness.part("store").ready();
    let extra = axum::Router::new().route("/hook", axum::routing::post(async || "thanks\n"));
    let routes = http::routes(readiness, Arc::new(registry)).merge(extra);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let served = shutdown.spawn(http::serve(listener, routes, shutdown.clone()));
    let ask = async |request: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };

    let (head, body) = ask("GET /healthz").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && body == "ok\n",
        "{head} {body}"
    );
    let (head, body) = ask("GET /readyz").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(body, "git: starting\nstore: ok\n");
    git.not_ready("the host is unreachable");
    assert_eq!(
        ask("GET /readyz").await.1,
        "git: the host is unreachable\nstore: ok\n"
    );
    git.ready();
    let (head, body) = ask("GET /readyz").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "git: ok\nstore: ok\nready\n");
    assert_eq!(ask("POST /hook").await.1, "thanks\n");
    assert!(ask("GET /other").await.0.starts_with("HTTP/1.1 404"));

    let (head, body) = ask("GET /metrics").await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    for metric in [
        "muster_commits_total 1\n",
        "# TYPE process_resident_memory_bytes gauge\n",
        "\nprocess_resident_memory_bytes ",
        "\nprocess_open_fds ",
        "\nprocess_start_time_seconds ",
        "\nprocess_cpu_seconds_total ",
    ] {
        assert!(body.contains(metric), "{metric} is missing in {body}");
    }
    assert!(body.ends_with("# EOF\n"), "{body}");

    // An idle open connection does not delay the shutdown.
    let _idle = TcpStream::connect(address).await.unwrap();
    shutdown.finish(Duration::from_secs(30)).await.unwrap();
    served.await.unwrap().unwrap();
}

/// The process that other tests start. Its task ends only when its standard input is closed.
#[tokio::test]
#[ignore = "the other tests here start it"]
async fn child() {
    log::init(env::var("FORMAT").unwrap().parse().unwrap()).unwrap();
    let shutdown = Shutdown::on_signals().unwrap();
    tracing::info!(cluster = "eu-west-1", "started");
    tracing::debug!("not shown");
    // The process also ends when the test that started it has ended.
    let mut input = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
    println!("\nup");
    tokio::select! {
        () = shutdown.begun() => println!("ending"),
        _ = &mut input => return,
    }
    shutdown.spawn(input);
    shutdown.finish(Duration::from_secs(300)).await.unwrap();
    println!("ended");
}

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(format: &str, level: Option<&str>) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("FORMAT", format)
            .env_remove("MUSTER_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(level) = level {
            command.env("MUSTER_LOG", level);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn wait_for(&mut self, line: &str) {
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .find(|found| found == line)
            .unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns everything that the process logs until it ends.
    fn log(&mut self) -> String {
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_lets_tasks_end() {
    let mut running = Running::start("text", None);
    running.wait_for("up");
    running.signal(Signal::TERM);
    running.wait_for("ending");
    drop(running.child.stdin.take());
    running.wait_for("ended");
    assert!(running.child.wait().unwrap().success());
}

#[test]
fn the_second_signal_ends_at_once() {
    for (second, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut running = Running::start("text", None);
        running.wait_for("up");
        running.signal(Signal::INT);
        running.wait_for("ending");
        // `wait` would close the standard input, and so let the task end.
        let _input = running.child.stdin.take();
        running.signal(second);
        assert_eq!(running.child.wait().unwrap().code(), Some(status));
    }
}

fn logged(format: &str, level: Option<&str>) -> String {
    let mut running = Running::start(format, level);
    running.wait_for("up");
    running.signal(Signal::TERM);
    running.wait_for("ending");
    drop(running.child.stdin.take());
    running.wait_for("ended");
    running.log()
}

#[test]
fn logs_are_lines_for_people_or_machines() {
    let text = logged("text", None);
    assert!(
        text.contains(" INFO it: started cluster=\"eu-west-1\"\n"),
        "{text}"
    );
    assert!(
        !text.contains('\u{1b}') && !text.contains("not shown"),
        "{text}"
    );
    assert!(logged("text", Some("debug")).contains("not shown"));
    assert_eq!(logged("text", Some("error")), "");

    let json = logged("json", None);
    let first = json.lines().next().unwrap();
    assert!(first.starts_with('{') && first.ends_with('}'), "{json}");
    assert!(first.contains(r#""cluster":"eu-west-1""#) && first.contains(r#""level":"INFO""#));
}

#[test]
fn a_filter_that_makes_no_sense_is_named() {
    let mut running = Running::start("text", Some("debug,=="));
    let log = running.log();
    assert!(!running.child.wait().unwrap().success());
    assert!(log.contains("debug,=="), "{log}");
}
