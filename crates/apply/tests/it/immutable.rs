//! Fields that can't be changed.

use kube::api::{Patch, PatchParams};
use muster_apply::Standing;
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, config_map, kept, namespace, object};

fn job(image: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "work", "image": image}],
        }}},
    })
}

async fn failure(fixture: &Fixture, first: Value, second: Value, of: &str) -> String {
    let ns = format!("{}-a", fixture.name);
    let mut applied = fixture.start().await;
    let objects = |object| [namespace(&ns), object, config_map("other", "1")];
    applied
        .settle(kept(1, vec![bundle("a", &ns, &objects(first))]))
        .await;
    let observed = applied
        .settle(kept(2, vec![bundle("a", &ns, &objects(second))]))
        .await;
    let standing = object(&observed, of).standing;
    applied.applier.stop().await;
    match standing {
        Standing::Failed(message) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_immutable_field_is_changed_by_a_new_object() {
    let fixture = Fixture::new("replace").await;
    let mut applied = fixture.start().await;
    let objects = |image| [namespace("replace-a"), job(image)];
    applied
        .settle(kept(1, vec![bundle("a", "replace-a", &objects("one:1"))]))
        .await;
    let old = fixture.get("batch/v1", "Job", "replace-a", "work").await;
    let observed = applied
        .settle(kept(2, vec![bundle("a", "replace-a", &objects("two:2"))]))
        .await;
    assert_eq!(
        object(&observed, "Job.batch replace-a/work").standing,
        Standing::Applied
    );
    let new = fixture.get("batch/v1", "Job", "replace-a", "work").await;
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
    assert_eq!(
        new["spec"]["template"]["spec"]["containers"][0]["image"],
        "two:2"
    );
    // The copy is not kept longer than it is needed.
    let secrets = fixture.api("v1", "Secret", Some(&fixture.config.namespace));
    eventually("the copy is gone", LONG, async || {
        let list = secrets.list(&kube::api::ListParams::default()).await?;
        let left = list.iter().filter_map(|s| s.metadata.name.as_deref());
        anyhow::ensure!(
            !left
                .into_iter()
                .any(|name| name.starts_with("muster-recreating-"))
        );
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_object_is_not_deleted_for_one_that_would_be_refused() {
    let fixture = Fixture::new("proof").await;
    let mut bad = job("two:2");
    bad["spec"]["template"]["spec"]["restartPolicy"] = json!("Sometimes");
    let message = failure(&fixture, job("one:1"), bad, "Job.batch proof-a/work").await;
    assert!(message.contains("restartPolicy"), "{message}");
    let live = fixture.get("batch/v1", "Job", "proof-a", "work").await;
    assert_eq!(
        live["spec"]["template"]["spec"]["containers"][0]["image"],
        "one:1"
    );
}

#[tokio::test]
async fn an_object_is_put_back_where_its_replacement_is_refused_after_all() {
    let fixture = Fixture::new("putback").await;
    // The proof has another name, so that this policy does not see it.
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "putback.example"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"],
            }]},
            "matchConditions": [{"name": "this", "expression": "request.namespace == 'putback-a' && request.name == 'work'"}],
            "validations": [{
                "expression": "object.spec.template.spec.containers[0].image != 'two:2'",
                "message": "two is not allowed",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "putback.example"},
        "spec": {"policyName": "putback.example", "validationActions": ["Deny"]},
    });
    for (kind, object) in [
        ("ValidatingAdmissionPolicy", policy),
        ("ValidatingAdmissionPolicyBinding", binding),
    ] {
        let api = fixture.api("admissionregistration.k8s.io/v1", kind, None);
        let params = PatchParams::apply("test").force();
        api.patch("putback.example", &params, &Patch::Apply(&object))
            .await
            .unwrap();
    }
    let mut applied = fixture.start().await;
    let objects = |image| [namespace("putback-a"), job(image)];
    applied
        .settle(kept(1, vec![bundle("a", "putback-a", &objects("one:1"))]))
        .await;
    let jobs = fixture.api("batch/v1", "Job", Some("putback-a"));
    eventually("the policy is in force", LONG, async || {
        let mut probe = job("two:2");
        probe["metadata"]["name"] = json!("work");
        let params = kube::api::PostParams {
            dry_run: true,
            ..Default::default()
        };
        let answer = jobs.create(&params, &serde_json::from_value(probe)?).await;
        anyhow::ensure!(
            answer.is_err_and(|error| error.to_string().contains("two is not allowed"))
        );
        Ok(())
    })
    .await
    .unwrap();

    let observed = applied
        .settle(kept(2, vec![bundle("a", "putback-a", &objects("two:2"))]))
        .await;
    let Standing::Failed(message) = object(&observed, "Job.batch putback-a/work").standing else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains("two is not allowed") && message.contains("was put back"),
        "{message}"
    );
    let back = fixture.get("batch/v1", "Job", "putback-a", "work").await;
    assert_eq!(
        back["spec"]["template"]["spec"]["containers"][0]["image"],
        "one:1"
    );

    // It is not deleted again and again for the same content.
    applied.until(|observed| {
        let standing = object(observed, "Job.batch putback-a/work").standing;
        matches!(standing, Standing::Failed(message) if message.contains("change the app to try again"))
    })
    .await;
    let same = fixture.get("batch/v1", "Job", "putback-a", "work").await;
    assert_eq!(same["metadata"]["uid"], back["metadata"]["uid"]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_holds_data_is_not_recreated() {
    let fixture = Fixture::new("claim").await;
    let claim = |mode: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
        })
    };
    let of = "PersistentVolumeClaim claim-a/data";
    let message = failure(&fixture, claim("ReadWriteOnce"), claim("ReadWriteMany"), of).await;
    assert!(
        message.contains("muster.dev/recreate: enabled"),
        "{message}"
    );
    let live = fixture
        .get("v1", "PersistentVolumeClaim", "claim-a", "data")
        .await;
    assert_eq!(live["spec"]["accessModes"], json!(["ReadWriteOnce"]));
}

#[tokio::test]
async fn an_annotation_forbids_to_recreate() {
    let fixture = Fixture::new("forbid").await;
    let annotated = |image| {
        let mut job = job(image);
        job["metadata"]["annotations"] = json!({"muster.dev/recreate": "disabled"});
        job
    };
    let message = failure(
        &fixture,
        annotated("one:1"),
        annotated("two:2"),
        "Job.batch forbid-a/work",
    )
    .await;
    assert!(message.contains("forbids"), "{message}");
}
