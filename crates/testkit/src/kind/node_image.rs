//! The image of a kind cluster's nodes: kind's own where it can be pulled, and else one that is built here
//! from Debian's packages and Go modules, once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use super::docker::{self, docker, run};
use crate::image::{Entry, Image};
use crate::tools::{self, Program, cache_dir};

/// kind's published image of the Kubernetes version that [`Program::Kubelet`] has, or next to it.
const PUBLISHED: &str = "kindest/node:v1.36.3";
/// How long a registry may take to begin to answer, in seconds.
const PULL_WITHIN: &str = "300";

const ENTRYPOINT: &str = include_str!("../../node/entrypoint");
const SETUP: &str = include_str!("../../node/setup.sh");
const CONTAINERD_UNIT: &str = include_str!("../../node/containerd.service");
const KUBELET_UNIT: &str = include_str!("../../node/kubelet.service");
const CONTAINERD_CONFIG: &str = include_str!("../../node/containerd.toml");
const STORAGE: &str = include_str!("../../node/storage.yaml");

const DEBIAN: &str = "bookworm";
/// Debian's packages of a node.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,\
    mount,kmod,libseccomp2,pigz,e2fsprogs,ca-certificates,jq,procps,runc,containernetworking-plugins,hostname";

/// What a node runs itself, and where kind and the units look for it.
const PROGRAMS: [(Program, &str); 6] = [
    (Program::Kubelet, "/usr/bin/kubelet"),
    (Program::Kubeadm, "/usr/bin/kubeadm"),
    (Program::Kubectl, "/usr/bin/kubectl"),
    (Program::Containerd, "/usr/local/bin/containerd"),
    (
        Program::ContainerdShim,
        "/usr/local/bin/containerd-shim-runc-v2",
    ),
    (Program::Ctr, "/usr/local/bin/ctr"),
];

/// What runs in pods, by the last part of its image's name as kubeadm lists it, and where its image has it.
const POD_PROGRAMS: [(Program, &str, &str); 7] = [
    (
        Program::ApiServer,
        "kube-apiserver",
        "usr/local/bin/kube-apiserver",
    ),
    (
        Program::ControllerManager,
        "kube-controller-manager",
        "usr/local/bin/kube-controller-manager",
    ),
    (
        Program::Scheduler,
        "kube-scheduler",
        "usr/local/bin/kube-scheduler",
    ),
    (Program::KubeProxy, "kube-proxy", "usr/local/bin/kube-proxy"),
    (Program::CoreDns, "coredns", "coredns"),
    (Program::Standin, "pause", "pause"),
    (Program::Etcd, "etcd", "usr/local/bin/etcd"),
];

/// An image for nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Its name in Docker.
    pub name: String,
    /// Whether it was built here: its kubelet then wants `cgroupfs`, its kube-proxy `nftables`.
    pub built: bool,
}

impl NodeImage {
    /// The image, pulled or built first where this machine lacks it. Blocks: on two cores the first build
    /// takes about twenty minutes, and shows how far it is.
    ///
    /// # Errors
    /// When Docker does not work, or the image can neither be pulled nor built.
    pub fn ready() -> anyhow::Result<Self> {
        docker::ready()?;
        let local = Self {
            name: format!(
                "muster/node:{}-{}",
                Program::Kubelet.version()?,
                fingerprint()?
            ),
            built: true,
        };
        if exists(&local.name) {
            return Ok(local);
        }
        let published = Self {
            name: PUBLISHED.to_owned(),
            built: false,
        };
        if exists(&published.name) {
            return Ok(published);
        }
        tools::say(&format!("pulling {PUBLISHED}"));
        let mut pull = Command::new("timeout");
        pull.args([PULL_WITHIN, "docker", "pull", "--quiet", PUBLISHED]);
        if run(&mut pull).is_ok() {
            return Ok(published);
        }
        tools::say("it can't be pulled here; building a node image instead");
        let _lock = tools::lock(&cache_dir()?.join("node-image.lock"), "the node image")?;
        if !exists(&local.name) {
            build(&local.name).context("cannot build the node image")?;
        }
        Ok(local)
    }
}

fn exists(image: &str) -> bool {
    docker(["image", "inspect", "--format", "{{.Id}}", image]).is_ok()
}

/// Changes with everything that the image is made of.
fn fingerprint() -> anyhow::Result<String> {
    let mut hash = blake3::Hasher::new();
    let recipe = include_str!("node_image.rs");
    for text in [
        recipe,
        ENTRYPOINT,
        SETUP,
        CONTAINERD_UNIT,
        KUBELET_UNIT,
        CONTAINERD_CONFIG,
        STORAGE,
    ] {
        hash.update(text.as_bytes());
    }
    let programs = PROGRAMS.map(|(program, _)| program).into_iter();
    for program in programs.chain(POD_PROGRAMS.map(|(program, ..)| program)) {
        hash.update(program.folder()?.as_bytes());
    }
    Ok(hash.finalize().to_hex()[..12].to_owned())
}

