//! Builds the peers' programs from pinned Go modules in `bench/peers`, and runs them as their users do.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use muster_testkit::tools::cache_dir;

use crate::report::root;

/// A program of a peer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// `helm` itself.
    Helm,
    /// Muster's small program around Helm's engine.
    HelmEngine,
    /// `kustomize` itself.
    Kustomize,
    /// `kubectl` itself.
    Kubectl,
    /// Muster's small program around Flux's package for applying.
    FluxSsa,
}

impl Peer {
    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Helm => ("helm", "helm", "helm.sh/helm/v3/cmd/helm"),
            Self::HelmEngine => ("helm-engine", "helm", "."),
            Self::Kustomize => (
                "kustomize",
                "kustomize",
                "sigs.k8s.io/kustomize/kustomize/v5",
            ),
            Self::Kubectl => ("kubectl", "kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            Self::FluxSsa => ("flux-ssa", "ssa", "."),
        }
    }

    /// Builds the program and returns its path. Go caches what it compiles, so a second build takes only about a
    /// second.
    pub(crate) fn build(self) -> anyhow::Result<PathBuf> {
        let (name, module, package) = self.parts();
        let folder = cache_dir()?.join("bench");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("can't create {}", folder.display()))?;
        let program = folder.join(name);
        eprintln!("building {name} (the first time takes some minutes)");
        let started = Instant::now();
        let status = Command::new("go")
            .current_dir(root().join("bench/peers").join(module))
            .envs([("CGO_ENABLED", "0"), ("GOWORK", "off")])
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
            .args(["-ldflags", "-s -w", "-o"])
            .arg(&program)
            .arg(package)
            .status()
            .context("can't start `go`; it is needed to build the peers (https://go.dev/dl/)")?;
        anyhow::ensure!(status.success(), "`go build` of {name} failed");
        eprintln!("built {name} in {:.0?}", started.elapsed());
        Ok(program)
    }
}

/// Runs a program and returns what it prints to standard output.
pub(crate) fn output<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't start {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("the output of the program is not UTF-8")
}

/// Runs a program once for each list of arguments, in parallel on all cores, and returns the total time.
pub(crate) fn time_all(program: &Path, runs: &[Vec<String>]) -> anyhow::Result<Duration> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(args) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = output(program, args) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                }
            });
        }
    });
    let took = started.elapsed();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(took),
    }
}
