//! Another CA takes the place of the fleet's: first everybody learns to trust both, then what the new one signs is
//! used everywhere, then the old one is good for nothing. Each step is one write, under this hub's lead; a hub that
//! is killed goes on from there.
//!
//! Who has followed is told by a version of the CAs that only grows, and not by clocks: what is granted is written
//! down with the version of its time, and counts once its certificate is shown.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_model::problem::Problem;
use muster_pki::{AdminName, Ca, Certified, TrustBundle, clock};
use muster_runtime::log::Chain;
use muster_store::{CommitError, Expected, Store, Txn};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    authority::{Authority, AuthorityError, HUB},
    leadership::Leadership,
    metrics::Metrics,
    store_schema::{self, LoginRecord, RecordError, audited, now, seconds},
};

/// How often it is looked whether everybody has followed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// So long before the end of the CA people are told.
const TOLD_BEFORE: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// Whoever has not followed after this many seconds is told of: an agent's certificate has been renewed by then,
/// however it is asked.
const WAITED: u64 = 24 * 60 * 60;

/// Of the CAs, what is no key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// How often they have changed.
    version: u64,
    /// When the last change was, in seconds since 1970.
    since: u64,
}

/// The CAs of the fleet.
pub(crate) struct Cas {
    /// The one that everybody trusts.
    pub(crate) current: Ca,
    /// The one that takes its place.
    pub(crate) next: Option<Ca>,
    /// All of them.
    pub(crate) trust: TrustBundle,
    /// Their names.
    names: Vec<String>,
    state: State,
}

impl Cas {
    /// As the store has them.
    pub(crate) async fn load(store: &dyn Store) -> Result<Option<Self>, AuthorityError> {
        let read = async |key| -> Result<Option<Ca>, AuthorityError> {
            let kept = store.get(key).await.map_err(RecordError::from)?;
            let pem = kept.map(|kept| String::from_utf8_lossy(&kept.value).into_owned());
            Ok(pem.as_deref().map(Ca::from_pem).transpose()?)
        };
        let Some(current) = read(store_schema::CA).await? else {
            return Ok(None);
        };
        let next = read(store_schema::CA_NEXT).await?;
        let state = store_schema::read::<State>(store, store_schema::CA_STATE).await?;
        let state = state.map_or_else(State::default, |(state, _)| state);
        Self::new(current, next, state).map(Some)
    }

    fn new(current: Ca, next: Option<Ca>, state: State) -> Result<Self, AuthorityError> {
        let all = || [Some(&current), next.as_ref()].into_iter().flatten();
        let trust = TrustBundle::new(all().map(|ca| ca.certificate().clone()))?;
        let names = all().map(Ca::name).collect::<Result<_, _>>()?;
        Ok(Self {
            trust,
            names,
            current,
            next,
            state,
        })
    }

    /// The one that signs for agents and people.
    pub(crate) fn signer(&self) -> &Ca {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// How often the CAs have changed.
    pub(crate) fn version(&self) -> u64 {
        self.state.version
    }

    /// When they last did, in seconds since 1970.
    pub(crate) fn since(&self) -> u64 {
        self.state.since
    }

    /// Whether a certificate is one of theirs: a connection may be older than the end of its CA.
    pub(crate) fn have_signed(&self, certified: &Certified) -> bool {
        self.names.contains(&certified.issuer)
    }
}

/// Who still needs the CA that goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) clusters: Vec<String>,
    pub(crate) logins: Vec<String>,
    /// Clusters with a join token of before, which trusts nothing else.
    pub(crate) join_tokens: Vec<String>,
}

impl Behind {
    fn count(&self) -> usize {
        self.clusters.len() + self.logins.len() + self.join_tokens.len()
    }
}

/// What a login that follows gets.
pub(crate) struct Followed {
    /// A new certificate; `None` where the one that was shown is of today's CA.
    pub(crate) certificate: Option<String>,
    /// The CAs to trust.
    pub(crate) trust: String,
}

impl Authority {
    /// Begins to replace the CA; nothing where that has begun.
    pub(crate) async fn rotate(
        &self,
        leadership: &Leadership,
        who: &str,
        reason: &str,
    ) -> Result<(), AuthorityError> {
        let before = self.cas();
        if before.next.is_some() {
            return Ok(());
        }
        let lead = leadership.now().ok_or(AuthorityError::NotLeading)?;
        let next = Ca::create(clock::now())?;
        if next.not_after() < before.current.not_after() {
            return Err(AuthorityError::Clock);
        }
        let what = format!("the fleet's CA begins to be replaced{}", because(reason));
        let txn = Txn::new()
            .when(store_schema::TERM, Expected::Revision(lead.revision))
            .when(store_schema::CA_NEXT, Expected::Absent)
            .put(store_schema::CA_NEXT, next.to_pem());
        let txn = self.changed(txn, &before);
        self.take_effect(audited(txn, who, what)).await
    }

