//! Tests of remotes and mirrors with damaged files, and of a process that is killed during a fetch.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use muster_git::{Change, Error, Mirror, Reference, RemoteConfig};
use muster_testkit::{
    gitserver::{GitRepo, HttpsGit, SshGit},
    process::Process,
};

use crate::{config, local, on, scratch, text, with};

fn main_of(repo: &GitRepo) -> RemoteConfig {
    on(Reference::Branch("main".into()), local(&repo.path()))
}

/// A function that damages a file.
type Damage = fn(&Path);

/// Returns text that does not compress well. The same seed gives the same text.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    found
}

fn replace(path: &Path, content: &[u8]) {
    // Objects are read-only, and other handles may have the old file mapped.
    let _ = fs::remove_file(path);
    fs::write(path, content).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    replace(path, &bytes[..bytes.len() / 2]);
}

#[test]
fn a_damaged_remote_is_told_and_followed_again_once_restored() {
    let repo = GitRepo::new().unwrap();
    let https_server = HttpsGit::start(&repo.root()).unwrap();
    let ssh_server = SshGit::start().unwrap();
    let https = muster_git::Auth {
        token_file: Some(https_server.token_file()),
        ca_file: Some(https_server.ca_file()),
        ..Default::default()
    };
    let ssh = muster_git::Auth {
        ssh_key: Some(ssh_server.key_file()),
        known_hosts: Some(ssh_server.known_hosts_file()),
        ..Default::default()
    };
    let good = repo.publish("good", &[("a", "1")]).unwrap();
    let mut mirrors = [
        main_of(&repo),
        with(https, config(&https_server.url("fleet.git"))),
        with(ssh, config(&ssh_server.url(&repo.path()))),
    ]
    .map(|config| {
        let dir = scratch();
        let mut mirror = Mirror::open(dir.path(), config).unwrap();
        mirror.refresh().unwrap();
        (dir, mirror)
    });
    let next = repo
        .publish(
            "next",
            &[("b", &noise(1, 10_000)), ("c", &noise(2, 10_000))],
        )
        .unwrap();

    let object = |spec: &str| {
        let id = repo.git(&["rev-parse", spec]).unwrap();
        repo.path().join("objects").join(&id[..2]).join(&id[2..])
    };
    let (blob, tree, commit) = (object("HEAD:b"), object("HEAD^{tree}"), object("HEAD"));
    let damages: [(&str, &Path, Damage); 4] = [
        ("a missing file", &blob, |path| {
            fs::remove_file(path).unwrap()
        }),
        ("half a file", &blob, truncate),
        ("a missing tree", &tree, |path| {
            fs::remove_file(path).unwrap()
        }),
        ("a missing commit", &commit, |path| {
            fs::remove_file(path).unwrap()
        }),
    ];
    for (what, path, damage) in damages {
        let whole = fs::read(path).unwrap();
        damage(path);
        for (dir, mirror) in &mut mirrors {
            let rebuild = dir.path().join("rebuild.git");
            // The second refresh must fail in the same way.
            for first in [true, false] {
                let url = mirror.config().url.to_string();
                if rebuild.exists() {
                    fs::remove_dir_all(&rebuild).unwrap();
                }
                let error = mirror.refresh().unwrap_err();
                let told = matches!(error, Error::Corrupt { .. });
                // Git itself hides a branch whose commit is missing.
                let hidden = what == "a missing commit"
                    && matches!(error, Error::NoReference { .. } | Error::Empty { .. });
                assert!(told || hidden, "{what} of {url}: {error:?}");
                // A rebuild is not tried again, because it fetches everything.
                assert!(first || !rebuild.exists(), "{what} of {url}");
                assert_eq!(mirror.last().unwrap().commit.to_string(), good);
            }
        }
        replace(path, &whole);
    }
    for (_, mirror) in &mut mirrors {
        let refreshed = mirror.refresh().unwrap();
        assert_eq!(refreshed.snapshot.commit.to_string(), next);
        assert_eq!(refreshed.change, Change::Forward);
    }

    // Repeats the test with all objects in one pack.
    let last = repo.publish("last", &[("d", &noise(3, 10_000))]).unwrap();
    repo.git_bare(&["repack", "-a", "-d", "--quiet"]).unwrap();
    let packs = files(&repo.path().join("objects/pack"));
    let pack = packs
        .iter()
        .find(|path| path.extension().is_some_and(|end| end == "pack"))
        .unwrap();
    let whole = fs::read(pack).unwrap();
    truncate(pack);
    for (_, mirror) in &mut mirrors {
        let error = mirror.refresh().unwrap_err();
        let url = mirror.config().url.to_string();
        let told = matches!(error, Error::Corrupt { .. } | Error::NoReference { .. });
        assert!(told, "half a pack of {url}: {error:?}");
        assert_eq!(mirror.last().unwrap().commit.to_string(), next);
    }
    replace(pack, &whole);
    for (_, mirror) in &mut mirrors {
        assert_eq!(mirror.refresh().unwrap().snapshot.commit.to_string(), last);
    }
}

