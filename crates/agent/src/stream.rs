//! One stream to the hub. The agent says which generation is in force, receives newer ones, and reports the
//! observed state. `muster_plan::delivery` decides which terms and generations it accepts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use muster_model::{
    fleet_record::SealedRecord,
    ids::{ClusterName, ContentHash, Epoch, Generation},
    policy::PruneOrders,
};
use muster_plan::delivery::{
    Acceptance, Numbered, Proof, Refusal, Term, accept_generation, accept_record, accept_term,
};
use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use muster_runtime::{backoff::Backoff, log::Chain};
use prost::Message as _;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    cluster::{
        Arrived, ArrivedBundle, Cluster, Level, MAX_BUNDLE, PackedBundle, TakeError, UnpackError,
    },
    memory_budget::MemoryBudget,
};

/// The shortest time between two reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// The most bytes of apps in one report message. A larger report is sent in several messages.
const REPORT_BYTES: usize = 1024 * 1024;
/// The first and the longest pause before a generation that could not be stored is tried again.
const KEEP_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// The most objects in one message.
const OBJECTS: usize = 500;
/// The most messages that are queued for a slow hub before the stream waits for it.
const OUTGOING: usize = 4;

/// The reason why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The hub refused the request, or the connection broke.
    #[error("{}", .0.message())]
    Status(#[from] Status),
    /// The hub closed the stream.
    #[error("the hub closed the stream")]
    Closed,
    /// The hub's term or generation must not be accepted.
    #[error("the agent refuses what the hub sent")]
    Refused(#[from] Refusal),
    /// The hub speaks another protocol.
    #[error(
        "the hub (version {version}) speaks protocol {protocol}, this agent {PROTOCOL_VERSION}; upgrade the older one"
    )]
    Protocol {
        /// The hub's release.
        version: String,
        /// The hub's protocol version.
        protocol: u32,
    },
    /// The hub sent a message that is invalid or not allowed at this point.
    #[error("the hub sent {0}")]
    Nonsense(&'static str),
    /// The hub sent bytes that are not the expected bundle.
    #[error("the hub sent {0}")]
    Unpack(#[from] UnpackError),
    /// The hub's term can't be stored in the cluster.
    #[error(transparent)]
    Take(#[from] TakeError),
}

/// A generation whose bundles are still arriving.
struct Arriving {
    generation: v1::Generation,
    number: Numbered,
    prune: PruneOrders,
    record: Option<SealedRecord>,
    pieces: HashMap<ContentHash, Vec<u8>>,
    complete: HashMap<ContentHash, PackedBundle>,
    missing: usize,
}

/// A generation that could not be put in force.
struct Stuck {
    generation: v1::Generation,
    why: String,
    /// The time of the next attempt; `None` during an attempt, and if another attempt can't help.
    again: Option<Instant>,
}

/// The state of an open stream.
struct Stream<'a, C> {
    cluster: &'a C,
    outgoing: mpsc::Sender<v1::AgentMessage>,
    term: Term,
    incarnation: String,
    arriving: Option<Arriving>,
    stuck: Option<Stuck>,
    /// The fleet record that the hub last sent on this stream.
    record: Option<SealedRecord>,
    keep_again: Backoff,
    reported: Option<Arc<Level>>,
    room: MemoryBudget,
    renew: &'a Notify,
}

/// Follows the hub until the stream ends or `stop` fires. `renew` is notified when the hub asks the agent to renew its
/// certificate, and `connected` is called when the hub has welcomed this agent.
///
/// # Errors
/// [`StreamError`] with the reason why the stream ended.
pub async fn follow<C: Cluster>(
    channel: Channel,
    name: &ClusterName,
    process: u64,
    cluster: &C,
    stop: &CancellationToken,
    renew: &Notify,
    connected: impl FnOnce() + Send,
) -> Result<(), StreamError> {
    let known = cluster.known();
    let mut levels = cluster.level();
    let level = levels.borrow_and_update().clone();
    let (outgoing, messages) = mpsc::channel(OUTGOING);
    let record = known.record.as_ref().map(SealedRecord::id);
    let hello = v1::Hello {
        protocol: PROTOCOL_VERSION,
        version: VERSION.to_owned(),
        incarnation: known.incarnation.clone(),
        term: Some(v1::Term {
            number: known.term.number,
            nonce: known.term.nonce,
            proof: known.term.proof.0.to_vec(),
        }),
        generation: known.in_force.map_or(0, |number| number.generation.0),
        content: known
            .in_force
            .map_or_else(Vec::new, |number| number.content.0.to_vec()),
        report: level.digest().0.to_vec(),
        cluster: name.to_string(),
        process,
        epoch: record.map_or(0, |record| record.epoch.0),
        record: record.map_or_else(Vec::new, |record| record.hash.0.to_vec()),
        foreign_record: known.is_record_foreign,
    };
    let first = v1::AgentMessage {
        message: Some(v1::agent_message::Message::Hello(hello)),
    };
    outgoing.try_send(first).map_err(|_| StreamError::Closed)?;
    let mut client = v1::agents_client::AgentsClient::new(channel);
    let mut incoming = client
        .follow(ReceiverStream::new(messages))
        .await?
        .into_inner();
    let Some(v1::HubMessage {
        message: Some(v1::hub_message::Message::Welcome(welcome)),
    }) = incoming.message().await?
    else {
        return Err(StreamError::Nonsense("no welcome"));
    };
    if welcome.protocol != PROTOCOL_VERSION {
        let v1::Welcome {
            version, protocol, ..
        } = welcome;
        return Err(StreamError::Protocol { version, protocol });
    }
    let mut stream = Stream {
        cluster,
        outgoing,
        term: known.term,
        incarnation: welcome.incarnation,
        arriving: None,
        stuck: None,
        record: None,
        keep_again: Backoff::new(KEEP_AGAIN.0, KEEP_AGAIN.1),
        reported: welcome.report_known.then_some(level),
        room: MemoryBudget::of_this_process(),
        renew,
    };
    if let Some(v1::Term {
        number,
        nonce,
        proof,
    }) = welcome.term
    {
        let term = Term {
            number,
            nonce,
            proof: Proof::of(&proof),
        };
        accept_term(&known, term)?;
        stream.term = term;
        if term != known.term && known.in_force.is_some() {
            cluster.note_term(term, &stream.incarnation).await?;
        }
    }
    connected();
    // The first report is sent immediately, and each later one at least `REPORT_EVERY` after the previous one.
    let mut report_at = Instant::now();
    let mut changed = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            message = incoming.message() => match message? {
                Some(message) => {
                    stream.hear(message).await?;
                    changed |= stream.stuck.is_some();
                }
                None => return Err(StreamError::Closed),
            },
            Some(generation) = stream.until_again() => {
                stream.begin(generation).await?;
                changed = true;
            }
            () = tokio::time::sleep_until(report_at), if changed => {
                let level = levels.borrow_and_update().clone();
                changed = false;
                stream.report(level).await?;
                report_at = Instant::now() + REPORT_EVERY;
            }
            more = levels.changed(), if !changed => match more {
                Ok(()) => changed = true,
                Err(_) => return Ok(()),
            },
        }
    }
}

