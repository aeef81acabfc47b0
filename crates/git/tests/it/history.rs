//! Tests of what people do to a branch: force-pushes, deletions, renames.

use std::fs;

use muster_git::{Auth, Change, Error, Mirror, Reference, RemoteConfig};
use muster_testkit::gitserver::{GitRepo, HttpsGit};

use crate::{config, local, on, scratch, text, with};

fn main_of(repo: &GitRepo) -> RemoteConfig {
    on(Reference::Branch("main".into()), local(&repo.path()))
}

/// Returns the number of objects in all packs of the mirror. An object in two packs counts twice.
fn objects(dir: &std::path::Path) -> usize {
    let packs = fs::read_dir(dir.join("repo.git/objects/pack")).unwrap();
    let packs = packs.map(|file| file.unwrap().path());
    let counts = packs
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .map(|path| {
            let bytes = fs::read(path).unwrap();
            u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize
        });
    counts.sum()
}

#[test]
fn only_new_objects_of_the_followed_branch_are_fetched() {
    let repo = GitRepo::new().unwrap();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let files: Vec<_> = (0..50)
        .map(|i| (format!("dir/{i}.yaml"), format!("file {i}")))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    repo.publish("first", &files).unwrap();
    repo.git(&["checkout", "--quiet", "-b", "other"]).unwrap();
    repo.publish("elsewhere", &[("other", "other")]).unwrap();
    repo.git(&["checkout", "--quiet", "main"]).unwrap();
    let auth = Auth {
        token_file: Some(server.token_file()),
        ca_file: Some(server.ca_file()),
        ..Auth::default()
    };
    let mut mirrors: Vec<_> = [
        local(&repo.path()),
        with(auth, config(&server.url("fleet.git"))),
    ]
    .map(|config| {
        let dir = scratch();
        let mut mirror = Mirror::open(dir.path(), config).unwrap();
        mirror.refresh().unwrap();
        // The first commit has 50 files and two trees.
        assert_eq!(objects(dir.path()), 53);
        (dir, mirror)
    })
    .into();
    repo.publish("second", &[("dir/7.yaml", "changed")])
        .unwrap();
    for (dir, mirror) in &mut mirrors {
        mirror.refresh().unwrap();
        // The second commit adds a file, two trees and itself.
        assert_eq!(objects(dir.path()), 57);
    }
}

#[test]
fn unchanged_files_are_not_read_again() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "same"), ("b", "old")])
        .unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let before = mirror.refresh().unwrap().snapshot;
    repo.publish("second", &[("b", "new")]).unwrap();
    let after = mirror.refresh().unwrap().snapshot;
    let bytes = |snapshot: &muster_model::tree::Snapshot, path| match &snapshot.tree.entries[path] {
        muster_model::tree::Entry::File { bytes, .. } => bytes.clone(),
        other => panic!("{other:?}"),
    };
    assert!(std::sync::Arc::ptr_eq(
        &bytes(&before, "a"),
        &bytes(&after, "a")
    ));
    assert_eq!(&*bytes(&after, "b"), b"new");
}

#[test]
fn a_force_push_is_followed_and_told() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let second = repo.publish("second", &[("a", "2")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    repo.git(&["reset", "--quiet", "--hard", "HEAD~1"]).unwrap();
    let third = repo.commit("third", &[("a", "3")]).unwrap();
    repo.force_push().unwrap();
    // Removes the old commit from the remote for good.
    repo.git_bare(&["reflog", "expire", "--expire=now", "--all"])
        .unwrap();
    repo.git_bare(&["gc", "--quiet", "--prune=now"]).unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), third);
    assert_eq!(
        refreshed.change,
        Change::Forced {
            old: second.parse().unwrap()
        }
    );
    assert!(!refreshed.rebuilt);
    // Moves the branch back to an earlier commit.
    repo.git(&["reset", "--quiet", "--hard", "HEAD~1"]).unwrap();
    repo.force_push().unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(
        refreshed.change,
        Change::Forced {
            old: third.parse().unwrap()
        }
    );
    // The mirror still has the commit that the force-push removed.
    let old = mirror.snapshot(third.parse().unwrap()).unwrap();
    assert_eq!(text(&old, "a").as_deref(), Some("3"));
    let unknown = mirror
        .snapshot("00".repeat(20).parse().unwrap())
        .unwrap_err();
    assert!(matches!(unknown, Error::NoReference { .. }), "{unknown:?}");
}

