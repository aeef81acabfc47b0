//! Who may tell whom what: terms, generations and store incarnations, as hub and agent compare them.
//! Both run this very code.

use std::fmt;

use muster_model::ids::{ContentHash, Generation};
use serde::{Deserialize, Serialize};

/// A hub's leadership. The nonce tells two hubs apart that took the same number from two copies of one
/// store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Term {
    /// Grows with every hub that takes the lead.
    pub number: u64,
    /// Chosen at random by that hub.
    pub nonce: u64,
    /// What only a hub of this fleet can have made of the others.
    #[serde(default)]
    pub proof: Proof,
}

/// A MAC over a term and the incarnation of its hub's store, under the fleet's key. Zeros where there is
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Proof(pub [u8; 32]);

impl Proof {
    /// Of these bytes; none where they are too few or too many.
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

/// A generation by number and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numbered {
    /// The number.
    pub generation: Generation,
    /// Hash of its list of bundles.
    pub content: ContentHash,
}

/// What an agent knows of its hub and has in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    /// The newest term that it was sent anything under.
    pub term: Term,
    /// The store that this came from.
    pub incarnation: String,
    /// What is in force.
    pub in_force: Option<Numbered>,
}

/// Why an agent does not obey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The hub's term is older than one that was seen.
    #[error("the hub's term {offered} is older than {known}, which this cluster has seen")]
    OldTerm {
        /// The hub's.
        offered: Term,
        /// The newest seen.
        known: Term,
    },
    /// Two hubs share one term number.
    #[error("the hub's term {offered} has the number of {known} but is another hub's")]
    OtherHub {
        /// The hub's.
        offered: Term,
        /// The one seen.
        known: Term,
    },
    /// The generation is older than what is in force.
    #[error("generation {offered} is older than {in_force}, which is in force")]
    OldGeneration {
        /// The hub's.
        offered: Generation,
        /// In force.
        in_force: Generation,
    },
    /// The generation has the number of what is in force and other content.
    #[error("generation {0} is in force with other content")]
    OtherContent(Generation),
}

/// Whether an agent listens to a hub of this term.
///
/// # Errors
/// [`Refusal`] for an older term, and for another hub of the same number.
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

/// What an agent does with a generation that it may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It is in force already.
    Same,
    /// It takes force.
    New,
}

/// Whether a generation may take force.
///
/// # Errors
/// [`Refusal`] where it would be a step back.
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

/// What a hub does when it meets an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// Goes on.
    Lead,
    /// Takes the lead again, above the term that the agent has seen: this hub's store is older than the
    /// agent's memory.
    Retake {
        /// The number to go above.
        above: u64,
    },
    /// Stops leading: another hub leads with a copy of this hub's store.
    StepDown,
    /// Goes on, and leaves the agent alone: it names a term that would matter to everybody, and does not
    /// prove that a hub of this fleet gave it.
    Unproven,
}

/// A hub of this term and incarnation meets an agent, whose term is `proven` or not.
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

/// The number under which a hub offers content to an agent, given the number that it holds for it and
/// what the agent has in force: never one that the agent would have to refuse.
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
