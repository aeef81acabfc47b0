//! Watches each kind in use, in the whole cluster or only in the namespaces that the agent is
//! limited to. Each event is immediately reduced to a few values, such as the object's UID and
//! health; the objects themselves are not stored.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Resource as _,
    runtime::{
        utils::Backoff as _,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use muster_model::{
    bundle::{Gvk, ObjectRef},
    ids::AppName,
    policy::HealthRule,
};
use muster_plan::health::{Assessment, Health, Rules, SILENCE, assess};
use serde_json::Value;
use tokio::{runtime::RuntimeFlavor, sync::watch, task::JoinHandle, time::Instant};

use crate::{
    APP_LABEL,
    annotations::{DISABLED, RECONCILE},
    cluster::explain,
    field_trimming::Trimmed,
    inventory::{End, Identity, Inventory},
    kinds::Kind,
    object_tracker::{ObjectTracker, Seen},
};

/// The number of objects in one page of the first list.
const PAGE: u32 = 100;
/// The page size for kinds of which only the metadata is read.
const PLAIN_PAGE: u32 = 500;
/// The page size for CustomResourceDefinitions. Each can be half a megabyte large.
const LARGE_PAGE: u32 = 4;

/// The running watches.
pub(crate) struct Observer {
    client: Client,
    tracker: Arc<ObjectTracker>,
    inventory: Arc<Inventory>,
    rules: Arc<AppRules>,
    /// The health rules as the apps define them. `rules` holds them in compiled form.
    written: HashMap<AppName, Vec<HealthRule>>,
    watches: HashMap<Watched, Watching>,
}

/// The subject of one watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Watched {
    pub(crate) group: String,
    pub(crate) kind: String,
    /// The namespace; `None` for the whole cluster.
    pub(crate) namespace: Option<String>,
}

impl Watched {
    /// Returns the watch that covers an object. With `limited`, it covers only the object's own
    /// namespace.
    pub(crate) fn of(id: &ObjectRef, limited: bool) -> Self {
        Self {
            group: id.gvk.group.clone(),
            kind: id.gvk.kind.clone(),
            namespace: id.namespace.clone().filter(|_| limited),
        }
    }
}

struct Watching {
    task: JoinHandle<()>,
    version: String,
    listed: watch::Receiver<bool>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    pub(crate) fn new(
        client: Client,
        tracker: Arc<ObjectTracker>,
        inventory: Arc<Inventory>,
    ) -> Self {
        Self {
            client,
            tracker,
            inventory,
            rules: Arc::default(),
            written: HashMap::new(),
            watches: HashMap::new(),
        }
    }

    /// Sets the health rules of the apps. Watches of kinds whose rules have changed are restarted.
    pub(crate) fn judge_by(&mut self, rules: HashMap<AppName, Vec<HealthRule>>) {
        if self.written == rules {
            return;
        }
        let all = || self.written.iter().chain(&rules);
        let changed = |(app, of_app): &(&AppName, &Vec<HealthRule>)| {
            self.written.get(*app) != rules.get(*app) && !of_app.is_empty()
        };
        let kinds: HashSet<(String, String)> = all()
            .filter(changed)
            .flat_map(|(_, rules)| rules)
            .map(|rule| (rule.group.clone(), rule.kind.clone()))
            .collect();
        self.watches
            .retain(|watched, _| !kinds.contains(&(watched.group.clone(), watched.kind.clone())));
        let compile = |(app, rules): (&AppName, &Vec<HealthRule>)| match Rules::compile(rules) {
            Ok(rules) => Some((app.clone(), Arc::new(rules))),
            Err(error) => {
                tracing::warn!(%app, error = explain(&error), "the health rules can't be read; the built-in rules are used");
                None
            }
        };
        let compiled = rules
            .iter()
            .filter(|(_, rules)| !rules.is_empty())
            .filter_map(compile);
        *self.rules.0.write().unwrap_or_else(PoisonError::into_inner) = compiled.collect();
        self.written = rules;
    }

    /// Returns a receiver that holds true once a watch has listed its objects, or `None` if there
    /// is no such watch.
    pub(crate) fn listed(&self, watched: &Watched) -> Option<watch::Receiver<bool>> {
        Some(self.watches.get(watched)?.listed.clone())
    }

    /// Watches these kinds and no others.
    pub(crate) fn follow(&mut self, kinds: &HashMap<Watched, Arc<Kind>>) {
        self.watches.retain(|key, watching| {
            kinds
                .get(key)
                .is_some_and(|kind| kind.gvk.version == watching.version)
        });
        for (key, kind) in kinds {
            if self.watches.contains_key(key) {
                continue;
            }
            let (sender, listed) = watch::channel(false);
            let sight = Sight {
                kind: kind.clone(),
                namespace: key.namespace.clone(),
                tracker: self.tracker.clone(),
                inventory: self.inventory.clone(),
                rules: self.rules.clone(),
                listed: sender,
            };
            let version = kind.gvk.version.clone();
            let task = tokio::spawn(sight.watch(self.client.clone()));
            let watching = Watching {
                task,
                version,
                listed,
            };
            self.watches.insert(key.clone(), watching);
        }
    }
}

