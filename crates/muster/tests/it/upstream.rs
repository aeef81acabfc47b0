//! The released manifests of many projects are taken over from kubectl, changed, removed and applied again on a real
//! control plane. Nothing is lost, nothing is left behind, and nothing is written while nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use kube::config::Kubeconfig;
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    process::Process,
    repository::{self, Files, document},
    tools::Program,
    upstream::{SETS, Set},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{
    account::{self, Account},
    reading::by_muster,
};

const CLUSTERS: [(&str, &str); 1] = [("one", "west")];
/// The timeout for hundreds of objects on a busy machine. An API server rebuilds its OpenAPI documents whenever a CRD
/// is created or deleted.
const LONG: Duration = Duration::from_secs(1200);
/// How long the agent is watched for writes while nothing changes.
const QUIET: Duration = Duration::from_secs(60);
/// The longest time until a request is in the audit log.
const WRITTEN_DOWN: Duration = Duration::from_secs(3);
/// Namespaces that every cluster has.
const OF_KUBERNETES: [&str; 2] = ["default", "kube-system"];

fn documents(objects: &[Value]) -> String {
    let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    texts.join("\n---\n")
}

fn is(object: &Value, kind: &str) -> bool {
    object["kind"] == kind
}

/// Changes all webhooks so that they match no object, because the servers of these projects do not run here.
fn without_calls(objects: &mut [Value]) {
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if kind.ends_with("WebhookConfiguration") {
            for hook in object["webhooks"].as_array_mut().into_iter().flatten() {
                hook["objectSelector"] = json!({"matchLabels": {"muster.example/nobody": "1"}});
            }
        }
    }
}

/// Returns a fleet with one app for each set. If `changed` is true, every object has one more annotation, and every
/// fifth object is left out unless others depend on its kind.
fn fleet(changed: bool) -> anyhow::Result<Files> {
    let mut files = repository::fleet(
        "upstream",
        "{prune: {objects: 100000, percent: 100}}",
        CLUSTERS,
    );
    let mut known: BTreeSet<String> = OF_KUBERNETES.map(str::to_owned).into();
    let mut sets = Vec::new();
    for set in SETS {
        let mut of_set = Vec::new();
        for (name, text) in set.files()? {
            let objects = by_muster(&text).with_context(|| format!("{}: {name}", set.name))?;
            let namespaces = objects.iter().filter(|object| is(object, "Namespace"));
            known.extend(
                namespaces
                    .filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)),
            );
            of_set.push((name, text, objects));
        }
        sets.push((set, of_set));
    }
    let mut number = 0;
    for (set, of_set) in sets {
        let Set {
            name, namespace, ..
        } = set;
        let spec = format!("{{tier: basic, mode: active-active, namespace: {namespace}}}");
        files.insert(
            format!("apps/{name}/app.yaml"),
            document("App", name, &spec),
        );
        for (place, (file, text, mut objects)) in of_set.into_iter().enumerate() {
            let hooked = text.contains("WebhookConfiguration");
            without_calls(&mut objects);
            if changed {
                objects.retain(|object| {
                    number += 1;
                    let needed = ["Namespace", "CustomResourceDefinition", "ServiceAccount"];
                    number % 5 != 0 || needed.iter().any(|kind| is(object, kind))
                });
                for object in &mut objects {
                    let metadata = &mut object["metadata"];
                    if metadata["annotations"].is_null() {
                        metadata["annotations"] = json!({});
                    }
                    metadata["annotations"]["upstream.example/changed"] = json!("yes");
                }
            }
            let text = if changed || hooked {
                documents(&objects)
            } else {
                text
            };
            let last = file.rsplit('/').next().unwrap_or_default();
            files.insert(format!("apps/{name}/manifests/{place:03}-{last}"), text);
        }
        if known.insert((*namespace).to_owned()) {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            files.insert(
                format!("apps/{name}/manifests/namespace.yaml"),
                object.to_string(),
            );
        }
    }
    Ok(files)
}

struct Upstream {
    fleet: Fleet,
    admin: PathBuf,
    account: Account,
    agent: Option<Process>,
}

impl Upstream {
    fn work(&self) -> String {
        self.fleet.repo().work().to_string_lossy().into_owned()
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut kubectl = Command::new(Program::Kubectl.build()?);
        kubectl.arg("--kubeconfig").arg(&self.admin).args(arguments);
        kubectl.output().context("cannot run kubectl")
    }

