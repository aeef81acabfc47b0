//! The rules by which hub and agent compare terms, generations and store incarnations. Both use this code.

use std::fmt;

use muster_model::{
    fleet_record::{RecordId, SealedRecord},
    ids::{ContentHash, Epoch, Generation},
};
use serde::{Deserialize, Serialize};

/// A hub's period of leadership. Two hubs that run on copies of one store can take the same number. They differ in
/// their nonces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Term {
    /// The number of the term. It grows with every hub that takes the lead.
    pub number: u64,
    /// A random number that the hub chose.
    pub nonce: u64,
    /// The MAC over the other fields. Only a hub of this fleet can compute it.
    #[serde(default)]
    pub proof: Proof,
}

/// A MAC over a term and the incarnation of its hub's store, with the fleet's key. All zeros if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Proof(pub [u8; 32]);

impl Proof {
    /// Reads a proof from bytes. The result is all zeros if the length is wrong.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08x}", self.number, self.nonce >> 32)
    }
}

/// A generation's number and the hash of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numbered {
    /// The generation's number.
    pub generation: Generation,
    /// The hash of the generation's list of bundles.
    pub content: ContentHash,
}

/// What an agent knows about its hub, and which generation it has in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    /// The newest term in which the agent received anything.
    pub term: Term,
    /// The incarnation of the hub's store that the agent last accepted.
    pub incarnation: String,
    /// The generation in force; `None` if there is none yet.
    pub in_force: Option<Numbered>,
    /// The fleet record that the agent has stored; `None` if no hub ever sent one.
    pub record: Option<SealedRecord>,
    /// True if the record came in an earlier enrolment, perhaps from another fleet. The agent shows it, but follows a
    /// hub that has an older one.
    pub is_record_foreign: bool,
}

/// Why an agent refuses a hub's term or generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The hub's term is older than one that the agent has seen.
    #[error("the hub's term {offered} is older than {known}, which this cluster has seen")]
    OldTerm {
        /// The hub's term.
        offered: Term,
        /// The newest term that the agent has seen.
        known: Term,
    },
    /// Two hubs have the same term number.
    #[error("the hub's term {offered} has the same number as {known}, which another hub took")]
    OtherHub {
        /// The hub's term.
        offered: Term,
        /// The term that the agent has seen.
        known: Term,
    },
    /// The generation is older than the one in force.
    #[error("generation {offered} is older than {in_force}, which is in force")]
    OldGeneration {
        /// The hub's generation.
        offered: Generation,
        /// The generation in force.
        in_force: Generation,
    },
    /// The generation has the same number as the one in force, but different content.
    #[error("generation {0} is in force with other content")]
    OtherContent(Generation),
    /// The generation was made before a change of roles that the agent has seen.
    #[error("the hub's epoch {offered} is older than {known}, which this cluster has seen")]
    OldEpoch {
        /// The epoch of the generation.
        offered: Epoch,
        /// The epoch of the agent's fleet record.
        known: Epoch,
    },
    /// The generation has another epoch than its fleet record.
    #[error("the generation of epoch {0} came without the fleet record of that epoch")]
    NoRecord(Epoch),
}

/// Checks whether an agent accepts a hub with this term.
///
/// # Errors
/// Returns a [`Refusal`] for an older term, or for another hub's term with the same number.
pub fn accept_term(known: &Known, offered: Term) -> Result<(), Refusal> {
    if offered.number < known.term.number {
        return Err(Refusal::OldTerm {
            offered,
            known: known.term,
        });
    }
    if offered.number == known.term.number && offered.nonce != known.term.nonce {
        return Err(Refusal::OtherHub {
            offered,
            known: known.term,
        });
    }
    Ok(())
}

/// What an agent does with a generation that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The generation is already in force.
    Same,
    /// The generation comes into force.
    New,
}

