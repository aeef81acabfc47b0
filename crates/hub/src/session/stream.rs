//! One agent's stream: it says what it has, is told what it should have, asks for what it lacks and
//! reports what is. The task always listens and sends only when the agent takes, so that a slow agent
//! holds up nobody else, and two that both have much to say don't wait for each other.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use muster_model::ids::ContentHash;
use muster_plan::delivery::{Known, Meeting, Numbered, Proof, Term, meet, number_for};
use muster_proto::{PIECE_BYTES, PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::log::Chain;
use muster_store::{Expected, Txn};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Caller, Outgoing, Question, Sessions, VERSION_LENGTH, lock};
use crate::{
    approvals,
    authority::without_serials,
    bucket::Bucket,
    metrics::{Sent, SentKind},
    observed::number_of,
    records::{self, Lead, WantedRecord},
    suspects,
    wanted::{FleetState, Wanted},
};

/// A cluster's generation is numbered anew at most once in this time: each is a write.
const RENUMBER_EVERY: Duration = Duration::from_secs(10);
/// Generations that a report may be about: those that the stream was told last.
const TOLD: usize = 64;
/// Objects of one app that an agent lists.
const LISTED: usize = 200_000;

/// One live stream.
pub(super) struct Stream<'a> {
    sessions: &'a Sessions,
    caller: &'a Caller,
    outgoing: &'a Outgoing,
    in_force: Option<Numbered>,
    /// What the agent was told last.
    offered: Option<Numbered>,
    /// What the agent can have in force: what it came with, and what it was told since.
    told: VecDeque<Numbered>,
    bucket: Bucket,
    asked: HashMap<u64, (oneshot::Sender<Vec<v1::ObjectState>>, Vec<v1::ObjectState>)>,
    last_question: u64,
    /// What waits until the agent takes it: small messages, the newest generation, and bundles.
    outbox: VecDeque<v1::hub_message::Message>,
    generation: Option<v1::Generation>,
    needed: VecDeque<ContentHash>,
    /// The bundle whose pieces are being sent, and how far.
    sending: Option<(ContentHash, Bytes, usize)>,
}