#[test]
fn whatever_happens_to_the_mirrors_files_it_is_built_anew() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", &noise(1, 500)), ("b/c", "2")])
        .unwrap();
    let damages: [Damage; 3] = [
        |path| fs::remove_file(path).unwrap(),
        truncate,
        |path| replace(path, b"\0\0garbage\n"),
    ];
    // Damages each file of a mirror in each way, both while its process is stopped and while it runs.
    let count = {
        let scratch = scratch();
        let dir = scratch.path().join("mirror");
        Mirror::open(&dir, main_of(&repo))
            .unwrap()
            .refresh()
            .unwrap();
        files(&dir).len()
    };
    for number in 0..count {
        for damage in damages {
            for running in [false, true] {
                let scratch = scratch();
                let dir = scratch.path().join("mirror");
                let mut mirror = Mirror::open(&dir, main_of(&repo)).unwrap();
                mirror.refresh().unwrap();
                let path = files(&dir)[number].clone();
                if !running {
                    drop(mirror);
                    damage(&path);
                    mirror = Mirror::open(&dir, main_of(&repo)).unwrap();
                    let seen = mirror.refresh();
                    let seen = seen.unwrap_or_else(|error| panic!("{path:?}: {}", error.chain()));
                    assert_eq!(text(&seen.snapshot, "b/c").as_deref(), Some("2"));
                } else if path.file_name().unwrap() != "lock" {
                    damage(&path);
                }
                let value = format!("{number} {running}");
                let next = repo.publish("next", &[("d", &value)]).unwrap();
                let seen = mirror.refresh();
                let seen = seen.unwrap_or_else(|error| panic!("{path:?}: {}", error.chain()));
                assert_eq!(seen.snapshot.commit.to_string(), next, "{path:?}");
                drop(mirror);
                let mut mirror = Mirror::open(&dir, main_of(&repo)).unwrap();
                assert_eq!(
                    mirror.refresh().unwrap().snapshot,
                    seen.snapshot,
                    "{path:?}"
                );
            }
        }
    }
}

#[test]
fn locks_that_a_killed_process_left_are_removed() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    drop(mirror);
    for path in files(&dir.path().join("repo.git")) {
        if !path.to_string_lossy().contains("/objects/") {
            fs::write(format!("{}.lock", path.display()), "").unwrap();
        }
    }
    let next = repo.publish("next", &[("a", "2")]).unwrap();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let seen = mirror.refresh();
    let seen = seen.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(seen.snapshot.commit.to_string(), next);
    let left = files(&dir.path().join("repo.git"));
    let left = left
        .iter()
        .find(|path| path.extension().is_some_and(|suffix| suffix == "lock"));
    assert_eq!(left, None);
}

#[test]
fn a_swap_that_was_cut_in_two_is_finished() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let good = mirror.refresh().unwrap().snapshot;
    drop(mirror);
    fs::rename(dir.path().join("repo.git"), dir.path().join("rebuild.git")).unwrap();
    let mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last(), Some(&good));
}

#[test]
fn a_damaged_mirror_is_not_blamed_on_the_remote() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "old a")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    let oldest = files(&dir.path().join("repo.git/objects/pack"));
    let second = repo.publish("second", &[("b", "old b")]).unwrap();
    mirror.refresh().unwrap();
    let third = repo
        .publish("third", &[("a", "new a"), ("b", "new b")])
        .unwrap();
    mirror.refresh().unwrap();
    drop(mirror);
    for path in oldest {
        fs::remove_file(path).unwrap();
    }
    let mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last().unwrap().commit.to_string(), third);
    let error = mirror.snapshot(second.parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::MirrorDamaged { .. }), "{error:?}");
}

