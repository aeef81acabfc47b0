//! Builds the programs of clusters once, from Go modules, into a cache outside the checkout.
//!
//! The pinned `go.mod` and `go.sum` are embedded, so that an installed binary can build the programs too. A file lock
//! lets one process build while others wait. A finished binary is moved into place with a rename.

mod installed;

use std::fs::{self, File, TryLockError};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::Context;
use etcetera::BaseStrategy;
use indicatif::{ProgressBar, ProgressStyle};

use crate::process::Process;

pub use installed::{Installed, Unusable};

/// How often a build reports its progress if the output is not a terminal.
const NEWS: Duration = Duration::from_secs(20);

/// A program of a control plane or a node, or a tool for clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// etcd, the API server's database.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kwok, which simulates nodes and their pods.
    Kwok,
    /// etcdctl, the command-line client of etcd.
    Etcdctl,
    /// kubelet, which runs the pods of a node.
    Kubelet,
    /// kubeadm, which sets up a cluster on a node.
    Kubeadm,
    /// kube-proxy.
    KubeProxy,
    /// kubectl.
    Kubectl,
    /// containerd, which runs the containers of a node.
    Containerd,
    /// containerd's shim, the parent process of a pod's containers.
    ContainerdShim,
    /// ctr, which imports images into containerd.
    Ctr,
    /// CoreDNS, the DNS server of a cluster.
    CoreDns,
    /// kind, which creates clusters whose nodes are containers.
    Kind,
    /// Helm 3.
    Helm,
    /// Helm 4.
    Helm4,
    /// The stand-in for programs whose images are not available. It is also the `pause` container of pods.
    Standin,
}

/// A Go module that programs are built from.
struct Module {
    label: &'static str,
    path: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    tags: &'static str,
    /// The source of the program, if it is part of this crate.
    main: Option<&'static str>,
}

macro_rules! module {
    ($label:literal, $path:literal, $tags:literal) => {
        Module {
            label: $label,
            path: $path,
            go_mod: include_str!(concat!("../go/", $label, "/go.mod")),
            go_sum: include_str!(concat!("../go/", $label, "/go.sum")),
            tags: $tags,
            main: None,
        }
    };
}

static KUBERNETES: Module = module!("kubernetes", "k8s.io/kubernetes", "");
static ETCD: Module = module!("etcd", "go.etcd.io/etcd/server/v3", "");
static KWOK: Module = module!("kwok", "sigs.k8s.io/kwok", "");
static CONTAINERD: Module = module!(
    "containerd",
    "github.com/containerd/containerd/v2",
    "no_btrfs,no_devmapper,no_zfs"
);
static COREDNS: Module = module!("coredns", "github.com/coredns/coredns", "");
static KIND: Module = module!("kind", "sigs.k8s.io/kind", "");
static HELM: Module = module!("helm", "helm.sh/helm/v3", "");
static HELM4: Module = module!("helm4", "helm.sh/helm/v4", "");
static STANDIN: Module = Module {
    label: "standin",
    path: "muster.dev/testkit/standin",
    go_mod: include_str!("../go/standin/go.mod"),
    go_sum: "",
    tags: "",
    main: Some(include_str!("../go/standin/main.go")),
};