/// Checks whether a generation may come into force.
///
/// # Errors
/// Returns a [`Refusal`] if the generation is older than the one in force, or has the same number but different
/// content.
pub fn accept_generation(
    in_force: Option<Numbered>,
    offered: Numbered,
) -> Result<Acceptance, Refusal> {
    match in_force {
        Some(now) if now == offered => Ok(Acceptance::Same),
        Some(now) if now.generation > offered.generation => Err(Refusal::OldGeneration {
            offered: offered.generation,
            in_force: now.generation,
        }),
        Some(now) if now.generation == offered.generation => {
            Err(Refusal::OtherContent(now.generation))
        }
        Some(_) | None => Ok(Acceptance::New),
    }
}

/// Returns the fleet record that an agent stores with a generation of this epoch: the one that was sent with it, or
/// else the one that the agent has. A hub of an earlier release sends none.
///
/// # Errors
/// Returns a [`Refusal`] if the epoch is older than the agent's, or the record has another epoch.
pub fn accept_record(
    known: &Known,
    sent: Option<SealedRecord>,
    offered: Epoch,
) -> Result<Option<SealedRecord>, Refusal> {
    let known = known.record.clone().filter(|_| !known.is_record_foreign);
    if let Some(known) = known.as_ref().filter(|known| known.epoch > offered) {
        return Err(Refusal::OldEpoch {
            offered,
            known: known.epoch,
        });
    }
    let record = sent.or(known);
    if record.as_ref().is_some_and(|r| r.epoch != offered) {
        return Err(Refusal::NoRecord(offered));
    }
    Ok(record)
}

/// What a hub does about the fleet record of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordMeeting {
    /// The agent has the hub's record.
    Same,
    /// The agent's record is older, or it has none. The hub sends its own with the next generation.
    Older,
    /// The agent may know a writer that the hub does not know. The hub asks for the record, and sends the agent nothing
    /// before it has seen it.
    Ask,
}

/// Compares the hub's fleet record with the one that an agent names. `is_suspect` is true if the hub's store may be
/// older than the fleet. In that case, even a record of a lower epoch may contain what the hub has lost.
#[must_use]
pub fn meet_record(own: RecordId, agent: Option<RecordId>, is_suspect: bool) -> RecordMeeting {
    match agent {
        Some(agent) if agent == own => RecordMeeting::Same,
        Some(agent) if is_suspect || agent.epoch >= own.epoch => RecordMeeting::Ask,
        Some(_) | None => RecordMeeting::Older,
    }
}

/// What a hub does when an agent connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// The hub continues to lead.
    Lead,
    /// The hub takes the lead again with a higher term than the agent has seen, because its store is older than
    /// the agent's record.
    Retake {
        /// The number that the new term must exceed.
        above: u64,
    },
    /// The hub stops leading, because another hub leads with a copy of its store.
    StepDown,
    /// The hub continues to lead and refuses the agent. The agent names a newer term, or another hub's term with
    /// the same number, without a proof that a hub of this fleet took it.
    Unproven,
}

/// Decides what a hub with this term and incarnation does when an agent connects. `proven` is true if the agent's
/// term has a valid proof.
#[must_use]
pub fn meet(own: Term, incarnation: &str, agent: &Known, proven: bool) -> Meeting {
    let same_store = agent.incarnation == incarnation;
    let newer = agent.term.number > own.number;
    let other = agent.term.number == own.number && agent.term.nonce != own.nonce;
    if (newer || other) && !proven {
        return Meeting::Unproven;
    }
    if agent.term.number > own.number {
        return Meeting::Retake {
            above: agent.term.number,
        };
    }
    if agent.term.number == own.number && agent.term.nonce != own.nonce {
        return if same_store {
            Meeting::StepDown
        } else {
            Meeting::Retake {
                above: agent.term.number,
            }
        };
    }
    Meeting::Lead
}

/// Returns the number under which a hub offers content to an agent, given the generation that the hub has stored and
/// the generation that the agent has in force. The agent never has to refuse the result.
#[must_use]
pub fn number_for(stored: Numbered, in_force: Option<Numbered>) -> Numbered {
    match in_force {
        Some(now) if accept_generation(Some(now), stored).is_err() => Numbered {
            generation: now.generation.next(),
            content: stored.content,
        },
        Some(_) | None => stored,
    }
}

#[cfg(test)]
mod tests;