    /// Ends trusting the old CA, though somebody may still need it. Nothing where none is being replaced; the
    /// term is proven anew then, since its key comes from the CA's.
    pub(crate) async fn finish_rotation(
        &self,
        leadership: &Leadership,
        who: &str,
        reason: &str,
    ) -> Result<(), AuthorityError> {
        let before = self.cas();
        let Some(next) = &before.next else {
            return Ok(());
        };
        let lead = leadership.now().ok_or(AuthorityError::NotLeading)?;
        let kept = self.store().get(store_schema::CA_NEXT).await;
        let Some(kept) = kept.map_err(RecordError::from)? else {
            return self.reload().await;
        };
        let pem = next.to_pem();
        if kept.value != pem.as_bytes() {
            return self.reload().await;
        }
        let what = format!("the fleet's CA is replaced{}", because(reason));
        let mut txn = Txn::new()
            .when(store_schema::TERM, Expected::Revision(lead.revision))
            .when(store_schema::CA_NEXT, Expected::Revision(kept.revision))
            .put(store_schema::CA, pem)
            .delete(store_schema::CA_NEXT);
        // What trusts the old one alone is good for nothing, and is not shown as if it were.
        for (serial, record) in self.logins().await? {
            if record.trust < before.version() {
                txn = txn.delete(format!("{}{serial}", store_schema::LOGIN));
            }
        }
        for (key, record) in self.join_tokens().await? {
            if record.trust < before.version() {
                txn = txn.delete(key);
            }
        }
        let txn = self.changed(txn, &before);
        self.take_effect(audited(txn, who, what)).await?;
        if let Err(error) = leadership.prove_by(self.term_key()).await {
            // The next start takes a term of its own in any case.
            tracing::error!(error = %Chain(&error), "the term can't be taken under the new CA");
        }
        Ok(())
    }

    /// The transaction in which the CAs have changed once more.
    fn changed(&self, txn: Txn, before: &Cas) -> Txn {
        let state = State {
            version: before.version() + 1,
            since: now(),
        };
        txn.put(store_schema::CA_STATE, store_schema::encode(&state))
    }

