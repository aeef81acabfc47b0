//! Tests a machine whose clock is wrong when its hub starts, and right later. The clock belongs to the process, so this
//! test has its own process.

use std::time::Duration;

use anyhow::ensure;
use muster_agent::dial;
use muster_git::RemoteConfig;
use muster_hub::HubConfig;
use muster_pki::{Login, clock};
use muster_proto::v1::{self, admin_client::AdminClient};
use muster_runtime::shutdown::Shutdown;
use muster_testkit::{
    gitserver::GitRepo,
    repository::{self, listed},
    wait::eventually,
};
use muster_worker::Program;

const DAY: i64 = 24 * 60 * 60;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_made_under_a_wrong_clock_is_replaced() -> anyhow::Result<()> {
    let repo = GitRepo::new()?;
    let files = repository::fleet("clock", "{}", [("one", "west")]);
    repo.publish("begin", &listed(&files))?;
    let state = tempfile::tempdir()?;
    let url = repo.path().to_string_lossy().into_owned();
    let config = HubConfig::local(
        RemoteConfig::new(url.parse()?),
        state.path().to_owned(),
        Program {
            program: env!("CARGO_BIN_EXE_render-worker").into(),
            args: Vec::new(),
        },
    );
    let path = config.login_path();
    let status = async || {
        let login = Login::read(&path)?;
        let (trust, credentials) = login.open()?;
        let channel = dial(&login.hub, &trust, Some(&credentials)).await?;
        let mut admin = AdminClient::new(channel);
        let status = admin.get_status(v1::StatusRequest::default()).await?;
        ensure!(status.into_inner().clusters.len() == 1);
        Ok(())
    };

    clock::put_off(-30 * DAY);
    let shutdown = Shutdown::new();
    let hub = tokio::spawn(muster_hub::run(config.clone(), shutdown.clone(), |_| {}));
    let long = Duration::from_secs(60);
    eventually("the hub of last month", long, status).await?;
    // The hub's certificate and the login for this machine expired weeks ago.
    clock::put_off(0);
    status().await.expect_err("an expired login is still valid");
    eventually("the hub of today", long, status).await?;
    // The clock is set back again, so the certificate and the login become valid only in the future.
    clock::put_off(-30 * DAY);
    eventually("the hub of last month again", long, status).await?;
    shutdown.begin();
    hub.await??;
    Ok(())
}
