//! Tests of the loop that follows a remote.

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_git::{Auth, Mirror, RemoteConfig, RepoView, WatchConfig, Watcher};
use muster_testkit::{
    gitserver::{GitRepo, HttpsGit},
    scratch::Scratch,
};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::{config, local, scratch, text, with};

/// An interval so long that the timer does not wake the loop during a test.
const NEVER: WatchConfig = WatchConfig {
    interval: Duration::from_secs(3600),
};

fn follow(config: RemoteConfig, how: WatchConfig) -> (Scratch, Watcher) {
    let dir = scratch();
    let mirror = Mirror::open(dir.path(), config).unwrap();
    let watcher = Watcher::spawn(mirror, how, &CancellationToken::new());
    (dir, watcher)
}

async fn until(views: &mut Receiver<RepoView>, there: impl FnMut(&RepoView) -> bool) -> RepoView {
    let wait = tokio::time::timeout(Duration::from_secs(30), views.wait_for(there));
    let seen = wait.await.map(|view| view.unwrap().clone());
    seen.unwrap_or_else(|_| panic!("not reached; the last view: {:?}", views.borrow().state))
}

fn at(commit: &str) -> impl FnMut(&RepoView) -> bool {
    let commit = commit.parse().unwrap();
    move |view| {
        view.state
            .tip
            .as_ref()
            .is_some_and(|tip| tip.commit == commit)
    }
}

#[tokio::test]
async fn a_push_is_seen_without_the_timer_even_if_it_recreates_the_branch() {
    let repo = GitRepo::new().unwrap();
    let first = repo.publish("first", &[("a", "1")]).unwrap();
    for remote in [local(&repo.path()), local(&repo.work())] {
        let (_dir, watcher) = follow(remote, NEVER);
        let mut views = watcher.views();
        until(&mut views, at(&first)).await;
        watcher.stop().await;
    }
    let (_dir, watcher) = follow(local(&repo.path()), NEVER);
    let mut views = watcher.views();
    until(&mut views, at(&first)).await;
    let mut times = Vec::new();
    for i in 0..20 {
        let commit = repo.commit("next", &[("a", &i.to_string())]).unwrap();
        repo.push().unwrap();
        let pushed = Instant::now();
        let view = until(&mut views, at(&commit)).await;
        times.push(pushed.elapsed());
        assert_eq!(text(&view.snapshot.unwrap(), "a"), Some(i.to_string()));
    }
    times.sort();
    println!(
        "push returned to snapshot published: median {:?}, worst {:?}",
        times[10], times[19]
    );
    repo.delete_branch("main").unwrap();
    until(&mut views, |view| view.state.problem.is_some()).await;
    let commit = repo.publish("back", &[("a", "back")]).unwrap();
    until(&mut views, at(&commit)).await;
    // All references are packed into one file.
    repo.git_bare(&["pack-refs", "--all"]).unwrap();
    let commit = repo.publish("after packing", &[("a", "packed")]).unwrap();
    until(&mut views, at(&commit)).await;
    // The repository is moved away and back, so that its directory does not exist for a while.
    let moved = repo.root().join("moved.git");
    fs::rename(repo.path(), &moved).unwrap();
    watcher.poke();
    until(&mut views, |view| view.state.problem.is_some()).await;
    fs::rename(moved, repo.path()).unwrap();
    let commit = repo.publish("after moving", &[("a", "moved")]).unwrap();
    watcher.poke();
    until(&mut views, at(&commit)).await;
    let commit = repo.publish("seen again", &[("a", "again")]).unwrap();
    let view = until(&mut views, at(&commit)).await;
    assert_eq!(view.state.problem, None);
}

#[tokio::test]
async fn looking_does_not_wake_the_loop_by_itself() {
    let repo = GitRepo::new().unwrap();
    let first = repo.publish("first", &[("a", "1")]).unwrap();
    let (_dir, watcher) = follow(local(&repo.path()), NEVER);
    let mut views = watcher.views();
    until(&mut views, at(&first)).await;
    let attempt = || watcher.views().borrow().state.last_attempt;
    // The loop is idle when the time of the last attempt stays the same for a while.
    let mut looks = 0;
    let mut last = attempt();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if attempt() == last {
            break;
        }
        last = attempt();
        looks += 1;
        assert!(looks < 10, "the loop wakes itself");
    }
}

