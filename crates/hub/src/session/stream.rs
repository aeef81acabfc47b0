//! One agent's stream. The agent announces what it has in force, receives its generation, requests the bundles that it
//! lacks, and reports its observed state. The task reads even while it has something to send, and sends only when the
//! agent has room. So a slow agent delays nobody else, and hub and agent never wait for each other. Only an agent that
//! exceeds its rate limit is read more slowly.

mod delivery;
mod messages;
mod record;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use muster_model::{fleet_record::RecordId, ids::ContentHash};
use muster_plan::delivery::{Known, Meeting, Numbered, Proof, Term, meet};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::log::Chain;
use muster_store::Txn;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Answer, Caller, Outgoing, Question, Sessions, VERSION_LENGTH};
use crate::{
    authority::without_serials, observed::number_of, rate_limit::Bucket, store_schema::Lead,
    unconfirmed,
};

/// The shortest interval between two renumberings of a cluster's generation, since each is a write.
const RENUMBER_EVERY: Duration = Duration::from_secs(10);
/// The time in which an agent must show its fleet record after the hub has asked for it.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);
/// The number of recently sent generations that a report may name.
const TOLD: usize = 64;
/// The most objects that an agent may list in an answer.
const LISTED: usize = 200_000;

/// One live stream.
pub(super) struct Stream<'a> {
    sessions: &'a Sessions,
    caller: &'a Caller,
    outgoing: &'a Outgoing,
    in_force: Option<Numbered>,
    /// The generation that was last offered to the agent.
    offered: Option<Numbered>,
    /// The generations that the agent can have in force: the one from its hello, and those offered since.
    told: VecDeque<Numbered>,
    bucket: Bucket,
    /// True from the moment the agent exceeds its rate limit until its token bucket is full again.
    slowed: bool,
    asked: HashMap<u64, (Answer, Vec<v1::ObjectState>)>,
    last_question: u64,
    /// The small messages that wait to be sent. The newest generation and the needed bundles follow them.
    outbox: VecDeque<v1::hub_message::Message>,
    generation: Option<v1::Generation>,
    needed: VecDeque<ContentHash>,
    /// The bundle whose pieces are being sent, with the offset of the next piece.
    sending: Option<(ContentHash, Bytes, usize)>,
    /// The fleet record that the agent has, or that was sent to it.
    record: Option<RecordId>,
    /// True while the hub waits for the agent to show its fleet record, because that record is newer than the hub's or
    /// has other content. Nothing is delivered meanwhile.
    asks_record: bool,
    /// True if the agent's record came in an earlier enrolment, perhaps from another fleet.
    is_foreign: bool,
}

impl<'a> Stream<'a> {
    /// Creates the state of a stream that began with this hello.
    pub(super) fn new(
        sessions: &'a Sessions,
        caller: &'a Caller,
        outgoing: &'a Outgoing,
        hello: &v1::Hello,
    ) -> Self {
        let in_force = number_of(hello.generation, &hello.content);
        Self {
            sessions,
            caller,
            outgoing,
            in_force,
            offered: None,
            told: in_force.into_iter().collect(),
            bucket: Bucket::new(),
            slowed: false,
            asked: HashMap::new(),
            last_question: 0,
            outbox: VecDeque::new(),
            generation: None,
            needed: VecDeque::new(),
            sending: None,
            record: None,
            asks_record: false,
            is_foreign: false,
        }
    }
}

