//! Generates fleet repositories of any size for measurements. Each app has five objects. All apps have the same shape
//! and different content. The Deployment depends on the region, the ConfigMap on the cluster, and the other objects
//! only on the app. Every peer gets the same values.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::Context;
use muster_model::{
    ids::ObjectId,
    tree::{Entry, Tree},
};
use serde_json::{Value, json};

/// The number of objects of one app in one cluster.
pub(crate) const OBJECTS: usize = 5;

const LIB: &str = include_str!("../../../bench/fleet/lib/meta.j2");
const TEMPLATES: [(&str, &str); OBJECTS] = [
    (
        "deployment",
        include_str!("../../../bench/fleet/templates/deployment.yaml"),
    ),
    (
        "service",
        include_str!("../../../bench/fleet/templates/service.yaml"),
    ),
    (
        "configmap",
        include_str!("../../../bench/fleet/templates/configmap.yaml"),
    ),
    (
        "scaling",
        include_str!("../../../bench/fleet/templates/scaling.yaml"),
    ),
    (
        "network",
        include_str!("../../../bench/fleet/templates/network.yaml"),
    ),
];

const CHART: [(&str, &str); OBJECTS + 1] = [
    (
        "_meta.tpl",
        include_str!("../../../bench/peers/helm/chart/templates/_meta.tpl"),
    ),
    (
        "deployment.yaml",
        include_str!("../../../bench/peers/helm/chart/templates/deployment.yaml"),
    ),
    (
        "service.yaml",
        include_str!("../../../bench/peers/helm/chart/templates/service.yaml"),
    ),
    (
        "configmap.yaml",
        include_str!("../../../bench/peers/helm/chart/templates/configmap.yaml"),
    ),
    (
        "scaling.yaml",
        include_str!("../../../bench/peers/helm/chart/templates/scaling.yaml"),
    ),
    (
        "network.yaml",
        include_str!("../../../bench/peers/helm/chart/templates/network.yaml"),
    ),
];

/// The size and the kind of a fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) apps: usize,
    pub(crate) regions: usize,
    pub(crate) clusters_per_region: usize,
    /// True if every object contains its cluster's name, so that no two clusters share an object.
    pub(crate) all_differ: bool,
}

impl Shape {
    pub(crate) fn clusters(self) -> usize {
        self.regions * self.clusters_per_region
    }

    pub(crate) fn objects(self) -> usize {
        self.apps * self.clusters() * OBJECTS
    }

    /// Returns each cluster as its region's index and its own index within the region.
    pub(crate) fn places(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.regions)
            .flat_map(move |region| (0..self.clusters_per_region).map(move |c| (region, c)))
    }
}

pub(crate) fn app_name(app: usize) -> String {
    format!("app-{app:02}")
}

pub(crate) fn region_name(region: usize) -> String {
    format!("region-{region:02}")
}

pub(crate) fn cluster_name(region: usize, cluster: usize) -> String {
    format!("region-{region:02}-{cluster:02}")
}

fn fleet_values(shape: Shape) -> Value {
    json!({
        "logLevel": "info",
        "labelCluster": shape.all_differ,
        "tracing": {"endpoint": "https://traces.example.org:4317", "sample": 0.05},
    })
}

fn region_values(region: usize) -> Value {
    let name = region_name(region);
    let zones = ["a", "b", "c"].map(|zone| format!("{name}{zone}"));
    json!({
        "registry": format!("registry.{name}.example.org/mirror"),
        "scale": 1 + region % 3,
        "zones": zones,
    })
}

fn cluster_values(region: usize, cluster: usize) -> Value {
    json!({
        "ingressDomain": format!("{}.example.org", cluster_name(region, cluster)),
        "nodePool": format!("pool-{}", cluster % 4),
    })
}

/// Returns the values of an app. Each `commit` number gives different values.
fn app_values(app: usize, commit: usize) -> Value {
    let settings: BTreeMap<String, Value> = (0..8)
        .map(|i| {
            (
                format!("setting{i}"),
                json!(format!("value {} of {i}", app * 31 + i)),
            )
        })
        .collect();
    let env: BTreeMap<String, Value> = (0..6)
        .map(|i| {
            (
                format!("FEATURE_{i}"),
                json!((app + i).is_multiple_of(2).to_string()),
            )
        })
        .collect();
    json!({
        "image": {"repository": format!("shop/{}", app_name(app)), "tag": format!("2.{app}.{commit}")},
        "replicas": 2 + app % 3,
        "autoscaling": app.is_multiple_of(2),
        "ports": [{"name": "http", "number": 8080}, {"name": "metrics", "number": 9090}],
        "clients": ["gateway", "checkout", format!("team-{}", app % 7)],
        "env": env,
        "settings": settings,
        "resources": {
            "requests": {"cpu": "250m", "memory": "256Mi"},
            "limits": {"memory": "512Mi"},
        },
    })
}

/// Formats a value as block YAML. JSON would be valid YAML, too, but people write block YAML.
fn yaml(value: &Value) -> String {
    format!("{}\n", muster_model::yaml::to_yaml(value))
}

