//! The kinds that the API server serves. They are discovered once, and again only if a kind is
//! missing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::core::{ApiResource, DynamicObject};
use muster_model::bundle::{Gvk, ObjectRef};
use serde::Deserialize;

use crate::cluster::{Cluster, RequestError};

/// One kind in one version, as the API server serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) gvk: Gvk,
    plural: String,
    pub(crate) namespaced: bool,
}

impl Kind {
    /// Returns the path of an object of this kind.
    pub(crate) fn path(&self, id: &ObjectRef) -> String {
        format!("{}/{}", self.collection(id), id.name)
    }

    /// Returns the path under which an object of this kind is created.
    pub(crate) fn collection(&self, id: &ObjectRef) -> String {
        let root = version_path(&self.gvk.group, &self.gvk.version);
        let Self { plural, .. } = self;
        match id.namespace.as_deref().filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{plural}"),
        }
    }

    /// Returns the path of this kind's objects in a namespace.
    pub(crate) fn collection_in(&self, namespace: &str) -> String {
        let root = version_path(&self.gvk.group, &self.gvk.version);
        format!("{root}/namespaces/{namespace}/{}", self.plural)
    }

    /// Returns the description that kube's own requests need.
    pub(crate) fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.gvk.group.clone(),
            version: self.gvk.version.clone(),
            api_version: self.gvk.api_version(),
            kind: self.gvk.kind.clone(),
            plural: self.plural.clone(),
        }
    }

    /// Returns an API for one namespace, or for the whole cluster.
    pub(crate) fn api<K>(&self, client: kube::Client, namespace: Option<&str>) -> kube::Api<K>
    where
        K: kube::Resource<
                DynamicType = ApiResource,
                Scope = <DynamicObject as kube::Resource>::Scope,
            >,
    {
        match namespace {
            Some(namespace) => kube::Api::namespaced_with(client, namespace, &self.resource()),
            None => kube::Api::all_with(client, &self.resource()),
        }
    }
}

fn version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// The result of a lookup.
#[derive(Debug)]
pub(crate) enum Lookup {
    Served(Arc<Kind>),
    /// The kind is served, but only in other versions; this is one of them.
    OtherVersion(Arc<Kind>),
    Unknown,
}

/// The kinds that the API server is known to serve.
#[derive(Debug, Default, Clone)]
pub(crate) struct Kinds {
    by_kind: HashMap<(String, String), Vec<Arc<Kind>>>,
    /// Groups and versions whose aggregated API server did not answer.
    silent: HashSet<(String, String)>,
    loaded: bool,
}

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    metadata: GroupMeta,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct GroupMeta {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<Resource>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    resource: String,
    scope: String,
    response_kind: Option<ResponseKind>,
}

#[derive(Deserialize)]
struct ResponseKind {
    kind: String,
}

/// The `Accept` header for aggregated discovery (KEP-3352), which Kubernetes has served since 1.27.
/// One answer holds all groups.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
     application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

impl Kinds {
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(crate) fn find(&self, gvk: &Gvk) -> Lookup {
        let kinds = self.by_kind.get(&(gvk.group.clone(), gvk.kind.clone()));
        let mut kinds = kinds.into_iter().flatten();
        match kinds.clone().find(|kind| kind.gvk.version == gvk.version) {
            Some(kind) => Lookup::Served(kind.clone()),
            None => match kinds.next() {
                Some(kind) => Lookup::OtherVersion(kind.clone()),
                None => Lookup::Unknown,
            },
        }
    }

    /// Returns every namespaced kind, in one version each.
    pub(crate) fn namespaced(&self) -> impl Iterator<Item = &Kind> {
        let kinds = self.by_kind.values().filter_map(|kinds| kinds.first());
        kinds.map(AsRef::as_ref).filter(|kind| kind.namespaced)
    }

