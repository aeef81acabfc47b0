//! The cluster that all tests of this binary share, and helpers for them. Each test uses its own namespaces and
//! kinds in it.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, Request};
use kube::{
    Api, Client, Config as KubeConfig,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use muster_apply::{Applier, Config, Observed, ObservedObject, StoredBundle, StoredGeneration};
use muster_model::{
    bundle::{Bundle, BundleHeader, Gvk, Object, ObjectRef},
    ids::{ContentHash, Generation, Role},
    policy::{Policy, PruneBudget, PruneOrders},
};
use muster_plan::delivery::Term;
use muster_testkit::{
    local::{Cluster, ClusterOptions},
    tools::Program,
};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, watch};
use tower::layer::layer_fn;

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

/// A timeout that only a failing test reaches.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) async fn cluster() -> &'static Cluster {
    let start = || async {
        let options = ClusterOptions {
            nodes: 1,
            ..ClusterOptions::new("apply")
        };
        Cluster::start(options)
            .await
            .expect("a control plane starts")
    };
    CLUSTER.get_or_init(start).await
}

/// Counts the requests of a client.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) reads: AtomicUsize,
    pub(crate) writes: AtomicUsize,
    /// The namespaces of the requests; `*` stands for the whole cluster. Discovery requests are not recorded here.
    places: Mutex<BTreeSet<String>>,
    /// The names in DELETE requests.
    deleted: Mutex<Vec<String>>,
}

impl Requests {
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    pub(crate) fn places(&self) -> Vec<String> {
        self.places.lock().unwrap().iter().cloned().collect()
    }

    /// Returns the names in DELETE requests since the last call.
    pub(crate) fn take_deleted(&self) -> Vec<String> {
        std::mem::take(&mut self.deleted.lock().unwrap())
    }

    fn count(&self, request: &Request<Body>) {
        let parts: Vec<&str> = request.uri().path().split('/').skip(1).collect();
        if request.method() == Method::DELETE {
            let name = parts.last().copied().unwrap_or_default();
            self.deleted.lock().unwrap().push(name.to_owned());
        }
        let resource = match parts.as_slice() {
            ["api", _, resource @ ..] | ["apis", _, _, resource @ ..] => resource,
            _ => &[],
        };
        let place = match resource {
            [] => None,
            ["namespaces", namespace, _, ..] => Some(*namespace),
            _ => Some("*"),
        };
        let mut places = self.places.lock().unwrap();
        places.extend(place.map(str::to_owned));
        drop(places);
        let read = request.method() == Method::GET;
        (if read { &self.reads } else { &self.writes }).fetch_add(1, Ordering::SeqCst);
    }
}

/// The client and the configuration of one test.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) requests: Arc<Requests>,
    pub(crate) config: Config,
}

impl Fixture {
    pub(crate) async fn new(name: &str) -> Self {
        Self::of_kubeconfig(name, &cluster().await.kubeconfig().expect("a kubeconfig")).await
    }

