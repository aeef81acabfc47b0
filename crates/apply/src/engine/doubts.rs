//! What needs no request, what has to be sent, and what became of objects that may have drifted: the
//! watches say which to look at, the API server says what differs.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};
use muster_model::{ids::Role, policy::Drift};
use muster_plan::drift::Difference;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Doubt, Engine, LISTED_WITHIN, Turn, send::WAS_PRESENT, wanted::Wanted};
use crate::{
    board::{DriftEvent, Standing},
    cluster::{RequestError, explain, retried},
    inventory::Entry,
    kinds::Kind,
};

/// How often an object is looked at that changes at the same moment.
const LOOKS: u32 = 4;

/// What was found of an object that is not as it was left.
struct Finding {
    /// It is the same live object, with other content.
    there: bool,
    /// For people; empty where only the ownership of fields is lost.
    difference: String,
    /// It is left as it is.
    left: bool,
}

/// The objects that are not as they were left, by index.
#[derive(Default)]
pub(super) struct Drifted(BTreeMap<usize, Finding>);

impl Drifted {
    /// Whether only the content of the live object has to be put right.
    pub(super) fn is_there(&self, index: usize) -> bool {
        self.0.get(&index).is_some_and(|finding| finding.there)
    }

    /// Those that are put right.
    pub(super) fn resent(&self) -> HashSet<usize> {
        let resent = self.0.iter().filter(|(_, finding)| !finding.left);
        resent.map(|(index, _)| *index).collect()
    }
}