#[test]
fn a_deleted_branch_is_told_and_may_come_back() {
    let repo = GitRepo::new().unwrap();
    let first = repo.publish("first", &[("a", "1")]).unwrap();
    repo.git(&["push", "--quiet", "origin", "HEAD:refs/heads/spare"])
        .unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    mirror.refresh().unwrap();
    repo.delete_branch("main").unwrap();
    let error = mirror.refresh().unwrap_err().to_string();
    assert!(
        error.ends_with("lacks branch main; it has: spare"),
        "{error}"
    );
    assert_eq!(mirror.last().unwrap().commit.to_string(), first);
    let second = repo.publish("second", &[("a", "2")]).unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), second);
    assert_eq!(refreshed.change, Change::Forward);
}

#[test]
fn the_default_branch_is_the_remotes_choice_and_may_change() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    repo.git(&["checkout", "--quiet", "-b", "trunk"]).unwrap();
    let trunk = repo.publish("second", &[("a", "2")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), local(&repo.path())).unwrap();
    mirror.refresh().unwrap();
    repo.git_bare(&["symbolic-ref", "HEAD", "refs/heads/trunk"])
        .unwrap();
    assert_eq!(mirror.refresh().unwrap().snapshot.commit.to_string(), trunk);
    repo.git_bare(&["symbolic-ref", "HEAD", "refs/heads/nowhere"])
        .unwrap();
    let error = mirror.refresh().unwrap_err().to_string();
    assert!(
        error.ends_with("lacks the default branch; it has: main, trunk"),
        "{error}"
    );
}

#[test]
fn the_last_good_snapshot_survives_a_restart_without_the_remote() {
    let repo = GitRepo::new().unwrap();
    repo.publish("first", &[("a", "1")]).unwrap();
    let dir = scratch();
    let config = main_of(&repo);
    let mut mirror = Mirror::open(dir.path(), config.clone()).unwrap();
    let good = mirror.refresh().unwrap().snapshot;
    drop(mirror);
    drop(repo);
    let mut mirror = Mirror::open(dir.path(), config.clone()).unwrap();
    assert!(matches!(mirror.refresh(), Err(Error::NotFound { .. })));
    assert_eq!(mirror.last(), Some(&good));
    drop(mirror);
    // The tip of one branch is not the last good state of another.
    let other = on(Reference::Branch("other".into()), config);
    assert_eq!(Mirror::open(dir.path(), other).unwrap().last(), None);
}

#[test]
fn a_mirror_belongs_to_one_process() {
    let repo = GitRepo::new().unwrap();
    let dir = scratch();
    let mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let second = Mirror::open(dir.path(), main_of(&repo));
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    drop(mirror);
    Mirror::open(dir.path(), main_of(&repo)).unwrap();
}

#[test]
fn many_fetches_end_in_few_packs() {
    let repo = GitRepo::new().unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    let mut last = String::new();
    let packs = || {
        fs::read_dir(dir.path().join("repo.git/objects/pack"))
            .unwrap()
            .count()
    };
    for i in 0..66 {
        last = repo.publish("next", &[("a", &i.to_string())]).unwrap();
        mirror.refresh().unwrap();
        mirror.tidy().unwrap();
        assert!(packs() <= 2 * 65, "{i}");
    }
    // One pack with an index for everything up to the 65th fetch, and one for the last.
    assert_eq!(packs(), 4);
    drop(mirror);
    let mut mirror = Mirror::open(dir.path(), main_of(&repo)).unwrap();
    assert_eq!(mirror.last().unwrap().commit.to_string(), last);
    let next = repo.publish("after", &[("a", "after")]).unwrap();
    assert_eq!(mirror.refresh().unwrap().snapshot.commit.to_string(), next);
}