fn document(kind: &str, name: &str, spec: &Value) -> String {
    yaml(&json!({
        "apiVersion": "muster.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }))
}

/// A fleet repository for Muster, as the Git crate would read it.
#[derive(Debug)]
pub(crate) struct Repository(pub(crate) Tree);

impl Repository {
    pub(crate) fn new(shape: Shape) -> Self {
        let mut repository = Self(Tree::default());
        let mut add = |path: String, text: String| repository.put(path, &text);
        add(
            "fleet.yaml".into(),
            document("Fleet", "bench", &json!({"values": fleet_values(shape)})),
        );
        add(
            "tiers.yaml".into(),
            document("Tier", "standard", &json!({"rpo": "1h", "rto": "1h"})),
        );
        for region in 0..shape.regions {
            let name = region_name(region);
            let location = json!({
                "continent": "EU", "country": "IE", "latitude": 53.0, "longitude": region,
            });
            let spec = json!({"location": location, "values": region_values(region)});
            add(
                format!("regions/{name}/region.yaml"),
                document("Region", &name, &spec),
            );
        }
        for (region, cluster) in shape.places() {
            let name = cluster_name(region, cluster);
            let spec = json!({"values": cluster_values(region, cluster)});
            let path = format!("regions/{}/{name}.yaml", region_name(region));
            add(path, document("Cluster", &name, &spec));
        }
        add("lib/meta.j2".into(), LIB.into());
        for app in 0..shape.apps {
            let name = app_name(app);
            let spec = json!({"tier": "standard", "mode": "active-active"});
            add(
                format!("apps/{name}/app.yaml"),
                document("App", &name, &spec),
            );
            for (template, text) in TEMPLATES {
                add(
                    format!("apps/{name}/templates/{template}.yaml"),
                    text.into(),
                );
            }
        }
        for app in 0..shape.apps {
            repository.commit(app, 0);
        }
        repository
    }

    /// Changes the values of one app.
    pub(crate) fn commit(&mut self, app: usize, commit: usize) {
        let path = format!("apps/{}/values.yaml", app_name(app));
        self.put(path, &yaml(&app_values(app, commit)));
    }

    fn put(&mut self, path: String, text: &str) {
        let mut id = [0; 20];
        id.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..20]);
        let bytes: Arc<[u8]> = text.as_bytes().into();
        let entry = Entry::File {
            id: ObjectId(id),
            bytes,
        };
        self.0.entries.insert(path, entry);
    }
}

/// Returns the values files that a Helm user would pass for one cluster, lowest precedence first.
pub(crate) fn helm_values(region: usize, cluster: usize) -> [String; 3] {
    [
        "fleet.yaml".into(),
        format!("{}.yaml", region_name(region)),
        format!("{}.yaml", cluster_name(region, cluster)),
    ]
}

/// Writes the same apps as Helm charts: `charts/APP` and `values/*.yaml`.
pub(crate) fn write_charts(shape: Shape, dir: &Path) -> anyhow::Result<()> {
    let write = |path: String, text: &str| crate::report::write(&dir.join(path), text);
    for app in 0..shape.apps {
        let name = app_name(app);
        let chart = json!({"apiVersion": "v2", "name": name, "version": "1.0.0"});
        write(format!("charts/{name}/Chart.yaml"), &yaml(&chart))?;
        write(
            format!("charts/{name}/values.yaml"),
            &yaml(&app_values(app, 0)),
        )?;
        for (file, text) in CHART {
            write(format!("charts/{name}/templates/{file}"), text)?;
        }
    }
    let with = |mut values: Value, key: &str, name: &str| {
        values[key] = json!({"name": name});
        yaml(&values)
    };
    write(
        "values/fleet.yaml".into(),
        &with(fleet_values(shape), "fleet", "bench"),
    )?;
    for region in 0..shape.regions {
        let name = region_name(region);
        write(
            format!("values/{name}.yaml"),
            &with(region_values(region), "region", &name),
        )?;
    }
    for (region, cluster) in shape.places() {
        let name = cluster_name(region, cluster);
        let text = with(cluster_values(region, cluster), "cluster", &name);
        write(format!("values/{name}.yaml"), &text)?;
    }
    Ok(())
}

/// Writes one app as a Kustomize base, if it does not exist yet, and an overlay that turns the base into the objects
/// of one cluster: `kustomize/APP/base` and `kustomize/APP/CLUSTER`.
pub(crate) fn write_overlay(
    dir: &Path,
    app: &str,
    cluster: &str,
    base: &[Value],
    wanted: &[Value],
) -> anyhow::Result<()> {
    let folder = dir.join("kustomize").join(app);
    let write = |path: &str, text: &str| crate::report::write(&folder.join(path), text);
    if !folder.join("base").exists() {
        let mut resources = Vec::new();
        for object in base {
            let file = format!(
                "{}.yaml",
                object["kind"].as_str().context("no kind")?.to_lowercase()
            );
            write(&format!("base/{file}"), &yaml(object))?;
            resources.push(file);
        }
        write(
            "base/kustomization.yaml",
            &yaml(&json!({"resources": resources})),
        )?;
    }
    fs::create_dir_all(folder.join(cluster)).context("can't create the folder of an overlay")?;
    let mut patches = Vec::new();
    for (from, to) in base.iter().zip(wanted).filter(|(from, to)| from != to) {
        let mut patch = difference(from, to);
        for key in ["apiVersion", "kind"] {
            patch[key] = to[key].clone();
        }
        patch["metadata"]["name"] = to["metadata"]["name"].clone();
        patch["metadata"]["namespace"] = to["metadata"]["namespace"].clone();
        let file = format!(
            "{}.yaml",
            to["kind"].as_str().context("no kind")?.to_lowercase()
        );
        write(&format!("{cluster}/{file}"), &yaml(&patch))?;
        patches.push(json!({"path": file}));
    }
    let kustomization = json!({"resources": ["../base"], "patches": patches});
    write(
        &format!("{cluster}/kustomization.yaml"),
        &yaml(&kustomization),
    )
}

/// Returns a strategic merge patch from one object to another with the same keys. It contains the entries of maps that
/// differ, and whole lists.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (from, to) else {
        return to.clone();
    };
    let changed = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value));
    let patch = |(key, value): (&String, &Value)| {
        let from = before.get(key).unwrap_or(&Value::Null);
        (key.clone(), difference(from, value))
    };
    Value::Object(changed.map(patch).collect())
}
