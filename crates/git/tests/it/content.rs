//! Tests of unusual contents of a repository.

use std::os::unix::fs::symlink;

use muster_git::{Error, Mirror, TooBig, read_dir};
use muster_model::tree::{Entry, MAX_FILE_BYTES};
use muster_testkit::gitserver::GitRepo;

use crate::{local, once, scratch, text};

#[test]
fn strange_content_is_read_for_what_it_is_and_a_directory_gives_the_same() {
    let repo = GitRepo::new().unwrap();
    let deep = format!("{}leaf", "d/".repeat(200));
    let large = vec![b'x'; 10 << 20];
    let fits = vec![b'y'; usize::try_from(MAX_FILE_BYTES).unwrap()];
    repo.write(&[
        (b"plain.yaml", b"a: 1\n"),
        (b"empty", b""),
        (b"latin-1.yaml", b"name: caf\xe9\n"),
        (b"caf\xe9.yaml", b"x"),
        ("snow ☃ \n.yaml".as_bytes(), b"x"),
        (deep.as_bytes(), b"leaf"),
        (b"large", &large),
        (b"fits", &fits),
    ])
    .unwrap();
    symlink("../../etc/passwd", repo.work().join("link")).unwrap();
    symlink("dir", repo.work().join("dir-link")).unwrap();
    let inner = repo.work().join("inner");
    repo.git(&["init", "--quiet", "inner"]).unwrap();
    let inner = inner.to_str().unwrap();
    repo.git(&[
        "-C",
        inner,
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "inner",
    ])
    .unwrap();
    let commit = repo.publish("strange\n\nand long", &[]).unwrap();

    let snapshot = once(local(&repo.path())).unwrap().snapshot;
    assert_eq!(snapshot.commit.to_string(), commit);
    assert_eq!(
        (snapshot.subject.as_str(), snapshot.author.as_str()),
        ("strange", "Ada")
    );
    let entries = &snapshot.tree.entries;
    let names: Vec<_> = entries.keys().map(String::as_str).collect();
    let expected = [
        "caf\u{fffd}.yaml",
        &deep,
        "dir-link",
        "empty",
        "fits",
        "inner",
        "large",
        "latin-1.yaml",
        "link",
        "plain.yaml",
        "snow ☃ \n.yaml",
    ];
    assert_eq!(names, expected);
    assert_eq!(entries["large"], Entry::TooLarge { size: 10 << 20 });
    assert_eq!(
        entries["link"],
        Entry::Symlink {
            target: "../../etc/passwd".into()
        }
    );
    assert_eq!(
        entries["dir-link"],
        Entry::Symlink {
            target: "dir".into()
        }
    );
    assert_eq!(entries["inner"], Entry::Submodule);
    assert_eq!(text(&snapshot, &deep).as_deref(), Some("leaf"));
    let Entry::File { id, bytes } = &entries["latin-1.yaml"] else {
        panic!("no file")
    };
    assert_eq!(&**bytes, b"name: caf\xe9\n");
    assert_eq!(
        id.to_string(),
        repo.git(&["rev-parse", "HEAD:latin-1.yaml"]).unwrap()
    );

    assert_eq!(read_dir(&repo.work()).unwrap(), *snapshot.tree);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = scratch();
    let error = read_dir(&dir.path().join("missing"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing"), "{error}");
}

/// Each tree contains the next tree ten times, twelve levels deep: few objects, but 10^12 paths.
#[test]
fn a_tree_without_end_is_refused_and_the_last_good_snapshot_stays() {
    let repo = GitRepo::new().unwrap();
    let good = repo.publish("good", &[("a", "1")]).unwrap();
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), local(&repo.path())).unwrap();
    mirror.refresh().unwrap();

    let git = git2::Repository::open(repo.path()).unwrap();
    let mut id = git.blob(b"x").unwrap();
    let mut mode = 0o100_644;
    for _ in 0..12 {
        let mut tree = git.treebuilder(None).unwrap();
        for name in 0..10 {
            tree.insert(name.to_string(), id, mode).unwrap();
        }
        (id, mode) = (tree.write().unwrap(), 0o040_000);
    }
    let tree = git.find_tree(id).unwrap();
    let main = git.refname_to_id("refs/heads/main").unwrap();
    let parent = git.find_commit(main).unwrap();
    let ada = git2::Signature::now("Ada", "ada@example.com").unwrap();
    git.commit(
        Some("refs/heads/main"),
        &ada,
        &ada,
        "bomb",
        &tree,
        &[&parent],
    )
    .unwrap();

    let error = mirror.refresh().unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooBig {
                source: TooBig::Entries,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(mirror.last().unwrap().commit.to_string(), good);
    git.reference("refs/heads/main", main, true, "").unwrap();
    assert_eq!(mirror.refresh().unwrap().snapshot.commit.to_string(), good);
}

#[test]
fn a_path_without_end_is_refused() {
    let repo = GitRepo::new().unwrap();
    repo.publish("good", &[("a", "1")]).unwrap();
    let git = git2::Repository::open(repo.path()).unwrap();
    let mut id = git.blob(b"x").unwrap();
    let mut mode = 0o100_644;
    for _ in 0..3000 {
        let mut tree = git.treebuilder(None).unwrap();
        tree.insert("d", id, mode).unwrap();
        (id, mode) = (tree.write().unwrap(), 0o040_000);
    }
    let ada = git2::Signature::now("Ada", "ada@example.com").unwrap();
    let tree = git.find_tree(id).unwrap();
    let commit = git.commit(None, &ada, &ada, "deep", &tree, &[]).unwrap();
    git.reference("refs/heads/main", commit, true, "").unwrap();
    let error = once(local(&repo.path())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooBig {
                source: TooBig::Path,
                ..
            }
        ),
        "{error:?}"
    );
}