impl Engine {
    /// Says of each object whether it has to be sent: not where the inventory knows its UID and that
    /// this very content was applied, and no watch has seen anything else since.
    pub(super) async fn first_turns(
        &self,
        wanted: &[Wanted<'_>],
        doubt: &Doubt,
        cancel: &CancellationToken,
    ) -> (Vec<Turn>, Drifted) {
        let mut turns = vec![Turn::None; wanted.len()];
        let mut doubted = Vec::new();
        let mut drifted = Drifted::default();
        let mut changed = Vec::new();
        for (index, object) in wanted.iter().enumerate() {
            if let Some(why) = self.config.out_of_reach(&object.id) {
                self.board.stand(&object.key, Standing::Failed(why));
                turns[index] = Turn::OutOfReach;
                continue;
            }
            let Some(entry) = self.inventory.get(&object.key) else {
                continue;
            };
            if entry.uid.is_none() {
                continue;
            }
            let once = object.marks.if_not_present;
            if !once && entry.applied != Some(object.digest) {
                changed.push(index);
                continue;
            }
            turns[index] = Turn::Good(false);
            if doubt.everything && !once {
                turns[index] = Turn::None;
                let finding = Finding {
                    there: true,
                    difference: String::new(),
                    left: false,
                };
                drifted.0.insert(index, finding);
            } else if doubt.drifted.contains(&object.key) {
                doubted.extend(object.kind.clone().map(|kind| (index, kind, entry)));
            }
        }
        if !changed.is_empty() {
            self.observer.listed(LISTED_WITHIN).await;
        }
        self.leave_alone(wanted, &mut turns);
        doubted.retain(|(index, ..)| turns[*index] == Turn::Good(false));
        let looks = stream::iter(doubted).map(|(index, kind, entry)| async move {
            let finding = self.look(&wanted[index], &kind, &entry, cancel).await;
            (index, finding)
        });
        let mut looks = looks.buffer_unordered(self.config.concurrency);
        while let Some((index, finding)) = looks.next().await {
            if let Some(finding) = finding {
                if !finding.left {
                    turns[index] = Turn::None;
                }
                drifted.0.insert(index, finding);
            }
        }
        for (turn, object) in turns.iter().zip(wanted) {
            if *turn == Turn::None {
                self.board.stand(&object.key, Standing::Pending);
            }
        }
        (turns, drifted)
    }

    /// Objects of which somebody said, in Git or on the object, that they are not to be touched.
    fn leave_alone(&self, wanted: &[Wanted<'_>], turns: &mut [Turn]) {
        let present = self
            .present
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (object, turn) in wanted.iter().zip(turns) {
            let why = if object.header.role == Role::Fenced {
                continue;
            } else if object.marks.left_alone || self.board.is_left_alone(&object.key) {
                "left alone: muster.dev/reconcile is disabled on it"
            } else if object.marks.if_not_present && present.contains(&object.key) {
                WAS_PRESENT
            } else {
                continue;
            };
            *turn = Turn::Good(false);
            self.board
                .stand(&object.key, Standing::LeftAlone(why.to_owned()));
        }
    }

    /// What a watch says can be older than what was applied since; the object itself decides. `None`
    /// where it is as it was left.
    async fn look(
        &self,
        object: &Wanted<'_>,
        kind: &Kind,
        entry: &Arc<Entry>,
        cancel: &CancellationToken,
    ) -> Option<Finding> {
        let path = kind.path(&object.id);
        let report =
            object.header.policy.drift == Drift::Report && object.header.role != Role::Fenced;
        let missing = |difference: &str| {
            Some(Finding {
                there: false,
                difference: difference.to_owned(),
                left: report,
            })
        };
        let live = match retried(cancel, || self.cluster.metadata(&path)).await {
            Ok(Some(live)) => live,
            Ok(None) if entry.finished => return None,
            Ok(None) => return missing("it was deleted"),
            // The request that follows says what is wrong.
            Err(_) => {
                return Some(Finding {
                    there: true,
                    difference: String::new(),
                    left: false,
                });
            }
        };
        if entry.uid.as_deref() != Some(&live.uid) {
            return missing("another object was put in its place");
        }
        if live.deletion_timestamp.is_some() {
            return missing("it is being deleted");
        }
        let owned = entry.owned.is_none() || live.owned() == entry.owned;
        let labelled = live.app() == Some(object.app.as_str());
        if object.marks.if_not_present || (owned && labelled) {
            return None;
        }
        let difference = match self.difference(object, kind, &path, cancel).await {
            Ok(difference) => difference,
            Err(error) => format!("the difference can't be told: {}", explain(&error)),
        };
        let left = report && !difference.is_empty();
        Some(Finding {
            there: true,
            difference,
            left,
        })
    }

    /// How the live object differs from what the API server would make of it.
    async fn difference(
        &self,
        object: &Wanted<'_>,
        kind: &Kind,
        path: &str,
        cancel: &CancellationToken,
    ) -> Result<String, RequestError> {
        let mut attempt = 1;
        loop {
            let Some(live) = retried(cancel, || self.cluster.get(path)).await? else {
                return Ok("it was deleted".to_owned());
            };
            let body = self.effective(object, kind, &live).await?;
            let predicted = retried(cancel, || self.cluster.predict(path, &body)).await?;
            // Of another version, it shows what somebody else has changed in between, too.
            let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
            if version(&live) == version(&predicted) || attempt == LOOKS {
                return Ok(Difference::between(&object.id, &live, &predicted).to_string());
            }
            attempt += 1;
        }
    }

    /// Tells people what has drifted.
    pub(super) fn tell_differences(&self, wanted: &[Wanted<'_>], drifted: &Drifted) {
        for (index, finding) in drifted.0.iter().filter(|(_, f)| !f.difference.is_empty()) {
            let object = &wanted[*index];
            let Finding {
                difference, left, ..
            } = finding;
            if *left {
                let standing = Standing::Drifted(difference.clone());
                if !self.board.stand(&object.key, standing) {
                    continue;
                }
            }
            tracing::info!(app = %object.app, object = %object.id, difference, corrected = !left, "an object has drifted");
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let event = DriftEvent {
                at: now.as_secs(),
                id: Clone::clone(&object.id),
                difference: difference.clone(),
                corrected: !left,
            };
            self.publish(object, &event);
            self.board.drifts(object.app, event);
        }
    }

    /// Publishes an event on the object. It is for people; that it fails stops nothing.
    fn publish(&self, object: &Wanted<'_>, drift: &DriftEvent) {
        /// An event's note may have so many bytes.
        const LONGEST_NOTE: usize = 1000;
        let mut note = drift.difference.clone();
        note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        let event = Event {
            type_: EventType::Warning,
            reason: "Drift".to_owned(),
            note: Some(note),
            action: if drift.corrected { "Correct" } else { "Report" }.to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some(object.id.gvk.api_version()),
            kind: Some(object.id.gvk.kind.clone()),
            namespace: object.id.namespace.clone(),
            name: Some(object.id.name.clone()),
            uid: self
                .inventory
                .get(&object.key)
                .and_then(|entry| entry.uid.clone()),
            ..ObjectReference::default()
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = events.publish(&event, &reference).await {
                tracing::debug!(error = explain(&error), "no event could be published");
            }
        });
    }
}
