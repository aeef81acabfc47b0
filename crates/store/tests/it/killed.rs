//! A hub that is killed at any moment keeps every commit that it acknowledged, and no incomplete commit.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use muster_store::{SqliteStore, Store, Txn};
use rand::RngExt;

const STORE: &str = "MUSTER_TEST_STORE";
const WRITERS: usize = 4;
/// The number of keys in one transaction. With their values they take more than one page of the file.
const KEYS: usize = 12;

/// The process that is killed. Several writers each acknowledge their commits on standard output.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other test here starts it"]
async fn child() {
    let store = Arc::new(SqliteStore::open(env::var(STORE).unwrap()).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut n = newest(&store, writer).await;
            loop {
                n += 1;
                let value = format!("{n}{}", " ".repeat(700));
                let txn = (0..KEYS).fold(Txn::new(), |txn, key| {
                    txn.put(format!("{writer}/{key}"), value.clone())
                });
                store.commit(txn).await.unwrap();
                // Panics, and so ends this process, once the test no longer reads.
                writeln!(std::io::stdout(), "ack {writer} {n}").unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// Returns the number that all keys of a writer hold.
async fn newest(store: &SqliteStore, writer: usize) -> u64 {
    let found = store.range(&format!("{writer}/")).await.unwrap();
    if found.is_empty() {
        return 0;
    }
    assert_eq!(found.len(), KEYS);
    let value = &found[0].1;
    assert!(
        found.iter().all(|(_, other)| other == value),
        "an incomplete transaction"
    );
    std::str::from_utf8(&value.value)
        .unwrap()
        .trim_end()
        .parse()
        .unwrap()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the child, kills it after `acks` acknowledgements, and returns the last acknowledged number of each writer.
fn run_and_kill(store: &Path, acks: usize) -> BTreeMap<usize, u64> {
    let child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "killed::child",
            "--ignored",
            "--nocapture",
            "--quiet",
        ])
        .env(STORE, store)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut last = BTreeMap::new();
    let mut note = |line: &str| {
        let mut words = line.split(' ');
        if words.next() != Some("ack") {
            return false;
        }
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        last.insert(usize::try_from(number()).unwrap(), number());
        true
    };
    let mut seen = 0;
    while seen < acks {
        seen += usize::from(note(&lines.next().unwrap().unwrap()));
    }
    child.0.kill().unwrap();
    // Acknowledgements that it had written before it was killed count too.
    for line in lines.map_while(Result::ok) {
        note(&line);
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let mut acknowledged: BTreeMap<usize, u64> = BTreeMap::new();
    for _ in 0..25 {
        let acks = rand::rng().random_range(0..120);
        let (of, path_of) = (acks, path.clone());
        let last = tokio::task::spawn_blocking(move || run_and_kill(&path_of, of))
            .await
            .unwrap();
        acknowledged.extend(last);
        // The lock was released when the process was killed.
        let store = SqliteStore::open(&path).unwrap();
        for (writer, acknowledged) in &acknowledged {
            let found = newest(&store, *writer).await;
            assert!(
                found >= *acknowledged,
                "writer {writer}: {found} < {acknowledged}"
            );
        }
    }
    assert_eq!(acknowledged.len(), WRITERS);
}
