//! The start of a run: it parses each new bundle once and discovers the kinds that the cluster
//! serves.

use std::sync::{Arc, PoisonError};

use muster_model::bundle::ObjectRef;
use tokio_util::sync::CancellationToken;

use super::{Engine, FIRST_LOOK, RunError, desired::Prepared};
use crate::{
    StoredBundle, StoredGeneration,
    cluster::RequestError,
    inventory::Identity,
    kinds::{Kinds, Lookup},
};

impl Engine {
    /// Parses each bundle once, as far as that is possible without the cluster.
    pub(super) fn prepare(&self, stored: &StoredGeneration) -> Vec<Arc<Prepared>> {
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut *all);
        let prepare = |bundle: &StoredBundle| {
            let prepared = known.get(&bundle.hash()).cloned();
            prepared.unwrap_or_else(|| Arc::new(Prepared::of(bundle)))
        };
        let prepared: Vec<_> = stored.bundles.iter().map(prepare).collect();
        *all = stored
            .bundles
            .iter()
            .map(StoredBundle::hash)
            .zip(prepared.iter().cloned())
            .collect();
        prepared
    }

    /// Discovers the kinds that the cluster serves. It does so on the first run, and when an
    /// object's kind is unknown, nothing in the generation defines it, and the object's back-off is
    /// over.
    pub(super) async fn discover(
        &self,
        stored: &StoredGeneration,
        prepared: &[Arc<Prepared>],
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let vanished = {
            let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *vanished)
        };
        if !vanished.is_empty() {
            self.change_kinds(|kinds| {
                for (group, version) in &vanished {
                    kinds.forget_version(group, version);
                }
            });
        }
        let kinds = self.kinds();
        let known = kinds.is_loaded() && {
            let defined: Vec<_> = prepared
                .iter()
                .flat_map(|prepared| &prepared.objects)
                .filter_map(|object| object.defines.as_ref())
                .collect();
            let bundles = stored.bundles.iter().zip(prepared);
            let mut objects = bundles.flat_map(|(bundle, prepared)| {
                let bundle = bundle.bundle();
                let objects = bundle.objects.iter().zip(&prepared.objects);
                objects.map(move |(object, prepared)| (&bundle.header, object, prepared.digest))
            });
            objects.all(|(header, object, digest)| {
                let rests = || {
                    // The scope of an unknown kind is unknown too, so both identities are checked.
                    let mut places = [
                        None,
                        Some(object.id.namespace.as_deref().unwrap_or(&header.namespace)),
                    ];
                    places.iter_mut().any(|namespace| {
                        let id = ObjectRef {
                            namespace: namespace.take().map(str::to_owned),
                            ..object.id.clone()
                        };
                        self.schedule.must_wait(&Identity::of(&id), digest)
                    })
                };
                matches!(kinds.find(&object.id.gvk), Lookup::Served(_))
                    || defined
                        .iter()
                        .any(|definition| definition.covers(&object.id))
                    || rests()
            })
        };
        if known {
            return Ok(());
        }
        for attempt in 1.. {
            match self.refresh_kinds().await {
                Err(error) if error.is_transient() && attempt < 4 => {
                    let pause = tokio::time::sleep(FIRST_LOOK * 5 * attempt);
                    if cancel.run_until_cancelled(pause).await.is_none() {
                        return Err(RunError::Discovery(error));
                    }
                }
                Err(error) => return Err(RunError::Discovery(error)),
                Ok(()) => break,
            }
        }
        Ok(())
    }

    fn change_kinds(&self, change: impl FnOnce(&mut Kinds)) {
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut kinds));
    }

    /// Discovers all kinds.
    pub(super) async fn refresh_kinds(&self) -> Result<(), RequestError> {
        let mut kinds = Kinds::clone(&self.kinds());
        kinds.refresh(&self.cluster).await?;
        self.change_kinds(|known| *known = kinds);
        Ok(())
    }

    /// Discovers the kinds of one version of a group. Returns true if the version is served.
    pub(super) async fn refresh_version(
        &self,
        group: &str,
        version: &str,
    ) -> Result<bool, RequestError> {
        let mut kinds = Kinds::clone(&self.kinds());
        let served = kinds.refresh_version(&self.cluster, group, version).await?;
        self.change_kinds(|known| *known = kinds);
        Ok(served)
    }
}