    /// Returns all objects as Muster renders them.
    fn rendered(&self) -> anyhow::Result<Vec<Value>> {
        let rendered =
            self.fleet
                .run(&["render", &self.work(), "--cluster", "one", "-o", "json"])?;
        let mut rendered: Value = serde_json::from_str(&rendered)?;
        match rendered["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("the output has no list of objects: {other}"),
        }
    }

    /// Returns the live state of the given objects, as far as they exist in the cluster. The keys are those of `named`.
    fn live(&self, objects: &[Value]) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut live = BTreeMap::new();
        for part in objects.chunks(200) {
            let file = self.fleet.directory().join("asked.json");
            let list = json!({"apiVersion": "v1", "kind": "List", "items": part});
            std::fs::write(&file, list.to_string())?;
            let file = file.to_string_lossy();
            let output = self.kubectl(&[
                "get",
                "--ignore-not-found",
                "-o",
                "json",
                "--show-managed-fields",
                "-f",
                &file,
            ])?;
            let wrong = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success() || wrong.contains("no matches for kind"),
                "{wrong}"
            );
            if output.stdout.is_empty() {
                continue;
            }
            let list: Value = serde_json::from_slice(&output.stdout)?;
            let items = match list["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![list],
            };
            live.extend(items.into_iter().map(|object| (named(&object), object)));
        }
        Ok(live)
    }

    /// Starts an agent whose requests are audited.
    fn start_agent(&mut self) -> anyhow::Result<()> {
        let token = self.fleet.run(&["cluster", "join-token", "one"])?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            // These projects have objects in kube-system.
            .args(["agent", "--deny-namespaces=", "--kubeconfig"])
            .arg(self.account.kubeconfig());
        command.env("MUSTER_JOIN_TOKEN", token.trim());
        let log = self.fleet.directory().join("agent-one.log");
        self.agent = Some(Process::spawn("agent", command, &log)?);
        Ok(())
    }

    fn publish(&self, message: &str, files: &Files) -> anyhow::Result<String> {
        let apps = self.fleet.repo().work().join("apps");
        if apps.exists() {
            std::fs::remove_dir_all(&apps)?;
        }
        self.fleet
            .repo()
            .publish(message, &repository::listed(files))
    }

    /// Waits until a commit is applied completely, and approves what is pending approval. Only apps that are not
    /// healthy may still have objects that are leaving. Returns these apps.
    async fn until_applied(&self, commit: &str, what: &str) -> anyhow::Result<BTreeSet<String>> {
        let began = Instant::now();
        let applied = eventually(what, LONG, async || {
            let status = self.fleet.status()?;
            let cluster = &status["clusters"][0];
            ensure!(cluster["connected"] == true, "the agent is not connected");
            ensure!(
                cluster["commit"] == commit && status["repo"]["commit"] == commit,
                "the hub is at {} and the cluster at {}, and not both at {commit}",
                status["repo"]["commit"],
                cluster["commit"]
            );
            let apps = cluster["apps"]
                .as_array()
                .context("the cluster has no apps")?;
            let (mut wrong, mut waiting) = (Vec::new(), BTreeSet::new());
            for app in apps {
                if app["holds"]
                    .as_array()
                    .is_some_and(|holds| !holds.is_empty())
                {
                    let name = app["app"].as_str().unwrap_or_default();
                    let approve = ["app", "approve", name, "--yes", "--reason", "they leave"];
                    self.fleet.try_run(&approve)?;
                }
                let leaves = app["role"] == "" || app["holds"] != json!([]) || app["stuck"] != 0;
                // Leaving objects wait until the app is healthy, which it may never be in this cluster.
                let waits = app["leaving"] != 0;
                let well = app["health"] == "Healthy" || app["health"] == "Suspended";
                let whole = app["synced"] == true
                    && app["phase"] == "applied"
                    && app["applied"] == app["objects"]
                    && !leaves
                    && !(waits && well);
                if waits {
                    waiting.insert(app["app"].as_str().unwrap_or_default().to_owned());
                }
                if !whole {
                    wrong.push(app.to_string());
                }
            }
            ensure!(
                wrong.is_empty(),
                "{} apps are not applied completely: {}",
                wrong.len(),
                wrong.join("\n")
            );
            Ok(waiting)
        });
        let waiting = applied.await?;
        println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        Ok(waiting)
    }

    /// Fails if the agent writes anything but its own records and events while nothing changes.
    async fn stays_quiet(&self) -> anyhow::Result<()> {
        // A request appears in the audit log with a delay.
        tokio::time::sleep(WRITTEN_DOWN).await;
        let before = self.account.writes()?.len();
        tokio::time::sleep(QUIET + WRITTEN_DOWN).await;
        let writes = self.account.writes()?;
        let foreign: Vec<&String> = writes[before..]
            .iter()
            .filter(|write| {
                !write.contains("/namespaces/muster-system/") && !write.contains("/events")
            })
            .collect();
        ensure!(
            foreign.is_empty(),
            "the agent writes though nothing changes: {foreign:#?}"
        );
        Ok(())
    }
}

