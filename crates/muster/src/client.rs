//! The command line's connection to the hub, and the login that it uses.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, anyhow};
use etcetera::BaseStrategy as _;
use muster_hub::{LOGIN_FILE, STORE_FILE};
use muster_pki::{Key, Login};
use muster_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::Channel;

/// A client for the hub's Admin service.
pub(crate) type Client = AdminClient<Channel>;

/// The largest message to accept in bytes. The status of a large fleet is a large message.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Returns the default directory for a hub's state.
pub(crate) fn default_state_dir() -> anyhow::Result<PathBuf> {
    let base =
        etcetera::choose_base_strategy().context("there is no home directory; use --state-dir")?;
    let state = base.state_dir().unwrap_or_else(|| base.data_dir());
    Ok(state.join("muster").join("hub"))
}

/// Returns the path of the user's own login file.
fn login_path() -> anyhow::Result<PathBuf> {
    let base =
        etcetera::choose_base_strategy().context("there is no home directory; use --login")?;
    Ok(base.config_dir().join("muster").join("login.yaml"))
}

/// Finds the login file to use: the one that was named, the user's own, or that of a hub on this machine.
fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let own = login_path()?;
    if own.exists() {
        return Ok(own);
    }
    let local = default_state_dir()?.join(LOGIN_FILE);
    if local.exists() {
        return Ok(local);
    }
    Err(anyhow!(
        "there is no login in {} or {}; create one with `muster hub admin NAME --out FILE` on the hub's \
         machine and log in with `muster login FILE`, or use --login",
        own.display(),
        local.display()
    ))
}

/// Connects to the hub that the login names.
pub(crate) async fn connect(named: Option<&Path>) -> anyhow::Result<Client> {
    let path = find(named)?;
    let login = Login::read(&path)?;
    let (trust, credentials) = login.open().context("the login can't be used")?;
    let channel = muster_agent::dial(&login.hub, &trust, Some(&credentials)).await;
    let channel = channel.context(
        "can't reach the hub; check that it runs and that its address in the login is right",
    )?;
    let client = AdminClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    if is_to_be_looked_at(&path)
        && let Err(error) = follow(client.clone(), login, &path).await
    {
        anstream::eprintln!(
            "note: the fleet's CA is being replaced, and the login in {} did not get a new certificate: {error:#}",
            path.display()
        );
    }
    Ok(client)
}

/// The interval at which a login checks whether the fleet's CA has changed.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Returns true if it is time to check again for a new CA. The login file's modification time marks the last check.
fn is_to_be_looked_at(path: &Path) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= LOOK_EVERY))
}

/// Gets a new certificate for a login if the fleet's CA has changed.
async fn follow(mut client: Client, login: Login, path: &Path) -> anyhow::Result<()> {
    let answer = client.follow_ca(v1::FollowCaRequest::default()).await;
    let needed = match answer {
        Ok(answer) => answer.into_inner().needed,
        // The error is ignored: if the hub can't be reached, the command itself fails, and an older hub does not
        // know this call.
        Err(_) => false,
    };
    if !needed {
        // The modification time delays the next check. If it can't be set, the next command checks again.
        let file = std::fs::File::options().append(true).open(path);
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(());
    }
    let key = Key::generate()?;
    let csr = key.request()?;
    let answer = client.follow_ca(v1::FollowCaRequest { csr }).await;
    let answer = answer.map_err(crate::admin::said)?.into_inner();
    if !answer.needed {
        return Ok(());
    }
    // Another command may write the file at the same time; either result works.
    let followed = match answer.certificate.is_empty() {
        true => Login {
            ca: answer.trust,
            ..login
        },
        false => Login {
            certificate: answer.certificate,
            ca: answer.trust,
            key: key.to_pem(),
            ..login
        },
    };
    followed.open()?;
    followed.write(path)?;
    Ok(())
}

/// Runs `muster login FILE`: stores a login as the user's own.
pub(crate) fn login(file: &Path) -> anyhow::Result<()> {
    let login = Login::read(file)?;
    login.open().context("the login can't be used")?;
    let path = login_path()?;
    login.write(&path)?;
    crate::output::print(&format!(
        "logged in to {} as {} ({})\n",
        login.hub,
        login.name,
        path.display()
    ));
    Ok(())
}

/// Returns the path of the store in a state directory.
pub(crate) fn store_file(state_dir: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    Ok(match state_dir {
        Some(dir) => dir,
        None => default_state_dir()?,
    }
    .join(STORE_FILE))
}
