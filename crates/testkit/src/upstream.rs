//! Real manifests of other projects, for tests with large and unusual input.
//!
//! They are downloaded from the Go module proxy at test time, pinned by version and verified with Go's checksum
//! database, and read from Go's module cache. None of them is part of this project.

mod sets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

pub use self::sets::{SETS, Set};

/// A pinned set of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// The Prometheus Operator: one file of 4 MB with ten CRDs, several of them over 500 KB, and the operator.
    PrometheusOperator,
    /// cert-manager: six CRDs in one file each.
    CertManager,
    /// The experimental channel of the Gateway API: 13 CRDs and a ValidatingAdmissionPolicy with its binding.
    GatewayApi,
    /// The conformance suite of the Gateway API: one file with 453 objects in 12 namespaces, which it creates. They
    /// need [`Self::GatewayApi`].
    GatewayApiConformance,
    /// Argo CD: one file with 59 objects, three of them CRDs. The namespaced objects do not name their namespace; they
    /// are meant for `argocd`.
    ArgoCd,
    /// Files with `kind: List` and `kind: ConfigMapList`.
    Lists,
}

/// The files of the conformance suite that can't be applied together with the others: they define objects that other
/// files define too, or contain an address that the suite fills in.
const LEFT_OUT: [&str; 8] = [
    "tests/gateway-static-addresses.yaml",
    "tests/gateway-with-attached-routes.yaml",
    "tests/httproute-invalid-reference-grant.yaml",
    "tests/httproute-listener-port-matching.yaml",
    "tests/httproute-request-header-modifier.yaml",
    "tests/mesh/httproute-request-header-modifier.yaml",
    "tests/mesh/mesh-ports.yaml",
    "tests/tlsroute-simple-same-namespace.yaml",
];

impl Upstream {
    fn module(self) -> &'static str {
        match self {
            Self::PrometheusOperator => {
                "github.com/prometheus-operator/prometheus-operator@v0.85.0"
            }
            Self::CertManager => "github.com/cert-manager/cert-manager@v1.21.2",
            Self::GatewayApi => "sigs.k8s.io/gateway-api@v1.6.3",
            Self::GatewayApiConformance => "sigs.k8s.io/gateway-api/conformance@v1.6.3",
            Self::ArgoCd => "github.com/argoproj/argo-cd/v3@v3.3.0",
            Self::Lists => "k8s.io/kubernetes@v1.36.3",
        }
    }

    /// The paths in the module: files, and folders whose YAML files are all used.
    fn paths(self) -> &'static [&'static str] {
        match self {
            Self::PrometheusOperator => &["bundle.yaml"],
            Self::CertManager => &["deploy/crds"],
            Self::GatewayApi => &["config/crd/experimental"],
            Self::GatewayApiConformance => &[
                "base/manifests.yaml",
                "mesh/manifests.yaml",
                "tests",
                "tests/mesh",
            ],
            Self::ArgoCd => &["manifests/install.yaml"],
            Self::Lists => &[
                "hack/testdata/list.yaml",
                "test/fixtures/pkg/kubectl/cmd/apply/cm.yaml",
                "test/fixtures/pkg/kubectl/cmd/apply/rc-service.yaml",
            ],
        }
    }
}

/// Returns the files of a set, each with its name and text, in a fixed order. Blocks; downloads the module (at most
/// 30 MB) if Go's cache lacks it.
///
/// # Errors
/// Fails if Go is missing or the module can't be downloaded.
pub fn manifests(upstream: Upstream) -> anyhow::Result<Vec<(String, String)>> {
    let module = upstream.module();
    let root = download(module).with_context(|| format!("cannot download {module}"))?;
    let mut files = Vec::new();
    for path in upstream.paths() {
        for file in yaml_files(&root.join(path))? {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let name = file
                .strip_prefix(&root)
                .unwrap_or(&file)
                .display()
                .to_string();
            files.push((name, text));
        }
    }
    if upstream != Upstream::GatewayApiConformance {
        return Ok(files);
    }
    let parts = files
        .into_iter()
        .filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
    let texts: Vec<_> = parts.map(|(_, text)| text).collect();
    // The conformance suite replaces these placeholders in the same way.
    let text = texts
        .join("\n---\n")
        .replace("{GATEWAY_CLASS_NAME}", "conformance")
        .replace("{GATEWAY_CONTROLLER_NAME}", "example.org/conformance");
    Ok(vec![("gateway-api-conformance.yaml".to_owned(), text)])
}

/// Downloads a module and returns its folder in Go's cache.
fn download(module: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(std::env::temp_dir())
        .env("GOWORK", "off")
        .output()
        .context("cannot run `go`")?;
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "`go mod download` says: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    match (answer["Dir"].as_str(), answer["Error"].as_str()) {
        (Some(folder), None) => Ok(PathBuf::from(folder)),
        (_, reason) => anyhow::bail!("{}", reason.unwrap_or("`go mod download` names no folder")),
    }
}

/// Returns the path itself if it is a file, or the YAML files of a folder, sorted by name, without
/// `kustomization.yaml`, which is not a manifest.
fn yaml_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry
            .with_context(|| format!("cannot list {}", path.display()))?
            .path();
        let is_yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml
            && file
                .file_name()
                .is_some_and(|name| name != "kustomization.yaml")
        {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
