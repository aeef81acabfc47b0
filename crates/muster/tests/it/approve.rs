//! `muster app approve` as people and scripts run it, against a real hub. The test plays the agent, which
//! reports the deletions that are pending approval.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use muster_agent::dial;
use muster_git::RemoteConfig;
use muster_hub::HubConfig;
use muster_model::ids::ContentHash;
use muster_pki::{Credentials, JoinToken, Key, TrustBundle};
use muster_proto::{
    PROTOCOL_VERSION,
    v1::{self, agents_client::AgentsClient, enrolment_client::EnrolmentClient},
};
use muster_runtime::shutdown::Shutdown;
use muster_testkit::{gitserver::GitRepo, wait::eventually};
use muster_worker::Program;
use tokio::{
    process::Command,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How long a report may take to appear in the status, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

/// A hub with one cluster and one app that runs in this process. Commands against it run as processes.
struct Hub {
    login: PathBuf,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), muster_hub::HubError>>,
}

impl Hub {
    async fn start(repo: &GitRepo, state: &Path) -> anyhow::Result<Self> {
        let remote = repo
            .path()
            .to_str()
            .context("the path is not UTF-8")?
            .parse()?;
        let config = HubConfig::local(
            RemoteConfig::new(remote),
            state.to_owned(),
            Program {
                program: env!("CARGO_BIN_EXE_muster").into(),
                args: vec!["render-worker".to_owned()],
            },
        );
        let login = config.login_path();
        let shutdown = Shutdown::new();
        let (started, starting) = oneshot::channel();
        let running = tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                let tell = |_: &muster_hub::Addresses| {
                    // Nobody receives this if the test has ended.
                    let _ = started.send(());
                };
                muster_hub::run(config, shutdown, tell).await
            }
        });
        starting.await?;
        Ok(Self {
            login,
            shutdown,
            running,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.begin();
        Ok(self.running.await??)
    }

    /// Runs a command without a terminal.
    async fn muster(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(arguments)
            .arg("--login")
            .arg(&self.login)
            .stdin(Stdio::null())
            .output();
        Ok(output.await?)
    }

    /// Runs a command, and returns its output, errors and exit code as one text.
    async fn told(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.muster(arguments).await?;
        let code = output
            .status
            .code()
            .context("the command was ended by a signal")?;
        let (out, err) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        );
        Ok(format!("{out}{err}exit {code}"))
    }

    /// Waits until the status contains this text.
    async fn until(&self, said: &str) -> anyhow::Result<()> {
        let waiting = eventually(said, SOON, async || {
            let status = self.muster(&["status", "-o", "json"]).await?;
            let status = String::from_utf8(status.stdout)?;
            ensure!(status.contains(said), "{status}");
            Ok(())
        });
        waiting.await
    }
}

/// An agent whose every message is sent by the test.
struct Agent {
    say: mpsc::Sender<v1::AgentMessage>,
    hear: Streaming<v1::HubMessage>,
}

impl Agent {
    async fn join(hub: &Hub) -> anyhow::Result<Self> {
        let token = hub.muster(&["cluster", "join-token", "eu-1"]).await?;
        let token: JoinToken = String::from_utf8(token.stdout)?.trim().parse()?;
        let key = Key::generate()?;
        let request = v1::EnrolRequest {
            token: token.secret.expose(),
            csr: key.request()?,
        };
        let channel = dial(&token.hub, &token.trust, None).await?;
        let granted = EnrolmentClient::new(channel).enrol(request).await?;
        let granted = granted.into_inner();
        let trust = TrustBundle::from_pem(&granted.trust)?;
        let credentials = Credentials::new(&granted.certificate, key)?;
        let channel = dial(&token.hub, &trust, Some(&credentials)).await?;
        let (say, messages) = mpsc::channel(4);
        let hello = v1::Hello {
            protocol: PROTOCOL_VERSION,
            cluster: "eu-1".to_owned(),
            ..v1::Hello::default()
        };
        let message = Some(v1::agent_message::Message::Hello(hello));
        say.send(v1::AgentMessage { message }).await?;
        let hear = AgentsClient::new(channel)
            .follow(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self { say, hear })
    }

    async fn generation(&mut self) -> anyhow::Result<v1::Generation> {
        loop {
            let message = self.hear.message().await?.context("the stream has ended")?;
            if let Some(v1::hub_message::Message::Generation(generation)) = message.message {
                return Ok(generation);
            }
        }
    }

    /// Reports that app `web` is applied as in this generation, and which of its deletions are pending approval.
    async fn report(
        &self,
        of: Option<&v1::Generation>,
        holds: Vec<v1::Hold>,
    ) -> anyhow::Result<()> {
        let hash = of.and_then(|of| Some(of.bundles.first()?.hash.clone()));
        let app = v1::AppReport {
            app: "web".to_owned(),
            hash: hash.unwrap_or_default(),
            phase: v1::Phase::Applied.into(),
            objects: 1,
            applied: 1,
            health: "Healthy".to_owned(),
            holds,
            ..v1::AppReport::default()
        };
        let report = v1::Report {
            generation: of.map_or(0, |of| of.number),
            content: of.map_or_else(Vec::new, |of| of.content.clone()),
            apps: vec![app],
            full: true,
            settled: true,
            ..v1::Report::default()
        };
        let message = Some(v1::agent_message::Message::Report(report));
        Ok(self.say.send(v1::AgentMessage { message }).await?)
    }
}

