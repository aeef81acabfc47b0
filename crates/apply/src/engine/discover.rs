//! The begin of a run: what is wanted, read once for each bundle, and the kinds that the cluster serves.

use std::sync::{Arc, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{Engine, FIRST_LOOK, RunError, wanted::Prepared};
use crate::{Kept, KeptBundle, kinds::Lookup};

impl Engine {
    /// Reads what can be read of the bundles without the cluster, once for each bundle.
    pub(super) fn prepare(&mut self, kept: &Kept) -> Vec<Arc<Prepared>> {
        let known = std::mem::take(&mut self.prepared);
        let prepare = |bundle: &KeptBundle| {
            let prepared = known.get(&bundle.hash()).cloned();
            prepared.unwrap_or_else(|| Arc::new(Prepared::of(bundle)))
        };
        let prepared: Vec<_> = kept.bundles.iter().map(prepare).collect();
        self.prepared = kept
            .bundles
            .iter()
            .map(KeptBundle::hash)
            .zip(prepared.iter().cloned())
            .collect();
        prepared
    }

    /// Asks what kinds there are: the first time, and when an object's kind is unknown and nothing in
    /// the set will teach it.
    pub(super) async fn discover(
        &mut self,
        kept: &Kept,
        prepared: &[Arc<Prepared>],
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let vanished = std::mem::take(
            self.vanished
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (group, version) in vanished {
            self.kinds.forget_version(&group, &version);
        }
        let known = self.kinds.is_loaded() && {
            let prepared = prepared.iter().flat_map(|prepared| &prepared.objects);
            let defined: Vec<_> = prepared
                .filter_map(|object| object.defines.as_ref())
                .collect();
            kept.bundles
                .iter()
                .flat_map(|bundle| &bundle.bundle().objects)
                .all(|object| {
                    matches!(self.kinds.find(&object.id.gvk), Lookup::Served(_))
                        || defined
                            .iter()
                            .any(|definition| definition.covers(&object.id))
                })
        };
        if known {
            return Ok(());
        }
        for attempt in 1.. {
            match self.kinds.refresh(&self.cluster).await {
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
}
