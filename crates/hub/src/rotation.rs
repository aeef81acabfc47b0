//! Another CA takes the place of the fleet's: first everybody learns to trust both, then what the new one signs is
//! used everywhere, then the old one is good for nothing. Each step is one write; a hub that is killed goes on
//! from there.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_model::ids::ClusterName;
use muster_pki::{AdminName, Ca, Certified, TrustBundle, clock};
use muster_proto::v1;
use muster_runtime::log::Chain;
use muster_store::{Expected, Store, Txn};
use tokio_util::sync::CancellationToken;

use crate::{
    authority::{Authority, AuthorityError},
    leadership::Leadership,
    metrics::Metrics,
    records::{self, InstanceRecord, LoginRecord, RecordError, audited, now, seconds},
    session::Sessions,
};

/// How often it is looked whether everybody has followed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The CAs of the fleet.
pub(crate) struct Cas {
    /// The one that everybody trusts.
    pub(crate) current: Ca,
    /// The one that takes its place, with its name.
    pub(crate) next: Option<(Ca, String)>,
    /// All of them.
    pub(crate) trust: TrustBundle,
    /// When they last changed, in seconds since 1970.
    changed: u64,
}

impl Cas {
    /// With what the store says of the next one.
    pub(crate) async fn of(store: &dyn Store, current: Ca) -> Result<Self, AuthorityError> {
        let next = store
            .get(records::CA_NEXT)
            .await
            .map_err(RecordError::from)?;
        let next = next
            .map(|kept| Ca::from_pem(&String::from_utf8_lossy(&kept.value)))
            .transpose()?;
        let changed: Option<(u64, u64)> = records::read(store, records::CA_CHANGED).await?;
        Self::new(current, next, changed.map_or(0, |(changed, _)| changed))
    }

    fn new(current: Ca, next: Option<Ca>, changed: u64) -> Result<Self, AuthorityError> {
        let all = [Some(&current), next.as_ref()].into_iter().flatten();
        let trust = TrustBundle::new(all.map(|ca| ca.certificate().clone()))?;
        let next = match next {
            Some(ca) => {
                let name = ca.name()?;
                Some((ca, name))
            }
            None => None,
        };
        Ok(Self {
            current,
            next,
            trust,
            changed,
        })
    }

    /// The one that signs for agents and people.
    pub(crate) fn signer(&self) -> &Ca {
        self.next.as_ref().map_or(&self.current, |(next, _)| next)
    }

    /// When they last changed, in seconds since 1970.
    pub(crate) fn changed(&self) -> u64 {
        self.changed
    }

    /// Whether a certificate is from before the CAs last changed: its owner does not know them as they are now.
    pub(crate) fn is_older(&self, certificate_made: SystemTime) -> bool {
        seconds(certificate_made) <= self.changed
    }
}

/// So long before the end of the CA people are told.
const TOLD_BEFORE: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// Who still needs the CA that goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) clusters: Vec<ClusterName>,
    pub(crate) logins: Vec<String>,
}

impl Behind {
    fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.logins.is_empty()
    }
}

impl Authority {
    /// Begins to replace the CA; nothing where that has begun.
    pub(crate) async fn rotate(&self, who: &str, reason: &str) -> Result<(), AuthorityError> {
        let before = self.cas();
        if before.next.is_some() {
            return Ok(());
        }
        let current = Ca::from_pem(&before.current.to_pem())?;
        let next = Ca::create(clock::now())?;
        let (pem, changed) = (next.to_pem(), now());
        let cas = Cas::new(current, Some(next), changed)?;
        let what = format!("the fleet's CA begins to be replaced{}", because(reason));
        let txn = Txn::new()
            .when(records::CA_NEXT, Expected::Absent)
            .put(records::CA_NEXT, pem)
            .put(records::CA_CHANGED, records::encode(&changed));
        self.store().commit(audited(txn, who, what)).await?;
        self.use_cas(cas);
        Ok(())
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
        let Some((next, _)) = &before.next else {
            return Ok(());
        };
        let (pem, changed) = (next.to_pem(), now());
        let cas = Cas::new(Ca::from_pem(&pem)?, None, changed)?;
        let what = format!("the fleet's CA is replaced{}", because(reason));
        let txn = Txn::new()
            .put(records::CA, pem)
            .delete(records::CA_NEXT)
            .put(records::CA_CHANGED, records::encode(&changed));
        self.store().commit(audited(txn, who, what)).await?;
        self.use_cas(cas);
        if let Err(error) = leadership.prove_by(self.term_key()).await {
            // The next start takes a term of its own in any case.
            tracing::error!(error = %Chain(&error), "the term can't be taken under the new CA");
        }
        Ok(())
    }

