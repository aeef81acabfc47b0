//! `muster hub backup` and `muster hub restore`.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;

use crate::{client, output::print};

/// The first bytes of a file that is encrypted with age.
const AGE: &[u8] = b"age-encryption.org/v1";

/// The arguments of `muster hub backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The backup file to write; `-` for standard output.
    file: PathBuf,
    /// Encrypt the backup for this age recipient (age1…); can be repeated.
    #[arg(
        long = "recipient",
        value_name = "AGE1…",
        value_delimiter = ',',
        env = "MUSTER_BACKUP_RECIPIENTS"
    )]
    recipients: Vec<String>,
    /// The directory of the hub's state.
    #[arg(long, value_name = "DIR", env = "MUSTER_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

/// The arguments of `muster hub restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup file to read; `-` for standard input.
    file: PathBuf,
    /// A file with the age identity for an encrypted backup, as written by `age-keygen`.
    #[arg(long, value_name = "FILE", env = "MUSTER_BACKUP_IDENTITY_FILE")]
    identity: Option<PathBuf>,
    /// The directory of the hub's state.
    #[arg(long, value_name = "DIR", env = "MUSTER_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

/// Returns true if a file name stands for standard input or output.
pub(crate) fn is_stream(file: &Path) -> bool {
    file == Path::new("-")
}

/// Writes a backup, even while the hub runs.
pub(crate) fn backup(args: &BackupArgs) -> anyhow::Result<()> {
    let store = client::store_file(args.state_dir.clone())?;
    let recipients = recipients(&args.recipients)?;
    let failed = || format!("can't back up {}", store.display());
    let kept = match recipients.is_empty() {
        true => "It contains the private key of the fleet's CA: keep it secret.",
        false => "It is encrypted; only an identity of one of its recipients can restore it.",
    };
    if is_stream(&args.file) {
        let to = &mut io::stdout().lock();
        match recipients.is_empty() {
            true => muster_store::backup_to(&store, to).with_context(failed)?,
            false => encrypted(&store, to, &recipients).with_context(failed)?,
        }
        anstream::eprintln!("wrote a backup of {}. {kept}", store.display());
        return Ok(());
    }
    match recipients.is_empty() {
        true => muster_store::backup(&store, &args.file).with_context(failed)?,
        false => encrypted_file(&store, &args.file, &recipients).with_context(failed)?,
    }
    print(&format!(
        "{}: a backup of {}. {kept}\n",
        args.file.display(),
        store.display()
    ));
    Ok(())
}

/// Parses the recipients that a backup is encrypted for.
fn recipients(texts: &[String]) -> anyhow::Result<Vec<age::x25519::Recipient>> {
    let texts = texts.iter().map(|text| text.trim());
    let texts = texts.filter(|text| !text.is_empty());
    texts
        .map(|text| {
            let recipient = text.parse::<age::x25519::Recipient>();
            recipient.map_err(|why| anyhow::anyhow!("{text:?} is not an age recipient: {why}"))
        })
        .collect()
}

/// Writes an encrypted backup to a writer.
fn encrypted(
    store: &Path,
    to: &mut impl Write,
    recipients: &[age::x25519::Recipient],
) -> anyhow::Result<()> {
    let recipients = recipients.iter().map(|one| one as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients)?;
    let mut writer = encryptor.wrap_output(to)?;
    muster_store::backup_to(store, &mut writer)?;
    writer.finish()?.flush()?;
    Ok(())
}

/// Writes an encrypted backup to a new file that only its owner can read. On an error, no file is left.
fn encrypted_file(
    store: &Path,
    to: &Path,
    recipients: &[age::x25519::Recipient],
) -> anyhow::Result<()> {
    if to.exists() {
        bail!("{} exists already; name another file", to.display());
    }
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let failed = || format!("can't write to {}", folder.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    encrypted(store, file.as_file_mut(), recipients)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist_noclobber(to).with_context(failed)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(failed)
}

/// Replaces the hub's state with a backup, while no hub runs.
pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let RestoreArgs {
        file,
        identity,
        state_dir,
    } = args;
    let store = client::store_file(state_dir.clone())?;
    let from = match is_stream(file) {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let restored = match is_stream(file) {
        true => restore_from(io::stdin().lock(), identity.as_deref(), &store),
        false if is_encrypted(file)? => File::open(file)
            .map_err(anyhow::Error::from)
            .and_then(|backup| restore_from(backup, identity.as_deref(), &store)),
        // The file may also be another hub's store. Opening it by its path includes the -wal file beside it.
        false => muster_store::restore(file, &store).map_err(anyhow::Error::from),
    };
    let restored =
        restored.with_context(|| format!("can't restore {from}; the hub's state is unchanged"))?;
    print(&format!("restored {} from {from}\n", store.display()));
    if let Some(kept) = restored.kept {
        print(&format!("the previous state is in {}\n", kept.display()));
    }
    Ok(())
}

fn is_encrypted(file: &Path) -> anyhow::Result<bool> {
    let failed = || format!("can't read {}", file.display());
    let file = File::open(file).with_context(failed)?;
    let mut first = Vec::with_capacity(AGE.len());
    let first_bytes = file.take(AGE.len() as u64).read_to_end(&mut first);
    first_bytes.with_context(failed)?;
    Ok(first == AGE)
}

fn restore_from(
    mut from: impl Read,
    identity: Option<&Path>,
    store: &Path,
) -> anyhow::Result<muster_store::Restored> {
    let mut first = Vec::with_capacity(AGE.len());
    (&mut from).take(AGE.len() as u64).read_to_end(&mut first)?;
    let is_encrypted = first == AGE;
    let mut all = first.as_slice().chain(from);
    if !is_encrypted {
        return Ok(muster_store::restore_from(&mut all, store)?);
    }
    let Some(identity) = identity else {
        bail!("the backup is encrypted; use --identity to name the file with the age identity");
    };
    let failed = || format!("{} is not a file of age identities", identity.display());
    let identities = age::IdentityFile::from_file(identity.display().to_string());
    let identities = identities.with_context(failed)?;
    let identities = identities.into_identities().with_context(failed)?;
    let decryptor = age::Decryptor::new_buffered(BufReader::new(all))?;
    let identities = identities
        .iter()
        .map(|one| one.as_ref() as &dyn age::Identity);
    let mut plain = decryptor.decrypt(identities)?;
    Ok(muster_store::restore_from(&mut plain, store)?)
}
