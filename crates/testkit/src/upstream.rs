//! Real manifests of other projects, for tests of size and of oddities.
//!
//! They come from the Go module proxy at test time, pinned by version and checked by Go's
//! checksum database, and are read from Go's module cache; none is part of this project.

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
    /// One file of 4 MB: ten CRDs, of which several are over 500 KB, and the operator.
    PrometheusOperator,
    /// Six CRDs, a file each.
    CertManager,
    /// The experimental channel: 13 CRDs and a ValidatingAdmissionPolicy with its binding.
    GatewayApi,
    /// One file with 453 objects in 12 namespaces of their own. They need [`Self::GatewayApi`].
    GatewayApiConformance,
    /// One file with the 59 objects of an Argo CD installation, three of them CRDs. Those with a
    /// namespace do not name it: they are meant for `argocd`.
    ArgoCd,
    /// Files of `kind: List` and `kind: ConfigMapList`.
    Lists,
}

/// Files of the conformance suite that cannot be applied with the others: they define objects of
/// other files once more, or have an address that the suite fills in.
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

    /// Files of the module, and folders of which all YAML files count.
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

/// The files of a set, each with its name and its text, in a fixed order. Blocks; downloads the
/// module (at most 30 MB) where Go's cache lacks it.
///
/// # Errors
/// Fails if Go is missing or the module cannot be downloaded.
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
    // The suite fills these in.
    let text = texts
        .join("\n---\n")
        .replace("{GATEWAY_CLASS_NAME}", "conformance")
        .replace("{GATEWAY_CONTROLLER_NAME}", "example.org/conformance");
    Ok(vec![("gateway-api-conformance.yaml".to_owned(), text)])
}

/// The folder of a module in Go's cache.
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

/// The file itself, or the YAML files of a folder in the order of their names, without those for
/// kustomize, which are no manifests.
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
