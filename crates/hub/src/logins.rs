//! Logins of people and scripts.

use std::time::Duration;

use muster_pki::{AdminName, Certified, Identity, Key, Login, clock};
use muster_store::{CommitError, Expected, Txn};

use crate::{
    authority::{Authority, AuthorityError, HUB},
    removals::Names,
    store_schema::{self, LoginRecord, RecordError, audited, now, seconds},
};

/// A login that was made and is not good yet.
pub(crate) struct Made {
    /// In PEM.
    pub(crate) certificate: String,
    /// The CAs to trust, in PEM.
    pub(crate) trust: String,
    serial: String,
    record: LoginRecord,
}

impl Made {
    /// The transaction that makes it good.
    pub(crate) fn put(&self, txn: Txn) -> Txn {
        let key = format!("{}{}", store_schema::LOGIN, self.serial);
        txn.put(key, store_schema::encode(&self.record))
    }
}

impl Authority {
    /// A certificate for a person or script, and the CAs to trust.
    pub(crate) async fn admin(
        &self,
        name: &AdminName,
        csr: &str,
        valid: Duration,
        who: &str,
    ) -> Result<(String, String), AuthorityError> {
        let made = self.make_login(name, csr, valid, who, None)?;
        let txn = made.put(self.without_ended_logins().await?);
        let txn = audited(txn, who, format!("login for {name}"));
        self.store().commit(txn).await?;
        Ok((made.certificate, made.trust))
    }

    /// A new login, in place of the one with this number.
    pub(crate) fn make_login(
        &self,
        name: &AdminName,
        csr: &str,
        valid: Duration,
        by: &str,
        replaces: Option<String>,
    ) -> Result<Made, AuthorityError> {
        let identity = Identity::Admin(name.clone());
        let cas = self.cas();
        let certificate = cas.signer().sign(csr, &identity, valid, clock::now())?;
        let certified = Certified::of_pem(&certificate)?;
        let record = LoginRecord {
            name: name.to_string(),
            issued: now(),
            expires: seconds(certified.not_after),
            by: by.to_owned(),
            removed: false,
            local: false,
            trust: cas.version(),
            followed: false,
            replaces,
        };
        Ok(Made {
            certificate,
            trust: cas.trust.to_pem(),
            serial: certified.serial,
            record,
        })
    }

    /// The transaction in which logins are forgotten that ended a day ago.
    async fn without_ended_logins(&self) -> Result<Txn, AuthorityError> {
        let mut txn = Txn::new();
        for (serial, ended) in self.logins().await? {
            if ended.expires + 86_400 < now() {
                txn = txn.delete(format!("{}{serial}", store_schema::LOGIN));
            }
        }
        Ok(txn)
    }

    /// The transaction that holds only where no login follows or is taken back meanwhile.
    pub(crate) async fn login_turn(&self) -> Result<Txn, AuthorityError> {
        let key = store_schema::LOGIN_TURNS.to_owned();
        Ok(store_schema::turn(self.store(), Txn::new(), key).await?)
    }

    /// Every login, by the number of its certificate.
    pub(crate) async fn logins(&self) -> Result<Vec<(String, LoginRecord)>, AuthorityError> {
        let kept = self.store().range(store_schema::LOGIN).await;
        let mut logins = Vec::new();
        for (key, versioned) in kept.map_err(RecordError::from)? {
            let record = store_schema::decode(&key, &versioned)?;
            logins.push((key[store_schema::LOGIN.len()..].to_owned(), record));
        }
        Ok(logins)
    }

    /// Takes back every login of this name. Says how many there were.
    pub(crate) async fn remove_logins(
        &self,
        name: &AdminName,
        who: &str,
    ) -> Result<u32, AuthorityError> {
        loop {
            match self.try_to_remove_logins(name, who).await {
                // One of them follows another CA just now.
                Err(AuthorityError::Commit(CommitError::Conflict { .. })) => {}
                removed => return removed,
            }
        }
    }

    async fn try_to_remove_logins(
        &self,
        name: &AdminName,
        who: &str,
    ) -> Result<u32, AuthorityError> {
        let name = name.to_string();
        let mut txn = self.login_turn().await?;
        let mut logins = self.logins().await?;
        logins.retain(|(_, record)| record.name == name && !record.removed);
        let serials = logins.iter().map(|(serial, _)| serial.clone());
        self.removed().add(Names {
            logins: serials.collect(),
            ..Names::default()
        })?;
        for (serial, record) in &mut logins {
            record.removed = true;
            let key = format!("{}{serial}", store_schema::LOGIN);
            txn = txn.put(key, store_schema::encode(record));
        }
        if !logins.is_empty() {
            let what = format!("every login of {name} is taken back");
            self.store().commit(audited(txn, who, what)).await?;
        }
        Ok(u32::try_from(logins.len()).unwrap_or(u32::MAX))
    }

    /// The record of a login that is good, with its revision.
    pub(crate) async fn good_login(
        &self,
        serial: &str,
    ) -> Result<(LoginRecord, u64), AuthorityError> {
        let key = format!("{}{serial}", store_schema::LOGIN);
        let found = store_schema::read::<LoginRecord>(self.store(), &key).await?;
        found
            .filter(|(record, _)| !record.removed)
            .ok_or(AuthorityError::UnknownLogin)
    }

    /// Whether the login with this certificate is good. Where it takes another's place, that has followed now:
    /// its owner has what was made for it.
    pub(crate) async fn admit_login(&self, serial: &str) -> Result<(), AuthorityError> {
        let (mut record, revision) = self.good_login(serial).await?;
        let Some(before) = record.replaces.take() else {
            return Ok(());
        };
        let key = format!("{}{serial}", store_schema::LOGIN);
        let mut txn = Txn::new()
            .when(key.clone(), Expected::Revision(revision))
            .put(key, store_schema::encode(&record));
        let key = format!("{}{before}", store_schema::LOGIN);
        if let Some((mut before, revision)) =
            store_schema::read::<LoginRecord>(self.store(), &key).await?
        {
            before.followed = true;
            txn = txn
                .when(key.clone(), Expected::Revision(revision))
                .put(key, store_schema::encode(&before));
        }
        match self.store().commit(txn).await {
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A whole login for somebody on this very machine, to a hub that they reach at this address. It takes the
    /// place of the one before; where this hub `is_running`, that one works until the next.
    pub(crate) async fn local_login(
        &self,
        name: &AdminName,
        valid: Duration,
        hub: String,
        is_running: bool,
    ) -> Result<Login, AuthorityError> {
        let key = Key::generate()?;
        let before = self.logins().await?;
        let mut made = self.make_login(name, &key.request()?, valid, HUB, None)?;
        made.record.local = true;
        let mut txn = made.put(self.without_ended_logins().await?);
        // Those of before say so by their names alone.
        let is_local = |record: &LoginRecord| {
            record.local || (record.by == HUB && record.name == name.to_string())
        };
        let mut older: Vec<_> = before
            .iter()
            .filter(|(_, record)| is_local(record))
            .collect();
        older.sort_by_key(|(_, record)| record.issued);
        if is_running {
            // The newest of them is in the file until this one takes its place, and a command may just read it.
            older.pop();
        }
        for (serial, _) in older {
            txn = txn.delete(format!("{}{serial}", store_schema::LOGIN));
        }
        let txn = audited(txn, HUB, format!("login for {name}"));
        self.store().commit(txn).await?;
        Ok(Login {
            hub,
            name: name.to_string(),
            ca: made.trust,
            certificate: made.certificate,
            key: key.to_pem(),
        })
    }
}