impl Stream<'_> {
    pub(super) async fn live(
        &mut self,
        hello: &v1::Hello,
        mut incoming: Streaming<v1::AgentMessage>,
        mut questions: mpsc::Receiver<Question>,
        stop: &CancellationToken,
    ) -> Result<&'static str, Status> {
        let sessions = self.sessions;
        let mut published = sessions.published.subscribe();
        let mut lead = sessions.leadership.watch();
        let term = hello.term.clone().unwrap_or_default();
        let known = Known {
            term: Term {
                number: term.number,
                nonce: term.nonce,
                proof: Proof::of(&term.proof),
            },
            incarnation: hello.incarnation.clone(),
            in_force: self.in_force,
            ..Known::default()
        };
        self.settle_term(&known).await?;
        self.welcome(hello, &mut lead);
        self.meet_record(hello);
        let shows_within = tokio::time::sleep(SHOWN_WITHIN);
        tokio::pin!(shows_within);
        let was_whole = published.borrow().unconfirmed.is_whole();
        let mut cas = sessions.cas.clone();
        let mut asked = self.caller.trust;
        let valid = self
            .caller
            .not_after
            .duration_since(muster_pki::clock::now())
            .unwrap_or_default();
        let expiry = tokio::time::sleep(valid);
        tokio::pin!(expiry);
        loop {
            let leads = lead.borrow_and_update().is_some();
            let state = published.borrow_and_update().clone();
            if state.unconfirmed.is_whole() && !was_whole {
                // Any agent may now know a writer that the hub does not know.
                return Err(Status::aborted(
                    "the hub's state has become unconfirmed; connect again",
                ));
            }
            if leads {
                self.offer(&state).await?;
            }
            let version = cas.borrow_and_update().version();
            if leads && asked < version {
                asked = version;
                let renew = v1::hub_message::Message::RenewNow(v1::RenewNow {});
                self.outbox.push_back(renew);
            }
            let to_send = self.has_to_send();
            let wait = self.bucket.wait();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Status::aborted("the hub ended this stream: the hub is stopping, a newer stream replaced it, or its instance was removed or suspended")),
                () = &mut shows_within, if self.asks_record => {
                    let why = "its agent does not show its fleet record, which the hub may lack a part of".to_owned();
                    return Err(sessions.hold(self.caller, "no_record", why).await);
                }
                () = &mut expiry => return Err(Status::unauthenticated("the certificate has expired")),
                () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                () = tokio::time::sleep(self.bucket.until_full()), if self.slowed => {
                    self.slowed = false;
                    sessions.observed.update(&self.caller.cluster, |level| level.refusal = None);
                }
                message = incoming.next(), if wait.is_zero() => match message {
                    None => return Ok("the agent closed the stream"),
                    Some(Err(error)) if error.code() == tonic::Code::OutOfRange => {
                        let why = format!("its agent sent too large a message: {}", error.message());
                        return Err(sessions.hold(self.caller, "too_large", why).await);
                    }
                    Some(Err(_)) => return Ok("the connection was lost"),
                    Some(Ok(message)) => {
                        let was_over = self.bucket.is_over();
                        let size = message.encoded_len();
                        // Answers to the hub's questions don't count against the limit.
                        if !self.answers(&message) && !self.bucket.take(size) && !was_over {
                            let why = "its agent sends more than the hub accepts (over 50 messages or 3 MiB a second for several seconds), and is slowed down".to_owned();
                            sessions.hold(self.caller, "too_much", why).await;
                            self.slowed = true;
                        }
                        let heard = match message.message {
                            Some(v1::agent_message::Message::Record(shown)) if self.asks_record => {
                                self.hear_record(shown).await?;
                                Ok(())
                            }
                            message => self.hear(v1::AgentMessage { message }),
                        };
                        if let Err(why) = heard {
                            return Err(sessions.hold(self.caller, "nonsense", why).await);
                        }
                    }
                },
                permit = self.outgoing.reserve(), if to_send => match permit {
                    Ok(permit) => if let Some(message) = self.next_message().await? {
                        permit.send(Ok(v1::HubMessage { message: Some(message) }));
                    },
                    Err(_) => return Ok("the connection was lost"),
                },
                Some(question) = questions.recv() => self.ask(question),
                changed = published.changed() => if changed.is_err() { return Ok("the hub is stopping") },
                changed = cas.changed() => if changed.is_err() { return Ok("the hub is stopping") },
                changed = lead.changed() => {
                    if changed.is_err() {
                        return Ok("the hub is stopping");
                    }
                    // The agent must hear of the new term before anything else.
                    return Err(Status::aborted("the hub's term has changed; connect again"));
                }
            }
        }
    }

    async fn settle_term(&self, known: &Known) -> Result<(), Status> {
        let sessions = self.sessions;
        let Some(Lead { term, .. }) = sessions.leadership.now() else {
            return Ok(());
        };
        let proven = sessions.leadership.is_proven(known);
        match meet(term, sessions.store.incarnation(), known, proven) {
            Meeting::Lead => Ok(()),
            Meeting::Unproven => {
                let (theirs, own) = (known.term, term);
                let why = format!(
                    "the agent names the term {theirs}, which no hub of this fleet issued; this hub's is {own}. \
                     Does somebody else hold its certificate? `muster cluster remove {cluster}`, and let it join again",
                    cluster = self.caller.cluster,
                );
                Err(sessions.hold(self.caller, "unproven_term", why).await)
            }
            Meeting::StepDown => {
                sessions.leadership.step_down();
                Ok(())
            }
            Meeting::Retake { above } => {
                let why = "an agent has a newer term than this hub's state".to_owned();
                let store = sessions.store.as_ref();
                let txn = unconfirmed::mark_unconfirmed(store, Txn::new(), None, why).await;
                let failed = |error: &(dyn std::error::Error + 'static)| {
                    tracing::error!(error = %Chain(error), "the lead can't be taken again");
                    Status::unavailable("the hub can't take the lead")
                };
                let txn = txn.map_err(|error| failed(&error))?;
                let txn = without_serials(store, txn).await;
                let txn = txn.map_err(|error| failed(&error))?;
                store.commit(txn).await.map_err(|error| failed(&error))?;
                let retaken = sessions.leadership.retake(above).await;
                retaken.map_err(|error| failed(&error))
            }
        }
    }

    fn welcome(&mut self, hello: &v1::Hello, lead: &mut watch::Receiver<Option<Lead>>) {
        let sessions = self.sessions;
        let level = sessions.observed.get(&self.caller.cluster);
        let known = level.is_some_and(|level| {
            level.instance.as_ref() == Some(&self.caller.instance)
                && !hello.report.is_empty()
                && level.digest == hello.report
        });
        sessions.observed.welcome(
            &self.caller.cluster,
            &self.caller.instance,
            &hello
                .version
                .chars()
                .take(VERSION_LENGTH)
                .collect::<String>(),
            self.in_force,
        );
        let term = lead.borrow_and_update().map(|lead| v1::Term {
            number: lead.term.number,
            nonce: lead.term.nonce,
            proof: lead.term.proof.0.to_vec(),
        });
        let welcome = v1::Welcome {
            protocol: PROTOCOL_VERSION,
            version: VERSION.to_owned(),
            incarnation: sessions.store.incarnation().to_owned(),
            term,
            report_known: known,
        };
        self.outbox
            .push_back(v1::hub_message::Message::Welcome(welcome));
    }
}