    /// Writes a step and goes by it. One that was written by a call that nobody waited for is gone by, too.
    async fn take_effect(&self, txn: Txn) -> Result<(), AuthorityError> {
        let written = self.store().commit(txn).await;
        self.reload().await?;
        match written {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { key }) if key == store_schema::CA_NEXT => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Goes by the CAs that the store has.
    async fn reload(&self) -> Result<(), AuthorityError> {
        if let Some(cas) = Cas::load(self.store()).await? {
            self.use_cas(cas);
        }
        Ok(())
    }

    /// Who still needs the CA that is being replaced; nobody where none is.
    pub(crate) async fn behind(&self) -> Result<Behind, AuthorityError> {
        let cas = self.cas();
        let mut behind = Behind::default();
        if cas.next.is_none() {
            return Ok(behind);
        }
        let version = cas.version();
        for (cluster, _, record) in self.joined().await? {
            if record.trust < version {
                behind.clusters.push(cluster.to_string());
            }
        }
        let logins = self.logins().await?;
        // The hub makes the one of its machine anew; the one before has followed with that.
        let is_new = |record: &LoginRecord| record.local && record.trust >= version;
        let local_is_new = logins.iter().any(|(_, record)| is_new(record));
        for (_, record) in logins {
            let followed = record.followed || (record.local && local_is_new);
            let is_good = !record.removed && record.expires > now();
            if is_good && !followed && record.trust < version {
                behind.logins.push(record.name);
            }
        }
        for (_, record) in self.join_tokens().await? {
            if record.used.is_none() && record.expires > now() && record.trust < version {
                behind.join_tokens.push(record.cluster.to_string());
            }
        }
        for names in [&mut behind.logins, &mut behind.join_tokens] {
            names.sort();
            names.dedup();
        }
        Ok(behind)
    }

    /// Whether a login does not know the CAs as they are now.
    pub(crate) async fn login_is_behind(&self, serial: &str) -> Result<bool, AuthorityError> {
        let (record, _) = self.good_login(serial).await?;
        Ok(!record.local && record.trust < self.cas().version())
    }

    /// Lets a login follow the CAs: with a new certificate, for as long as the old one would have worked, where that
    /// is another CA's than today's. `None` where there is nothing to follow.
    pub(crate) async fn follow(
        &self,
        certified: &Certified,
        name: &AdminName,
        csr: &str,
    ) -> Result<Option<Followed>, AuthorityError> {
        loop {
            match self.try_to_follow(certified, name, csr).await {
                // Another copy of the login follows, or it is being taken back.
                Err(AuthorityError::Commit(CommitError::Conflict { .. })) => {}
                followed => return followed,
            }
        }
    }

    async fn try_to_follow(
        &self,
        certified: &Certified,
        name: &AdminName,
        csr: &str,
    ) -> Result<Option<Followed>, AuthorityError> {
        let cas = self.cas();
        let turn = self.login_turn().await?;
        let (mut record, _) = self.good_login(&certified.serial).await?;
        // The hub itself makes the one of its machine anew.
        if record.local || record.trust >= cas.version() {
            return Ok(None);
        }
        if cas.signer().name()? == certified.issuer {
            record.trust = cas.version();
            let key = format!("{}{}", store_schema::LOGIN, certified.serial);
            self.store()
                .commit(turn.put(key, store_schema::encode(&record)))
                .await?;
            return Ok(Some(Followed {
                certificate: None,
                trust: cas.trust.to_pem(),
            }));
        }
        let left = Duration::from_secs(record.expires.saturating_sub(now()));
        let before = Some(certified.serial.clone());
        let made = self.make_login(name, csr, left, &record.by, before)?;
        let what = format!("the login of {name} follows the fleet's CA");
        let txn = audited(made.put(turn), &name.to_string(), what);
        self.store().commit(txn).await?;
        Ok(Some(Followed {
            certificate: Some(made.certificate),
            trust: made.trust,
        }))
    }

    /// What people should know of the CA: that it ends soon, and that its replacement does not go on.
    pub(crate) fn warnings(&self) -> Vec<Problem> {
        let cas = self.cas();
        let mut warnings = Vec::new();
        let left = cas.current.not_after().duration_since(clock::now());
        let left = left.unwrap_or_default();
        if left <= TOLD_BEFORE {
            let days = left.as_secs() / 86_400;
            warnings.push(Problem::of_hub(
                format!("the fleet's CA ends in {days} days, and nobody can connect after that"),
                match cas.next {
                    Some(_) => "another takes its place: `muster hub ca` shows who has not followed, and `muster hub ca rotate --finish` does not wait for them",
                    None => "replace it: `muster hub ca rotate`",
                },
            ));
        }
        let waiting = self.waiting().load(Ordering::Relaxed);
        if cas.next.is_some() && waiting > 0 && now().saturating_sub(cas.since()) > WAITED {
            warnings.push(Problem::of_hub(
                format!("the fleet's CA is being replaced, and {waiting} clusters, logins or join tokens have not followed for over a day"),
                "`muster hub ca` shows them, and `muster hub ca rotate --finish` does not wait for them",
            ));
        }
        warnings
    }

    /// Ends the replacement of a CA once nobody needs the old one, until told to stop.
    pub(crate) async fn keep_rotating(
        self: Arc<Self>,
        leadership: Arc<Leadership>,
        metrics: Metrics,
        stop: CancellationToken,
    ) {
        let mut changes = self.watch_cas();
        loop {
            let cas = self.cas();
            let end = i64::try_from(seconds(cas.current.not_after()));
            metrics.ca_end.set(end.unwrap_or(i64::MAX));
            if let Err(error) = self.go_on(&leadership).await {
                tracing::error!(error = %Chain(&error), "the replacement of the CA does not go on; trying again");
            }
            let waiting = i64::try_from(self.waiting().load(Ordering::Relaxed));
            metrics.ca_behind.set(waiting.unwrap_or(i64::MAX));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY), if self.cas().next.is_some() => {}
            }
        }
    }

    async fn go_on(&self, leadership: &Leadership) -> Result<(), AuthorityError> {
        let waiting = self.behind().await?.count();
        self.waiting().store(waiting, Ordering::Relaxed);
        if self.cas().next.is_none() || waiting > 0 || leadership.now().is_none() {
            return Ok(());
        }
        let reason = "everybody has followed";
        self.finish_rotation(leadership, HUB, reason).await
    }
}

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}
