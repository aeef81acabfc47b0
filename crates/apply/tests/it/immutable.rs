//! Changes of immutable fields.

use std::sync::Arc;

use kube::api::{Patch, PatchParams};
use muster_apply::{ObjectState, Observed};
use muster_model::ids::{ContentHash, Generation};
use muster_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::fixture::{
    Applied, Fixture, LONG, bundle, config_map, definition, making, namespace, object, stored,
};

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
        .settle(stored(1, vec![bundle("a", &ns, &objects(first))]))
        .await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", &ns, &objects(second))]))
        .await;
    let state = object(&observed, of).state;
    applied.applier.stop().await;
    match state {
        ObjectState::Failed(message) | ObjectState::Approval { why: message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_immutable_field_is_changed_by_a_new_object() {
    let fixture = Fixture::new("replace").await;
    let mut applied = fixture.start().await;
    let objects = |image| [namespace("replace-a"), job(image)];
    applied
        .settle(stored(1, vec![bundle("a", "replace-a", &objects("one:1"))]))
        .await;
    let old = fixture.get("batch/v1", "Job", "replace-a", "work").await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", "replace-a", &objects("two:2"))]))
        .await;
    assert_eq!(
        object(&observed, "Job.batch replace-a/work").state,
        ObjectState::Applied
    );
    let new = fixture.get("batch/v1", "Job", "replace-a", "work").await;
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
    assert_eq!(
        new["spec"]["template"]["spec"]["containers"][0]["image"],
        "two:2"
    );
    // The copy of the old object is deleted once it is no longer needed.
    let secrets = fixture.api("v1", "Secret", Some(&fixture.config.namespace));
    eventually("the copy is deleted", LONG, async || {
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
async fn an_object_is_restored_if_its_replacement_is_refused_after_all() {
    let fixture = Fixture::new("putback").await;
    // The dry run before the recreation uses another name, so this policy does not match it.
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
        .settle(stored(1, vec![bundle("a", "putback-a", &objects("one:1"))]))
        .await;
    let jobs = fixture.api("batch/v1", "Job", Some("putback-a"));
    eventually("the policy is enforced", LONG, async || {
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
        .settle(stored(2, vec![bundle("a", "putback-a", &objects("two:2"))]))
        .await;
    let ObjectState::Failed(message) = object(&observed, "Job.batch putback-a/work").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains("two is not allowed") && message.contains("was restored"),
        "{message}"
    );
    let back = fixture.get("batch/v1", "Job", "putback-a", "work").await;
    assert_eq!(
        back["spec"]["template"]["spec"]["containers"][0]["image"],
        "one:1"
    );

    // It is not deleted again for the same content.
    applied.until(|observed| {
        let state = object(observed, "Job.batch putback-a/work").state;
        matches!(state, ObjectState::Failed(message) if message.contains("change the app to try again"))
    })
    .await;
    let same = fixture.get("batch/v1", "Job", "putback-a", "work").await;
    assert_eq!(same["metadata"]["uid"], back["metadata"]["uid"]);
    applied.applier.stop().await;
}

fn claim(mode: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": size}}},
    })
}

#[tokio::test]
async fn what_holds_data_is_not_recreated() {
    let fixture = Fixture::new("claim").await;
    let of = "PersistentVolumeClaim claim-a/data";
    let message = failure(
        &fixture,
        claim("ReadWriteOnce", "1Gi"),
        claim("ReadWriteMany", "1Gi"),
        of,
    )
    .await;
    assert!(
        message.contains("muster.dev/recreate: enabled"),
        "{message}"
    );
    let live = fixture
        .get("v1", "PersistentVolumeClaim", "claim-a", "data")
        .await;
    assert_eq!(live["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    // The message of the API server says what can be changed.
    assert!(
        message.contains("spec is immutable after creation except resources.requests"),
        "{message}"
    );
}

#[tokio::test]
async fn a_claim_that_can_not_shrink_says_so_in_the_api_servers_words() {
    let fixture = Fixture::new("shrink").await;
    let desired = |number, size| {
        let objects = [namespace("shrink-a"), claim("ReadWriteOnce", size)];
        stored(number, vec![bundle("a", "shrink-a", &objects)])
    };
    let mut applied = fixture.start().await;
    applied.settle(desired(1, "10Gi")).await;
    let claims = fixture.api("v1", "PersistentVolumeClaim", Some("shrink-a"));
    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}});
    claims
        .patch_status("data", &PatchParams::default(), &Patch::Merge(&bound))
        .await
        .unwrap();
    let of = "PersistentVolumeClaim shrink-a/data";
    let message = failed(&mut applied, desired(2, "5Gi"), of).await;
    assert!(
        message.contains("spec.resources.requests.storage")
            && message.contains("field can not be less than"),
        "{message}"
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_annotation_forbids_the_recreation() {
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

/// Applies a generation and returns the message of an object that failed or needs an approval.
async fn failed(applied: &mut Applied, stored: muster_apply::StoredGeneration, of: &str) -> String {
    let observed = applied.settle(stored).await;
    match object(&observed, of).state {
        ObjectState::Failed(message) | ObjectState::Approval { why: message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_custom_resource_is_recreated_only_where_a_person_says_so() {
    let fixture = Fixture::new("celonly").await;
    let group = "celonly.example";
    let taught = frozen_definition(group);
    let database = |engine: &str| {
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "Foo",
            "metadata": {"name": "database", "finalizers": ["celonly.example/backup"]},
            "spec": {"engine": engine},
        })
    };
    let desired = |number, engine: &str| {
        let objects = [taught.clone(), namespace("celonly-a"), database(engine)];
        stored(number, vec![bundle("a", "celonly-a", &objects)])
    };
    let of = format!("Foo.{group} celonly-a/database");
    let mut applied = fixture.start().await;
    applied.settle(desired(1, "postgres")).await;
    let api_version = format!("{group}/v1");
    let get = async || {
        fixture
            .get(&api_version, "Foo", "celonly-a", "database")
            .await
    };
    let old = get().await;
    let message = failed(&mut applied, desired(2, "mysql"), &of).await;
    for part in [
        "spec.engine can't be changed: engine is immutable; ",
        "would lose what the cluster or its controller stores for it (it was created at ",
        "celonly.example/backup clean up",
        "muster.dev/recreate: enabled",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(get().await["metadata"]["uid"], old["metadata"]["uid"]);

    // A person allows the recreation on the live object, and then its controller removes the finalizer.
    let patch = json!({"metadata": {"annotations": {"muster.dev/recreate": "enabled"}}});
    let at = ("celonly-a", "database");
    fixture
        .edit_as("kubectl-annotate", &api_version, "Foo", at, &patch)
        .await;
    eventually("the old object is being deleted", LONG, async || {
        anyhow::ensure!(!get().await["metadata"]["deletionTimestamp"].is_null());
        Ok(())
    })
    .await
    .unwrap();
    let patch = json!({"metadata": {"finalizers": null}});
    fixture
        .edit_as("controller", &api_version, "Foo", at, &patch)
        .await;
    let observed = applied
        .until(|observed| object(observed, &of).state == ObjectState::Applied)
        .await;
    let new = get().await;
    assert_eq!(new["spec"]["engine"], "mysql");
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
    // The permission for the old object does not apply to the new one.
    assert!(
        new["metadata"]["annotations"]
            .get("muster.dev/recreate")
            .is_none()
    );
    let drifts = &observed.bundles[0].drifts;
    assert!(drifts.iter().any(|drift| drift.recreated), "{drifts:?}");
    let events = fixture.api("events.k8s.io/v1", "Event", Some("celonly-a"));
    eventually("an Event reports the recreation", LONG, async || {
        let all = events.list(&kube::api::ListParams::default()).await?;
        anyhow::ensure!(all.iter().any(|event| {
            event.data["reason"] == "Recreated"
                && event.data["regarding"]["uid"] == new["metadata"]["uid"]
        }));
        Ok(())
    })
    .await
    .unwrap();
    // Remove the finalizer, so that it does not prevent a later deletion.
    fixture
        .edit_as("controller", &api_version, "Foo", at, &patch)
        .await;
    applied.applier.stop().await;
}

/// Returns a definition with an immutable field `spec.engine`.
fn frozen_definition(group: &str) -> Value {
    let mut taught = definition(group, "Namespaced");
    taught["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] = json!({
        "engine": {"type": "string", "x-kubernetes-validations": [
            {"rule": "self == oldSelf", "message": "engine is immutable"},
        ]},
    });
    taught
}

#[tokio::test]
async fn a_recreation_waits_for_the_approval_of_what_was_shown() {
    let fixture = Fixture::new("asked").await;
    let group = "asked.example";
    let desired = |number, engine: &str, approved: &[ContentHash]| {
        let database = json!({
            "apiVersion": format!("{group}/v1"), "kind": "Foo",
            "metadata": {"name": "database", "finalizers": ["asked.example/backup"]},
            "spec": {"engine": engine},
        });
        let objects = [frozen_definition(group), namespace("asked-a"), database];
        let mut stored = stored(number, vec![bundle("a", "asked-a", &objects)]);
        stored.prune.approved.extend(approved);
        stored.hash = ContentHash::of(format!("{} {approved:?}", stored.hash).as_bytes());
        stored
    };
    let of = format!("Foo.{group} asked-a/database");
    let api_version = format!("{group}/v1");
    let get = async || {
        let live = fixture
            .get(&api_version, "Foo", "asked-a", "database")
            .await;
        let engine = live["spec"]["engine"].as_str().unwrap().to_owned();
        (live["metadata"]["uid"].clone(), engine)
    };
    let mut applied = fixture.start().await;
    applied.settle(desired(1, "postgres", &[])).await;
    let (old, _) = get().await;
    let shown = |observed: Arc<Observed>| {
        let [pending_approval] = &observed.pending_approvals[..] else {
            panic!("{observed:#?}");
        };
        assert!(pending_approval.recreate && pending_approval.app.as_str() == "a");
        assert_eq!(pending_approval.objects[0].to_string(), of);
        assert!(
            pending_approval.reason.contains("would lose what"),
            "{}",
            pending_approval.reason
        );
        pending_approval.set
    };
    let mysql = shown(applied.settle(desired(2, "mysql", &[])).await);
    // The hash is the same in a new process, and different for other content.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    assert_eq!(shown(applied.settle(desired(2, "mysql", &[])).await), mysql);
    let oracle = shown(applied.settle(desired(3, "oracle", &[mysql])).await);
    assert_ne!(oracle, mysql);
    assert_eq!(get().await, (old.clone(), "postgres".to_owned()));

    applied
        .applier
        .set_desired(Arc::new(desired(4, "mysql", &[mysql])));
    eventually("the old object is being deleted", LONG, async || {
        let live = fixture
            .get(&api_version, "Foo", "asked-a", "database")
            .await;
        anyhow::ensure!(!live["metadata"]["deletionTimestamp"].is_null());
        Ok(())
    })
    .await
    .unwrap();
    // The controller has not removed the finalizer yet. The next generation no longer has the approval, since the
    // recreation has begun.
    applied
        .applier
        .set_desired(Arc::new(desired(5, "mysql", &[])));
    let observed = applied
        .until(|o| {
            o.generation
                .is_some_and(|(number, _)| number == Generation(5))
        })
        .await;
    assert_eq!(observed.pending_approvals, []);
    let let_go = json!({"metadata": {"finalizers": null}});
    let at = ("asked-a", "database");
    fixture
        .edit_as("controller", &api_version, "Foo", at, &let_go)
        .await;
    let observed = applied
        .until(|o| object(o, &of).state == ObjectState::Applied)
        .await;
    assert_eq!(observed.pending_approvals, []);
    let (new, engine) = get().await;
    assert_eq!(engine, "mysql");
    assert_ne!(new, old);
    // Approvals for the old object do not apply to the new one.
    let again = shown(applied.settle(desired(6, "oracle", &[mysql, oracle])).await);
    assert_ne!(again, oracle);
    assert_eq!(get().await, (new, "mysql".to_owned()));
    // No approval is needed if nothing changes.
    let observed = applied.settle(desired(7, "mysql", &[])).await;
    assert_eq!(observed.pending_approvals, []);
    // Remove the finalizer, so that it does not prevent a later deletion.
    fixture
        .edit_as("controller", &api_version, "Foo", at, &let_go)
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_muster_never_applied_is_not_recreated_unasked() {
    let fixture = Fixture::new("foreign").await;
    fixture.create(&namespace("foreign-a")).await;
    let deployment = |label: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "foreign-a"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"a": label}},
                "template": {
                    "metadata": {"labels": {"a": label}},
                    "spec": {"containers": [{"name": "c", "image": "x:1"}]},
                },
            },
        })
    };
    fixture.create(&deployment("old")).await;
    let get = async || {
        let live = fixture
            .get("apps/v1", "Deployment", "foreign-a", "web")
            .await;
        live["metadata"]["uid"].clone()
    };
    let old = get().await;
    let desired = |number, object: Value| {
        let making = making("a", "foreign-a")
            .policy(|policy| policy.conflicts = muster_model::policy::Conflicts::Take);
        stored(number, vec![making.of(&[object])])
    };
    let of = "Deployment.apps foreign-a/web";
    let mut applied = fixture.start().await;
    let message = failed(&mut applied, desired(1, deployment("new")), of).await;
    assert!(message.contains("somebody else created it"), "{message}");
    assert_eq!(get().await, old);

    // Once Muster has applied the existing Deployment, it may recreate it, because a Deployment holds no data.
    applied.settle(desired(2, deployment("old"))).await;
    applied.settle(desired(3, deployment("new"))).await;
    assert_ne!(get().await, old);

    // An annotation in Git allows the recreation of an object that Muster never applied.
    let mut allowed = deployment("newest");
    allowed["metadata"]["annotations"] = json!({"muster.dev/recreate": "enabled"});
    allowed["metadata"]["name"] = json!("other");
    let mut other = deployment("old");
    other["metadata"]["name"] = json!("other");
    fixture.create(&other).await;
    let observed = applied.settle(desired(4, allowed)).await;
    assert_eq!(
        object(&observed, "Deployment.apps foreign-a/other").state,
        ObjectState::Applied
    );
    applied.applier.stop().await;
}