fn build(name: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    docker::install(&[("mmdebstrap", "mmdebstrap")])
        .context("a node image is built with mmdebstrap, on Debian or Ubuntu")?;
    let folder = tempfile::Builder::new()
        .prefix("node-image-")
        .tempdir_in(cache_dir()?)
        .context("cannot make a folder for the build")?;
    tools::say(&format!("gathering Debian {DEBIAN}'s packages of a node"));
    let system = folder.path().join("system.tar");
    let mut gather = Command::new("mmdebstrap");
    gather.args([
        "--quiet",
        "--variant=apt",
        &format!("--include={PACKAGES}"),
        DEBIAN,
    ]);
    run(gather.arg(&system))?;
    let unpacked = folder.path().join("system");
    fs::create_dir(&unpacked)?;
    run(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(&system)
        .arg("--directory")
        .arg(&unpacked))?;
    let staged = folder.path().join("staged");
    stage(&staged, &unpacked)?;

    tools::say("putting the node image together");
    let system = system.display().to_string();
    let base = docker(["import", &system])?;
    let container = docker([
        "run",
        "--detach",
        "--privileged",
        "--entrypoint",
        "sleep",
        &base,
        "infinity",
    ])?;
    let built = (|| {
        docker([
            "cp",
            &format!("{}/.", staged.display()),
            &format!("{container}:/"),
        ])?;
        docker(["exec", &container, "/setup.sh"])?;
        docker([
            "commit",
            "--change",
            r#"ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]"#,
            "--change",
            "ENV container=docker",
            &container,
            name,
        ])
    })();
    docker(["rm", "--force", "--volumes", &container])?;
    built?;
    // The committed image keeps its layer.
    docker(["rmi", "--force", &base]).ok();
    tools::say(&format!(
        "built the node image in {:.0?}",
        started.elapsed()
    ));
    Ok(())
}

/// What a program of an unpacked system needs to run: itself and its libraries.
fn with_libraries(system: &Path, program: &str) -> anyhow::Result<Vec<Entry>> {
    let libraries = run(Command::new("chroot").arg(system).args(["ldd", program]))?;
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .chain([program]);
    Ok(paths
        .map(|path| {
            Entry::program(
                path.trim_start_matches('/'),
                &system.join(path.trim_start_matches('/')),
            )
        })
        .collect())
}

/// Lays out all that is put over Debian's files.
fn stage(root: &Path, system: &Path) -> anyhow::Result<()> {
    let version = Program::Kubelet.version()?;
    for (program, path) in PROGRAMS {
        put(root, path, 0o755, &fs::read(program.build()?)?)?;
    }
    let kubeadm = Program::Kubeadm.build()?;
    let list = run(Command::new(kubeadm).args([
        "config",
        "images",
        "list",
        "--kubernetes-version",
        version,
    ]))?;
    let mut pause = None;
    for image in list.lines() {
        let short = image.rsplit('/').next().unwrap_or(image);
        let short = short.split(':').next().unwrap_or(short);
        let (program, _, path) = POD_PROGRAMS
            .into_iter()
            .find(|(_, image, _)| *image == short)
            .with_context(|| format!("kubeadm wants an image that is not known: {image}"))?;
        if short == "pause" {
            pause = Some(image.to_owned());
        }
        let mut files = vec![Entry::program(path, &program.build()?)];
        if program == Program::KubeProxy {
            files.extend(with_libraries(system, "/usr/sbin/nft")?);
        }
        Image {
            tags: vec![image.to_owned()],
            files,
            entrypoint: vec![format!("/{path}")],
            environment: vec!["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin".to_owned()],
            folders: vec![("tmp".to_owned(), 0o1777)],
            ..Image::default()
        }
        .write(&root.join("images").join(format!("{short}.tar")))?;
    }
    let pause = pause.context("kubeadm lists no pause image")?;
    let config = CONTAINERD_CONFIG.replace("@PAUSE@", &pause);
    for (path, mode, text) in [
        ("/usr/local/bin/entrypoint", 0o755, ENTRYPOINT),
        ("/setup.sh", 0o755, SETUP),
        (
            "/etc/systemd/system/containerd.service",
            0o644,
            CONTAINERD_UNIT,
        ),
        ("/etc/systemd/system/kubelet.service", 0o644, KUBELET_UNIT),
        ("/etc/containerd/config.toml", 0o644, config.as_str()),
        ("/kind/version", 0o644, version),
        ("/kind/manifests/default-storage.yaml", 0o644, STORAGE),
    ] {
        put(root, path, mode, text.as_bytes())?;
    }
    Ok(())
}

fn put(root: &Path, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let file = root.join(path.trim_start_matches('/'));
    let folder = file.parent().unwrap_or(root);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&file, bytes))
        .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot write {}", file.display()))
}
