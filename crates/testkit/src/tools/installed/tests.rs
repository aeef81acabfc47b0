use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn program(folder: &Path, name: &str, script: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn versions_are_found_in_what_programs_print() {
    for (output, version) in [
        ("Kubernetes v1.36.3\n", Some("v1.36.3")),
        (
            "etcd Version: 3.6.5\nGit SHA: a1\nGo Version: go1.25\n",
            Some("3.6.5"),
        ),
        ("kwok version v0.8.0 go1.25 (linux/amd64)", Some("v0.8.0")),
        ("usage: nothing", None),
    ] {
        assert_eq!(version_in(output), version, "{output}");
    }
}

#[test]
fn the_first_program_that_fits_is_used() {
    let scratch = Scratch::temporary("installed").unwrap();
    let [old, broken, good] = ["old", "broken", "good"].map(|name| scratch.path().join(name));
    let pinned = Program::ApiServer.version().unwrap();
    let old_one = program(&old, "kube-apiserver", "echo Kubernetes v1.20.0");
    let broken_one = program(&broken, "kube-apiserver", "exit 3");
    let good_one = program(
        &good,
        "kube-apiserver",
        &format!("echo Kubernetes {pinned}"),
    );
    let (found, unusable) =
        Program::ApiServer.installed_in([scratch.path().to_owned(), old, broken, good]);
    let installed = Installed {
        path: good_one,
        version: pinned.to_owned(),
    };
    assert_eq!(found, Some(installed));
    let paths: Vec<_> = unusable.iter().map(|unusable| &unusable.path).collect();
    assert_eq!(paths, [&old_one, &broken_one]);
    assert!(unusable[0].why.contains("v1.20.0"), "{}", unusable[0].why);
}

#[test]
fn etcd_may_be_newer_than_the_pinned_one() {
    let scratch = Scratch::temporary("installed").unwrap();
    for (version, fits) in [
        ("3.4.30", false),
        ("3.5.9", true),
        ("3.99.0", true),
        ("4.0.0", false),
    ] {
        program(
            scratch.path(),
            "etcd",
            &format!("echo etcd Version: {version}"),
        );
        let (found, _) = Program::Etcd.installed_in([scratch.path().to_owned()]);
        assert_eq!(found.is_some(), fits, "{version}");
    }
}

#[test]
fn the_folder_of_envtest_comes_before_the_path() {
    let folders = folders(
        Some(OsStr::new("/envtest")),
        OsStr::new("/usr/bin:relative:/opt"),
    );
    assert_eq!(folders, ["/envtest", "/usr/bin", "/opt"].map(PathBuf::from));
}
