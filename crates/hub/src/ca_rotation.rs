//! Rotation of the fleet's CA. First everybody learns to trust both CAs and gets a certificate of the new one; then the
//! old one is dropped. Each step is one write, so a hub that is killed continues from the last step. The write succeeds
//! only if this hub leads.
//!
//! The version of the CAs, a number that only grows, shows who has moved to the new CA; clocks play no part. Each
//! certificate is recorded with the version at which it was granted, and counts as in use once it is presented.

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

/// The interval at which the hub checks whether anybody still needs the old CA.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long before the expiry of the CA the status starts to warn of it.
const TOLD_BEFORE: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// The age of a rotation, in seconds, from which the status shows how many still need the old CA. By then, every
/// connected agent has renewed a certificate of the default lifetime, even if it ignored the request to do so.
const WAITED: u64 = 24 * 60 * 60;

/// The state of the CAs apart from their keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The number of changes to the CAs.
    version: u64,
    /// The time of the last change, in seconds since 1970.
    since: u64,
}

/// The fleet's CAs.
pub(crate) struct Cas {
    /// The CA that everybody trusts.
    pub(crate) current: Ca,
    /// The CA that replaces the current one, during a rotation.
    pub(crate) next: Option<Ca>,
    /// The certificates of the current and the next CA.
    pub(crate) trust: TrustBundle,
    /// The names of the current and the next CA.
    names: Vec<String>,
    state: State,
}

impl Cas {
    /// Loads the CAs from the store; `None` if it has none.
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

    /// Returns the CA that signs certificates for agents and people.
    pub(crate) fn signer(&self) -> &Ca {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// Returns the number of changes to the CAs.
    pub(crate) fn version(&self) -> u64 {
        self.state.version
    }

    /// Returns the time of the last change, in seconds since 1970.
    pub(crate) fn since(&self) -> u64 {
        self.state.since
    }

    /// Returns true if one of these CAs signed the certificate. The TLS handshake can't ensure that: a connection may
    /// still be open after the CA of its certificate was dropped.
    pub(crate) fn have_signed(&self, certified: &Certified) -> bool {
        self.names.contains(&certified.issuer)
    }
}

/// The clusters, logins and join tokens that still need the old CA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) clusters: Vec<String>,
    pub(crate) logins: Vec<String>,
    /// The clusters with an unused join token that trusts only the old CA.
    pub(crate) join_tokens: Vec<String>,
}

impl Behind {
    fn count(&self) -> usize {
        self.clusters.len() + self.logins.len() + self.join_tokens.len()
    }
}

/// The answer to a login that moves to the new CA.
pub(crate) struct Followed {
    /// The new certificate; `None` if the presented one is already signed by the new CA.
    pub(crate) certificate: Option<String>,
    /// The CAs to trust.
    pub(crate) trust: String,
}

