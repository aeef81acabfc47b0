//! Writes a commit and its generations in one store transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use muster_model::{
    fleet_record::Writer,
    ids::{AppName, ClusterName, ContentHash},
};
use muster_render::RenderedBundle;
use muster_store::{CommitError, Expected, Txn};

use super::{FleetError, FleetLoop};
use crate::{
    approvals::{self, Approved},
    blobs::{self},
    bundle_selection::Candidate,
    desired_state::FleetState,
    fleet_record::Stored,
    store_schema::{self, ListedBundle, RecordError, audited},
};

impl FleetLoop {
    /// Writes the changes in one transaction, which requires that this hub leads.
    pub(super) async fn write(
        &self,
        before: &FleetState,
        after: &FleetState,
        stored: &Stored,
        chosen: &BTreeMap<ClusterName, BTreeMap<AppName, Candidate>>,
        approved: &Approved,
    ) -> Result<(), FleetError> {
        let lead = self.leadership.now().ok_or(FleetError::NotLeading)?;
        let referenced = |state: &FleetState| -> (HashSet<ContentHash>, HashSet<ContentHash>) {
            let contents = state
                .desired
                .values()
                .map(|desired| desired.number.content)
                .collect();
            let bundles = state
                .desired
                .values()
                .flat_map(|w| w.bundles.iter().map(|b| b.hash));
            (contents, bundles.collect())
        };
        let ((old_contents, old_blobs), (contents, bundles)) =
            (referenced(before), referenced(after));
        let mut txn = Txn::new().when(store_schema::TERM, Expected::Revision(lead.revision));
        let mut fresh: HashMap<ContentHash, &Arc<RenderedBundle>> = HashMap::new();
        for candidate in chosen.values().flat_map(BTreeMap::values) {
            if !old_blobs.contains(&candidate.listed.hash) {
                fresh.insert(candidate.listed.hash, &candidate.rendered);
            }
        }
        let to_pack: Vec<(ContentHash, Arc<RenderedBundle>)> = fresh
            .into_iter()
            .map(|(hash, bundle)| (hash, Arc::clone(bundle)))
            .collect();
        let packed: Vec<(ContentHash, Bytes)> = tokio::task::spawn_blocking(move || {
            let pack = |(hash, bundle): (ContentHash, Arc<RenderedBundle>)| {
                blobs::compress(&bundle.bytes).map(|packed| (hash, packed))
            };
            to_pack.into_iter().map(pack).collect::<Result<_, _>>()
        })
        .await?
        .map_err(FleetError::Blob)?;
        for (hash, packed) in packed {
            txn = txn.put(blobs::key(hash), packed.clone());
            self.blobs.remember(hash, packed);
        }
        let mut written = HashSet::new();
        for (cluster, desired) in &after.desired {
            let content = desired.number.content;
            if !old_contents.contains(&content) && written.insert(content) {
                let list: Vec<&ListedBundle> = desired.bundles.iter().collect();
                txn = txn.put(
                    store_schema::content_key(content),
                    store_schema::encode(&list),
                );
            }
            if before.desired.get(cluster) != Some(desired) {
                txn = txn.put(
                    store_schema::desired_key(cluster),
                    store_schema::encode(&desired.record()),
                );
            }
        }
        // Bundles and lists that are no longer used stay for one more commit, since streams may still be sending them.
        for (prefix, kept) in [
            (store_schema::BLOB, (&bundles, &old_blobs)),
            (store_schema::CONTENT, (&contents, &old_contents)),
        ] {
            for (key, _) in self.store.keys(prefix).await.map_err(RecordError::from)? {
                let hash = key[prefix.len()..].parse::<ContentHash>();
                if hash.is_ok_and(|hash| !kept.0.contains(&hash) && !kept.1.contains(&hash)) {
                    txn = txn.delete(key);
                }
            }
        }
        txn = approvals::without_done(txn, approved, &after.desired);
        if stored.revision.is_none() || *after.record != stored.record {
            txn = stored.replace(txn, &after.record);
            let gone = stored.record.writers.iter();
            for (app, writer) in gone.filter(|(app, _)| !after.record.writers.contains_key(*app)) {
                let what = format!(
                    "app {app} has no writer any more at epoch {}: cluster {} had it, and the app was renamed, or \
                     nothing is left of it there",
                    after.record.epoch, writer.cluster
                );
                txn = audited(txn, "hub", what);
            }
            for (app, writer) in &after.record.writers {
                if stored.record.writers.get(app).map(|w| w.epoch) != Some(writer.epoch) {
                    let Writer { cluster, why, .. } = writer;
                    let what = format!(
                        "app {app} has its writer in cluster {cluster} from epoch {}: {why}",
                        writer.epoch
                    );
                    txn = audited(txn, &writer.by, what);
                }
            }
        }
        txn = txn.put(
            store_schema::IN_FORCE,
            store_schema::encode(after.in_force.as_ref()),
        );
        match self.store.commit(txn).await {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { key }) if key == store_schema::TERM => {
                self.leadership.lost(lead).await;
                Err(FleetError::NotLeading)
            }
            Err(CommitError::Conflict { key }) if key == store_schema::FLEET_RECORD => {
                Err(FleetError::RecordChanged)
            }
            Err(error) => Err(error.into()),
        }
    }
}
