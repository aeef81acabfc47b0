//! A new agent starts beside a running one, as in a rolling update of the Deployment. It becomes ready once it has
//! shown, without writing anything, that it can do the work. It takes over as soon as the old agent ends. A new agent
//! that is broken changes nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions, get},
    ports,
    process::Process,
    repository::{self, document},
    wait::eventually,
};

const LONG: Duration = Duration::from_secs(60);
/// The longest time from the old agent's end until the new one leads.
const TAKEN_OVER: Duration = Duration::from_secs(3);
const CLUSTERS: [(&str, &str); 1] = [("one", "west")];

const TEMPLATE: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: {{ app.name }}, namespace: default}
data: {n: \"{{ values.n }}\"}
";

/// A fleet of one cluster with two apps.
pub(crate) struct Rolling {
    pub(crate) fleet: Fleet,
    pub(crate) client: Client,
}

/// An agent that runs beside the leading one.
pub(crate) struct Beside {
    pub(crate) process: Process,
    http: String,
}

impl Rolling {
    /// Starts hub and agent, and waits until commit 1 is applied.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut rolling = Self::prepare().await?;
        rolling.fleet.start_hub().await?;
        rolling.fleet.start_agents()?;
        rolling.until_applied(1).await?;
        Ok(rolling)
    }

    /// Publishes commit 1, but starts neither hub nor agent.
    pub(crate) async fn prepare() -> anyhow::Result<Self> {
        let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
        let fleet = Fleet::start(options).await?;
        let mut files = repository::fleet("rolling", "{}", CLUSTERS);
        for app in ["still", "moving"] {
            let spec = "{tier: basic, mode: active-active}";
            let file = |path: &str, text: String| (format!("apps/{app}/{path}"), text);
            files.extend([
                file("app.yaml", document("App", app, spec)),
                file("values.yaml", "n: 1\n".to_owned()),
                file("templates/map.yaml", TEMPLATE.to_owned()),
            ]);
        }
        fleet.repo().publish("1", &repository::listed(&files))?;
        let client = fleet.clusters()["one"].client().await?;
        Ok(Self { fleet, client })
    }

    pub(crate) async fn until_applied(&self, commit: usize) -> anyhow::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "default");
        eventually(
            &format!("commit {commit} to be applied"),
            LONG,
            async || {
                let data = maps.get("moving").await?.data.unwrap_or_default();
                ensure!(data.get("n") == Some(&commit.to_string()), "{data:?}");
                Ok(())
            },
        )
        .await
    }

    /// Publishes a commit that changes one of the apps, and waits until it is applied.
    pub(crate) async fn commit(&self, number: usize) -> anyhow::Result<()> {
        let values = format!("n: {number}\n");
        let file = ("apps/moving/values.yaml", values.as_str());
        self.fleet.repo().publish(&number.to_string(), &[file])?;
        self.until_applied(number).await
    }

    /// Returns the holder of the agents' Lease.
    pub(crate) async fn leader(&self) -> anyhow::Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "muster-system");
        let spec = leases.get("muster-agent").await?.spec.unwrap_or_default();
        spec.holder_identity.context("nobody holds the Lease")
    }

    /// Starts one more agent, with these arguments.
    pub(crate) fn beside(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<Beside> {
        let http = format!("127.0.0.1:{}", ports::free()?);
        let mut command = self.fleet.agent_command("one")?;
        command.args(["--http", &http]).args(arguments);
        let log = self.fleet.directory().join(format!("{name}.log"));
        let process = Process::spawn(name, command, &log)?;
        Ok(Beside { process, http })
    }
}