impl Authority {
    /// Begins to replace the CA. Does nothing if that has already begun.
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
        let what = format!("the replacement of the fleet's CA began{}", because(reason));
        let txn = Txn::new()
            .when(store_schema::TERM, Expected::Revision(lead.revision))
            .when(store_schema::CA_NEXT, Expected::Absent)
            .put(store_schema::CA_NEXT, next.to_pem());
        let txn = self.changed(txn, &before);
        self.take_effect(audited(txn, who, what)).await
    }

    /// Drops the old CA, even if somebody still needs it, and takes a new term, since the key that proves terms comes
    /// from the CA's key. Does nothing if no CA is being replaced.
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
        let what = format!("the fleet's CA was replaced{}", because(reason));
        let mut txn = Txn::new()
            .when(store_schema::TERM, Expected::Revision(lead.revision))
            .when(store_schema::CA_NEXT, Expected::Revision(kept.revision))
            .put(store_schema::CA, pem)
            .delete(store_schema::CA_NEXT);
        // Logins and join tokens that trust only the old CA no longer work, so they must not be listed.
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
            // Not fatal: the next start takes a new term in any case.
            tracing::error!(error = %Chain(&error), "no new term can be taken with the key of the new CA");
        }
        Ok(())
    }

    /// Raises the version of the CAs in the transaction.
    fn changed(&self, txn: Txn, before: &Cas) -> Txn {
        let state = State {
            version: before.version() + 1,
            since: now(),
        };
        txn.put(store_schema::CA_STATE, store_schema::encode(&state))
    }

    /// Writes a step, and then uses the CAs that the store has. This also picks up a step that an aborted call has
    /// written.
    async fn take_effect(&self, txn: Txn) -> Result<(), AuthorityError> {
        let written = self.store().commit(txn).await;
        self.reload().await?;
        match written {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { key }) if key == store_schema::CA_NEXT => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the CAs from the store and uses them.
    async fn reload(&self) -> Result<(), AuthorityError> {
        if let Some(cas) = Cas::load(self.store()).await? {
            self.use_cas(cas);
        }
        Ok(())
    }

    /// Returns everybody who still needs the CA that is being replaced. The result is empty if none is being replaced.
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
        // The hub renews the login of its machine itself, and the previous one is not needed after that.
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

    /// Returns true if a login does not know the current CAs.
    pub(crate) async fn login_is_behind(&self, serial: &str) -> Result<bool, AuthorityError> {
        let (record, _) = self.good_login(serial).await?;
        Ok(!record.local && record.trust < self.cas().version())
    }

    /// Moves a login to the current CAs. If its certificate is not signed by the newest CA, it gets a new certificate
    /// with the rest of the old one's lifetime. Returns `None` if the login is up to date.
    pub(crate) async fn follow(
        &self,
        certified: &Certified,
        name: &AdminName,
        csr: &str,
    ) -> Result<Option<Followed>, AuthorityError> {
        loop {
            match self.try_to_follow(certified, name, csr).await {
                // Another copy of the login moved, or the login was removed: try again.
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
        // The hub renews the login of its machine itself.
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
        let what = format!("the login of {name} was renewed for the new CA");
        let txn = audited(made.put(turn), &name.to_string(), what);
        self.store().commit(txn).await?;
        Ok(Some(Followed {
            certificate: Some(made.certificate),
            trust: made.trust,
        }))
    }

    /// Returns the warnings for the status: the CA expires soon, or its rotation makes no progress.
    pub(crate) fn warnings(&self) -> Vec<Problem> {
        let cas = self.cas();
        let mut warnings = Vec::new();
        let left = cas.current.not_after().duration_since(clock::now());
        let left = left.unwrap_or_default();
        if left <= TOLD_BEFORE {
            let days = left.as_secs() / 86_400;
            warnings.push(Problem::of_hub(
                format!("the fleet's CA expires in {days} days, and nobody can connect after that"),
                match cas.next {
                    Some(_) => "it is being replaced: `muster hub ca` shows who still needs the old one, and `muster hub ca rotate --finish` does not wait for them",
                    None => "replace it: `muster hub ca rotate`",
                },
            ));
        }
        let waiting = self.waiting().load(Ordering::Relaxed);
        if cas.next.is_some() && waiting > 0 && now().saturating_sub(cas.since()) > WAITED {
            warnings.push(Problem::of_hub(
                format!("the fleet's CA is being replaced, and after more than a day {waiting} clusters, logins or join tokens still need the old one"),
                "`muster hub ca` shows them, and `muster hub ca rotate --finish` does not wait for them",
            ));
        }
        warnings
    }

    /// Finishes each rotation once nobody needs the old CA. Runs until `stop` fires.
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
                tracing::error!(error = %Chain(&error), "the replacement of the CA failed to advance; retrying");
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
        let reason = "nobody needs the old one any more";
        self.finish_rotation(leadership, HUB, reason).await
    }
}

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}
