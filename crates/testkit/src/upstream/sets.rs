//! Manifests that people really install, of many projects, as in their releases or documentation.

use std::fs;

use anyhow::Context;

use super::{download, yaml_files};

/// The manifests of one project, or of one way to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// The set's name, which can be used as an app's name.
    pub name: &'static str,
    /// The Go module with its version.
    module: &'static str,
    /// The paths in the module: files, and folders whose YAML files are all used.
    paths: &'static [&'static str],
    /// The names of files in those folders that can't be applied: parts for Kustomize, and objects of kinds that no set
    /// contains.
    left_out: &'static [&'static str],
    /// The namespace for objects that name none, according to the project's documentation.
    pub namespace: &'static str,
}

impl Set {
    /// Returns the set's files, each with its path in the module and its text. Blocks; downloads the module if Go's
    /// cache lacks it.
    ///
    /// # Errors
    /// Fails if Go is missing or the module can't be downloaded.
    pub fn files(&self) -> anyhow::Result<Vec<(String, String)>> {
        let module = self.module;
        let root = download(module).with_context(|| format!("cannot download {module}"))?;
        let mut files = Vec::new();
        for path in self.paths {
            for file in yaml_files(&root.join(path))? {
                let name = file.strip_prefix(&root).unwrap_or(&file);
                let name = name.to_string_lossy().into_owned();
                let last = name.rsplit('/').next().unwrap_or_default();
                if self.left_out.contains(&last) {
                    continue;
                }
                let text = fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                files.push((name, text));
            }
        }
        anyhow::ensure!(!files.is_empty(), "{module} has no {:?}", self.paths);
        Ok(files)
    }
}

const fn set(
    name: &'static str,
    module: &'static str,
    paths: &'static [&'static str],
    namespace: &'static str,
) -> Set {
    Set {
        name,
        module,
        paths,
        left_out: &[],
        namespace,
    }
}

impl Set {
    const fn without(mut self, files: &'static [&'static str]) -> Self {
        self.left_out = files;
        self
    }
}

const KUBERNETES: &str = "k8s.io/kubernetes@v1.36.3";
const PROMETHEUS: &str = "github.com/prometheus-operator/prometheus-operator@v0.85.0";
const GATEWAY_API: &str = "sigs.k8s.io/gateway-api@v1.6.3";
const KNATIVE: &str = "knative.dev/serving@v0.51.0";
const CHAOS_MESH: &str = "github.com/chaos-mesh/chaos-mesh@v0.9.1-0.20260902003049-47411975a8cb";
const KATIB: &str = "github.com/kubeflow/katib@v0.19.0";
const SNAPSHOTTER: &str = "github.com/kubernetes-csi/external-snapshotter/v8@v8.7.0";
const KYVERNO: &str = "github.com/kyverno/kyverno@v1.19.1";
const METALLB: &str = "go.universe.tf/metallb@v0.16.2";
const CONTOUR: &str = "github.com/projectcontour/contour@v1.33.8";
const VELERO: &str = "github.com/vmware-tanzu/velero@v1.18.3";
const LOCAL_PATH: &str = "github.com/rancher/local-path-provisioner@v0.0.30";