/// Returns true for kinds whose objects are healthy as soon as they exist, so their metadata is
/// enough.
pub(crate) fn is_plain(gvk: &Gvk) -> bool {
    match gvk.group.as_str() {
        "" => matches!(
            gvk.kind.as_str(),
            "ConfigMap"
                | "Secret"
                | "ServiceAccount"
                | "LimitRange"
                | "ResourceQuota"
                | "Endpoints"
        ),
        "rbac.authorization.k8s.io"
        | "scheduling.k8s.io"
        | "storage.k8s.io"
        | "node.k8s.io"
        | "discovery.k8s.io"
        | "admissionregistration.k8s.io" => true,
        "networking.k8s.io" => matches!(gvk.kind.as_str(), "NetworkPolicy" | "IngressClass"),
        _ => false,
    }
}

/// Returns the health of an object of a plain kind from its metadata.
fn plain(metadata: &Value) -> Assessment {
    if metadata["deletionTimestamp"].is_null() {
        return Assessment::HEALTHY;
    }
    Assessment {
        health: Health::Progressing,
        message: Some("being deleted".to_owned()),
    }
}

/// The state of one watch.
struct Sight {
    kind: Arc<Kind>,
    /// The only namespace that is watched; `None` for the whole cluster.
    namespace: Option<String>,
    tracker: Arc<ObjectTracker>,
    inventory: Arc<Inventory>,
    rules: Arc<AppRules>,
    listed: watch::Sender<bool>,
}

impl Sight {
    async fn watch(self, client: Client) {
        if is_plain(&self.kind.gvk) {
            self.follow::<true>(client).await;
        } else {
            self.follow::<false>(client).await;
        }
    }

