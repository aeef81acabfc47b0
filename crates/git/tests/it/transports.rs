//! Tests of every transport, and of every way in which a remote refuses.

use std::{net::TcpListener, time::Duration};

use muster_git::{Auth, Change, ConnectionError, Error, HostKeyError, Limits, Mirror, Reference};
use muster_testkit::gitserver::{GitRepo, HttpsGit, SshGit};

use crate::{config, local, on, once, scratch, text, with};

fn repo() -> (GitRepo, String) {
    let repo = GitRepo::new().unwrap();
    let commit = repo
        .publish("first", &[("fleet.yaml", "a: 1\n"), ("apps/x.yaml", "x\n")])
        .unwrap();
    (repo, commit)
}

/// Checks a first fetch, a refresh without changes and a refresh with a new commit, for any transport.
fn follows(repo: &GitRepo, first: &str, config: muster_git::RemoteConfig) {
    let dir = scratch();
    let mut mirror = Mirror::open(dir.path(), config).unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), first);
    assert_eq!(refreshed.change, Change::Forward);
    assert_eq!(
        text(&refreshed.snapshot, "apps/x.yaml").as_deref(),
        Some("x\n")
    );
    let again = mirror.refresh().unwrap();
    assert_eq!((again.change, again.rebuilt), (Change::None, false));
    let second = repo.publish("second", &[("fleet.yaml", "a: 2\n")]).unwrap();
    let refreshed = mirror.refresh().unwrap();
    assert_eq!(refreshed.snapshot.commit.to_string(), second);
    assert_eq!(
        (refreshed.change, refreshed.rebuilt),
        (Change::Forward, false)
    );
    assert_eq!(
        text(&refreshed.snapshot, "fleet.yaml").as_deref(),
        Some("a: 2\n")
    );
}

fn https(server: &HttpsGit) -> Auth {
    Auth {
        token_file: Some(server.token_file()),
        ca_file: Some(server.ca_file()),
        ..Auth::default()
    }
}

fn ssh(server: &SshGit) -> Auth {
    Auth {
        ssh_key: Some(server.key_file()),
        known_hosts: Some(server.known_hosts_file()),
        ..Auth::default()
    }
}

#[test]
fn a_bare_directory() {
    let (repo, first) = repo();
    follows(&repo, &first, local(&repo.path()));
}

#[test]
fn a_work_tree_where_a_commit_counts_without_a_push() {
    let (repo, first) = repo();
    follows(&repo, &first, local(&repo.work()));
}

#[test]
fn a_file_url() {
    let (repo, first) = repo();
    follows(
        &repo,
        &first,
        config(&format!("file://{}", repo.path().display())),
    );
}

#[test]
fn https_with_a_token() {
    let (repo, first) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    follows(
        &repo,
        &first,
        with(https(&server), config(&server.url("fleet.git"))),
    );
}

#[test]
fn https_by_name_with_the_token_in_the_url() {
    let (repo, first) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let url = server.url("fleet.git").replace("127.0.0.1", "localhost");
    let url = url.replace("https://", &format!("https://ada:{}@", server.token()));
    let auth = Auth {
        token_file: None,
        ..https(&server)
    };
    follows(&repo, &first, with(auth, config(&url)));
}

#[test]
fn plain_http_on_this_machine() {
    let (repo, first) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    follows(
        &repo,
        &first,
        with(https(&server), config(&server.plain_url("fleet.git"))),
    );
}

#[test]
fn ssh_with_a_key() {
    let (repo, first) = repo();
    let server = SshGit::start().unwrap();
    follows(
        &repo,
        &first,
        with(ssh(&server), config(&server.url(&repo.path()))),
    );
}

#[test]
fn tags_are_followed_and_peeled_over_a_network_and_locally() {
    let (repo, first) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    repo.git(&["tag", "light"]).unwrap();
    repo.git(&["tag", "-a", "-m", "x", "annotated"]).unwrap();
    repo.git(&["tag", "-a", "-m", "x", "nested", "annotated"])
        .unwrap();
    repo.git(&["tag", "no-commit", "HEAD^{tree}"]).unwrap();
    repo.git(&["push", "--quiet", "--tags"]).unwrap();
    repo.publish("later", &[("fleet.yaml", "a: 3\n")]).unwrap();
    let remotes = [
        local(&repo.path()),
        with(https(&server), config(&server.url("fleet.git"))),
    ];
    for remote in remotes {
        for tag in ["light", "annotated", "nested"] {
            let dir = scratch();
            let config = on(Reference::Tag(tag.into()), remote.clone());
            let mut mirror = Mirror::open(dir.path(), config).unwrap();
            let found = mirror.refresh().unwrap();
            assert_eq!(found.snapshot.commit.to_string(), first, "{tag}");
            assert_eq!(mirror.refresh().unwrap().change, Change::None, "{tag}");
        }
        let error = once(on(Reference::Tag("no-commit".into()), remote)).unwrap_err();
        assert!(matches!(error, Error::NotACommit { .. }), "{error:?}");
    }
}

