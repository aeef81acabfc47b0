//! Compares the fleet record of an agent with the hub's.

use std::sync::Arc;

use muster_model::fleet_record::SealedRecord;
use muster_plan::delivery::RecordMeeting;
use muster_proto::v1;
use muster_runtime::log::Chain;
use tonic::Status;

use super::Stream;
use crate::{
    desired_state::FleetState,
    fleet_record::{Foreign, Shown, adopt, meet},
};

impl Stream<'_> {
    /// Asks the agent for its fleet record if it may have a writer that the hub's lacks.
    pub(super) fn meet_record(&mut self, hello: &v1::Hello) {
        let state = self.sessions.published.borrow().clone();
        let own = &state.sealed;
        let is_suspect = state.unconfirmed.is_whole();
        self.is_foreign = hello.foreign_record;
        match meet(own, hello.epoch, &hello.record, is_suspect) {
            RecordMeeting::Same => {
                // An agent that has joined again trusts the record only if this hub sends it.
                self.record = (!hello.foreign_record).then(|| own.id());
                self.sessions.observed.heard(&self.caller.cluster);
            }
            RecordMeeting::Older => self.sessions.observed.heard(&self.caller.cluster),
            RecordMeeting::Ask => {
                self.asks_record = true;
                let show = v1::hub_message::Message::ShowRecord(v1::ShowRecord {});
                self.outbox.push_back(show);
            }
        }
    }

    /// Merges the fleet record that the agent shows into the hub's, if the hub's lacks a part of it.
    pub(super) async fn hear_record(&mut self, shown: v1::FleetRecord) -> Result<(), Status> {
        let sessions = self.sessions;
        let cluster = &self.caller.cluster;
        let Ok(record) = SealedRecord::try_from(shown) else {
            let why = "its agent shows a fleet record that can't be read".to_owned();
            return Err(sessions.hold(self.caller, "nonsense", why).await);
        };
        let Some(lead) = sessions.leadership.now() else {
            return Ok(());
        };
        let _numbering = sessions.leadership.numbering().await;
        let state = sessions.published.borrow().clone();
        let store = sessions.store.as_ref();
        let shown = Shown {
            cluster,
            record: &record,
            is_foreign: self.is_foreign,
        };
        match adopt(store, &sessions.leadership, lead, &state, shown).await {
            Ok(None) => {
                self.asks_record = false;
                sessions.observed.heard(cluster);
                Ok(())
            }
            Ok(Some(adopted)) => {
                tracing::warn!(%cluster, epoch = %adopted.epoch, "took over the agent's fleet record, of which this hub lacked a part");
                self.asks_record = false;
                sessions.observed.heard(cluster);
                let sealed = Arc::new(sessions.leadership.seal(&adopted));
                let record = Arc::new(adopted);
                sessions.published.send_modify(|state| {
                    let mut changed = FleetState::clone(state);
                    changed.current = false;
                    changed.record = Arc::clone(&record);
                    changed.sealed = Arc::clone(&sealed);
                    *state = Arc::new(changed);
                });
                Ok(())
            }
            Err(error @ (Foreign::Unproven(_) | Foreign::Other { .. })) => {
                let why = error.to_string();
                Err(sessions.hold(self.caller, "foreign_record", why).await)
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), %cluster, "the fleet record of an agent can't be taken over");
                Err(Status::unavailable("the hub's store fails"))
            }
        }
    }
}