/// Returns a report with everything that does not belong to a single app.
fn head(level: &Level) -> v1::Report {
    v1::Report {
        generation: level.in_force.map_or(0, |number| number.generation.0),
        content: level
            .in_force
            .map_or_else(Vec::new, |number| number.content.0.to_vec()),
        problems: level.problems.clone(),
        cluster_scoped: level.cluster_scoped.clone(),
        ..v1::Report::default()
    }
}

/// Splits the reports of apps into messages of a size that every hub accepts.
fn in_parts(apps: Vec<v1::AppReport>) -> Vec<Vec<v1::AppReport>> {
    let mut parts: Vec<Vec<v1::AppReport>> = Vec::new();
    let mut room = 0;
    for app in apps {
        let size = app.encoded_len();
        match parts.last_mut().filter(|_| size <= room) {
            Some(part) => part.push(app),
            None => {
                parts.push(vec![app]);
                room = REPORT_BYTES;
            }
        }
        room = room.saturating_sub(size);
    }
    parts
}

impl<C: Cluster> Stream<'_, C> {
    async fn hear(&mut self, message: v1::HubMessage) -> Result<(), StreamError> {
        match message.message {
            Some(v1::hub_message::Message::Generation(generation)) => {
                self.offered(generation).await
            }
            Some(v1::hub_message::Message::Blob(piece)) => self.piece(piece).await,
            Some(v1::hub_message::Message::ListObjects(request)) => self.objects(&request).await,
            Some(v1::hub_message::Message::Welcome(_)) => {
                Err(StreamError::Nonsense("a second welcome"))
            }
            Some(v1::hub_message::Message::RenewNow(_)) => {
                self.renew.notify_one();
                Ok(())
            }
            Some(v1::hub_message::Message::ShowRecord(_)) => {
                let record = self.cluster.known().record.as_ref().map(Into::into);
                let record = record.unwrap_or_default();
                self.send(v1::agent_message::Message::Record(record)).await
            }
            // A message that only newer agents know. It can be ignored: a new message that every agent must understand
            // comes with a higher protocol version.
            None => Ok(()),
        }
    }

    /// Handles a generation from the hub. An earlier one that could not be put in force is no longer retried.
    async fn offered(&mut self, generation: v1::Generation) -> Result<(), StreamError> {
        self.stuck = None;
        self.keep_again.reset();
        self.begin(generation).await
    }

    /// Requests the bundles that the cluster lacks for a generation. If another generation is still arriving, this one
    /// replaces it.
    async fn begin(&mut self, generation: v1::Generation) -> Result<(), StreamError> {
        let content = ContentHash::try_from(generation.content.as_slice())
            .map_err(|_| StreamError::Nonsense("a generation without a hash"))?;
        let prune = generation
            .prune_orders()
            .map_err(|_| StreamError::Nonsense("a generation without valid prune orders"))?;
        if generation.computed_content().ok() != Some(content) {
            return Err(StreamError::Nonsense("a generation with the wrong hash"));
        }
        let number = Numbered {
            generation: Generation(generation.number),
            content,
        };
        let known = self.cluster.known();
        let acceptance = accept_generation(known.in_force, number)?;
        let sent = generation.record.clone().map(TryInto::try_into).transpose();
        let sent: Option<SealedRecord> =
            sent.map_err(|_| StreamError::Nonsense("a fleet record that can't be read"))?;
        if sent.is_some() {
            self.record = sent;
        }
        let record = accept_record(&known, self.record.clone(), Epoch(generation.epoch))?;
        if acceptance == Acceptance::Same {
            self.stuck = None;
            if let Some(record) = record.filter(|record| known.record.as_ref() != Some(record)) {
                self.cluster.note_record(record).await?;
            }
            return Ok(());
        }
        let mut lacking = Vec::new();
        for entry in &generation.bundles {
            let hash = entry
                .content_hash()
                .map_err(|_| StreamError::Nonsense("a bundle without a hash"))?;
            if !self.cluster.holds(hash) && !lacking.contains(&hash) {
                lacking.push(hash);
            }
        }
        let before = self.arriving.take();
        let mut arriving = Arriving {
            generation,
            number,
            prune,
            record,
            pieces: HashMap::new(),
            complete: HashMap::new(),
            missing: 0,
        };
        // Bundles that have arrived for the older generation are not requested again.
        if let Some(before) = before {
            arriving.complete = before.complete;
            arriving.complete.retain(|hash, _| lacking.contains(hash));
        }
        lacking.retain(|hash| !arriving.complete.contains_key(hash));
        arriving.missing = lacking.len();
        self.arriving = Some(arriving);
        if lacking.is_empty() {
            return self.complete().await;
        }
        let hashes = lacking.iter().map(|hash| hash.0.to_vec()).collect();
        let need = v1::Need {
            generation: number.generation.0,
            hashes,
        };
        self.send(v1::agent_message::Message::Need(need)).await
    }

    async fn piece(&mut self, piece: v1::BlobPiece) -> Result<(), StreamError> {
        let hash = ContentHash::try_from(piece.hash.as_slice())
            .map_err(|_| StreamError::Nonsense("a piece without a hash"))?;
        let Some(arriving) = &mut self.arriving else {
            return Ok(());
        };
        let packed = arriving.pieces.entry(hash).or_default();
        packed.extend_from_slice(&piece.data);
        if packed.len() as u64 > MAX_BUNDLE {
            return Err(UnpackError::TooLarge.into());
        }
        if !piece.last {
            return Ok(());
        }
        let packed = arriving.pieces.remove(&hash).unwrap_or_default();
        let arrived: usize = arriving.complete.values().map(|bundle| bundle.size).sum();
        let room = self.room.bytes().saturating_sub(arrived as u64);
        let packed = match PackedBundle::new(packed, hash, room.min(MAX_BUNDLE)) {
            Err(UnpackError::TooLarge) if room < MAX_BUNDLE => {
                let number = arriving.number.generation.0;
                let source = self.room.too_much_text().into();
                if let Some(Arriving { generation, .. }) = self.arriving.take() {
                    self.fail(generation, &TakeError { number, source });
                }
                return Ok(());
            }
            packed => packed?,
        };
        let wanted = arriving
            .generation
            .bundles
            .iter()
            .any(|entry| entry.hash == hash.0);
        if wanted && arriving.complete.insert(hash, packed).is_none() {
            arriving.missing = arriving.missing.saturating_sub(1);
        }
        if arriving.missing == 0 {
            self.complete().await
        } else {
            Ok(())
        }
    }

    /// Puts the generation in force, now that all of its bundles have arrived.
    async fn complete(&mut self) -> Result<(), StreamError> {
        let Some(Arriving {
            generation,
            number,
            prune,
            record,
            mut complete,
            ..
        }) = self.arriving.take()
        else {
            return Ok(());
        };
        let mut bundles = Vec::with_capacity(generation.bundles.len());
        for entry in &generation.bundles {
            let hash = entry
                .content_hash()
                .map_err(|_| StreamError::Nonsense("a bundle without a hash"))?;
            bundles.push(ArrivedBundle {
                app: entry
                    .app
                    .parse()
                    .map_err(|_| StreamError::Nonsense("an app without a name"))?,
                role: entry
                    .role
                    .parse()
                    .map_err(|_| StreamError::Nonsense("an unknown role"))?,
                hash,
                packed: complete.remove(&hash),
            });
        }
        let (term, incarnation) = (self.term, self.incarnation.clone());
        let taken = self
            .cluster
            .take(Arrived {
                number,
                term,
                incarnation,
                prune,
                record,
                bundles,
            })
            .await;
        match taken {
            Ok(()) => self.stuck = None,
            Err(error) => self.fail(generation, &error),
        }
        Ok(())
    }

    /// Records that a generation could not be put in force. The stream continues, so that the hub learns why.
    fn fail(&mut self, generation: v1::Generation, error: &TakeError) {
        let why = Chain(error).to_string();
        let pause = (!error.is_final()).then(|| self.keep_again.next_delay());
        tracing::warn!(why, again = ?pause, "the generation is not put in force");
        self.stuck = Some(Stuck {
            generation,
            why,
            again: pause.map(|pause| Instant::now() + pause),
        });
    }

    /// Waits for the next attempt and returns the generation to try again. Returns `None` if there is none.
    async fn until_again(&mut self) -> Option<v1::Generation> {
        let stuck = self.stuck.as_mut()?;
        tokio::time::sleep_until(stuck.again?).await;
        stuck.again = None;
        Some(stuck.generation.clone())
    }

    /// Reports what has changed since the last report of this stream.
    async fn report(&mut self, mut level: Arc<Level>) -> Result<(), StreamError> {
        if let Some(Stuck { why, .. }) = &self.stuck
            && !level.problems.iter().any(|problem| why.contains(problem))
        {
            Arc::make_mut(&mut level).problems.push(why.clone());
        }
        let before = self.reported.replace(Arc::clone(&level));
        if before.as_ref().is_some_and(|before| before == &level) {
            return Ok(());
        }
        let full = before.is_none();
        let before = before.unwrap_or_default();
        let changed = level
            .apps
            .iter()
            .filter(|(name, app)| before.apps.get(*name) != Some(app));
        let mut apps: Vec<v1::AppReport> =
            changed.map(|(_, app)| v1::AppReport::clone(app)).collect();
        let gone = before
            .apps
            .keys()
            .filter(|name| !level.apps.contains_key(*name));
        apps.extend(gone.map(|name| v1::AppReport {
            app: name.clone(),
            gone: true,
            ..v1::AppReport::default()
        }));
        let mut full = full;
        let mut parts = in_parts(apps);
        let last = parts.pop().unwrap_or_default();
        // Only the last message completes the report, so only that one has the digest.
        for apps in parts {
            let part = v1::Report {
                apps,
                full: std::mem::take(&mut full),
                ..head(&level)
            };
            self.send(v1::agent_message::Message::Report(part)).await?;
        }
        let report = v1::Report {
            apps: last,
            full,
            digest: level.digest().0.to_vec(),
            settled: level.settled,
            ..head(&level)
        };
        self.send(v1::agent_message::Message::Report(report)).await
    }

    async fn objects(&mut self, request: &v1::ListObjects) -> Result<(), StreamError> {
        let mut objects = self.cluster.objects(&request.app);
        loop {
            let rest = objects.split_off(objects.len().min(OBJECTS));
            let last = rest.is_empty();
            let list = v1::ObjectList {
                request: request.request,
                objects,
                last,
            };
            self.send(v1::agent_message::Message::Objects(list)).await?;
            if last {
                return Ok(());
            }
            objects = rest;
        }
    }

    async fn send(&self, message: v1::agent_message::Message) -> Result<(), StreamError> {
        let message = v1::AgentMessage {
            message: Some(message),
        };
        self.outgoing
            .send(message)
            .await
            .map_err(|_| StreamError::Closed)
    }
}