#[test]
fn a_branch_besides_the_default_one() {
    let (repo, _) = repo();
    repo.git(&["checkout", "--quiet", "-b", "feature/x"])
        .unwrap();
    let commit = repo.publish("on a branch", &[("b.yaml", "b")]).unwrap();
    let config = on(Reference::Branch("feature/x".into()), local(&repo.path()));
    assert_eq!(once(config).unwrap().snapshot.commit.to_string(), commit);
}

#[test]
fn a_wrong_token_a_missing_one_and_one_that_cannot_be_read() {
    let (repo, _) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let dir = scratch();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "wrong-secret").unwrap();
    let try_with = |token_file| {
        let auth = Auth {
            token_file,
            ..https(&server)
        };
        once(with(auth, config(&server.url("fleet.git")))).unwrap_err()
    };
    let error = try_with(Some(wrong));
    assert!(
        error.chain().contains("the token is wrong"),
        "{}",
        error.chain()
    );
    assert!(!format!("{error:?} {}", error.chain()).contains("wrong-secret"));
    let error = try_with(None);
    assert!(
        error.chain().contains("give a file with a token"),
        "{}",
        error.chain()
    );
    let error = try_with(Some(dir.path().join("missing")));
    assert!(matches!(error, Error::Secret { .. }), "{error:?}");
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    assert!(matches!(try_with(Some(empty)), Error::Secret { .. }));
}

#[test]
fn a_server_of_an_unknown_ca_or_under_another_name() {
    let (repo, _) = repo();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let other = HttpsGit::start(&repo.root()).unwrap();
    let url = server.url("fleet.git");
    for ca_file in [None, Some(other.ca_file())] {
        let error = once(with(
            Auth {
                ca_file,
                ..https(&server)
            },
            config(&url),
        ))
        .unwrap_err();
        assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
    }
    let url = url.replace("127.0.0.1", "127.0.0.2");
    assert!(once(with(https(&server), config(&url))).is_err());
    let no_ca = Auth {
        ca_file: Some(server.token_file()),
        ..https(&server)
    };
    let error = once(with(no_ca, config(&server.url("fleet.git")))).unwrap_err();
    assert!(
        error.chain().contains("it has no PEM certificate"),
        "{}",
        error.chain()
    );
}