    /// Returns the message for an unknown kind.
    pub(crate) fn why_unknown(&self, gvk: &Gvk) -> String {
        let api = gvk.api_version();
        if self
            .silent
            .contains(&(gvk.group.clone(), gvk.version.clone()))
        {
            return format!(
                "the server behind the aggregated API {api} does not answer; see `kubectl get \
                 apiservice {}.{}`",
                gvk.version, gvk.group
            );
        }
        format!(
            "the cluster does not know the kind {} of {api}; is its CustomResourceDefinition missing?",
            gvk.kind
        )
    }

    /// Returns the kind in the requested version, or else in another served version.
    pub(crate) fn any_version(&self, gvk: &Gvk) -> Option<Arc<Kind>> {
        match self.find(gvk) {
            Lookup::Served(kind) | Lookup::OtherVersion(kind) => Some(kind),
            Lookup::Unknown => None,
        }
    }

    /// Discovers all groups with two requests.
    pub(crate) async fn refresh(&mut self, cluster: &Cluster) -> Result<(), RequestError> {
        let (core, groups) = futures::try_join!(
            cluster.read::<Groups>("/api", AGGREGATED),
            cluster.read::<Groups>("/apis", AGGREGATED)
        )?;
        let mut fresh = Self {
            loaded: true,
            ..Self::default()
        };
        for group in core.items.into_iter().chain(groups.items) {
            let name = &group.metadata.name;
            for Version {
                version,
                resources,
                freshness,
            } in group.versions
            {
                for Resource {
                    resource,
                    scope,
                    response_kind,
                } in resources
                {
                    let kind = response_kind.map(|kind| kind.kind).unwrap_or_default();
                    fresh.insert(name, &version, kind, resource, scope == "Namespaced");
                }
                // The server behind an aggregated API does not answer, so its known kinds are kept.
                if freshness == "Stale" {
                    fresh.silent.insert((name.clone(), version.clone()));
                    let known = self.by_kind.values().flatten();
                    let known = known.filter(|k| k.gvk.group == *name && k.gvk.version == version);
                    for kind in known {
                        fresh.insert_kind(kind.clone());
                    }
                }
            }
        }
        *self = fresh;
        Ok(())
    }

    /// Discovers the kinds of one version of a group. Returns false if the version is not served.
    pub(crate) async fn refresh_version(
        &mut self,
        cluster: &Cluster,
        group: &str,
        version: &str,
    ) -> Result<bool, RequestError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            resources: Vec<Listed>,
        }
        #[derive(Deserialize)]
        struct Listed {
            name: String,
            kind: String,
            #[serde(default)]
            namespaced: bool,
        }
        let answer: Result<List, _> = cluster
            .read(&version_path(group, version), "application/json")
            .await;
        let (served, resources) = match answer {
            Ok(list) => (true, list.resources),
            Err(error) if error.code() == 404 => (false, Vec::new()),
            Err(error) => return Err(error),
        };
        self.forget_version(group, version);
        for Listed {
            name,
            kind,
            namespaced,
        } in resources
        {
            if !name.contains('/') {
                self.insert(group, version, kind, name, namespaced);
            }
        }
        Ok(served)
    }

    /// Drops what is known about a version of a group, so that it is discovered again.
    pub(crate) fn forget_version(&mut self, group: &str, version: &str) {
        for kinds in self.by_kind.values_mut() {
            kinds.retain(|kind| kind.gvk.group != group || kind.gvk.version != version);
        }
    }

    fn insert(
        &mut self,
        group: &str,
        version: &str,
        kind: String,
        plural: String,
        namespaced: bool,
    ) {
        let gvk = Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind,
        };
        self.insert_kind(Arc::new(Kind {
            gvk,
            plural,
            namespaced,
        }));
    }

    fn insert_kind(&mut self, kind: Arc<Kind>) {
        let key = (kind.gvk.group.clone(), kind.gvk.kind.clone());
        let kinds = self.by_kind.entry(key).or_default();
        if !kinds
            .iter()
            .any(|known| known.gvk.version == kind.gvk.version)
        {
            kinds.push(kind);
        }
    }
}
