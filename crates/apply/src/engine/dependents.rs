//! Finds out which objects own others, as far as the API server shows it.

use std::collections::HashSet;

use futures::{StreamExt as _, stream};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::{
    cluster::{RequestError, retried},
    kinds::Kind,
};

const LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const PAGE: u32 = 500;

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<Dependent>>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Dependent {
    #[serde(default)]
    metadata: DependentMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DependentMeta {
    owner_references: Vec<Owner>,
}

#[derive(Deserialize)]
struct Owner {
    #[serde(default)]
    uid: String,
}

impl Engine {
    /// Returns the UIDs of all objects that own something in a namespace. Kinds that this agent may
    /// not list are left out.
    pub(super) async fn owners_in(
        &self,
        namespace: &str,
        cancel: &CancellationToken,
    ) -> Result<HashSet<String>, RequestError> {
        let kinds = self.kinds();
        let kinds = kinds.namespaced().filter(|kind| matters(kind));
        let collections: Vec<String> = kinds.map(|kind| kind.collection_in(namespace)).collect();
        let lists = collections
            .into_iter()
            .map(|collection| self.owners_of(collection, cancel));
        let mut lists = stream::iter(lists).buffer_unordered(self.config.concurrency.min(16));
        let mut owners = HashSet::new();
        while let Some(list) = lists.next().await {
            owners.extend(list?);
        }
        Ok(owners)
    }

    async fn owners_of(
        &self,
        collection: String,
        cancel: &CancellationToken,
    ) -> Result<HashSet<String>, RequestError> {
        let mut owners = HashSet::new();
        let mut next = String::new();
        loop {
            let path = format!("{collection}?limit={PAGE}&continue={next}");
            let list = match retried(cancel, || self.cluster.read::<List>(&path, LIST)).await {
                Ok(list) => list,
                Err(error) if matches!(error.code(), 403..=406) => return Ok(owners),
                Err(error) => return Err(error),
            };
            let items = list.items.into_iter().flatten();
            owners.extend(
                items
                    .flat_map(|item| item.metadata.owner_references)
                    .map(|owner| owner.uid),
            );
            if list.metadata.next.is_empty() {
                return Ok(owners);
            }
            next = list.metadata.next;
        }
    }
}

/// Returns true if it matters that an object of this kind has an owner. Kinds that controllers use
/// only for bookkeeping, or recreate immediately, do not matter.
fn matters(kind: &Kind) -> bool {
    !kind.gvk.group.ends_with("metrics.k8s.io")
        && !matches!(
            kind.gvk.kind.as_str(),
            "Event" | "Endpoints" | "EndpointSlice" | "Lease" | "ControllerRevision"
        )
}