#[test]
fn an_unknown_host_key_a_changed_one_and_a_key_that_is_not_accepted() {
    let (repo, _) = repo();
    let server = SshGit::start().unwrap();
    let url = server.url(&repo.path());
    let empty = scratch();
    let nobody = empty.path().join("nobody");
    std::fs::write(&nobody, "").unwrap();

    let auth = Auth {
        known_hosts: Some(nobody.clone()),
        ..ssh(&server)
    };
    let error = once(with(auth.clone(), config(&url))).unwrap_err();
    let Error::HostKey {
        source: HostKeyError::Unknown {
            fingerprint, line, ..
        },
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(*fingerprint, server.fingerprint().unwrap());
    assert!(error.chain().contains(fingerprint), "{}", error.chain());
    // Doing what the error says fixes the problem.
    std::fs::write(&nobody, line).unwrap();
    once(with(auth, config(&url))).unwrap();

    let auth = Auth {
        known_hosts: Some(server.other_hosts_file()),
        ..ssh(&server)
    };
    let error = once(with(auth, config(&url))).unwrap_err();
    let Error::HostKey {
        source: HostKeyError::Changed { .. },
        ..
    } = &error
    else {
        panic!("{error:?}")
    };

    let auth = Auth {
        ssh_key: Some(server.strangers_key_file()),
        ..ssh(&server)
    };
    let error = once(with(auth, config(&url))).unwrap_err();
    assert!(
        error.chain().contains("does not accept the private key"),
        "{}",
        error.chain()
    );
    let auth = Auth {
        ssh_key: Some(empty.path().join("missing")),
        ..ssh(&server)
    };
    let error = once(with(auth, config(&url))).unwrap_err();
    assert!(matches!(error, Error::Secret { .. }), "{error:?}");
}

#[test]
fn a_repository_that_is_not_there() {
    let (repo, _) = repo();
    let https_server = HttpsGit::start(&repo.root()).unwrap();
    let ssh_server = SshGit::start().unwrap();
    let missing = repo.root().join("missing.git");
    for config in [
        local(&missing),
        with(
            https(&https_server),
            config(&https_server.url("missing.git")),
        ),
        with(ssh(&ssh_server), config(&ssh_server.url(&missing))),
    ] {
        let error = once(config).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
}

#[test]
fn an_empty_repository() {
    let repo = GitRepo::new().unwrap();
    let server = HttpsGit::start(&repo.root()).unwrap();
    let ssh_server = SshGit::start().unwrap();
    for config in [
        local(&repo.path()),
        with(https(&server), config(&server.url("fleet.git"))),
        with(ssh(&ssh_server), config(&ssh_server.url(&repo.path()))),
    ] {
        let error = once(config).unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error:?}");
    }
}

#[test]
fn a_host_that_is_down_and_one_that_never_answers() {
    let (repo, first) = repo();
    let mut server = HttpsGit::start(&repo.root()).unwrap();
    let config = with(https(&server), config(&server.url("fleet.git")));
    let dir = scratch();
    let stall = Duration::from_millis(300);
    let mut mirror = Mirror::open(dir.path(), config)
        .unwrap()
        .with_limits(Limits {
            stall,
            ..Limits::default()
        });
    mirror.refresh().unwrap();
    server.pause().unwrap();
    let error = mirror.refresh().unwrap_err();
    let Error::Unreachable {
        source: ConnectionError::Stalled { .. },
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    server.resume().unwrap();
    server.take_down();
    let error = mirror.refresh().unwrap_err();
    let Error::Unreachable {
        source: ConnectionError::Connect { .. },
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(mirror.last().unwrap().commit.to_string(), first);
    server.bring_up().unwrap();
    assert_eq!(mirror.refresh().unwrap().change, Change::None);
}

#[test]
fn an_ssh_host_that_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (server, dir) = (SshGit::start().unwrap(), scratch());
    let url = format!(
        "ssh://git@127.0.0.1:{}/x",
        listener.local_addr().unwrap().port()
    );
    let stall = Duration::from_millis(300);
    let mut mirror = Mirror::open(dir.path(), with(ssh(&server), config(&url)))
        .unwrap()
        .with_limits(Limits {
            stall,
            ..Limits::default()
        });
    let error = mirror.refresh().unwrap_err();
    let Error::Unreachable {
        source: ConnectionError::Stalled { .. },
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
}

/// The time limits of a mirror that gives up soon.
fn impatient(stall: Duration) -> Limits {
    Limits {
        stall,
        ..Limits::default()
    }
}

#[test]
fn keys_of_the_usual_types_and_forms_are_accepted() {
    let (repo, tip) = repo();
    // The server has an RSA host key, which is not the type that the client prefers.
    let server = SshGit::with_settings("rsa", "").unwrap();
    let url = server.url(&repo.path());
    for (name, arguments) in [
        ("ed25519", &["-t", "ed25519", "-N", ""][..]),
        ("ecdsa", &["-t", "ecdsa", "-N", ""]),
        ("ecdsa-pem", &["-t", "ecdsa", "-m", "PEM", "-N", ""]),
        ("rsa", &["-t", "rsa", "-N", ""]),
        ("rsa-pem", &["-t", "rsa", "-m", "PEM", "-N", ""]),
        ("rsa-pkcs8", &["-t", "rsa", "-m", "PKCS8", "-N", ""]),
    ] {
        let auth = Auth {
            ssh_key: Some(server.accept_new_key(name, arguments).unwrap()),
            ..ssh(&server)
        };
        let fetched = once(with(auth, config(&url)))
            .unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
        assert_eq!(fetched.snapshot.commit.to_string(), tip, "{name}");
    }
    let locked = server.accept_new_key("locked", &["-t", "ed25519", "-N", "passphrase"]);
    let auth = Auth {
        ssh_key: Some(locked.unwrap()),
        ..ssh(&server)
    };
    let error = once(with(auth, config(&url))).unwrap_err();
    assert!(error.chain().contains("passphrase"), "{}", error.chain());
}

#[test]
fn an_ssh_server_whose_git_says_nothing() {
    let server = SshGit::with_settings("ed25519", "ForceCommand sleep 60\n").unwrap();
    let dir = scratch();
    let url = server.url(dir.path());
    let mirror =
        || Mirror::open(&dir.path().join("mirror"), with(ssh(&server), config(&url))).unwrap();
    let error = mirror()
        .with_limits(impatient(Duration::from_millis(500)))
        .refresh();
    let Err(Error::Unreachable {
        source: ConnectionError::Stalled { .. },
        ..
    }) = error
    else {
        panic!("{error:?}")
    };
}

#[test]
fn an_ssh_server_that_runs_no_git() {
    let server = SshGit::with_settings(
        "ed25519",
        "ForceCommand echo no shell for you >&2; exit 1\n",
    )
    .unwrap();
    let dir = scratch();
    let error = once(with(ssh(&server), config(&server.url(dir.path())))).unwrap_err();
    assert!(
        error.chain().contains("no shell for you"),
        "{}",
        error.chain()
    );
}

#[test]
fn a_closed_port_and_an_unknown_host_are_told_apart() {
    let server = SshGit::start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let failure = |url: String| match once(with(ssh(&server), config(&url))).unwrap_err() {
        Error::Unreachable { source, .. } => source,
        error => panic!("{error:?}"),
    };
    let closed = failure(format!("ssh://git@127.0.0.1:{port}/x"));
    assert!(
        matches!(closed, ConnectionError::Connect { .. }),
        "{closed:?}"
    );
    let unknown = failure("ssh://git@no-such-host.invalid/x".to_owned());
    assert!(
        matches!(unknown, ConnectionError::Resolve { .. }),
        "{unknown:?}"
    );
}
