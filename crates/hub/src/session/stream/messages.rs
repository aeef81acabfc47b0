//! Handles the messages of an agent.

use std::collections::HashSet;

use muster_model::ids::ContentHash;
use muster_proto::v1;

use super::{LISTED, Stream};
use crate::observed::number_of;

/// What a person is told if an agent lists more than [`LISTED`] objects.
const TOO_MANY: &str = "its agent lists more than 200000 objects, the most that the hub accepts";

impl Stream<'_> {
    /// Returns true if a message answers an open question of the hub.
    pub(super) fn answers(&self, message: &v1::AgentMessage) -> bool {
        matches!(&message.message, Some(v1::agent_message::Message::Objects(list)) if self.asked.contains_key(&list.request))
    }

    /// Handles a message of the agent. The error is the reason to end the stream.
    pub(super) fn hear(&mut self, message: v1::AgentMessage) -> Result<(), String> {
        match message.message {
            Some(v1::agent_message::Message::Need(need)) => self.need(need),
            Some(v1::agent_message::Message::Report(report)) => {
                if let Some(number) = number_of(report.generation, &report.content) {
                    let newest = self.told.iter().map(|told| told.generation).max();
                    if self.told.contains(&number) {
                        self.in_force = Some(number);
                    } else if newest.is_none_or(|newest| number.generation > newest) {
                        return Err(format!(
                            "its agent reports generation {}, which the hub did not send",
                            number.generation
                        ));
                    }
                }
                let state = self.sessions.published.borrow().clone();
                let desired = state.desired.get(&self.caller.cluster);
                let desired = desired.map(|desired| &*desired.bundles).unwrap_or_default();
                let has: HashSet<&str> = desired.iter().map(|listed| listed.app.as_str()).collect();
                self.sessions
                    .observed
                    .report(&self.caller.cluster, report, |app| {
                        // Before the first commit the hub does not know which apps exist.
                        !state.current || has.contains(app)
                    });
                Ok(())
            }
            Some(v1::agent_message::Message::Objects(list)) => {
                if let Some((answer, objects)) = self.asked.get_mut(&list.request) {
                    if answer.is_closed() || objects.len() + list.objects.len() > LISTED {
                        if let Some((answer, _)) = self.asked.remove(&list.request) {
                            // Nobody receives this if the caller has disconnected.
                            let _ = answer.send(Err(TOO_MANY));
                        }
                        return Ok(());
                    }
                    objects.extend(list.objects);
                }
                if list.last
                    && let Some((answer, objects)) = self.asked.remove(&list.request)
                {
                    // The caller may have disconnected.
                    let _ = answer.send(Ok(objects));
                }
                Ok(())
            }
            Some(v1::agent_message::Message::Hello(_)) => {
                Err("its agent sent a second hello".to_owned())
            }
            Some(v1::agent_message::Message::Record(_)) => {
                Err("its agent shows a fleet record that the hub did not ask for".to_owned())
            }
            // A newer agent sent a message that this hub does not know. It can be ignored: a message that the hub must
            // understand comes with a higher protocol version.
            None => Ok(()),
        }
    }

    /// Notes the bundles that the agent lacks for the generation that was last offered.
    pub(super) fn need(&mut self, need: v1::Need) -> Result<(), String> {
        if self.offered.map(|number| number.generation.0) != Some(need.generation) {
            return Ok(());
        }
        let state = self.sessions.published.borrow().clone();
        let desired = state.desired.get(&self.caller.cluster);
        for hash in need.hashes {
            let Ok(hash) = ContentHash::try_from(hash.as_slice()) else {
                return Err("its agent requests a bundle by an invalid hash".to_owned());
            };
            // A cluster may read only its own bundles.
            let its_own = desired.is_some_and(|w| w.bundles.iter().any(|b| b.hash == hash));
            if its_own && !self.needed.contains(&hash) {
                self.needed.push_back(hash);
            }
        }
        Ok(())
    }
}