fn hold(name: &str) -> v1::Hold {
    v1::Hold {
        set: ContentHash::of(name.as_bytes()).0.to_vec(),
        reason: "2 of 3 objects would be deleted, and the budget is 1".to_owned(),
        objects: vec![
            format!("ConfigMap web/{name}"),
            "Service web/old".to_owned(),
        ],
        count: 2,
        recreate: false,
    }
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

fn repository() -> anyhow::Result<GitRepo> {
    let place = "location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.3}";
    let files = [
        ("fleet.yaml", document("Fleet", "harbour", "")),
        ("tiers.yaml", document("Tier", "gold", "rpo: 1m, rto: 15m")),
        ("regions/eu/region.yaml", document("Region", "eu", place)),
        ("regions/eu/eu-1.yaml", document("Cluster", "eu-1", "")),
        (
            "apps/web/app.yaml",
            document("App", "web", "tier: gold, mode: active-active"),
        ),
        (
            "apps/web/manifests/web.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n".to_owned(),
        ),
    ];
    let files: Vec<_> = files
        .iter()
        .map(|(path, text)| (*path, text.as_str()))
        .collect();
    let repo = GitRepo::new()?;
    repo.publish("the fleet", &files)?;
    Ok(repo)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_is_approved_and_nothing_else() -> anyhow::Result<()> {
    let (repo, state) = (repository()?, tempfile::tempdir()?);
    let hub = Hub::start(&repo, state.path()).await?;
    let mut agent = Agent::join(&hub).await?;
    let first = agent.generation().await?;
    agent.report(Some(&first), vec![]).await?;
    hub.until(r#""state": "synced""#).await?;
    insta::assert_snapshot!(hub.told(&["app", "approve", "web"]).await?, @r"
    nothing of web is pending approval
    exit 1
    ");
    insta::assert_snapshot!(hub.told(&["app", "approve", "wob"]).await?, @r"
    error: there is no app `wob`; did you mean `web`?
    exit 1
    ");

    agent.report(Some(&first), vec![hold("shards")]).await?;
    hub.until("ConfigMap web/shards").await?;
    let approve = ["app", "approve", "web", "--cluster", "eu-1"];
    let with = |more: &[&'static str]| [&approve, more].concat();
    insta::assert_snapshot!(hub.told(&with(&["--dry-run"])).await?, @r"
    web: 2 objects in eu-1 would be deleted
      pending approval because 2 of 3 objects would be deleted, and the budget is 1
        ConfigMap web/shards
        Service web/old
    exit 0
    ");
    // Without a terminal, the command can't ask for a confirmation.
    insta::assert_snapshot!(hub.told(&approve).await?, @r"
    web: 2 objects in eu-1 would be deleted
      pending approval because 2 of 3 objects would be deleted, and the budget is 1
        ConfigMap web/shards
        Service web/old
    error: this deletes objects, and there is no terminal to ask for confirmation; check with --dry-run, then use --yes
    exit 1
    ");
    let reason = with(&["--yes", "--reason", "they moved"]);
    insta::assert_snapshot!(hub.told(&reason).await?, @r"
    web: 2 objects in eu-1 would be deleted
      pending approval because 2 of 3 objects would be deleted, and the budget is 1
        ConfigMap web/shards
        Service web/old
    eu-1: approved, 2 objects
    exit 0
    ");
    let second = agent.generation().await?;
    let orders = second.prune_orders()?;
    assert_eq!(orders.approved, [ContentHash::of(b"shards")].into());
    assert_eq!((second.number, &second.bundles), (2, &first.bundles));

    // This report is not about the newest generation, so nothing is approved.
    agent.report(None, vec![hold("others")]).await?;
    hub.until("ConfigMap web/others").await?;
    insta::assert_snapshot!(hub.told(&with(&["-y"])).await?, @r"
    web: 2 objects in eu-1 would be deleted
      pending approval because 2 of 3 objects would be deleted, and the budget is 1
        ConfigMap web/others
        Service web/old
    error: eu-1: cluster eu-1 has not reported on its newest generation yet; look again in a moment
    exit 1
    ");
    let refused = hub.muster(&with(&["-y", "-o", "json"])).await?;
    assert_eq!(refused.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8(refused.stdout)?, @r#"
    {
      "app": "web",
      "holds": [
        {
          "cluster": "eu-1",
          "count": 2,
          "objects": [
            "ConfigMap web/others",
            "Service web/old"
          ],
          "reason": "2 of 3 objects would be deleted, and the budget is 1",
          "recreate": false,
          "refusal": "cluster eu-1 has not reported on its newest generation yet; look again in a moment",
          "set": "b74704c68d46f34f478089588176f325407e6dc4aa7096e3fef9910ce9b41282",
          "verdict": "refused"
        }
      ]
    }
    "#);

    agent.report(Some(&second), vec![]).await?;
    hub.until(r#""state": "synced""#).await?;
    insta::assert_snapshot!(hub.told(&approve).await?, @r"
    nothing of web is pending approval
    exit 1
    ");
    hub.stop().await
}