/// All sets. Each comes after the sets that contain its kinds and namespaces. No two sets contain the same object.
pub const SETS: &[Set] = &[
    set(
        "prometheus-operator",
        PROMETHEUS,
        &["bundle.yaml"],
        "default",
    ),
    set("thanos", PROMETHEUS, &["example/thanos"], "thanos"),
    set(
        "alerting",
        PROMETHEUS,
        &["example/user-guides/alerting"],
        "alerting",
    )
    .without(&[
        "alertmanager.yaml",
        "alertmanager-selector-example.yaml",
        "prometheus-example-rule-namespace-selector.yaml",
    ]),
    set(
        "gateway-api",
        GATEWAY_API,
        &["config/crd/experimental"],
        "default",
    ),
    set(
        "gateway-api-routing",
        GATEWAY_API,
        &["examples/standard/http-routing"],
        "routing",
    ),
    set(
        "argo-cd",
        "github.com/argoproj/argo-cd/v3@v3.3.0",
        &["manifests/install.yaml"],
        "argocd",
    ),
    set(
        "cert-manager",
        KNATIVE,
        &["third_party/cert-manager-latest"],
        "cert-manager",
    ),
    set(
        "knative-serving",
        KNATIVE,
        &[
            "config/core/200-roles",
            "config/core/300-resources",
            "config/core/configmaps",
            "config/core/deployments",
            "config/core/webhooks",
            "config/hpa-autoscaling",
        ],
        "knative-serving",
    ),
    set(
        "kourier",
        KNATIVE,
        &["third_party/kourier-latest"],
        "kourier-system",
    ),
    set("contour", CONTOUR, &["examples/contour"], "projectcontour"),
    set(
        "contour-workload",
        CONTOUR,
        &[
            "examples/example-workload/httpproxy/00-common",
            "examples/example-workload/httpproxy/03-routes",
        ],
        "default",
    )
    .without(&[
        "httpproxy-multiple-paths.yaml",
        "httpproxy-response-timeout.yaml",
        "httpproxy-lb-request-hash.yaml",
    ]),
    set(
        "cloudnative-pg",
        "github.com/cloudnative-pg/cloudnative-pg@v1.30.0",
        &["releases/cnpg-1.30.0.yaml"],
        "cnpg-system",
    ),
    set(
        "local-volume-provisioner",
        CHAOS_MESH,
        &["manifests/local-volume-provisioner.yaml"],
        "kube-system",
    ),
    set(
        "flannel",
        "github.com/flannel-io/flannel@v0.28.10",
        &["Documentation/kube-flannel.yml"],
        "kube-flannel",
    ),
    set(
        "keda",
        "github.com/kedacore/keda/v2@v2.21.0",
        &[
            "config/crd/bases",
            "config/general",
            "config/manager",
            "config/metrics-server",
            "config/rbac",
            "config/service_account",
            "config/webhooks",
        ],
        "keda",
    ),
    set(
        "katib",
        KATIB,
        &[
            "manifests/v1beta1/components/controller",
            "manifests/v1beta1/components/crd",
            "manifests/v1beta1/components/db-manager",
            "manifests/v1beta1/components/mysql",
            "manifests/v1beta1/components/namespace",
            "manifests/v1beta1/components/ui",
            "manifests/v1beta1/components/webhook",
        ],
        "kubeflow",
    ),
    set(
        "snapshots",
        "github.com/kubernetes-csi/external-snapshotter/client/v8@v8.7.0",
        &["config/crd"],
        "default",
    ),
    set(
        "snapshot-controller",
        SNAPSHOTTER,
        &["deploy/kubernetes/snapshot-controller"],
        "kube-system",
    ),
    set(
        "csi-snapshotter",
        SNAPSHOTTER,
        &["deploy/kubernetes/csi-snapshotter"],
        "csi-snapshotter",
    ),
    set(
        "kyverno",
        KYVERNO,
        &["config/install-latest-testing.yaml"],
        "kyverno",
    ),
    set(
        "kyverno-policies",
        KYVERNO,
        &["test/best_practices"],
        "kyverno-policies",
    ),
    set(
        "gatekeeper",
        "github.com/open-policy-agent/gatekeeper/v3@v3.23.1",
        &["deploy/gatekeeper.yaml"],
        "gatekeeper-system",
    ),
    set(
        "metallb",
        METALLB,
        &["config/manifests/metallb-frr.yaml"],
        "metallb-system",
    ),
    set(
        "metallb-samples",
        METALLB,
        &[
            "configsamples/bgppeer_with_bfdprofile.yaml",
            "configsamples/bgpadvertisement_community_alias.yaml",
            "configsamples/deployment_l2.yaml",
        ],
        "metallb-samples",
    ),
    set(
        "vertical-pod-autoscaler",
        "k8s.io/autoscaler/vertical-pod-autoscaler@v1.8.1",
        &["deploy"],
        "kube-system",
    ),
    set(
        "ingress-nginx",
        "k8s.io/ingress-nginx@v0.0.0-20240708192948-52c50467d67d",
        &["deploy/static/provider/cloud/deploy.yaml"],
        "ingress-nginx",
    ),
    set(
        "velero-nginx",
        VELERO,
        &["examples/nginx-app/with-pv.yaml"],
        "nginx-example",
    ),
    set(
        "local-path",
        LOCAL_PATH,
        &["deploy/local-path-storage.yaml"],
        "local-path-storage",
    ),
    set(
        "traefik",
        "github.com/traefik/traefik/v3@v3.7.13",
        &[
            "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml",
            "docs/content/reference/dynamic-configuration/kubernetes-crd-rbac.yml",
        ],
        "default",
    ),
    set(
        "kuberay",
        "github.com/ray-project/kuberay/ray-operator@v1.5.0",
        &["config/crd/bases"],
        "ray-system",
    ),
    set(
        "descheduler",
        "sigs.k8s.io/descheduler@v0.36.0",
        &[
            "kubernetes/base",
            "kubernetes/cronjob",
            "kubernetes/deployment",
        ],
        "kube-system",
    ),
    set(
        "mcs-api",
        "sigs.k8s.io/mcs-api@v0.5.2",
        &["config/crd"],
        "default",
    ),
    set(
        "network-policy-api",
        "sigs.k8s.io/network-policy-api@v0.3.0",
        &["config/crd/standard"],
        "default",
    )
    .without(&["kustomizeconfig.yaml"]),
    set(
        "whereabouts",
        "github.com/k8snetworkplumbingwg/whereabouts@v0.9.2",
        &["doc/crds"],
        "kube-system",
    ),
    set(
        "training-operator",
        "github.com/kubeflow/training-operator@v1.8.1",
        &[
            "manifests/base",
            "manifests/base/crds",
            "manifests/base/rbac",
            "manifests/base/webhook",
        ],
        "training",
    )
    .without(&[
        "kustomizeconfig.yaml",
        "patch.yaml",
        "cluster-role-binding.yaml",
    ]),
    set(
        "sealed-secrets",
        "github.com/bitnami-labs/sealed-secrets@v0.40.0",
        &["helm/sealed-secrets/crds"],
        "kube-system",
    ),
    set(
        "metrics-server",
        "sigs.k8s.io/metrics-server@v0.9.0",
        &["manifests/base"],
        "kube-system",
    )
    .without(&["deployment.yaml"]),
    set(
        "cloud-controller-manager",
        KUBERNETES,
        &["cluster/addons/cloud-controller-manager"],
        "kube-system",
    ),
    set(
        "glbc",
        KUBERNETES,
        &["cluster/addons/rbac/cluster-loadbalancing/glbc"],
        "kube-system",
    ),
    set(
        "ip-masq-agent",
        KUBERNETES,
        &["cluster/addons/ip-masq-agent"],
        "kube-system",
    ),
    set(
        "kube-network-policies",
        KUBERNETES,
        &["cluster/addons/kube-network-policies"],
        "kube-system",
    ),
    set(
        "cassandra",
        KUBERNETES,
        &["test/e2e/testing-manifests/statefulset/cassandra"],
        "cassandra",
    ),
    set(
        "cockroachdb",
        KUBERNETES,
        &["test/e2e/testing-manifests/statefulset/cockroachdb"],
        "cockroachdb",
    ),
    set(
        "etcd",
        KUBERNETES,
        &["test/e2e/testing-manifests/statefulset/etcd"],
        "etcd",
    ),
    set(
        "mysql",
        KUBERNETES,
        &["test/e2e/testing-manifests/statefulset/mysql-upgrade"],
        "mysql",
    ),
    set(
        "zookeeper",
        KUBERNETES,
        &["test/e2e/testing-manifests/statefulset/zookeeper"],
        "zookeeper",
    ),
    set(
        "guestbook",
        KUBERNETES,
        &["test/e2e/testing-manifests/guestbook"],
        "guestbook",
    ),
    set(
        "dra",
        KUBERNETES,
        &["test/e2e/dra/test-driver/deploy/example"],
        "dra",
    )
    .without(&[
        "pod-external-toleration.yaml",
        "devicetaintrule.yaml",
        "resourcepoolstatusrequest.yaml",
        "plugin-permissions.yaml",
    ]),
    set(
        "csi-mock",
        KUBERNETES,
        &["test/e2e/testing-manifests/storage-csi/mock"],
        "csi-mock",
    )
    .without(&["csi-mock-proxy.yaml"]),
];