impl Beside {
    /// Waits until the readiness probe answers with this status code and text.
    pub(crate) async fn until(&self, code: &str, text: &str) -> anyhow::Result<()> {
        eventually(
            &format!("the readiness probe to say {text}"),
            LONG,
            async || {
                self.process.check()?;
                let page = get(&self.http, "/readyz").await?;
                let there = page.starts_with(&format!("HTTP/1.1 {code}")) && page.contains(text);
                ensure!(there, "{page}");
                Ok(())
            },
        )
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_is_ready_beside_the_old_one_and_takes_over_when_that_ends()
-> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    let old = rolling.leader().await?;
    let new = rolling.beside("new", &[])?;
    new.until("200", "agent: ok").await?;
    ensure!(rolling.leader().await? == old);
    rolling.commit(2).await?;
    new.until("200", "agent: ok").await?;
    ensure!(
        rolling.leader().await? == old,
        "the new agent leads already"
    );
    rolling.fleet.run(&["status", "--wait"])?;

    rolling.fleet.stop_agent("one")?;
    let ended = Instant::now();
    eventually("the new agent to lead", TAKEN_OVER, async || {
        let leader = rolling.leader().await?;
        ensure!(leader != old, "{leader}");
        Ok(())
    })
    .await?;
    println!("the new agent leads after {:?}", ended.elapsed());
    rolling.commit(3).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    new.until("200", "agent: ok").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_is_ready_though_the_hub_is_away() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    rolling.fleet.stop_hub()?;
    let new = rolling.beside("new", &[])?;
    new.until("200", "agent: ok").await?;
    rolling.fleet.stop_agent("one")?;
    rolling.fleet.start_hub().await?;
    rolling.commit(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_agent_is_never_ready_and_the_old_one_goes_on() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    let old = rolling.leader().await?;

    // An agent that its hub refuses: this hub belongs to another fleet, which has another CA.
    let none = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &[]);
    let mut other = Fleet::start(none).await?;
    let files = repository::fleet("other", "{}", CLUSTERS);
    other.repo().publish("1", &repository::listed(&files))?;
    other.start_hub().await?;
    let login = std::fs::read_to_string(other.login())?;
    let hub = login.lines().find_map(|line| line.strip_prefix("hub: "));
    let refused = rolling.beside(
        "refused",
        &["--hub", hub.context("the login names no hub")?],
    )?;
    let said = "don't accept each other's certificates";
    refused.until("503", said).await?;
    rolling.commit(2).await?;
    refused.until("503", said).await?;
    ensure!(
        refused
            .process
            .tail()
            .contains("not ready to take the lead")
    );
    ensure!(refused.process.stop(LONG)?.success());

    // An agent that can't read the stored records, because the bytes of a bundle are damaged.
    let secrets: Api<Secret> = Api::namespaced(rolling.client.clone(), "muster-system");
    let pieces = ListParams::default().labels("muster.dev/bundle");
    for piece in secrets.list(&pieces).await? {
        let name = piece
            .metadata
            .name
            .clone()
            .context("the Secret has no name")?;
        let mut damaged = piece;
        damaged.metadata.resource_version = None;
        damaged.metadata.uid = None;
        for bytes in damaged.data.iter_mut().flat_map(|data| data.values_mut()) {
            bytes.0 = b"not what it was".to_vec();
        }
        secrets.delete(&name, &DeleteParams::default()).await?;
        secrets.create(&PostParams::default(), &damaged).await?;
    }
    let damaged = rolling.beside("damaged", &[])?;
    damaged.until("503", "is missing or damaged").await?;
    rolling.commit(3).await?;
    damaged.until("503", "is missing or damaged").await?;
    ensure!(
        rolling.leader().await? == old,
        "the old agent no longer leads"
    );
    rolling.fleet.agent("one")?.check()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_that_would_leave_alone_what_is_applied_is_not_ready() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    let old = rolling.leader().await?;
    let narrow = rolling.beside("narrow", &["--deny-namespaces=default"])?;
    narrow
        .until("503", "could no longer manage ConfigMap default/moving")
        .await?;
    rolling.commit(2).await?;
    ensure!(rolling.leader().await? == old);
    Ok(())
}