    pub(crate) async fn of_kubeconfig(name: &str, kubeconfig: &str) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = KubeConfig::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        Self::of_config(name, config)
    }

    /// Creates a fixture whose client impersonates a user.
    pub(crate) async fn of_user(name: &str, user: &str) -> Self {
        let kubeconfig = cluster().await.kubeconfig().expect("a kubeconfig");
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = KubeConfig::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
        Self::of_config(name, config)
    }

    pub(crate) fn of_config(name: &str, mut config: KubeConfig) -> Self {
        config.default_retry = false;
        let requests = Arc::new(Requests::default());
        let counted = requests.clone();
        let counting = layer_fn(move |service| {
            let counted = counted.clone();
            tower::util::MapRequest::new(service, move |request: Request<Body>| {
                counted.count(&request);
                request
            })
        });
        let client = ClientBuilder::try_from(config)
            .unwrap()
            .with_layer(&counting)
            .build();
        let config = Config {
            namespace: format!("muster-{name}"),
            first_retry: Duration::from_millis(200),
            longest_retry: Duration::from_millis(500),
            longest_fight: Duration::from_secs(2),
            replaced_within: Duration::from_secs(20),
            publish_every: Duration::from_millis(5),
            ..Config::default()
        };
        Self {
            name: name.to_owned(),
            client,
            requests,
            config,
        }
    }

    /// Returns a fixture with another name whose requests are counted together with those of this one.
    pub(crate) fn part(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            client: self.client.clone(),
            requests: self.requests.clone(),
            config: Config {
                namespace: format!("muster-{name}"),
                ..self.config.clone()
            },
        }
    }

    pub(crate) async fn start(&self) -> Applied {
        let applier = Applier::start(self.client.clone(), self.config.clone());
        applier.started().await;
        Applied {
            observed: applier.observed(),
            applier,
        }
    }

    /// Returns true if a namespace or object with this name belongs to this fixture, and not to one whose name
    /// begins with the same letters.
    fn owns(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.name);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    }

    /// Lists the objects of a kind that carry the app label and belong to this test, as `namespace/name`.
    pub(crate) async fn live(&self, api_version: &str, kind: &str) -> Vec<String> {
        let list = self
            .api(api_version, kind, None)
            .list(&ListParams::default())
            .await
            .unwrap();
        let ours = |object: &DynamicObject| {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            let labels = object.metadata.labels.as_ref();
            let name = object.metadata.name.as_deref().unwrap_or_default();
            labels.is_some_and(|labels| labels.contains_key(muster_apply::APP_LABEL))
                && (self.owns(namespace) || self.owns(name))
        };
        let mut names: Vec<String> = list
            .into_iter()
            .filter(ours)
            .map(|o| match o.metadata.namespace {
                Some(namespace) => format!("{namespace}/{}", o.metadata.name.unwrap()),
                None => o.metadata.name.unwrap(),
            })
            .collect();
        names.sort();
        names
    }

    pub(crate) fn api(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Api<DynamicObject> {
        let Gvk {
            group,
            version,
            kind,
        } = Gvk::from_api_version(api_version, kind);
        let resource = ApiResource::from_gvk(&GroupVersionKind {
            group,
            version,
            kind,
        });
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Returns the complete live object.
    pub(crate) async fn get(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Value {
        let api = self.api(api_version, kind, Some(namespace));
        serde_json::to_value(api.get(name).await.unwrap()).unwrap()
    }

    /// Applies an object as another field manager.
    pub(crate) async fn apply_as(&self, manager: &str, namespace: &str, object: &Value) -> Value {
        let (api_version, kind) = (&object["apiVersion"], &object["kind"]);
        let api = self.api(
            api_version.as_str().unwrap(),
            kind.as_str().unwrap(),
            Some(namespace),
        );
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply(manager).force();
        let live = api
            .patch(name, &params, &Patch::Apply(object))
            .await
            .unwrap();
        serde_json::to_value(live).unwrap()
    }

    /// Changes an object with a merge patch as another field manager.
    pub(crate) async fn edit_as(
        &self,
        manager: &str,
        api_version: &str,
        kind: &str,
        at: (&str, &str),
        patch: &Value,
    ) {
        let api = self.api(api_version, kind, Some(at.0));
        let params = PatchParams {
            field_manager: Some(manager.to_owned()),
            ..PatchParams::default()
        };
        api.patch(at.1, &params, &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Creates an object that belongs to no app.
    pub(crate) async fn create(&self, object: &Value) {
        let part = |field: &str| object[field].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str();
        let api = self.api(part("apiVersion"), part("kind"), namespace);
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    pub(crate) fn config_maps(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("v1", "ConfigMap", Some(namespace))
    }
}

/// Runs kubectl in a namespace with `input` on stdin and `editor` as the editor command.
pub(crate) async fn kubectl(ns: &str, args: &[&str], input: &Value, editor: &str) {
    let mut command = Command::new(Program::Kubectl.build().unwrap());
    command
        .arg("--kubeconfig")
        .arg(cluster().await.kubeconfig_path())
        .args(["-n", ns])
        .args(args)
        .env("KUBE_EDITOR", editor)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let input = input.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read stdin may already have exited.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {wrong}");
}

pub(crate) async fn kubectl_does(ns: &str, args: &[&str]) {
    kubectl(ns, args, &Value::Null, "false").await;
}

/// A running applier and its observed state.
pub(crate) struct Applied {
    pub(crate) applier: Applier,
    observed: watch::Receiver<Arc<Observed>>,
}

impl Applied {
    /// Makes a generation the desired state and waits until it is settled.
    pub(crate) async fn settle(&mut self, stored: StoredGeneration) -> Arc<Observed> {
        let generation = stored.generation;
        self.applier.set_desired(Arc::new(stored));
        self.until(|o| o.settled && o.generation.is_some_and(|(g, _)| g == generation))
            .await
    }

    /// Waits until the observed state fulfils a condition and returns it.
    pub(crate) async fn until(&mut self, is: impl Fn(&Observed) -> bool) -> Arc<Observed> {
        let level = tokio::time::timeout(LONG, self.observed.wait_for(|o| is(o))).await;
        if let Ok(level) = level {
            return level.expect("the applier is running").clone();
        }
        panic!(
            "the last observed state is {:#?}",
            self.applier.observed().borrow()
        );
    }
}

/// Returns the observed state of the object whose ID has this text.
pub(crate) fn object(observed: &Observed, text: &str) -> ObservedObject {
    let mut objects = observed.bundles.iter().flat_map(|bundle| &bundle.objects);
    let object = objects.find(|object| object.id.to_string() == text);
    object
        .unwrap_or_else(|| panic!("no {text} in {observed:#?}"))
        .clone()
}

/// A builder for a bundle like those of the hub.
pub(crate) struct Making {
    header: BundleHeader,
}

/// Standing approvals to delete all objects of an app, one for each app that a test has built.
static MADE: Mutex<BTreeSet<ContentHash>> = Mutex::new(BTreeSet::new());

pub(crate) fn making(app: &str, namespace: &str) -> Making {
    let name = PruneOrders::leaving(&app.parse().unwrap());
    MADE.lock().unwrap().insert(name);
    Making {
        header: BundleHeader {
            app: app.parse().unwrap(),
            role: Role::Active,
            namespace: namespace.into(),
            after: Vec::new(),
            formerly: None,
            policy: Policy::default(),
        },
    }
}

impl Making {
    pub(crate) fn after(mut self, apps: &[&str]) -> Self {
        self.header.after = apps.iter().map(|app| app.parse().unwrap()).collect();
        self
    }

    pub(crate) fn formerly(mut self, app: &str) -> Self {
        self.header.formerly = Some(app.parse().unwrap());
        self
    }

    pub(crate) fn role(mut self, role: Role) -> Self {
        self.header.role = role;
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.header.policy);
        self
    }

    pub(crate) fn of(self, objects: &[Value]) -> StoredBundle {
        let object = |value: &Value| Object {
            id: ObjectRef {
                gvk: Gvk::from_api_version(
                    value["apiVersion"].as_str().unwrap(),
                    value["kind"].as_str().unwrap(),
                ),
                namespace: value["metadata"]["namespace"].as_str().map(Into::into),
                name: value["metadata"]["name"].as_str().unwrap().into(),
            },
            json: value.to_string().into(),
        };
        let bundle = Bundle {
            header: self.header,
            objects: objects.iter().map(object).collect(),
        };
        StoredBundle::from_encoded(&bundle.encode()).unwrap()
    }
}

pub(crate) fn bundle(app: &str, namespace: &str, objects: &[Value]) -> StoredBundle {
    making(app, namespace).of(objects)
}

/// Returns the generation with another prune budget.
pub(crate) fn with_budget(
    mut stored: StoredGeneration,
    objects: u32,
    percent: u8,
) -> StoredGeneration {
    stored.prune.budget = PruneBudget { objects, percent };
    stored
}

pub(crate) fn stored(generation: u64, bundles: Vec<StoredBundle>) -> StoredGeneration {
    let hashes: String = bundles.iter().map(|b| b.hash().to_string()).collect();
    StoredGeneration {
        generation: Generation(generation),
        hash: ContentHash::of(hashes.as_bytes()),
        term: Term {
            number: 1,
            nonce: 7,
            ..Term::default()
        },
        incarnation: "i".into(),
        enrolment: String::new(),
        prune: PruneOrders {
            budget: PruneBudget {
                objects: u32::MAX,
                percent: 100,
            },
            approved: MADE.lock().unwrap().clone(),
            ..PruneOrders::default()
        },
        record: None,
        bundles,
    }
}

pub(crate) fn namespace(name: &str) -> Value {
    let annotations = json!({"muster.dev/prune": "enabled"});
    let metadata = json!({"name": name, "annotations": annotations});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
}

pub(crate) fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}})
}

/// Returns a CustomResourceDefinition of the kind `Foo` in the given group.
pub(crate) fn definition(group: &str, scope: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("foos.{group}"),
            "annotations": {"muster.dev/prune": "enabled"},
        },
        "spec": {
            "group": group,
            "names": {"kind": "Foo", "plural": "foos", "singular": "foo", "listKind": "FooList"},
            "scope": scope,
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                }}},
            }],
        },
    })
}

pub(crate) fn foo(group: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{group}/v1"),
        "kind": "Foo",
        "metadata": {"name": name},
        "spec": {"size": 1},
    })
}