impl<'a> Stream<'a> {
    /// A stream that began with this hello.
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
            asked: HashMap::new(),
            last_question: 0,
            outbox: VecDeque::new(),
            generation: None,
            needed: VecDeque::new(),
            sending: None,
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
        };
        self.settle_term(&known).await?;
        self.welcome(hello, &mut lead);
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
                () = stop.cancelled() => return Err(Status::aborted("this stream is no longer wanted")),
                () = &mut expiry => return Err(Status::unauthenticated("the certificate has expired")),
                () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                message = incoming.next(), if wait.is_zero() => match message {
                    None => return Ok("the agent closed it"),
                    Some(Err(error)) if error.code() == tonic::Code::OutOfRange => {
                        let why = format!("its agent sent too large a message: {}", error.message());
                        return Err(sessions.hold(self.caller, "too_large", why).await);
                    }
                    Some(Err(_)) => return Ok("the connection broke"),
                    Some(Ok(message)) => {
                        let was_over = self.bucket.is_over();
                        let size = message.encoded_len();
                        // What was asked for is no flood.
                        if !self.answers(&message) && !self.bucket.take(size) && !was_over {
                            let why = "its agent says more than a hub takes in, over 50 messages or 3 MiB a second for seconds, and is slowed down".to_owned();
                            sessions.hold(self.caller, "too_much", why).await;
                        }
                        if let Err(why) = self.hear(message) {
                            return Err(sessions.hold(self.caller, "nonsense", why).await);
                        }
                    }
                },
                permit = self.outgoing.reserve(), if to_send => match permit {
                    Ok(permit) => if let Some(message) = self.next_message().await? {
                        permit.send(Ok(v1::HubMessage { message: Some(message) }));
                    },
                    Err(_) => return Ok("the connection broke"),
                },
                Some(question) = questions.recv() => self.ask(question),
                changed = published.changed() => if changed.is_err() { return Ok("the hub stops") },
                changed = cas.changed() => if changed.is_err() { return Ok("the hub stops") },
                changed = lead.changed() => {
                    if changed.is_err() {
                        return Ok("the hub stops");
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
                    "the agent names the term {theirs}, which no hub of this fleet gave; this hub's is {own}. \
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
                let why = "an agent proves a newer term than this hub's state".to_owned();
                let store = sessions.store.as_ref();
                let txn = suspects::suspect(store, Txn::new(), None, why).await;
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

    /// Tells the agent what its cluster should run, unless it knows.
    async fn offer(&mut self, state: &FleetState) -> Result<(), Status> {
        let wanted = state.wanted.get(&self.caller.cluster);
        let Some(wanted) = wanted.filter(|_| state.current) else {
            return Ok(());
        };
        let number = number_for(wanted.number, self.in_force);
        if number != wanted.number {
            return self.renumber(wanted).await;
        }
        if self.offered == Some(number) || self.in_force == Some(number) {
            return Ok(());
        }
        let bundles = wanted.bundles.iter().map(|listed| v1::BundleEntry {
            app: listed.app.to_string(),
            role: listed.role.to_string(),
            hash: listed.hash.0.to_vec(),
        });
        let generation = v1::Generation {
            number: number.generation.0,
            content: number.content.0.to_vec(),
            commit: wanted.commit.clone(),
            epoch: wanted.epoch,
            bundles: bundles.collect(),
            prune: Some((&wanted.prune).into()),
        };
        let observed = &self.sessions.observed;
        if observed
            .get(&self.caller.cluster)
            .is_some_and(|level| level.held.is_some())
        {
            observed.update(&self.caller.cluster, |level| level.held = None);
        }
        self.offered = Some(number);
        self.told.push_back(number);
        if self.told.len() > TOLD {
            self.told.pop_front();
        }
        self.generation = Some(generation);
        // The agent says anew what it lacks for this one.
        self.needed.clear();
        Ok(())
    }

    /// The agent has a higher number than the store: the store is older. The content is offered again
    /// under a number that the agent can take, once that is written.
    async fn renumber(&self, wanted: &Wanted) -> Result<(), Status> {
        let sessions = self.sessions;
        let Some(lead) = sessions.leadership.now() else {
            return Ok(());
        };
        let _numbering = sessions.leadership.numbering().await;
        let now = sessions
            .published
            .borrow()
            .wanted
            .get(&self.caller.cluster)
            .map(|now| now.number);
        if now != Some(wanted.number) {
            // A newer commit came first; its number is looked at in turn.
            return Ok(());
        }
        {
            let mut renumbered = lock(&sessions.renumbered);
            renumbered.retain(|_, when| when.elapsed() < RENUMBER_EVERY);
            if renumbered.contains_key(&self.caller.cluster) {
                return Err(Status::unavailable(
                    "this cluster's generation was numbered anew a moment ago",
                ));
            }
            renumbered.insert(self.caller.cluster.clone(), Instant::now());
        }
        let renumbered = Arc::new(wanted.renumbered(self.in_force));
        let number = renumbered.number;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            tracing::error!(error = %Chain(error), "a generation can't be renumbered");
            Status::unavailable("the hub's store fails")
        };
        let key = records::wanted_key(&self.caller.cluster);
        let kept = records::read::<WantedRecord>(sessions.store.as_ref(), &key).await;
        let kept = kept.map_err(|error| failed(&error))?;
        let mut txn = Txn::new()
            .when(records::TERM, Expected::Revision(lead.revision))
            .when(
                key.clone(),
                Expected::unchanged(kept.map(|(_, revision)| revision)),
            )
            .put(key, records::encode(&renumbered.record()));
        if number.content != wanted.number.content {
            let list = records::encode(&renumbered.bundles.as_ref());
            txn = txn.put(records::content_key(number.content), list);
        }
        let cluster = Some(&self.caller.cluster);
        let txn = approvals::void(sessions.store.as_ref(), txn, cluster)
            .await
            .map_err(|error| failed(&error))?;
        let why = "its agent has a newer generation than this hub's state".to_owned();
        let txn = suspects::suspect(sessions.store.as_ref(), txn, cluster, why)
            .await
            .map_err(|error| failed(&error))?;
        sessions
            .store
            .commit(txn)
            .await
            .map_err(|error| failed(&error))?;
        tracing::warn!(cluster = %self.caller.cluster, held = %wanted.number.generation, now = %number.generation, "the agent has a newer generation than this hub's store: the store was restored");
        sessions.published.send_modify(|state| {
            let mut changed = FleetState::clone(state);
            if let Some(entry) = changed.wanted.get_mut(&self.caller.cluster) {
                *entry = renumbered;
            }
            *state = Arc::new(changed);
        });
        Ok(())
    }

    /// Whether a message answers a question that was asked.
    fn answers(&self, message: &v1::AgentMessage) -> bool {
        matches!(&message.message, Some(v1::agent_message::Message::Objects(list)) if self.asked.contains_key(&list.request))
    }

    /// What an agent says. The error is why it is not heard any further.
    fn hear(&mut self, message: v1::AgentMessage) -> Result<(), String> {
        match message.message {
            Some(v1::agent_message::Message::Need(need)) => self.need(need),
            Some(v1::agent_message::Message::Report(report)) => {
                if let Some(number) = number_of(report.generation, &report.content) {
                    let newest = self.told.iter().map(|told| told.generation).max();
                    if self.told.contains(&number) {
                        self.in_force = Some(number);
                    } else if newest.is_none_or(|newest| number.generation > newest) {
                        return Err(format!(
                            "its agent reports generation {}, which it was not told",
                            number.generation
                        ));
                    }
                }
                let state = self.sessions.published.borrow().clone();
                let wanted = state.wanted.get(&self.caller.cluster);
                let wanted = wanted.map(|wanted| &*wanted.bundles).unwrap_or_default();
                let has: HashSet<&str> = wanted.iter().map(|listed| listed.app.as_str()).collect();
                self.sessions
                    .observed
                    .report(&self.caller.cluster, report, |app| {
                        // Before the first commit it is not known what there is.
                        !state.current || has.contains(app)
                    });
                Ok(())
            }
            Some(v1::agent_message::Message::Objects(list)) => {
                if let Some((answer, objects)) = self.asked.get_mut(&list.request) {
                    if answer.is_closed() || objects.len() + list.objects.len() > LISTED {
                        // Nobody reads it any more, or it is no list that anybody could read.
                        self.asked.remove(&list.request);
                        return Ok(());
                    }
                    objects.extend(list.objects);
                }
                if list.last
                    && let Some((answer, objects)) = self.asked.remove(&list.request)
                {
                    // Whoever asked may have gone away.
                    let _ = answer.send(objects);
                }
                Ok(())
            }
            Some(v1::agent_message::Message::Hello(_)) => {
                Err("its agent says hello twice".to_owned())
            }
            // A newer agent's word. The protocol's number rises where it must be understood.
            None => Ok(()),
        }
    }

    /// Notes what the agent lacks of the generation that it was told last.
    fn need(&mut self, need: v1::Need) -> Result<(), String> {
        if self.offered.map(|number| number.generation.0) != Some(need.generation) {
            return Ok(());
        }
        let state = self.sessions.published.borrow().clone();
        let wanted = state.wanted.get(&self.caller.cluster);
        for hash in need.hashes {
            let Ok(hash) = ContentHash::try_from(hash.as_slice()) else {
                return Err("its agent asks for what is no hash".to_owned());
            };
            // What another cluster runs is none of this one's business.
            let its_own = wanted.is_some_and(|w| w.bundles.iter().any(|b| b.hash == hash));
            if its_own && !self.needed.contains(&hash) {
                self.needed.push_back(hash);
            }
        }
        Ok(())
    }

    fn ask(&mut self, question: Question) {
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

    fn has_to_send(&self) -> bool {
        !self.outbox.is_empty()
            || self.sending.is_some()
            || self.generation.is_some()
            || !self.needed.is_empty()
    }

    /// What the agent gets next. A bundle that was begun is ended before another generation.
    async fn next_message(&mut self) -> Result<Option<v1::hub_message::Message>, Status> {
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

    fn next_piece(&mut self) -> Option<v1::BlobPiece> {
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