    /// Who still needs the CA that is being replaced; nobody where none is.
    pub(crate) async fn behind(&self) -> Result<Behind, AuthorityError> {
        let cas = self.cas();
        let Some((_, next)) = &cas.next else {
            return Ok(Behind::default());
        };
        let mut behind = Behind::default();
        let store = self.store();
        for (key, versioned) in store
            .range(records::INSTANCE)
            .await
            .map_err(RecordError::from)?
        {
            let record: InstanceRecord = records::decode(&key, &versioned)?;
            let (cluster, _) = key[records::INSTANCE.len()..]
                .split_once('/')
                .unwrap_or_default();
            if !record.revoked && record.ca != *next {
                behind.clusters.extend(cluster.parse::<ClusterName>());
            }
        }
        for (_, record) in self.logins().await? {
            let is_good =
                !record.removed && record.expires > now() && record.by != crate::authority::HUB;
            if is_good && record.ca != *next {
                behind.logins.push(record.name);
            }
        }
        behind.logins.sort();
        behind.logins.dedup();
        Ok(behind)
    }

    /// That the CA ends soon, where nothing takes its place: then nobody could connect any more.
    pub(crate) fn ends_soon(&self) -> Option<v1::RepoProblem> {
        let cas = self.cas();
        let left = cas.current.not_after().duration_since(clock::now());
        let left = left.unwrap_or_default();
        if cas.next.is_some() || left > TOLD_BEFORE {
            return None;
        }
        Some(v1::RepoProblem {
            scope: "fleet".to_owned(),
            message: format!(
                "the fleet's CA ends in {} days, and nobody can connect after that",
                left.as_secs() / 86_400
            ),
            help: "replace it: `muster hub ca rotate`".to_owned(),
            ..v1::RepoProblem::default()
        })
    }

    /// A new certificate for the same login, for as long as it would have worked, in place of one that is older
    /// than the fleet's CAs. `None` where there is nothing to follow.
    pub(crate) async fn follow(
        &self,
        certified: &Certified,
        name: &AdminName,
        csr: &str,
    ) -> Result<Option<(String, String)>, AuthorityError> {
        let key = format!("{}{}", records::LOGIN, certified.serial);
        let found = records::read::<LoginRecord>(self.store(), &key).await?;
        let Some((old, _)) = found.filter(|(record, _)| !record.removed) else {
            return Err(AuthorityError::UnknownLogin);
        };
        // The hub itself makes the one of its machine anew.
        if old.by == crate::authority::HUB || !self.cas().is_older(certified.made()) {
            return Ok(None);
        }
        let left = Duration::from_secs(old.expires.saturating_sub(now()));
        self.replace_login(name, csr, left, &certified.serial, &old.by)
            .await
            .map(Some)
    }

    /// Ends the replacement of a CA once nobody needs the old one, and has agents look at the CAs whenever they
    /// change, until told to stop.
    pub(crate) async fn keep_rotating(
        self: Arc<Self>,
        leadership: Arc<Leadership>,
        sessions: Arc<Sessions>,
        metrics: Metrics,
        stop: CancellationToken,
    ) {
        let mut changes = self.watch_cas();
        loop {
            metrics.ca_end.set(end_of(&self.cas().current));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => match changed {
                    // As they come back they are asked to follow.
                    Ok(()) => sessions.end_all(),
                    Err(_) => return,
                },
                () = tokio::time::sleep(LOOK_EVERY), if self.cas().next.is_some() => {}
            }
            if self.cas().next.is_none() {
                metrics.ca_behind.set(0);
                continue;
            }
            let behind = self.behind().await;
            if let Ok(Behind { clusters, logins }) = &behind {
                let count = clusters.len() + logins.len();
                metrics
                    .ca_behind
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            let ended = match behind {
                Ok(behind) if behind.is_empty() => {
                    let reason = "everybody has followed";
                    self.finish_rotation(&leadership, crate::authority::HUB, reason)
                        .await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::error!(error = %Chain(&error), "the replacement of the CA does not go on; trying again");
            }
        }
    }
}

/// In seconds since 1970.
fn end_of(ca: &Ca) -> i64 {
    i64::try_from(seconds(ca.not_after())).unwrap_or(i64::MAX)
}

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}
