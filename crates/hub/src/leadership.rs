//! This hub's term. The hub takes a term at its start, raises it when an agent has seen a newer one, and gives it up
//! when another hub leads with a copy of this store.

use std::sync::{Arc, PoisonError, RwLock};

use muster_model::fleet_record::{FleetRecord, SealedRecord};
use muster_pki::TermKey;
use muster_plan::delivery::{Known, Proof, Term};
use muster_store::{CommitError, Expected, Store, Txn};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::store_schema::{self, Lead, RecordError};

/// The current lead, which every loop reads; `None` once this hub has stepped down.
pub(crate) struct Leadership {
    store: Arc<dyn Store>,
    key: RwLock<TermKey>,
    lead: watch::Sender<Option<Lead>>,
    /// Locked while the lead is taken, since many agents may require that at once.
    taking: Mutex<()>,
    numbering: Mutex<()>,
}

/// The reason why the hub can't take the lead.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The term can't be read.
    #[error("the hub's term can't be read")]
    Record(#[from] RecordError),
    /// The term can't be written.
    #[error("the hub's term can't be written")]
    Commit(#[from] CommitError),
}

async fn take(store: &dyn Store, key: &TermKey, above: u64) -> Result<Lead, LeadError> {
    loop {
        let held: Option<(Term, u64)> = store_schema::read(store, store_schema::TERM).await?;
        let (number, revision) = held.map_or((0, None), |(term, rev)| (term.number, Some(rev)));
        let (number, nonce) = (number.max(above).saturating_add(1), rand::random());
        let term = Term {
            number,
            nonce,
            proof: Proof(key.prove(number, nonce, store.incarnation())),
        };
        let txn = Txn::new()
            .when(store_schema::TERM, Expected::unchanged(revision))
            .put(store_schema::TERM, store_schema::encode(&term));
        match store.commit(txn).await {
            Ok(revision) => return Ok(Lead { term, revision }),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Leadership {
    /// Takes the lead with a term above every earlier one.
    pub(crate) async fn begin(store: Arc<dyn Store>, key: TermKey) -> Result<Self, LeadError> {
        let lead = take(store.as_ref(), &key, 0).await?;
        Ok(Self {
            store,
            key: RwLock::new(key),
            lead: watch::Sender::new(Some(lead)),
            taking: Mutex::new(()),
            numbering: Mutex::new(()),
        })
    }

    /// Returns a watch of the lead.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.subscribe()
    }

    /// Returns the current lead; `None` once this hub has stepped down.
    pub(crate) fn now(&self) -> Option<Lead> {
        *self.lead.borrow()
    }

    /// Locks the numbering of generations. Hold the lock from reading the state in force to publishing its successor;
    /// otherwise a concurrent change would be lost.
    pub(crate) async fn numbering(&self) -> MutexGuard<'_, ()> {
        self.numbering.lock().await
    }

    /// Returns true if a hub of this fleet issued the term that an agent names.
    pub(crate) fn is_proven(&self, known: &Known) -> bool {
        let Term {
            number,
            nonce,
            proof,
        } = known.term;
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        key.holds(number, nonce, &known.incarnation, &proof.0)
    }

    /// Returns a record with the proof that a hub of this fleet wrote it.
    pub(crate) fn seal(&self, record: &FleetRecord) -> SealedRecord {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        SealedRecord::new(record, |content| key.prove_record(content))
    }

    /// Returns true if a hub of this fleet wrote the record that an agent shows.
    pub(crate) fn holds_record(&self, shown: &SealedRecord) -> bool {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        key.holds_record(shown.content.as_bytes(), &shown.proof)
    }

    /// Proves terms with another key from now on. Takes a new term, so that every older term and its proof are
    /// outdated.
    pub(crate) async fn prove_by(&self, key: TermKey) -> Result<(), LeadError> {
        let _taking = self.taking.lock().await;
        let Some(lead) = self.now() else {
            return Ok(());
        };
        let lead = take(self.store.as_ref(), &key, lead.term.number).await?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        self.lead.send_replace(Some(lead));
        Ok(())
    }

    /// Takes the lead again, with a term above the number that an agent has seen.
    pub(crate) async fn retake(&self, above: u64) -> Result<(), LeadError> {
        let _taking = self.taking.lock().await;
        if self.now().is_none_or(|lead| lead.term.number > above) {
            return Ok(());
        }
        let lead = {
            let key = self
                .key
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            take(self.store.as_ref(), &key, above).await?
        };
        tracing::warn!(term = %lead.term, above, "took the lead again: an agent has seen a newer term");
        self.lead.send_replace(Some(lead));
        Ok(())
    }

    /// Gives up the lead after a write under it was refused, unless the hub has taken a newer one since.
    pub(crate) async fn lost(&self, lead: Lead) {
        let _taking = self.taking.lock().await;
        if self.now() == Some(lead) {
            self.step_down();
        }
    }

    /// Gives up the lead until this hub is restarted.
    pub(crate) fn step_down(&self) {
        if self.lead.send_replace(None).is_some() {
            tracing::error!(
                "stepped down: another hub leads with a copy of this hub's store; stop one of them"
            );
        }
    }
}