/// Returns an object's group, kind, namespace and name as a key.
fn named(object: &Value) -> String {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let metadata = &object["metadata"];
    format!(
        "{group}/{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

/// Returns the part of an object that its owner wrote.
fn content(object: &Value) -> Value {
    let mut object = object.clone();
    let map = object.as_object_mut().into_iter().next();
    if let Some(map) = map {
        map.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|name, _| ["labels", "annotations"].contains(&name.as_str()));
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("muster.dev/app");
        }
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        metadata.retain(|_, value| !value.as_object().is_some_and(serde_json::Map::is_empty));
    }
    object
}

/// Applies a set with kubectl, as the project's documentation says.
fn install(kubeconfig: &Path, folder: &Path, set: &Set, server_side: bool) -> anyhow::Result<()> {
    let mut config = Kubeconfig::read_from(kubeconfig)?;
    for named in &mut config.contexts {
        if let Some(context) = &mut named.context {
            context.namespace = Some(set.namespace.to_owned());
        }
    }
    let path = folder.join(format!("{}.kubeconfig", set.name));
    std::fs::write(&path, serde_yaml::to_string(&config)?)?;
    let manifests = folder.join("work/apps").join(set.name).join("manifests");
    let kubectl = |arguments: &[&str]| -> anyhow::Result<Output> {
        let mut kubectl = Command::new(Program::Kubectl.build()?);
        kubectl.arg("--kubeconfig").arg(&path).args(arguments);
        Ok(kubectl.output()?)
    };
    // This fails if the namespace exists already.
    kubectl(&["create", "namespace", set.namespace])?;
    let mut said = String::new();
    for _ in 0..5 {
        let manifests = manifests.to_string_lossy();
        let mut arguments = vec!["apply", "-f", &manifests];
        if server_side {
            arguments.push("--server-side");
        }
        let output = kubectl(&arguments)?;
        if output.status.success() {
            return Ok(());
        }
        // The API server serves a new CRD's kind only a moment later.
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        std::thread::sleep(Duration::from_secs(1));
    }
    bail!("kubectl can't apply {}: {said}", set.name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_of_many_projects_are_adopted_changed_and_removed() -> anyhow::Result<()> {
    ensure!(SETS.len() >= 40, "only {} sets", SETS.len());
    let options = FleetOptions {
        nodes: 1,
        audit: true,
        ..FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS)
    };
    let mut fleet_ = Fleet::start(options).await?;
    let first = fleet(false)?;
    let commit = fleet_
        .repo()
        .publish("what is installed", &repository::listed(&first))?;
    let work = fleet_.repo().work().to_string_lossy().into_owned();
    fleet_.run(&["validate", &work])?;
    fleet_.start_hub().await?;
    let cluster = &fleet_.clusters()["one"];
    let admin = cluster.kubeconfig_path();
    let account = account::audited(cluster, fleet_.directory()).await?;
    let mut upstream = Upstream {
        fleet: fleet_,
        admin,
        account,
        agent: None,
    };

    // Every second set is applied client-side, except sets with CRDs, which may not fit into the annotation.
    let began = Instant::now();
    let mut wrong = Vec::new();
    for (number, set) in SETS.iter().enumerate() {
        let large = first.iter().any(|(path, text)| {
            path.starts_with(&format!("apps/{}/", set.name))
                && text.contains("CustomResourceDefinition")
        });
        let folder = upstream.fleet.directory();
        if let Err(error) = install(&upstream.admin, folder, set, large || number % 2 == 0) {
            wrong.push(error.to_string());
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{} sets applied by kubectl: {:.1} s",
        SETS.len(),
        began.elapsed().as_secs_f64()
    );
    let rendered = upstream.rendered()?;
    let before = upstream.live(&rendered)?;
    ensure!(
        before.len() == rendered.len(),
        "{} of {} objects exist",
        before.len(),
        rendered.len()
    );

    upstream.start_agent()?;
    upstream
        .until_applied(&commit, "take-over of all objects")
        .await?;
    upstream.stays_quiet().await?;
    let after = upstream.live(&rendered)?;
    for (name, object) in &before {
        let now = after
            .get(name)
            .with_context(|| format!("{name} no longer exists"))?;
        ensure!(
            now["metadata"]["uid"] == object["metadata"]["uid"],
            "{name} was recreated"
        );
        let (was, is) = (content(object), content(now));
        ensure!(was == is, "{name} was {was} and is now {is}");
    }

    let changed = fleet(true)?;
    let commit = upstream.publish("all of it changes", &changed)?;
    let waiting = upstream
        .until_applied(&commit, "change of all objects")
        .await?;
    let wanted: BTreeSet<String> = upstream.rendered()?.iter().map(named).collect();
    let live = upstream.live(&rendered)?;
    let mut stays = 0;
    for (name, object) in &live {
        let app = object["metadata"]["labels"]["muster.dev/app"].as_str();
        if !wanted.contains(name) {
            let waits = app.is_some_and(|app| waiting.contains(app));
            let status = ["status", "--app", app.unwrap_or_default(), "-o", "json"];
            ensure!(
                waits,
                "{name} is not in Git but exists, and the status does not report it as leaving: {}",
                upstream.fleet.run(&status)?
            );
            stays += 1;
            continue;
        }
        ensure!(
            object["metadata"]["uid"] == before[name]["metadata"]["uid"],
            "{name} was recreated"
        );
        let note = &object["metadata"]["annotations"]["upstream.example/changed"];
        let brought = !is(object, "Namespace");
        ensure!(note == "yes" || !brought, "{name} has not changed");
    }
    ensure!(
        live.len() == wanted.len() + stays,
        "{} of {} objects exist",
        live.len() - stays,
        wanted.len()
    );

    upstream.goes(&rendered).await?;
    let commit = upstream.publish("all of it comes back", &first)?;
    upstream
        .until_applied(&commit, "new creation of all objects")
        .await?;
    ensure!(upstream.live(&rendered)?.len() == rendered.len());
    upstream.stays_quiet().await?;
    // A new agent process does not write either.
    let agent = upstream.agent.take().context("no agent runs")?;
    let status = agent.stop(Duration::from_secs(30))?;
    ensure!(status.success(), "{status}");
    eventually(
        "the hub to notice that the agent has stopped",
        LONG,
        async || {
            let status = upstream.fleet.status()?;
            ensure!(status["clusters"][0]["connected"] == false, "{status}");
            Ok(())
        },
    )
    .await?;
    tokio::time::sleep(WRITTEN_DOWN).await;
    let writes = upstream.account.writes()?.len();
    upstream.start_agent()?;
    upstream
        .until_applied(&commit, "sync of a new agent process")
        .await?;
    // A new process compares every object only once, when it starts, so a shorter time is enough.
    tokio::time::sleep(QUIET / 3 + WRITTEN_DOWN).await;
    let written = upstream.account.writes()?;
    let foreign: Vec<&String> = written[writes..]
        .iter()
        .filter(|write| !write.contains("/namespaces/muster-system/"))
        .collect();
    ensure!(
        foreign.is_empty(),
        "a new agent process writes: {foreign:#?}"
    );
    Ok(())
}

impl Upstream {
    /// Removes all apps from Git, and checks that none of their objects is left.
    async fn goes(&self, rendered: &[Value]) -> anyhow::Result<()> {
        let nothing = repository::fleet(
            "upstream",
            "{prune: {objects: 100000, percent: 100}}",
            CLUSTERS,
        );
        let trailers: String = SETS
            .iter()
            .map(|set| format!("Muster-Prune: {}\n", set.name))
            .collect();
        let commit = self.publish(&format!("all of it goes\n\n{trailers}"), &nothing)?;
        self.until_applied(&commit, "removal of all objects")
            .await?;
        let left: Vec<String> = self.live(rendered)?.into_keys().collect();
        let left: Vec<&String> = left
            .iter()
            .filter(|name| {
                !OF_KUBERNETES
                    .iter()
                    .any(|ns| name.ends_with(&format!("Namespace /{ns}")))
            })
            .collect();
        ensure!(
            left.is_empty(),
            "{} objects are left: {left:#?}",
            left.len()
        );
        // No other object with an app's label is left either.
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
        let kinds = String::from_utf8(kinds.stdout)?;
        let kinds: Vec<&str> = kinds.split_whitespace().collect();
        let labelled = [
            "get",
            &kinds.join(","),
            "-A",
            "-l",
            "muster.dev/app",
            "-o",
            "name",
        ];
        let labelled = self.kubectl(&labelled)?;
        let labelled = String::from_utf8(labelled.stdout)?;
        ensure!(labelled.is_empty(), "left behind: {labelled}");
        Ok(())
    }
}
