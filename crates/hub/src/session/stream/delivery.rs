//! The sending side of a stream: generations, the blobs that they need, and questions.

use std::{sync::Arc, time::Instant};

use muster_model::{fleet_record::SealedRecord, ids::ContentHash};
use muster_plan::delivery::number_for;
use muster_proto::{PIECE_BYTES, v1};
use muster_runtime::log::Chain;
use muster_store::{Expected, Txn};
use tonic::Status;

use super::{
    super::{Question, lock},
    RENUMBER_EVERY, Stream, TOLD,
};
use crate::{
    approvals,
    desired_state::{DesiredState, FleetState},
    metrics::{Sent, SentKind},
    store_schema::{self, DesiredRecord},
    unconfirmed,
};

impl Stream<'_> {
    /// Offers the agent its cluster's generation, unless it has that already.
    pub(super) async fn offer(&mut self, state: &FleetState) -> Result<(), Status> {
        let desired = state.desired.get(&self.caller.cluster);
        let Some(desired) = desired.filter(|_| state.current && !self.asks_record) else {
            return Ok(());
        };
        let number = number_for(desired.number, self.in_force);
        if number != desired.number {
            return self.renumber(desired).await;
        }
        let sealed = &state.sealed;
        let has_record = self.record == Some(sealed.id());
        if self.offered == Some(number) && (has_record || self.generation.is_some())
            || self.in_force == Some(number) && has_record
        {
            return Ok(());
        }
        let record = (!has_record).then(|| sealed.as_ref().into());
        let bundles = desired.bundles.iter().map(|listed| v1::BundleEntry {
            app: listed.app.to_string(),
            role: listed.role.to_string(),
            hash: listed.hash.0.to_vec(),
        });
        let generation = v1::Generation {
            number: number.generation.0,
            content: number.content.0.to_vec(),
            commit: desired.commit.clone(),
            epoch: desired.epoch,
            bundles: bundles.collect(),
            prune: Some((&desired.prune).into()),
            record,
        };
        let observed = &self.sessions.observed;
        if !self.slowed
            && observed
                .get(&self.caller.cluster)
                .is_some_and(|level| level.refusal.is_some())
        {
            observed.update(&self.caller.cluster, |level| level.refusal = None);
        }
        self.offered = Some(number);
        self.told.push_back(number);
        if self.told.len() > TOLD {
            self.told.pop_front();
        }
        self.generation = Some(generation);
        // The agent will request the bundles that it lacks for the new generation.
        self.needed.clear();
        Ok(())
    }

    /// Renumbers the cluster's generation, because the agent has a higher number than the store, or the same number
    /// with other content. The store is therefore older. Once the new number is written, the content is offered again
    /// under it.
    pub(super) async fn renumber(&self, desired: &DesiredState) -> Result<(), Status> {
        let sessions = self.sessions;
        let Some(lead) = sessions.leadership.now() else {
            return Ok(());
        };
        let _numbering = sessions.leadership.numbering().await;
        let now = sessions
            .published
            .borrow()
            .desired
            .get(&self.caller.cluster)
            .map(|now| now.number);
        if now != Some(desired.number) {
            // A newer generation was published first; its number is checked when it is offered.
            return Ok(());
        }
        {
            let mut renumbered = lock(&sessions.renumbered);
            renumbered.retain(|_, when| when.elapsed() < RENUMBER_EVERY);
            if renumbered.contains_key(&self.caller.cluster) {
                return Err(Status::unavailable(
                    "this cluster's generation was renumbered a moment ago",
                ));
            }
            renumbered.insert(self.caller.cluster.clone(), Instant::now());
        }
        // An agent whose stored bundles are damaged names the hash of zero bytes as the content of its generation.
        let is_lost = self.in_force.is_some_and(|number| {
            number.content == ContentHash::of(b"") && number.generation <= desired.number.generation
        });
        let renumbered = Arc::new(if is_lost {
            desired.repeated(self.in_force)
        } else {
            desired.renumbered(self.in_force)
        });
        let number = renumbered.number;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            tracing::error!(error = %Chain(error), "a generation can't be renumbered");
            Status::unavailable("the hub's store fails")
        };
        let key = store_schema::desired_key(&self.caller.cluster);
        let kept = store_schema::read::<DesiredRecord>(sessions.store.as_ref(), &key).await;
        let kept = kept.map_err(|error| failed(&error))?;
        let mut txn = Txn::new()
            .when(store_schema::TERM, Expected::Revision(lead.revision))
            .when(
                key.clone(),
                Expected::unchanged(kept.map(|(_, revision)| revision)),
            )
            .put(key, store_schema::encode(&renumbered.record()));
        if number.content != desired.number.content {
            let list = store_schema::encode(&renumbered.bundles.as_ref());
            txn = txn.put(store_schema::content_key(number.content), list);
        }
        if !is_lost {
            let cluster = Some(&self.caller.cluster);
            txn = approvals::void(sessions.store.as_ref(), txn, cluster)
                .await
                .map_err(|error| failed(&error))?;
            let why = "its agent has a newer generation than this hub's state".to_owned();
            txn = unconfirmed::mark_unconfirmed(sessions.store.as_ref(), txn, cluster, why)
                .await
                .map_err(|error| failed(&error))?;
        }
        sessions
            .store
            .commit(txn)
            .await
            .map_err(|error| failed(&error))?;
        let (cluster, held, now) = (
            &self.caller.cluster,
            desired.number.generation,
            number.generation,
        );
        if is_lost {
            tracing::warn!(%cluster, %held, %now, "the agent has lost bundles of its generation; they are sent again");
        } else {
            tracing::warn!(%cluster, %held, %now, "the agent has a newer generation than this hub's store: the store was restored");
        }
        sessions.published.send_modify(|state| {
            let mut changed = FleetState::clone(state);
            if let Some(entry) = changed.desired.get_mut(&self.caller.cluster) {
                *entry = renumbered;
            }
            *state = Arc::new(changed);
        });
        Ok(())
    }

    pub(super) fn ask(&mut self, question: Question) {
        self.last_question += 1;
        let request = self.last_question;
        self.asked.retain(|_, (answer, _)| !answer.is_closed());
        self.asked.insert(request, (question.answer, Vec::new()));
        let list = v1::ListObjects {
            request,
            app: question.app,
        };
        self.outbox
            .push_back(v1::hub_message::Message::ListObjects(list));
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.outbox.is_empty()
            || self.sending.is_some()
            || self.generation.is_some()
            || !self.needed.is_empty()
    }

    /// Returns the next message for the agent. A bundle whose sending has begun is completed before a newer generation.
    pub(super) async fn next_message(
        &mut self,
    ) -> Result<Option<v1::hub_message::Message>, Status> {
        if let Some(message) = self.outbox.pop_front() {
            return Ok(Some(message));
        }
        if let Some(piece) = self.next_piece() {
            return Ok(Some(v1::hub_message::Message::Blob(piece)));
        }
        let count = |kind| {
            let sent = &self.sessions.metrics.sent;
            sent.get_or_create(&Sent { kind }).inc();
        };
        if let Some(generation) = self.generation.take() {
            count(SentKind::Generation);
            let sent = generation.record.clone();
            let sent = sent.and_then(|record| SealedRecord::try_from(record).ok());
            self.record = sent.map(|record| record.id()).or(self.record);
            return Ok(Some(v1::hub_message::Message::Generation(generation)));
        }
        while let Some(hash) = self.needed.pop_front() {
            let blob = self.sessions.blobs.get(hash).await.map_err(|error| {
                tracing::error!(error = %Chain(&error), "a bundle can't be read");
                Status::unavailable("the hub's store fails")
            })?;
            let Some(blob) = blob else {
                tracing::error!(hash = %hash.short(), "a bundle in force is not in the store");
                continue;
            };
            count(SentKind::Blob);
            self.sending = Some((hash, blob, 0));
            return Ok(self.next_piece().map(v1::hub_message::Message::Blob));
        }
        Ok(None)
    }

    pub(super) fn next_piece(&mut self) -> Option<v1::BlobPiece> {
        let (hash, blob, offset) = self.sending.as_mut()?;
        let end = blob.len().min(*offset + PIECE_BYTES);
        let piece = v1::BlobPiece {
            hash: hash.0.to_vec(),
            data: blob.slice(*offset..end),
            last: end == blob.len(),
        };
        *offset = end;
        if piece.last {
            self.sending = None;
        }
        Some(piece)
    }
}
