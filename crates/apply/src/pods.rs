//! Uses the messages of a workload's pods to explain why the workload is not healthy, because a
//! Deployment itself says only that it waits. Pods are listed only while a workload that has pods
//! is not healthy, and with growing pauses.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use muster_model::bundle::ObjectRef;
use muster_plan::health::{Assessment, Health, assess};
use tokio::{sync::watch, time::Instant};

use crate::{
    cluster::explain, inventory::Identity, object_tracker::ObjectTracker, observed::Observed,
};

/// The first and the longest pause between two lists of pods.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));
/// The most pods of a namespace that are listed.
const PODS: u32 = 500;

/// Passes the messages of unhealthy workloads' pods to the object tracker. Ends when the observed
/// state is no longer published.
pub(crate) async fn explain_workloads(
    client: Client,
    tracker: Arc<ObjectTracker>,
    mut observed: watch::Receiver<Arc<Observed>>,
) {
    let mut last = BTreeSet::new();
    let mut pause = PAUSE.0;
    loop {
        let unwell = unwell(&observed.borrow_and_update());
        if unwell != last {
            pause = PAUSE.0;
        }
        last = unwell;
        if last.is_empty() {
            if observed.changed().await.is_err() {
                return;
            }
            // Every new workload is unhealthy at first. That needs no explanation.
            tokio::time::sleep(PAUSE.0).await;
            continue;
        }
        look(&client, &tracker, &last).await;
        let next = Instant::now() + pause;
        pause = (pause * 3 / 2).min(PAUSE.1);
        tokio::time::sleep_until(next).await;
        if observed.has_changed().is_err() {
            return;
        }
    }
}

/// Returns the workloads that have pods and are not healthy.
fn unwell(observed: &Observed) -> BTreeSet<ObjectRef> {
    let objects = observed.bundles.iter().flat_map(|bundle| &bundle.objects);
    objects
        .filter(|object| {
            object.has_pods && matches!(object.health, Health::Progressing | Health::Degraded)
        })
        .map(|object| ObjectRef::clone(&object.id))
        .collect()
}

async fn look(client: &Client, tracker: &ObjectTracker, unwell: &BTreeSet<ObjectRef>) {
    let mut by_namespace: BTreeMap<&str, Vec<&ObjectRef>> = BTreeMap::new();
    for id in unwell {
        let namespace = id.namespace.as_deref().unwrap_or_default();
        by_namespace.entry(namespace).or_default().push(id);
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    for (namespace, workloads) in by_namespace {
        let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let pods = match pods.list(&ListParams::default().limit(PODS)).await {
            Ok(pods) => pods.items,
            Err(error) => {
                tracing::debug!(namespace, error = explain(&error), "pods can't be listed");
                continue;
            }
        };
        for workload in workloads {
            let of_workload = pods.iter().filter(|pod| belongs(pod, workload));
            let reason = of_workload.filter_map(reason).min();
            tracker.set_reason(&Identity::of(workload), reason.map(|(_, text)| text));
        }
    }
}

/// Returns true if a workload created a pod, either directly or through a ReplicaSet, whose name
/// then begins with the workload's.
fn belongs(pod: &DynamicObject, workload: &ObjectRef) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| {
        let of_replica_set = || {
            let (name, hash) = owner.name.rsplit_once('-')?;
            Some(name == workload.name && !hash.is_empty())
        };
        match workload.gvk.kind.as_str() {
            "Deployment" => owner.kind == "ReplicaSet" && of_replica_set() == Some(true),
            kind => owner.kind == kind && owner.name == workload.name,
        }
    })
}

/// Returns the message of a pod that is not healthy. A broken pod sorts before one that waits.
fn reason(pod: &DynamicObject) -> Option<(bool, String)> {
    let mut value = serde_json::to_value(pod).ok()?;
    // Items of a list have no `apiVersion` and no `kind`.
    value["apiVersion"] = "v1".into();
    value["kind"] = "Pod".into();
    let Assessment { health, message } = assess(&value);
    let waits = match health {
        Health::Degraded => false,
        Health::Progressing => true,
        _ => return None,
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some((waits, format!("pod {name}: {}", message?)))
}

#[cfg(test)]
mod tests;
