//! `muster render` prints exactly what a cluster gets, and `muster validate` finds problems between apps.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, Files, document},
    tools::Program,
    wait::eventually,
};
use serde_json::Value;

const CLUSTERS: [(&str, &str); 1] = [("one", "west")];

/// Objects that together need every change that Muster makes to manifests before it applies them.
const OBJECTS: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: queues.rendering.example}
spec:
  group: rendering.example
  scope: Cluster
  names: {kind: Queue, plural: queues, singular: queue, listKind: QueueList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: rendering.example/v1
kind: Queue
metadata: {name: orders, namespace: shop, labels: {a: b}}
spec: {limit: null, size: 1, ratio: 0.5, note: "a\u2028b"}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {user: "me", empty: ""}
data: {key: a2V5}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: rendering-reader, namespace: shop, uid: 0b7e5d3c-0000-0000-0000-000000000000}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  resourceVersion: "12"
  creationTimestamp: null
spec:
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: warm, annotations: {muster.dev/phase: after}}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: warm, image: busybox}]
"#;

fn files() -> Files {
    let mut files = repository::fleet("rendering", "{}", CLUSTERS);
    let spec = "{tier: basic, mode: active-active}";
    files.insert(
        "apps/shop/app.yaml".to_owned(),
        document("App", "shop", spec),
    );
    files.insert(
        "apps/shop/manifests/all.yaml".to_owned(),
        OBJECTS.to_owned(),
    );
    let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "j"}, "data": {"v": "{{ not a template }}"}}"#;
    files.insert("apps/shop/manifests/deep/j.JSON".to_owned(), map.to_owned());
    files
}

fn kubectl(kubeconfig: &Path, manager: &str, input: &str) -> anyhow::Result<Output> {
    let mut kubectl = Command::new(Program::Kubectl.build()?);
    kubectl.arg("--kubeconfig").arg(kubeconfig);
    kubectl.args(["diff", "--server-side", manager, "-f", "-"]);
    let piped = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn()?;
    let mut stdin = child
        .stdin
        .take()
        .context("kubectl has no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// In every output format, `kubectl diff` finds no difference to a cluster in sync, and it does find a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_finds_no_difference_between_what_is_rendered_and_a_cluster_in_sync()
-> anyhow::Result<()> {
    let mut fleet =
        Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS)).await?;
    let files = files();
    fleet
        .repo()
        .publish("objects", &repository::listed(&files))?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    eventually(
        "every object to be applied",
        Duration::from_secs(90),
        async || {
            let status = fleet.status()?;
            let app = &status["clusters"][0]["apps"][0];
            ensure!(app["applied"] == 9 && app["objects"] == 9, "{status}");
            Ok(())
        },
    )
    .await?;
    let work = fleet.repo().work().to_string_lossy().into_owned();
    let kubeconfig = fleet.clusters()["one"].kubeconfig_path();
    let render = |form: &str| fleet.run(&["render", &work, "--cluster", "one", "-o", form]);
    for form in ["yaml", "json", "table"] {
        let diff = kubectl(&kubeconfig, "--field-manager=muster", &render(form)?)?;
        let said = String::from_utf8_lossy(&diff.stdout);
        let wrong = String::from_utf8_lossy(&diff.stderr);
        ensure!(diff.status.code() == Some(0), "{form}: {said}{wrong}");
        ensure!(said.is_empty(), "{form}: {said}");
    }
    let other = render("yaml")?.replace("port: 80", "port: 81");
    let diff = kubectl(&kubeconfig, "--field-manager=muster", &other)?;
    ensure!(diff.status.code() == Some(1), "{diff:?}");
    Ok(())
}

/// Runs `muster` in a folder with these files, and returns its exit code, output and errors.
fn muster(files: &Files, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
    let dir = tempfile::tempdir()?;
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().context("the file has no folder")?)?;
        std::fs::write(path, text)?;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .current_dir(dir.path())
        .output()?;
    let text = |bytes| String::from_utf8(bytes);
    Ok((
        output.status.code(),
        text(output.stdout)?,
        text(output.stderr)?,
    ))
}

