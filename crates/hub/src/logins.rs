//! The logins of people and scripts.

use std::time::Duration;

use muster_pki::{AdminName, Certified, Identity, Key, Login, clock};
use muster_store::{CommitError, Expected, Txn};

use crate::{
    authority::{Authority, AuthorityError, HUB},
    removals::Names,
    store_schema::{self, LoginRecord, RecordError, audited, now, seconds},
};

/// A new login that is not in the store yet, and therefore not valid yet.
pub(crate) struct Made {
    /// The certificate, in PEM.
    pub(crate) certificate: String,
    /// The CAs to trust, in PEM.
    pub(crate) trust: String,
    serial: String,
    record: LoginRecord,
}

impl Made {
    /// Adds the login to the transaction, which makes it valid.
    pub(crate) fn put(&self, txn: Txn) -> Txn {
        let key = format!("{}{}", store_schema::LOGIN, self.serial);
        txn.put(key, store_schema::encode(&self.record))
    }
}

impl Authority {
    /// Creates a login for a person or script. Returns its certificate and the CAs to trust.
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

    /// Creates a login. `replaces` is the serial number of the login that it replaces, if any.
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

    /// Returns a transaction that deletes logins that expired over a day ago.
    async fn without_ended_logins(&self) -> Result<Txn, AuthorityError> {
        let mut txn = Txn::new();
        for (serial, ended) in self.logins().await? {
            if ended.expires + 86_400 < now() {
                txn = txn.delete(format!("{}{serial}", store_schema::LOGIN));
            }
        }
        Ok(txn)
    }

    /// Returns a transaction whose commit conflicts if a login moves to a new CA or is removed meanwhile.
    pub(crate) async fn login_turn(&self) -> Result<Txn, AuthorityError> {
        let key = store_schema::LOGIN_TURNS.to_owned();
        Ok(store_schema::turn(self.store(), Txn::new(), key).await?)
    }

    /// Returns every login with the serial number of its certificate.
    pub(crate) async fn logins(&self) -> Result<Vec<(String, LoginRecord)>, AuthorityError> {
        let kept = self.store().range(store_schema::LOGIN).await;
        let mut logins = Vec::new();
        for (key, versioned) in kept.map_err(RecordError::from)? {
            let record = store_schema::decode(&key, &versioned)?;
            logins.push((key[store_schema::LOGIN.len()..].to_owned(), record));
        }
        Ok(logins)
    }

    /// Removes every login of this name, and returns their number.
    pub(crate) async fn remove_logins(
        &self,
        name: &AdminName,
        who: &str,
    ) -> Result<u32, AuthorityError> {
        loop {
            match self.try_to_remove_logins(name, who).await {
                // One of them moved to a new CA just now: try again.
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
            let what = format!("every login of {name} was removed");
            self.store().commit(audited(txn, who, what)).await?;
        }
        Ok(u32::try_from(logins.len()).unwrap_or(u32::MAX))
    }

    /// Returns the record and revision of a login that exists and was not removed.
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

    /// Checks that the login with this certificate is valid. If it replaces another login, that one is marked as
    /// followed, because its owner has evidently received the new one.
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

    /// Creates the complete login for people on the hub's own machine, who reach the hub at this address. It replaces
    /// the earlier ones. If this hub `is_running`, the previous one stays valid until the next replacement.
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
        // Records of older versions lack the flag, and are recognized by their creator and name.
        let is_local = |record: &LoginRecord| {
            record.local || (record.by == HUB && record.name == name.to_string())
        };
        let mut older: Vec<_> = before
            .iter()
            .filter(|(_, record)| is_local(record))
            .collect();
        older.sort_by_key(|(_, record)| record.issued);
        if is_running {
            // The newest of them is in the file until this one replaces it, and a command may be reading it right now.
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
