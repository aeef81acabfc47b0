//! Generates the objects to apply. Their kinds and shapes are those of an ordinary cluster.

use anyhow::Context;
use muster_model::{
    bundle::{Bundle, BundleHeader, Gvk, Object, ObjectRef},
    ids::Role,
    policy::Policy,
};
use serde_json::{Value, json};

/// The number of namespaces in one set. A set holds the objects of one app.
const NAMESPACES: usize = 10;
const CONFIG_MAPS: usize = 600;
const DEPLOYMENTS: usize = 200;
const SERVICES: usize = 200;

/// The number of objects in one set.
pub(super) const SET: usize = NAMESPACES + CONFIG_MAPS + DEPLOYMENTS + SERVICES;

/// Returns this many sets. The names of the namespaces begin with `prefix`, so that they are unique in the cluster.
pub(super) fn sets(prefix: &str, sets: usize) -> Vec<Vec<Value>> {
    let set = |set: usize| {
        let place = |index: usize| format!("{prefix}-{set}-{}", index % NAMESPACES);
        let namespaces = (0..NAMESPACES).map(|index| namespace(&place(index)));
        let maps = (0..CONFIG_MAPS).map(|index| config_map(&place(index), index));
        let deployments = (0..DEPLOYMENTS).map(|index| deployment(&place(index), index));
        let services = (0..SERVICES).map(|index| service(&place(index), index));
        namespaces
            .chain(maps)
            .chain(deployments)
            .chain(services)
            .collect()
    };
    (0..sets).map(set).collect()
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels("namespace")},
    })
}

fn labels(name: &str) -> Value {
    json!({"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench"})
}

fn config_map(namespace: &str, index: usize) -> Value {
    let name = format!("settings-{index:03}");
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(&name)},
        "data": {
            "log-level": "info",
            "endpoint": format!("https://service-{index:03}.{namespace}.svc:8443/api"),
            "config.yaml": format!(
                "cache:\n  size: {index}\n  ttl: 30s\nlimits:\n  requests: 100\n  burst: 200\n\
                 features:\n  - search\n  - checkout\n  - recommendations\n"
            ),
        },
    })
}

fn deployment(namespace: &str, index: usize) -> Value {
    let name = format!("service-{index:03}");
    let labels = labels(&name);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [{
                        "name": "main",
                        "image": format!("registry.example.com/{name}:v1.{index}"),
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [
                            {"name": "INDEX", "value": index.to_string()},
                            {"name": "NAMESPACE", "valueFrom": {
                                "fieldRef": {"fieldPath": "metadata.namespace"},
                            }},
                        ],
                        "envFrom": [{"configMapRef": {"name": format!("settings-{index:03}")}}],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                        "resources": {
                            "requests": {"cpu": "100m", "memory": "128Mi"},
                            "limits": {"memory": "256Mi"},
                        },
                        "securityContext": {"runAsNonRoot": true, "readOnlyRootFilesystem": true},
                    }],
                },
            },
        },
    })
}

fn service(namespace: &str, index: usize) -> Value {
    let name = format!("service-{index:03}");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(&name)},
        "spec": {
            // The more addresses an API server has allocated, the longer it takes to allocate another one. With
            // cluster IPs, the clients that are measured later would therefore be slower.
            "clusterIP": "None",
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    })
}

/// Returns the path of the object's URL.
pub(super) fn path(object: &Value) -> anyhow::Result<String> {
    let Reference {
        kind,
        namespace,
        name,
        ..
    } = Reference::of(object)?;
    let root = match kind {
        "Deployment" => "/apis/apps/v1",
        _ => "/api/v1",
    };
    let plural = format!("{}s", kind.to_lowercase());
    Ok(match namespace {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{root}/{plural}/{name}"),
    })
}

/// Returns a set as the bundle of an app.
pub(super) fn bundle(app: &str, set: &[Value]) -> anyhow::Result<Bundle> {
    let object = |value: &Value| {
        let Reference {
            api_version,
            kind,
            namespace,
            name,
        } = Reference::of(value)?;
        anyhow::Ok(Object {
            id: ObjectRef {
                gvk: Gvk::from_api_version(api_version, kind),
                namespace: namespace.map(Into::into),
                name: name.into(),
            },
            json: value.to_string().into(),
        })
    };
    Ok(Bundle {
        header: BundleHeader {
            app: app.parse()?,
            role: Role::Active,
            namespace: "default".into(),
            after: Vec::new(),
            formerly: None,
            policy: Policy::default(),
        },
        objects: set.iter().map(object).collect::<anyhow::Result<_>>()?,
    })
}

struct Reference<'a> {
    api_version: &'a str,
    kind: &'a str,
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> Reference<'a> {
    fn of(object: &'a Value) -> anyhow::Result<Self> {
        let metadata = &object["metadata"];
        Ok(Self {
            api_version: object["apiVersion"].as_str().context("no apiVersion")?,
            kind: object["kind"].as_str().context("no kind")?,
            namespace: metadata["namespace"].as_str(),
            name: metadata["name"].as_str().context("no name")?,
        })
    }
}
