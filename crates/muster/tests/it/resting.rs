//! An agent that can't renew its Lease writes nothing, because another agent may lead soon. It keeps reporting what it
//! observes, and resumes its work once it can renew the Lease.

use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding as Binding,
    },
    coordination::v1::Lease,
    core::v1::ConfigMap,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use muster_testkit::wait::eventually;
use serde_json::{from_value, json};

use crate::rolling::Rolling;

const LONG: Duration = Duration::from_secs(150);
const POLICY: &str = "nobody-leads";

/// Makes the API server refuse to renew the Lease for these holders (a CEL expression), as an API server whose store
/// is full refuses every write.
async fn refuse(client: &Client, holders: &str) -> anyhow::Result<()> {
    let policy = json!({
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["coordination.k8s.io"], "apiVersions": ["v1"],
                "operations": ["UPDATE"], "resources": ["leases"],
            }]},
            "validations": [{
                "expression": format!("object.metadata.name != 'muster-agent' || !({holders})"),
                "message": "no space left",
            }],
        },
    });
    let binding = json!({
        "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    });
    let create = PostParams::default();
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    policies.create(&create, &from_value(policy)?).await?;
    let bindings: Api<Binding> = Api::all(client.clone());
    bindings.create(&create, &from_value(binding)?).await?;
    Ok(())
}

/// Waits until the cluster is connected and its status contains all of these words.
pub(crate) async fn says(rolling: &Rolling, words: &[&str]) -> anyhow::Result<()> {
    eventually(
        &format!("the status to contain {words:?}"),
        LONG,
        async || {
            let cluster = rolling.fleet.status()?["clusters"][0].clone();
            let text = cluster.to_string();
            let all = words.iter().all(|word| text.contains(word));
            ensure!(all && cluster["connected"] == true, "{text}");
            Ok(())
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_renew_its_lease_changes_nothing_and_says_why() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    refuse(&rolling.client, "true").await?;
    says(&rolling, &["can't renew its Lease", "no space left"]).await?;

    let maps: Api<ConfigMap> = Api::namespaced(rolling.client.clone(), "default");
    let drift = Patch::Merge(json!({"data": {"n": "by hand"}}));
    maps.patch("still", &PatchParams::default(), &drift).await?;
    let values = [("apps/moving/values.yaml", "n: 2\n")];
    let commit = rolling.fleet.repo().publish("2", &values)?;
    eventually("the hub to offer the commit", LONG, async || {
        let status = rolling.fleet.status()?;
        let seen = status["repo"]["commit"] == commit.as_str() && status["synced"] == false;
        ensure!(seen, "{status}");
        Ok(())
    })
    .await?;
    // Writes that must not happen can only be ruled out by watching for some time.
    for _ in 0..20 {
        for (name, n) in [("still", "by hand"), ("moving", "1")] {
            let data = maps.get(name).await?.data.unwrap_or_default();
            ensure!(
                data.get("n").is_some_and(|now| now == n),
                "{name}: {data:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let policies: Api<Binding> = Api::all(rolling.client.clone());
    policies.delete(POLICY, &DeleteParams::default()).await?;
    rolling.until_applied(2).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    let data = maps.get("still").await?.data.unwrap_or_default();
    ensure!(data.get("n").is_some_and(|now| now == "1"), "{data:?}");
    rolling.fleet.agent("one")?.check()?;
    rolling.fleet.stop_agent("one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_ends_when_another_has_taken_the_lead() -> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    let old = rolling.leader().await?;
    let new = rolling.beside("new", &[])?;
    new.until("200", "agent: ok").await?;
    refuse(
        &rolling.client,
        &format!("object.spec.holderIdentity == '{old}'"),
    )
    .await?;
    says(&rolling, &["can't renew its Lease"]).await?;
    eventually("the new agent to lead", LONG, async || {
        let leader = rolling.leader().await?;
        ensure!(leader != old, "{leader}");
        Ok(())
    })
    .await?;
    let ended = rolling.fleet.agent("one")?.wait(LONG)?;
    let tail = rolling.fleet.agent("one")?.tail();
    ensure!(
        ended.is_some() && tail.contains("another agent has taken the lead"),
        "{tail}"
    );
    rolling.commit(2).await?;
    new.process.check()?;
    rolling.fleet.run(&["status", "--wait"])?;
    Ok(())
}

/// A tool that writes to the Lease without becoming its holder, for example to label it, does not end the agent's lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_keeps_the_lead_when_others_write_its_lease() -> anyhow::Result<()> {
    let rolling = Rolling::start().await?;
    let leases: Api<Lease> = Api::namespaced(rolling.client.clone(), "muster-system");
    let before = leases.get("muster-agent").await?;
    // The agent renews every 5 s; each of these writes can come between its read and its write of the Lease.
    let until = Instant::now() + Duration::from_secs(20);
    let mut writes = 0;
    while Instant::now() < until {
        writes += 1;
        let patch = json!({"metadata": {"annotations": {"example.org/seen": writes.to_string()}}});
        let patch = Patch::Merge(patch);
        leases
            .patch("muster-agent", &PatchParams::default(), &patch)
            .await?;
    }
    let after = leases.get("muster-agent").await?;
    let (before, after) = (
        before.spec.unwrap_or_default(),
        after.spec.unwrap_or_default(),
    );
    ensure!(before.holder_identity == after.holder_identity);
    ensure!(
        after.renew_time > before.renew_time && writes > 100,
        "no renewal during {writes} writes, or too few writes"
    );
    rolling.commit(2).await?;
    rolling.fleet.agent("one")?.check()?;
    Ok(())
}