#[tokio::test]
async fn an_unreachable_host_is_shown_retried_and_found_again() {
    let repo = GitRepo::new().unwrap();
    let first = repo.publish("first", &[("a", "1")]).unwrap();
    let mut server = HttpsGit::start(&repo.root()).unwrap();
    let auth = Auth {
        token_file: Some(server.token_file()),
        ca_file: Some(server.ca_file()),
        ..Auth::default()
    };
    let remote = with(auth, config(&server.url("fleet.git")));
    let (_dir, watcher) = follow(remote, NEVER);
    let mut views = watcher.views();
    until(&mut views, at(&first)).await;
    server.take_down();
    watcher.poke();
    let down = until(&mut views, |view| view.state.problem.is_some()).await;
    let problem = down.state.problem.unwrap();
    assert!(
        problem.text.contains("can't be reached"),
        "{}",
        problem.text
    );
    assert!(problem.retry_at > problem.since);
    assert_eq!(down.snapshot.unwrap().commit.to_string(), first);
    // The retries continue without pokes.
    let retried = until(&mut views, |view| {
        view.state
            .problem
            .as_ref()
            .is_some_and(|now| now.retry_at > problem.retry_at)
    });
    assert_eq!(retried.await.state.problem.unwrap().since, problem.since);
    let second = repo.publish("second", &[("a", "2")]).unwrap();
    server.bring_up().unwrap();
    let view = until(&mut views, at(&second)).await;
    assert_eq!(view.state.problem, None);
}

#[tokio::test]
async fn pokes_after_a_failure_lead_to_one_attempt_a_second() {
    let dir = scratch();
    let (_mirror, watcher) = follow(local(&dir.path().join("missing.git")), NEVER);
    let mut views = watcher.views();
    until(&mut views, |view| view.state.problem.is_some()).await;
    one_attempt_a_second(&watcher).await;
}

#[tokio::test]
async fn pokes_lead_to_one_attempt_a_second_on_a_remote_host() {
    let repo = GitRepo::new().unwrap();
    let first = repo.publish("first", &[("a", "1")]).unwrap();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let auth = Auth {
        token_file: Some(server.token_file()),
        ca_file: Some(server.ca_file()),
        ..Auth::default()
    };
    let (_dir, watcher) = follow(with(auth, config(&server.url("fleet.git"))), NEVER);
    until(&mut watcher.views(), at(&first)).await;
    one_attempt_a_second(&watcher).await;
}

/// Pokes constantly and checks that three attempts take about two seconds.
async fn one_attempt_a_second(watcher: &Watcher) {
    let mut views = watcher.views();
    let start = Instant::now();
    let mut attempts = 0;
    let mut last = views.borrow_and_update().state.last_attempt;
    while attempts < 3 {
        watcher.poke();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = views.borrow_and_update().state.last_attempt;
        attempts += u32::from(now != last);
        last = now;
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "pokes lead to no attempt"
        );
    }
    assert!(
        start.elapsed() > Duration::from_millis(1900),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn it_ends_when_dropped_or_stopped_also_in_the_middle_of_a_fetch() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let server = HttpsGit::start(&repo.root()).unwrap();
    server.pause().unwrap();
    let remote = with(
        Auth {
            token_file: Some(server.token_file()),
            ..Auth::default()
        },
        config(&server.url("fleet.git")),
    );
    let dir = scratch();
    let mirror = Mirror::open(dir.path(), remote.clone()).unwrap();
    let watcher = Watcher::spawn(mirror, NEVER, &CancellationToken::new());
    let start = Instant::now();
    watcher.stop().await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );

    let mirror = Mirror::open(dir.path(), remote.clone()).unwrap();
    let token = CancellationToken::new();
    let watcher = Watcher::spawn(mirror, NEVER, &token);
    let mut views = watcher.views();
    token.cancel();
    while views.changed().await.is_ok() {}
    drop(watcher);

    let mirror = Mirror::open(dir.path(), remote).unwrap();
    let watcher = Watcher::spawn(mirror, NEVER, &CancellationToken::new());
    let mut views = watcher.views();
    drop(watcher);
    while views.changed().await.is_ok() {}
    server.resume().unwrap();
}