impl Program {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
            Self::Etcdctl => "etcdctl",
            Self::Kubelet => "kubelet",
            Self::Kubeadm => "kubeadm",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Containerd => "containerd",
            Self::ContainerdShim => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::CoreDns => "coredns",
            Self::Kind => "kind",
            Self::Helm | Self::Helm4 => "helm",
            Self::Standin => "standin",
        }
    }

    /// The version of the Go module that the program is built from, such as `v1.36.3`.
    ///
    /// # Errors
    /// Fails if the pinned `go.mod` does not name it.
    pub fn version(self) -> anyhow::Result<&'static str> {
        self.module().version()
    }

    /// The name of the module's folder in the cache. It depends on everything that the program is built from.
    pub(crate) fn folder(self) -> anyhow::Result<String> {
        let module = self.module();
        Ok(module.folder(module.version()?))
    }

    fn module(self) -> &'static Module {
        match self {
            Self::ApiServer
            | Self::ControllerManager
            | Self::Scheduler
            | Self::Kubelet
            | Self::Kubeadm
            | Self::KubeProxy
            | Self::Kubectl => &KUBERNETES,
            Self::Etcd | Self::Etcdctl => &ETCD,
            Self::Kwok => &KWOK,
            Self::Containerd | Self::ContainerdShim | Self::Ctr => &CONTAINERD,
            Self::CoreDns => &COREDNS,
            Self::Kind => &KIND,
            Self::Helm => &HELM,
            Self::Helm4 => &HELM4,
            Self::Standin => &STANDIN,
        }
    }

    fn package(self) -> String {
        let module = self.module().path;
        match self {
            Self::Etcd | Self::CoreDns | Self::Kind | Self::Standin => module.to_owned(),
            Self::Etcdctl => "go.etcd.io/etcd/etcdctl/v3".to_owned(),
            _ => format!("{module}/cmd/{}", self.name()),
        }
    }

    /// Returns the path of the program if the cache has it.
    ///
    /// # Errors
    /// Fails if there is no cache directory.
    pub fn cached(self) -> anyhow::Result<Option<PathBuf>> {
        let directory = cache_dir()?.join("tools").join(self.folder()?);
        let program = directory.join(self.name());
        Ok(program.exists().then_some(program))
    }

    /// Returns the path of the program, and builds the program first if the cache lacks it. Blocks: the first build of
    /// all programs takes about ten minutes on two cores. It shows its progress.
    ///
    /// # Errors
    /// Fails if Go is missing or too old, if the build fails, or if the cache can't be written.
    pub fn build(self) -> anyhow::Result<PathBuf> {
        let module = self.module();
        let version = module.version()?;
        let directory = cache_dir()?.join("tools").join(self.folder()?);
        let program = directory.join(self.name());
        if let Some(cached) = self.cached()? {
            return Ok(cached);
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let _lock = lock(&directory.join(".lock"), self.name())?;
        // Another process may have built it while this one waited.
        if !program.exists() {
            self.compile(version, &directory, &program)
                .with_context(|| format!("cannot build {} {version}", self.name()))?;
        }
        Ok(program)
    }

    fn compile(self, version: &str, directory: &Path, program: &Path) -> anyhow::Result<()> {
        let module = self.module();
        let name = self.name();
        let go_version = module.go_version();
        // This process holds the lock, so an existing folder is the leftover of a killed build.
        let workshop = directory.join(format!(".{name}.build"));
        if workshop.exists() {
            fs::remove_dir_all(&workshop)
                .with_context(|| format!("cannot remove {}", workshop.display()))?;
        }
        fs::create_dir(&workshop)
            .and_then(|()| fs::write(workshop.join("go.mod"), module.go_mod))
            .and_then(|()| fs::write(workshop.join("go.sum"), module.go_sum))
            .with_context(|| format!("cannot write to {}", workshop.display()))?;
        if let Some(main) = module.main {
            fs::write(workshop.join("main.go"), main)
                .with_context(|| format!("cannot write to {}", workshop.display()))?;
        }
        anyhow::ensure!(
            Command::new("go")
                .arg("version")
                .output()
                .is_ok_and(|output| output.status.success()),
            "it is built with Go {go_version} or newer, and no working `go` is on the PATH; \
             install it (https://go.dev/dl/) and try again"
        );

        // The version that Kubernetes programs report, and the cluster version that Helm assumes if it asks no cluster.
        let mut flags = "-s -w".to_owned();
        let mut numbers = KUBERNETES.version()?.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
        let prefix = match module.label {
            "kubernetes" => {
                let prefix = "k8s.io/component-base/version.git";
                flags.push_str(&format!(" -X {prefix}Version={version}"));
                Some(prefix)
            }
            "helm" => Some("helm.sh/helm/v3/pkg/chartutil.k8sVersion"),
            _ => None,
        };
        if let Some(prefix) = prefix {
            flags.push_str(&format!(
                " -X {prefix}Major={major} -X {prefix}Minor={minor}"
            ));
        }
        let mut go = Command::new("go");
        go.current_dir(&workshop)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env_remove("GOOS")
            .env_remove("GOARCH")
            .args(["build", "-v", "-mod=readonly", "-trimpath"])
            .args(["-buildvcs=false", "-tags", module.tags, "-ldflags"])
            .arg(flags)
            .arg("-o")
            .arg(workshop.join(name))
            .arg(self.package());
        let build = Process::spawn("go build", go, &workshop.join("log"))?;
        let progress = Progress::new(format!("{name} {version}"));
        let status = loop {
            if let Some(status) = build.wait(Duration::from_millis(250))? {
                break status;
            }
            progress.show(&build)?;
        };
        anyhow::ensure!(
            status.success(),
            "`go build` failed ({status}; Go {go_version} or newer is needed):\n{}",
            build.tail()
        );
        fs::rename(workshop.join(name), program)
            .and_then(|()| fs::remove_dir_all(&workshop))
            .with_context(|| format!("cannot put {} in its place", program.display()))?;
        progress.done();
        Ok(())
    }
}

