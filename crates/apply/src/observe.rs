//! One watch for each kind in use. Every event becomes a health and a UID at once; the objects
//! themselves are not kept.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client,
    core::{DynamicObject, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use muster_model::bundle::{Gvk, ObjectRef};
use muster_plan::health::{Assessment, Health, assess};
use tokio::task::JoinHandle;

use crate::{
    APP_LABEL,
    board::{Board, Seen},
    cluster::explain,
    inventory::{Identity, Inventory},
    kinds::Kind,
    slim::Slim,
};

/// Objects in one answer of the first list.
const PAGE: u32 = 100;
/// Definitions can have half a megabyte each.
const LARGE_PAGE: u32 = 4;

/// The watches that run.
pub(crate) struct Observer {
    client: Client,
    board: Arc<Board>,
    inventory: Arc<Inventory>,
    watches: HashMap<(String, String), Watching>,
}

struct Watching {
    task: JoinHandle<()>,
    version: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    pub(crate) fn new(client: Client, board: Arc<Board>, inventory: Arc<Inventory>) -> Self {
        Self {
            client,
            board,
            inventory,
            watches: HashMap::new(),
        }
    }

    /// Watches these kinds and no others.
    pub(crate) fn follow(&mut self, kinds: &HashMap<(String, String), Arc<Kind>>) {
        self.watches.retain(|key, watching| {
            kinds
                .get(key)
                .is_some_and(|kind| kind.gvk.version == watching.version)
        });
        for (key, kind) in kinds {
            if self.watches.contains_key(key) {
                continue;
            }
            let sight = Sight {
                kind: kind.clone(),
                board: self.board.clone(),
                inventory: self.inventory.clone(),
            };
            let version = kind.gvk.version.clone();
            let task = tokio::spawn(sight.watch(self.client.clone()));
            self.watches.insert(key.clone(), Watching { task, version });
        }
    }
}

/// Kinds that are well as soon as they exist: their metadata is enough.
fn is_plain(gvk: &Gvk) -> bool {
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

/// What one watch needs.
struct Sight {
    kind: Arc<Kind>,
    board: Arc<Board>,
    inventory: Arc<Inventory>,
}

impl Sight {
    async fn watch(self, client: Client) {
        let large = self.kind.gvk.kind == "CustomResourceDefinition";
        let config = watcher::Config::default()
            .labels(APP_LABEL)
            .page_size(if large { LARGE_PAGE } else { PAGE });
        if is_plain(&self.kind.gvk) {
            let api = self.kind.api::<PartialObjectMeta<DynamicObject>>(client);
            let health = |object: PartialObjectMeta<DynamicObject>| {
                if object.metadata.deletion_timestamp.is_none() {
                    return (object.metadata.generation, Assessment::HEALTHY);
                }
                let message = Some("being deleted".to_owned());
                (
                    object.metadata.generation,
                    Assessment {
                        health: Health::Progressing,
                        message,
                    },
                )
            };
            self.read(watcher(api, config), health).await;
        } else {
            let api = self.kind.api::<Slim>(client);
            let gvk = self.kind.gvk.clone();
            let health = move |object: Slim| {
                let mut value = object.value;
                // Items of a list don't say what they are.
                value["apiVersion"] = gvk.api_version().into();
                value["kind"] = gvk.kind.clone().into();
                (value["metadata"]["generation"].as_i64(), assess(&value))
            };
            self.read(watcher(api, config), health).await;
        }
    }

    async fn read<K: kube::Resource + Clone + Debug + Send + 'static>(
        self,
        events: impl Stream<Item = watcher::Result<Event<K>>>,
        health: impl Fn(K) -> (Option<i64>, Assessment),
    ) {
        let mut events = std::pin::pin!(events.default_backoff());
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    if let Some(key) = self.saw(object, &health) {
                        listed.insert(key);
                    }
                }
                Ok(Event::Apply(object)) => {
                    self.saw(object, &health);
                }
                Ok(Event::InitDone) => self.saw_all(&std::mem::take(&mut listed)),
                Ok(Event::Delete(object)) => self.saw_go(object.meta()),
                Err(error) => {
                    let kind = &self.kind.gvk.kind;
                    tracing::debug!(kind, error = explain(&error), "the watch is begun again");
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

    /// An object is there. The answer is its key, where it is one of the inventory's.
    fn saw<K: kube::Resource>(
        &self,
        object: K,
        health: impl Fn(K) -> (Option<i64>, Assessment),
    ) -> Option<Identity> {
        let key = self.key(object.meta());
        let entry = self.inventory.get(&key)?;
        let uid = object.meta().uid.clone().unwrap_or_default();
        // Before the answer to a request is recorded, any UID may be the right one.
        let settled = entry.applied.is_some();
        if settled && entry.uid.as_ref().is_some_and(|known| *known != uid) {
            self.board.drift(key.clone());
        }
        let (generation, assessment) = health(object);
        self.board.see(
            &key,
            Some(Seen {
                uid,
                generation,
                assessment,
            }),
        );
        Some(key)
    }

    /// An object is gone.
    fn saw_go(&self, meta: &ObjectMeta) {
        let key = self.key(meta);
        let Some(entry) = self.inventory.get(&key) else {
            return;
        };
        if entry.uid.is_none() || entry.uid == meta.uid {
            self.board.see(&key, None);
            self.board.drift(key);
        }
    }

    /// These are all that are there: what else the inventory has of this kind is gone.
    fn saw_all(&self, listed: &HashSet<Identity>) {
        for (key, entry) in self.inventory.entries() {
            let same = entry.id.gvk.kind == self.kind.gvk.kind
                && entry.id.gvk.group == self.kind.gvk.group;
            if same && entry.uid.is_some() && !listed.contains(&key) {
                self.board.see(&key, None);
                self.board.drift(key);
            }
        }
    }
}