#[test]
fn standard_output_is_a_document_whatever_is_wrong() -> anyhow::Result<()> {
    let good = files();
    let mut broken = good.clone();
    broken.insert(
        "apps/shop/manifests/broken.yaml".to_owned(),
        "a: [\n".to_owned(),
    );
    let mut headless = good.clone();
    headless.remove("fleet.yaml");
    let mut empty = good.clone();
    empty.retain(|path, _| !path.starts_with("apps/"));
    let count = |out: &str| -> anyhow::Result<usize> {
        let list: Value = serde_json::from_str(out).with_context(|| out.to_owned())?;
        ensure!(list["kind"] == "List", "{list}");
        Ok(list["items"]
            .as_array()
            .context("the list has no items")?
            .len())
    };
    let cases = [
        ("good", &good, "one", 0, 9, ""),
        ("empty", &empty, "one", 0, 0, ""),
        ("a broken app", &broken, "one", 1, 0, "broken.yaml"),
        ("a broken fleet", &headless, "one", 1, 0, "fleet.yaml"),
        (
            "no such cluster",
            &good,
            "two",
            1,
            0,
            "there is no cluster `two`",
        ),
    ];
    for (name, files, cluster, code, objects, wrong) in cases {
        let arguments = ["render", "--cluster", cluster, "-o", "json"];
        let (ended, out, errors) = muster(files, &arguments)?;
        ensure!(ended == Some(code), "{name}: {ended:?} {errors}");
        ensure!(count(&out)? == objects, "{name}: {out}");
        ensure!(
            errors.contains(wrong) && errors.is_empty() == wrong.is_empty(),
            "{name}: {errors}"
        );
    }
    let (_, out, _) = muster(&good, &["render", "--cluster", "one", "-o", "json"])?;
    let list: Value = serde_json::from_str(&out)?;
    let items = list["items"].as_array().context("the list has no items")?;
    let metadata: BTreeMap<&str, (Option<&str>, Option<&str>)> = items
        .iter()
        .map(|item| {
            let metadata = &item["metadata"];
            let label = metadata["labels"]["muster.dev/app"].as_str();
            (
                item["kind"].as_str().unwrap_or_default(),
                (metadata["namespace"].as_str(), label),
            )
        })
        .collect();
    let (inside, outside) = ((Some("shop"), Some("shop")), (None, Some("shop")));
    let expected = [
        ("ClusterRole", outside),
        ("ConfigMap", inside),
        ("CustomResourceDefinition", outside),
        ("Job", inside),
        ("Namespace", outside),
        ("NetworkPolicy", inside),
        ("Queue", outside),
        ("Secret", inside),
        ("Service", inside),
    ];
    ensure!(metadata == BTreeMap::from(expected), "{metadata:?}");
    Ok(())
}

#[test]
fn validate_finds_every_clash_at_once() -> anyhow::Result<()> {
    let mut files = files();
    let shared = |from: &str| {
        format!(
            "apiVersion: storage.k8s.io/v1\nkind: VolumeAttributesClass\nmetadata: {{name: fast}}\n\
             driverName: a.example\nparameters: {{from: {from}}}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: more}}\n\
             spec: {{cidrs: [10.200.0.0/24]}}\n---\n\
             apiVersion: rendering.example/v1\nkind: Queue\nmetadata: {{name: shared}}\n---\n\
             apiVersion: rendering.example/v1\nkind: Own\nmetadata: {{name: shared}}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {{name: {from}}}\n"
        )
    };
    for app in ["first", "second"] {
        let spec = "{tier: basic, mode: active-active}";
        files.insert(format!("apps/{app}/app.yaml"), document("App", app, spec));
        files.insert(format!("apps/{app}/manifests/it.yaml"), shared(app));
    }
    let (code, out, _) = muster(&files, &["validate", "-o", "json"])?;
    let told: Value = serde_json::from_str(&out)?;
    let problems = told["problems"]
        .as_array()
        .context("the output has no list of problems")?;
    let messages: Vec<&str> = problems
        .iter()
        .filter(|problem| problem["file"] == "apps/first/manifests/it.yaml")
        .filter_map(|problem| problem["message"].as_str())
        .collect();
    let clash = |object: &str| {
        format!(
            "{object} is also in app `second`, in apps/second/manifests/it.yaml; cluster one would get \
             it from both"
        )
    };
    let expected = [
        "Queue.rendering.example shared",
        "ServiceCIDR.networking.k8s.io more",
        "VolumeAttributesClass.storage.k8s.io fast",
    ];
    ensure!(messages == expected.map(clash), "{messages:#?}");
    ensure!((code, problems.len()) == (Some(1), 6), "{code:?} {told:#}");
    Ok(())
}

#[test]
fn validate_hints_at_namespaces_that_nobody_brings() -> anyhow::Result<()> {
    let mut files = files();
    for (app, namespace) in [("lost", "nowhere"), ("found", "shop"), ("plain", "default")] {
        let spec = format!("{{tier: basic, mode: active-active, namespace: {namespace}}}");
        files.insert(format!("apps/{app}/app.yaml"), document("App", app, &spec));
        let map = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {app}}}\n");
        files.insert(format!("apps/{app}/manifests/it.yaml"), map);
    }
    let (code, out, _) = muster(&files, &["validate", "-o", "json"])?;
    let told: Value = serde_json::from_str(&out)?;
    let problems = told["problems"]
        .as_array()
        .context("the output has no list of problems")?;
    ensure!(
        told["valid"] == true && code == Some(0),
        "{code:?} {told:#}"
    );
    ensure!(problems.len() == 1, "{told:#}");
    ensure!(problems[0]["scope"] == "hint", "{told:#}");
    ensure!(problems[0]["file"] == "apps/lost/app.yaml", "{told:#}");
    let message = "no app creates the namespace `nowhere` in cluster one";
    ensure!(problems[0]["message"] == message, "{told:#}");
    Ok(())
}
