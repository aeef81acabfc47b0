//! The rules by which hub and agent compare terms, generations and store incarnations. Both use this code.

use std::fmt;

use muster_model::ids::{ContentHash, Generation};
use serde::{Deserialize, Serialize};

/// A hub's period of leadership. The nonce distinguishes two hubs that took the same number from two copies of one
/// store.
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
    /// The incarnation of the store that this came from.
    pub incarnation: String,
    /// The generation in force; `None` if there is none yet.
    pub in_force: Option<Numbered>,
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
    /// The hub continues to lead and ignores the agent. The agent names a newer or another hub's term, but does
    /// not prove that a hub of this fleet took it.
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

/// Returns the generation under which a hub offers content to an agent, given the generation `held` that the hub has
/// stored and the generation that the agent has in force. The agent never has to refuse the result.
#[must_use]
pub fn number_for(held: Numbered, in_force: Option<Numbered>) -> Numbered {
    match in_force {
        Some(now) if accept_generation(Some(now), held).is_err() => Numbered {
            generation: now.generation.next(),
            content: held.content,
        },
        Some(_) | None => held,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn term(number: u64, nonce: u64) -> Term {
        let proof = Proof::default();
        Term {
            number,
            nonce,
            proof,
        }
    }

    fn numbered(generation: u64, content: &[u8]) -> Numbered {
        Numbered {
            generation: Generation(generation),
            content: ContentHash::of(content),
        }
    }

    #[test]
    fn an_agent_never_goes_back() {
        let now = Some(numbered(5, b"a"));
        assert_eq!(
            accept_generation(now, numbered(5, b"a")),
            Ok(Acceptance::Same)
        );
        assert_eq!(
            accept_generation(now, numbered(6, b"b")),
            Ok(Acceptance::New)
        );
        assert_eq!(
            accept_generation(now, numbered(5, b"b")),
            Err(Refusal::OtherContent(Generation(5)))
        );
        assert!(accept_generation(now, numbered(4, b"a")).is_err());
        assert_eq!(
            accept_generation(None, numbered(1, b"a")),
            Ok(Acceptance::New)
        );
    }

    #[test]
    fn two_copies_of_one_store_do_not_both_lead() {
        let agent = Known {
            term: term(3, 7),
            incarnation: "store".into(),
            in_force: None,
        };
        let meet =
            |number, nonce, incarnation| meet(term(number, nonce), incarnation, &agent, true);
        assert_eq!(meet(3, 7, "store"), Meeting::Lead);
        assert_eq!(meet(4, 1, "store"), Meeting::Lead);
        assert_eq!(meet(3, 8, "store"), Meeting::StepDown);
        assert_eq!(meet(3, 8, "restored"), Meeting::Retake { above: 3 });
        assert_eq!(meet(2, 8, "store"), Meeting::Retake { above: 3 });
        assert!(accept_term(&agent, term(3, 8)).is_err());
        assert!(accept_term(&agent, term(2, 7)).is_err());
        assert_eq!(accept_term(&agent, term(4, 0)), Ok(()));
    }

    #[test]
    fn a_term_that_nobody_proves_changes_nothing() {
        for (number, nonce, met) in [
            (4, 0, Meeting::Unproven),
            (u64::MAX, 0, Meeting::Unproven),
            (3, 8, Meeting::Unproven),
            (3, 7, Meeting::Lead),
            (2, 8, Meeting::Lead),
        ] {
            let agent = Known {
                term: term(number, nonce),
                ..Known::default()
            };
            assert_eq!(meet(term(3, 7), "", &agent, false), met, "{number}/{nonce}");
        }
    }

    proptest! {
        #[test]
        fn what_a_hub_offers_is_never_refused(held in 0..9_u64, a in 0..2_u8, now in 0..9_u64, b in 0..2_u8) {
            let (held, now) = (numbered(held, &[a]), numbered(now, &[b]));
            let offered = number_for(held, Some(now));
            prop_assert_eq!(offered.content, held.content);
            prop_assert!(accept_generation(Some(now), offered).is_ok());
        }

        #[test]
        fn after_a_retake_the_agent_listens(own in 0..5_u64, number in 0..5_u64, nonce in 0..2_u64) {
            let agent = Known { term: term(number, nonce), incarnation: "x".into(), in_force: None };
            let own = term(own, 0);
            let term = match meet(own, "y", &agent, true) {
                Meeting::Retake { above } => term(above + 1, 0),
                Meeting::Lead | Meeting::StepDown | Meeting::Unproven => own,
            };
            prop_assert_eq!(accept_term(&agent, term), Ok(()));
        }
    }
}