#[test]
fn a_file_of_the_remote_that_can_not_be_opened_is_no_damage() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    let next = repo.publish("next", &[("a", "2")]).unwrap();
    let blob = repo.git(&["rev-parse", "HEAD:a"]).unwrap();
    let object = format!("objects/{}/{}", &blob[..2], &blob[2..]);
    for name in [object.as_str(), "refs/heads/main"] {
        let path = repo.path().join(name);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // Root may read every file, but not even root can open a link to itself.
        symlink(&path, &path).unwrap();
        let error = mirror.refresh().unwrap_err();
        assert!(
            matches!(error, Error::Unreadable { .. }),
            "{name}: {error:?}"
        );
        assert!(!dir.path().join("rebuild.git").exists(), "{name}");
        replace(&path, &whole);
    }
    assert_eq!(mirror.refresh().unwrap().snapshot.commit.to_string(), next);
}

#[test]
fn a_good_mirror_survives_packs_that_can_not_be_removed() {
    let repo = GitRepo::new().unwrap();
    let good = repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    // Directories can't be removed as files.
    let packs = dir.path().join("repo.git/objects/pack");
    for number in 0..65 {
        fs::create_dir(packs.join(format!("pack-{number}.idx"))).unwrap();
    }
    let error = mirror.tidy().unwrap_err();
    assert!(matches!(error, Error::Storage { .. }), "{error:?}");
    mirror.snapshot(good.parse().unwrap()).unwrap();
    assert_eq!(mirror.refresh().unwrap().change, Change::None);
    drop(mirror);
    let mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last().unwrap().commit.to_string(), good);
}

#[test]
fn a_mirror_whose_replacement_fails_stays_and_is_replaced_later() {
    let repo = GitRepo::new().unwrap();
    let good = repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    // A tip that is no reference makes the next refresh rebuild the mirror.
    replace(&dir.path().join("repo.git/refs/muster/tip"), b"garbage\n");
    // The old mirror can't be moved out of the way.
    let aside = dir.path().join("damaged.git");
    fs::write(&aside, "").unwrap();
    let next = repo.publish("next", &[("a", "2")]).unwrap();
    let error = mirror.refresh().unwrap_err();
    assert!(matches!(error, Error::Storage { .. }), "{error:?}");
    mirror.snapshot(good.parse().unwrap()).unwrap();
    fs::remove_file(&aside).unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), next);
    assert!(refreshed.rebuilt);
}

#[test]
fn a_damaged_mirror_stays_until_it_can_be_replaced() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let good = mirror.refresh().unwrap().snapshot;
    drop(mirror);
    let tip = dir.path().join("repo.git/refs/muster/tip");
    let whole = fs::read(&tip).unwrap();
    replace(&tip, b"garbage\n");
    let away = repo.root().join("away.git");
    fs::rename(repo.path(), &away).unwrap();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last(), None);
    assert!(matches!(mirror.refresh(), Err(Error::NotFound { .. })));
    drop(mirror);
    // Nothing was lost: once the error is gone, the mirror is as good as before.
    replace(&tip, &whole);
    let mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last(), Some(&good));
}

const CHILD_DIR: &str = "MUSTER_TEST_MIRROR";
const CHILD_REMOTE: &str = "MUSTER_TEST_REMOTE";

/// The body of the child process that is killed.
#[test]
#[ignore = "the body of another test's child process"]
fn child_fetches() {
    let dir = PathBuf::from(std::env::var_os(CHILD_DIR).unwrap());
    let remote = local(Path::new(&std::env::var_os(CHILD_REMOTE).unwrap()));
    let mut mirror = Mirror::open(&dir, on(Reference::Branch("main".into()), remote)).unwrap();
    mirror.refresh().unwrap();
}

#[test]
fn a_process_killed_in_mid_fetch_leaves_a_mirror_that_works() {
    let repo = GitRepo::new().unwrap();
    let good = repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    Mirror::open(dir.path(), main_of(&repo))
        .unwrap()
        .refresh()
        .unwrap();
    let large: Vec<_> = (0..8)
        .map(|i| (format!("{i}"), noise(i + 1, 1 << 20)))
        .collect();
    let large: Vec<_> = large
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    let next = repo.publish("large", &large).unwrap();

    let (packs, log) = (dir.path().join("repo.git/objects/pack"), scratch());
    let before = files(&packs);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "damage::child_fetches", "--ignored"]);
    command
        .env(CHILD_DIR, dir.path())
        .env(CHILD_REMOTE, repo.path());
    let child = Process::spawn("fetch", command, &log.path().join("log")).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while files(&packs) == before {
        child.check().unwrap();
        assert!(Instant::now() < end, "the fetch never began");
    }
    child.kill().unwrap();
    let left = files(&packs);
    assert!(left.len() > before.len(), "{left:?}");

    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last().unwrap().commit.to_string(), good);
    assert_eq!(files(&packs), before, "leftovers are swept");
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), next);
    assert!(!refreshed.rebuilt);
}
