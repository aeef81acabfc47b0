//! Least privilege: each rule of the agent's chart is removed in turn. Only what needs the rule then fails, with a
//! message, and everything works again once the rule is back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Secret},
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use kube::{
    Api, Client, Discovery,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    process::Process,
    repository::{self, document},
    tools::Program,
    wait::eventually,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const CLUSTERS: [(&str, &str); 1] = [("one", "west")];
const NAMESPACE: &str = "muster-system";
/// One object of every kind that an agent may write under the profile `platform`.
const EVERYTHING: &str = include_str!("rights.yaml");
/// The app's only template in the test of the profile `namespaced`.
const ONE: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: rights}\ndata: {n: \"{{ values.n }}\"}\n";

/// A fleet whose agent has only the rights that the chart grants.
struct Rights {
    fleet: Fleet,
    client: Client,
    kubeconfig: PathBuf,
    commits: usize,
}

impl Rights {
    /// Starts a hub with one app in the namespace `rights`, and applies the chart's objects with these values.
    async fn start(template: &str, values: &[&str]) -> anyhow::Result<Self> {
        let options = FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &CLUSTERS);
        let mut fleet = Fleet::start(options).await?;
        let mut files = repository::fleet("rights", "{}", CLUSTERS);
        let spec = "{tier: basic, mode: active-active, namespace: rights}";
        files.extend([
            (
                "apps/rights/app.yaml".to_owned(),
                document("App", "rights", spec),
            ),
            ("apps/rights/values.yaml".to_owned(), "n: 0\n".to_owned()),
            (
                "apps/rights/templates/all.yaml".to_owned(),
                template.to_owned(),
            ),
        ]);
        fleet.repo().publish("begin", &repository::listed(&files))?;
        fleet.start_hub().await?;
        let admin = fleet.clusters()["one"].kubeconfig_path();
        let rendered = rendered(values)?;
        kubectl(&admin, &["create", "namespace", NAMESPACE], "")?;
        kubectl(&admin, &["create", "namespace", "rights"], "")?;
        kubectl(&admin, &["apply", "-f", "-"], &rendered)?;
        let client = fleet.clusters()["one"].client().await?;
        let kubeconfig = fleet.directory().join("agent.kubeconfig");
        let account = fleet.clusters()["one"].account(NAMESPACE, "muster-agent");
        let text = serde_yaml::to_string(&account.await?)?;
        std::fs::write(&kubeconfig, text)?;
        Ok(Self {
            fleet,
            client,
            kubeconfig,
            commits: 0,
        })
    }

    fn commit(&mut self) -> anyhow::Result<usize> {
        self.commits += 1;
        let values = format!("n: {}\n", self.commits);
        let file = ("apps/rights/values.yaml", values.as_str());
        self.fleet
            .repo()
            .publish(&self.commits.to_string(), &[file])?;
        Ok(self.commits)
    }

    /// Starts an agent that joins with a new token.
    fn join(&self, arguments: &[&str]) -> anyhow::Result<Process> {
        let token = self.fleet.run(&["cluster", "join-token", "one"])?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .args(["agent", "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("MUSTER_JOIN_TOKEN", token.trim())
            .env("MUSTER_LOG", "muster_apply=debug,info");
        let log = self
            .fleet
            .directory()
            .join(format!("agent-{}.log", self.commits));
        Process::spawn("agent", command, &log)
    }

    /// Waits until exactly these kinds have failed because a right is missing, and all other objects are applied.
    async fn until_fail(&self, wanted: &BTreeSet<String>) -> anyhow::Result<()> {
        eventually(&format!("only {wanted:?} to fail"), LONG, async || {
            let mut failed = BTreeSet::new();
            for object in self.objects()? {
                if object["state"] == "Applied" {
                    continue;
                }
                let said = object["message"].as_str().unwrap_or_default();
                ensure!(
                    object["state"] == "Failed" && said.contains("forbidden"),
                    "{object}"
                );
                failed.insert(kind(&object));
            }
            ensure!(failed == *wanted, "{failed:?}");
            Ok(())
        })
        .await
    }

    /// Waits until this commit is applied and no object fails.
    async fn until_applied(&self, commit: usize) -> anyhow::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "rights");
        eventually(
            &format!("commit {commit} to be applied"),
            LONG,
            async || {
                let data = maps.get("rights").await?.data.unwrap_or_default();
                ensure!(data.get("n") == Some(&commit.to_string()), "{data:?}");
                Ok(())
            },
        )
        .await?;
        self.until_fail(&BTreeSet::new()).await
    }

    /// Changes an object by hand, and waits until the change is reverted.
    async fn drift(&self) -> anyhow::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "rights");
        let drift = Patch::Merge(json!({"data": {"n": "by hand"}}));
        maps.patch("rights", &PatchParams::default(), &drift)
            .await?;
        self.until_applied(self.commits).await
    }

    fn objects(&self) -> anyhow::Result<Vec<Value>> {
        let listed = self.fleet.run(&["get", "objects", "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        let objects = listed["objects"]
            .as_array()
            .context("the output has no list of objects")?
            .clone();
        ensure!(!objects.is_empty(), "{listed}");
        Ok(objects)
    }

    /// Returns the kinds of the app's objects (`group/Kind`), by `group/resource`.
    async fn resources(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let discovery = Discovery::new(self.client.clone()).run_aggregated().await?;
        let known: BTreeMap<String, String> = discovery
            .groups()
            .flat_map(|group| group.recommended_resources())
            .map(|(resource, _)| {
                let kind = format!("{}/{}", resource.group, resource.kind);
                (kind, format!("{}/{}", resource.group, resource.plural))
            })
            .collect();
        let objects = self.objects()?.into_iter().map(|object| {
            let kind = kind(&object);
            let resource = known
                .get(&kind)
                .with_context(|| format!("the cluster serves no resource for {kind}"))?;
            Ok((resource.clone(), kind))
        });
        objects.collect()
    }
}

/// Returns an object's kind as `group/Kind`.
fn kind(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    format!("{group}/{}", object["kind"].as_str().unwrap_or_default())
}

/// Returns the chart's ServiceAccount, roles and bindings, rendered with these values.
fn rendered(values: &[&str]) -> anyhow::Result<String> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/muster-agent");
    let mut helm = Command::new(Program::Helm.build()?);
    helm.args(["template", "muster-agent"]).arg(chart);
    helm.args(["--namespace", NAMESPACE]);
    for part in ["rbac", "rbac-own", "serviceaccount"] {
        helm.args(["--show-only", &format!("templates/{part}.yaml")]);
    }
    for value in values {
        helm.args(["--set", value]);
    }
    let output = helm.output().context("cannot run helm")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn kubectl(kubeconfig: &Path, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut kubectl = Command::new(Program::Kubectl.build()?);
    kubectl.arg("--kubeconfig").arg(kubeconfig).args(arguments);
    let piped = kubectl.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = piped.stderr(Stdio::piped()).spawn()?;
    child
        .stdin
        .take()
        .context("kubectl has no standard input")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Returns all rules except the one at this index.
fn without(rules: &[PolicyRule], left_out: usize) -> Vec<PolicyRule> {
    let mut rules = rules.to_vec();
    rules.remove(left_out);
    rules
}

/// Replaces the rules of a role.
async fn set<K>(roles: &Api<K>, name: &str, rules: &[PolicyRule]) -> anyhow::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let rules = Patch::Merge(json!({ "rules": rules }));
    roles.patch(name, &PatchParams::default(), &rules).await?;
    Ok(())
}

fn resources_of(rule: &PolicyRule) -> impl Iterator<Item = String> {
    let groups = rule.api_groups.iter().flatten();
    groups.flat_map(|group| {
        let resources = rule.resources.iter().flatten();
        resources.map(move |resource| format!("{group}/{resource}"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_for_what_an_agent_applies_is_needed_by_its_kinds_and_no_others()
-> anyhow::Result<()> {
    let mut rights = Rights::start(EVERYTHING, &[]).await?;
    let agent = rights.join(&[])?;
    rights.until_applied(0).await?;
    let kinds = rights.resources().await?;
    let roles: Api<ClusterRole> = Api::all(rights.client.clone());
    let name = "muster-system-muster-agent-platform";
    let rules = roles
        .get(name)
        .await?
        .rules
        .context("the role has no rules")?;
    let mut tried = BTreeSet::new();
    for (number, rule) in rules.iter().enumerate() {
        let resources: Vec<String> = resources_of(rule).collect();
        set(&roles, name, &without(&rules, number)).await?;
        if resources == ["events.k8s.io/events"] {
            rights.drift().await?;
            said(&agent, &["no event could be published", "forbidden"]).await?;
        } else {
            let concerned: BTreeSet<String> = match rule.verbs.iter().any(|verb| verb == "bind") {
                true => ["ClusterRole", "ClusterRoleBinding"]
                    .map(|kind| format!("rbac.authorization.k8s.io/{kind}"))
                    .into(),
                false => resources
                    .iter()
                    .map(|resource| {
                        let kind = kinds.get(resource).cloned();
                        kind.with_context(|| format!("no object needs the right to {resource}"))
                    })
                    .collect::<anyhow::Result<_>>()?,
            };
            rights.commit()?;
            let failed = rights.until_fail(&concerned).await;
            failed.with_context(|| format!("without {rule:?}: {}", agent.tail()))?;
            tried.extend(concerned);
        }
        set(&roles, name, &rules).await?;
        let commit = rights.commit()?;
        let back = rights.until_applied(commit).await;
        back.with_context(|| format!("with {rule:?} again: {}", agent.tail()))?;
    }
    let all: BTreeSet<String> = kinds.into_values().collect();
    assert_eq!(tried, all, "some kinds were not tested");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_for_an_agents_own_records_is_needed() -> anyhow::Result<()> {
    // In the profile `namespaced` no other role grants the same rights.
    let values = ["rbac.profile=namespaced", "rbac.namespaces={rights}"];
    let mut rights = Rights::start(ONE, &values).await?;
    let roles: Api<Role> = Api::namespaced(rights.client.clone(), NAMESPACE);
    let name = "muster-agent-own";
    let rules = roles
        .get(name)
        .await?
        .rules
        .context("the role has no rules")?;
    for (number, rule) in rules.iter().enumerate() {
        forget(&rights.client).await?;
        let commit = rights.commit()?;
        set(&roles, name, &without(&rules, number)).await?;
        let agent = rights.join(&["--namespaces", "rights"])?;
        let resource = rule
            .resources
            .iter()
            .flatten()
            .next()
            .context("the rule has no resource")?;
        let refused = said(&agent, &["forbidden", resource]).await;
        refused.with_context(|| format!("without {rule:?}"))?;
        set(&roles, name, &rules).await?;
        let agent = match agent.exited()? {
            None => agent,
            Some(_) => rights.join(&["--namespaces", "rights"])?,
        };
        let back = rights.until_applied(commit).await;
        back.with_context(|| format!("with {rule:?} again: {}", agent.tail()))?;
        ensure!(agent.stop(LONG)?.success(), "{}", agent.tail());
    }
    Ok(())
}

/// Waits until one line of the agent's log contains all of these words.
async fn said(agent: &Process, words: &[&str]) -> anyhow::Result<()> {
    eventually(&format!("the agent to log {words:?}"), LONG, async || {
        let log = std::fs::read_to_string(agent.log())?;
        let mut lines = log.lines();
        let said = lines.any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(said, "{}", agent.tail());
        Ok(())
    })
    .await
}

/// Deletes all records that an agent has stored, as if no agent had ever run.
async fn forget(client: &Client) -> anyhow::Result<()> {
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    leases.delete_collection(&delete, &all).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets.delete_collection(&delete, &all).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    maps.delete_collection(&delete, &all).await?;
    Ok(())
}