impl Module {
    fn version(&self) -> anyhow::Result<&'static str> {
        if self.main.is_some() {
            return Ok("v1");
        }
        let version = self.go_mod.lines().find_map(|line| {
            let (path, rest) = line.trim().trim_start_matches("require ").split_once(' ')?;
            (path == self.path && rest.starts_with('v')).then(|| rest.split(' ').next())?
        });
        version.with_context(|| format!("the go.mod of {} requires no {}", self.label, self.path))
    }

    fn go_version(&self) -> &'static str {
        self.go_mod
            .lines()
            .find_map(|line| line.strip_prefix("go "))
            .unwrap_or("1.26")
    }

    /// The name of the folder in the cache, which differs for other versions and other dependencies.
    fn folder(&self, version: &str) -> String {
        let hash = blake3::Hasher::new()
            .update(self.go_mod.as_bytes())
            .update(self.go_sum.as_bytes())
            .update(self.main.unwrap_or_default().as_bytes())
            .finalize();
        format!("{}-{version}-{}", self.label, &hash.to_hex()[..12])
    }
}

/// The environment variable with the directory for everything that is built or downloaded once.
pub const CACHE_VARIABLE: &str = "MUSTER_CACHE";

/// Returns the directory for everything that is built or downloaded once: `$MUSTER_CACHE`, or `muster` in the user's
/// cache directory.
///
/// # Errors
/// Fails if the user has no home directory.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(CACHE_VARIABLE).filter(|value| !value.is_empty()) {
        return std::path::absolute(chosen).context("MUSTER_CACHE is no usable path");
    }
    let user = etcetera::choose_base_strategy()
        .context("no home directory; set MUSTER_CACHE to a directory for cached builds")?;
    Ok(user.cache_dir().join("muster"))
}

pub(crate) fn lock(path: &Path, what: &str) -> anyhow::Result<File> {
    let failed = || format!("cannot lock {}", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.with_context(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say(&format!("waiting for another process that prepares {what}"));
            file.lock().with_context(failed)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
    }
    Ok(file)
}

/// Writes a line to standard error, even if a test's output is captured: ten minutes of silence would look like a
/// hang.
pub(crate) fn say(line: &str) {
    // A closed standard error must not stop a build.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The progress of a build: a spinner on a terminal, a line every [`NEWS`] elsewhere.
struct Progress {
    what: String,
    start: Instant,
    spinner: Option<ProgressBar>,
    said: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(what: String) -> Self {
        static WARNING: Once = Once::new();
        WARNING.call_once(|| {
            say(
                "building Kubernetes from source; the first build of all programs takes about ten \
                 minutes on two cores",
            );
        });
        say(&format!("building {what}"));
        let start = Instant::now();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            what,
            start,
            spinner,
            said: std::cell::Cell::new(start),
        }
    }

    /// Shows how many packages are done: `go build -v` prints a line for each package that it downloads or compiles.
    fn show(&self, build: &Process) -> anyhow::Result<()> {
        if self.spinner.is_none() && self.said.get().elapsed() < NEWS {
            return Ok(());
        }
        let log = fs::read(build.log()).context("cannot read the log of the build")?;
        let steps = log.iter().filter(|byte| **byte == b'\n').count();
        let message = format!("{}: {steps} packages done", self.what);
        match &self.spinner {
            Some(spinner) => spinner.set_message(message),
            None => say(&format!("{message}, {:.0?}", self.start.elapsed())),
        }
        self.said.set(Instant::now());
        Ok(())
    }

    fn done(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        say(&format!(
            "built {} in {:.0?}",
            self.what,
            self.start.elapsed()
        ));
    }
}