    async fn follow<const PLAIN: bool>(self, client: Client) {
        let large = self.kind.gvk.kind == "CustomResourceDefinition";
        let config = watcher::Config::default()
            .labels(APP_LABEL)
            .page_size(match (large, PLAIN) {
                (true, _) => LARGE_PAGE,
                (false, true) => PLAIN_PAGE,
                (false, false) => PAGE,
            });
        let api = self
            .kind
            .api::<Trimmed<PLAIN>>(client, self.namespace.as_deref());
        let mut events = std::pin::pin!(watcher(api, config));
        // The pauses are those of `default_backoff`, but they can be ended early.
        let mut pauses = DefaultBackoff::default();
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            if event.is_ok() {
                pauses.reset();
            }
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    if let Some(key) = self.saw(object) {
                        listed.insert(key);
                    }
                }
                Ok(Event::Apply(object)) => {
                    self.saw(object);
                }
                Ok(Event::InitDone) => {
                    self.saw_all(&std::mem::take(&mut listed));
                    self.listed.send_replace(true);
                }
                Ok(Event::Delete(object)) => self.saw_go(&object),
                Err(error) => {
                    let kind = &self.kind.gvk.kind;
                    tracing::debug!(kind, error = explain(&error), "the watch is restarted");
                    let Some(pause) = pauses.next() else { return };
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.tracker.until_server_answers() => {}
                    }
                }
            }
        }
    }

    fn key(&self, meta: &ObjectMeta) -> Identity {
        Identity::of(&ObjectRef {
            gvk: self.kind.gvk.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        })
    }

    /// Handles an object that exists. Returns its key if it is in the inventory.
    fn saw<const PLAIN: bool>(&self, object: Trimmed<PLAIN>) -> Option<Identity> {
        let key = self.key(object.meta());
        let entry = self.inventory.get(&key)?;
        let uid = object.meta().uid.clone().unwrap_or_default();
        let created = object.meta().creation_timestamp.clone();
        let version = object.meta().resource_version.clone();
        let Trimmed {
            mut value,
            managers,
            ..
        } = object;
        // Before the answer to a request is recorded, any UID and any owner may be the right one.
        let settled = entry.applied.is_some();
        let other = entry.uid.as_ref().is_some_and(|known| *known != uid);
        let taken = entry.owned.is_some() && managers.own != entry.owned;
        let added = !self.tracker.is_tolerated(&key, managers.people);
        let metadata = &value["metadata"];
        let generation = metadata["generation"].as_i64();
        let left_alone = metadata["annotations"][RECONCILE] == DISABLED;
        let assessment = if PLAIN {
            plain(metadata)
        } else {
            // Items of a list have no `apiVersion` and no `kind`.
            value["apiVersion"] = self.kind.gvk.api_version().into();
            value["kind"] = self.kind.gvk.kind.clone().into();
            self.rules.assess(&entry.app, &value)
        };
        if let Some(end) = self.end_of(&value)
            && self.inventory.ends(&key, &uid, end)
        {
            self.tracker.wake();
        }
        let silent_until = assessment
            .is_silence()
            .then(|| Instant::now() + SILENCE.saturating_sub(age(&created)));
        let seen = Seen {
            silent_until,
            uid,
            generation,
            version: version.filter(|_| generation.is_none()),
            assessment,
            has_pods: has_pods(&self.kind.gvk, &value["status"]),
            left_alone,
        };
        // This is recorded first, because the engine reads it when it checks for drift.
        self.tracker.record_seen(&key, Some(seen));
        if settled && (other || taken || added) {
            self.tracker.drift(key.clone());
        }
        Some(key)
    }

    /// Handles the deletion of an object. It is always checked for drift, because a request whose
    /// answer is not recorded yet may have created exactly this object.
    fn saw_go<const PLAIN: bool>(&self, object: &Trimmed<PLAIN>) {
        let meta = object.meta();
        let key = self.key(meta);
        self.tracker.record_deleted(&key, meta.uid.as_deref());
        if self.inventory.get(&key).is_none() {
            return;
        }
        // A Job may be deleted as soon as it has ended. This event is then the last one.
        let uid = meta.uid.as_deref().unwrap_or_default();
        if let Some(end) = self.end_of(&object.value)
            && self.inventory.ends(&key, uid, end)
        {
            self.tracker.wake();
        }
        self.tracker.drift(key);
    }

    /// Returns how a Job has ended. A failed Job counts as ended only if Kubernetes deletes it by
    /// itself. Any other failed Job exists until a person deletes it. Muster then creates it again.
    fn end_of(&self, object: &Value) -> Option<End> {
        if self.kind.gvk.group != "batch" || self.kind.gvk.kind != "Job" {
            return None;
        }
        let conditions = object["status"]["conditions"].as_array()?;
        let condition = |kind: &str| {
            let mut conditions = conditions.iter();
            conditions.find(|c| c["type"] == kind && c["status"] == "True")
        };
        if condition("Complete").is_some() {
            return Some(End::Completed);
        }
        let failed = condition("Failed")?;
        let removed = !object["spec"]["ttlSecondsAfterFinished"].is_null();
        removed.then(|| {
            let text = |field: &str| failed[field].as_str().unwrap_or_default();
            End::Failed(format!(
                "it has failed ({}): {}",
                text("reason"),
                text("message")
            ))
        })
    }

    /// Handles the end of a list. Objects of this kind that are in the inventory but not in the
    /// list are gone.
    fn saw_all(&self, listed: &HashSet<Identity>) {
        for (key, entry) in self.inventory.entries() {
            let same = entry.id.gvk.kind == self.kind.gvk.kind
                && entry.id.gvk.group == self.kind.gvk.group
                && (self.namespace.is_none() || self.namespace == entry.id.namespace);
            if same && !listed.contains(&key) {
                self.tracker.record_seen(&key, None);
                self.tracker.drift(key);
            }
        }
    }
}

/// Returns true if a workload's controller has created pods.
fn has_pods(kind: &Gvk, status: &Value) -> bool {
    let counts: &[&str] = match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment" | "StatefulSet") => &["replicas"],
        ("apps", "DaemonSet") => &["currentNumberScheduled"],
        ("batch", "Job") => &["active", "failed"],
        _ => return false,
    };
    counts
        .iter()
        .any(|count| status[count].as_u64().is_some_and(|count| count > 0))
}

/// Returns the age of an object. If the clocks of the agent and the API server differ, the wait for
/// the first report of the object's controller is longer or shorter.
fn age(created: &Option<Time>) -> Duration {
    let created = created.as_ref().map(|created| created.0);
    let age = created.map(|created| Timestamp::now().duration_since(created));
    age.and_then(|age| Duration::try_from(age).ok())
        .unwrap_or_default()
}

/// The health rules of the apps, as their bundles contain them.
#[derive(Default)]
pub(crate) struct AppRules(RwLock<HashMap<AppName, Arc<Rules>>>);

impl AppRules {
    fn assess(&self, app: &AppName, object: &Value) -> Assessment {
        let rules = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(app)
            .cloned();
        let Some(rules) = rules else {
            return assess(object);
        };
        // A rule may take a second. `block_in_place` moves other tasks of this thread elsewhere.
        match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| rules.assess(object)),
            Ok(_) | Err(_) => rules.assess(object),
        }
    }
}
