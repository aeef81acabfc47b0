//! A property test with objects of every built-in kind: whatever people and controllers do to the objects, and
//! however often the applier is restarted, the objects end up as in Git, and none that stays in Git is ever deleted.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
};
use muster_apply::StoredGeneration;
use muster_model::{policy::Conflicts, scopes::is_namespaced};
use muster_plan::people::is_persons;
use muster_testkit::{tools::Program, wait::eventually};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

use crate::fixture::{Fixture, cluster, making, namespace, stored};

const CASES: u32 = 6;

/// Kinds that the test leaves out, each with the reason.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        "events.k8s.io/v1 Event",
        "it is the same object as the v1 Event",
    ),
    (
        "networking.k8s.io/v1 IPAddress",
        "the API server deletes every IPAddress that belongs to no Service",
    ),
    (
        "networking.k8s.io/v1 ServiceCIDR",
        "any Service in the cluster may get an address from it, which then prevents its deletion",
    ),
];

/// A certificate signing request whose private key no longer exists.
const REQUEST: &str = concat!(
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlITU1ITUNBUUF3RVRFUE1BMEdBMVVFQXd3R2JtOW",
    "liMlI1TUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowRApBUWNEUWdBRWpaRDAzVStWS2xvMzcxN1VWUmcxSk82ZlZw",
    "b3owYW5zSklFbDJET1dxNERGcERGWndQRjI3cVJGCmhZZnEweWordHlhWEt0d0NmNitJY3g0RUdVMWhiNkFBTUFvR0",
    "NDcUdTTTQ5QkFNQ0Ewa0FNRVlDSVFDVGZOU0oKb3d0WndVb2U5OEVqNzJ2Y1V6d0pUdDN6R25ZaXBLMS9rNFk5aFFJ",
    "aEFNMjBvRzhWSUJrcWtCK2EvT3lncDBaMQpsc0ErcCthS3B1bUMzbXRVc2FhRQotLS0tLUVORCBDRVJUSUZJQ0FURS",
    "BSRVFVRVNULS0tLS0K",
);

/// An object of one kind, and a field of it that is either absent or has one of two values.
struct Sample {
    api_version: &'static str,
    kind: &'static str,
    object: Value,
    field: &'static str,
    values: [Value; 2],
}

fn sample(of: &'static str, object: Value, field: &'static str, values: [Value; 2]) -> Sample {
    let (api_version, kind) = of.split_once(' ').unwrap();
    Sample {
        api_version,
        kind,
        object,
        field,
        values,
    }
}

/// Returns a sample that varies an annotation instead of a field of its kind.
fn noted(of: &'static str, object: Value) -> Sample {
    sample(
        of,
        object,
        "/metadata/annotations/note",
        ["1", "2"].map(Value::from),
    )
}

fn samples() -> Vec<Sample> {
    let texts = || ["x", "y"].map(Value::from);
    let numbers = || [5, 7].map(Value::from);
    let flags = |value: bool| [value, value].map(Value::from);
    let pod = || json!({"containers": [{"name": "c", "image": "x:1"}], "terminationGracePeriodSeconds": 0});
    let template = || json!({"metadata": {"labels": {"a": "b"}}, "spec": pod()});
    let workload = || json!({"spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template()}});
    let daemon = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template()}});
    let job = || {
        let mut pod = pod();
        pod["restartPolicy"] = json!("Never");
        json!({"template": {"spec": pod}})
    };
    let rule =
        |verb: &str| json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": [verb]}]);
    let rules = || [rule("get"), rule("list")];
    let user = |name: &str| json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]);
    let users = || [user("ada"), user("bob")];
    let role = |kind: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "none"}});
    // No object has this label, so the webhooks and policies never match.
    let nobody = json!({"matchLabels": {"muster.example/nobody": "1"}});
    let hook = json!({"webhooks": [{
        "name": "a.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://localhost:1/"}, "objectSelector": nobody,
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }]});
    let constraints = json!({
        "objectSelector": nobody,
        "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    });
    let claim =
        json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "none"}}]}});
    let scaled = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "none"});
    vec![
        sample(
            "v1 ConfigMap",
            json!({"data": {"a": "1"}}),
            "/data/b",
            texts(),
        ),
        sample(
            "v1 Secret",
            json!({"stringData": {"a": "1"}}),
            "/stringData/b",
            texts(),
        ),
        sample(
            "v1 ServiceAccount",
            json!({}),
            "/automountServiceAccountToken",
            flags(false),
        ),
        sample(
            "v1 Service",
            json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}),
            "/spec/sessionAffinity",
            ["ClientIP", "ClientIP"].map(Value::from),
        ),
        noted(
            "v1 Endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]}),
        ),
        noted(
            "v1 Event",
            json!({"involvedObject": {"kind": "Pod", "name": "none"}, "reason": "None", "message": "none"}),
        ),
        noted(
            "v1 LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "4"}}]}}),
        ),
        sample(
            "v1 ResourceQuota",
            json!({"spec": {"hard": {"count/a.example.org": "5"}}}),
            "/spec/hard/count~1b.example.org",
            texts().map(|_| json!("5")),
        ),
        noted("v1 Namespace", json!({})),
        noted("v1 Node", json!({"spec": {"unschedulable": true}})),
        noted(
            "v1 PersistentVolume",
            json!({"spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "storageClassName": "none",
            }}),
        ),
        noted(
            "v1 PersistentVolumeClaim",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "nothing",
            }}),
        ),
        noted("v1 Pod", json!({"spec": pod()})),
        noted("v1 PodTemplate", json!({"template": template()})),
        sample(
            "v1 ReplicationController",
            json!({"spec": {"replicas": 1, "selector": {"a": "b"}, "template": template()}}),
            "/spec/minReadySeconds",
            numbers(),
        ),
        sample(
            "apps/v1 Deployment",
            workload(),
            "/spec/minReadySeconds",
            numbers(),
        ),
        sample(
            "apps/v1 ReplicaSet",
            workload(),
            "/spec/minReadySeconds",
            numbers(),
        ),
        sample(
            "apps/v1 StatefulSet",
            workload(),
            "/spec/minReadySeconds",
            numbers(),
        ),
        sample(
            "apps/v1 DaemonSet",
            daemon,
            "/spec/minReadySeconds",
            numbers(),
        ),
        noted(
            "apps/v1 ControllerRevision",
            json!({"revision": 1, "data": {"a": 1}}),
        ),
        noted("batch/v1 Job", json!({"spec": job()})),
        sample(
            "batch/v1 CronJob",
            json!({"spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job()}}}),
            "/spec/suspend",
            flags(true),
        ),
        sample(
            "autoscaling/v2 HorizontalPodAutoscaler",
            json!({"spec": {"scaleTargetRef": scaled, "maxReplicas": 9}}),
            "/spec/minReplicas",
            numbers(),
        ),
        sample(
            "networking.k8s.io/v1 Ingress",
            json!({"spec": {"defaultBackend": {"service": {"name": "none", "port": {"number": 80}}}}}),
            "/spec/ingressClassName",
            texts(),
        ),
        noted(
            "networking.k8s.io/v1 IngressClass",
            json!({"spec": {"controller": "example.org/none"}}),
        ),
        sample(
            "networking.k8s.io/v1 NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
            "/spec/ingress",
            [json!([{}]), json!([{"ports": [{"port": 80}]}])],
        ),
        sample(
            "policy/v1 PodDisruptionBudget",
            json!({"spec": {"selector": {"matchLabels": {"a": "none"}}}}),
            "/spec/minAvailable",
            numbers(),
        ),
        sample(
            "rbac.authorization.k8s.io/v1 Role",
            json!({}),
            "/rules",
            rules(),
        ),
        sample(
            "rbac.authorization.k8s.io/v1 ClusterRole",
            json!({}),
            "/rules",
            rules(),
        ),
        sample(
            "rbac.authorization.k8s.io/v1 RoleBinding",
            role("Role"),
            "/subjects",
            users(),
        ),
        sample(
            "rbac.authorization.k8s.io/v1 ClusterRoleBinding",
            role("ClusterRole"),
            "/subjects",
            users(),
        ),
        sample(
            "storage.k8s.io/v1 StorageClass",
            json!({"provisioner": "none.example.org"}),
            "/allowVolumeExpansion",
            flags(true),
        ),
        noted("storage.k8s.io/v1 CSIDriver", json!({"spec": {}})),
        noted(
            "storage.k8s.io/v1 CSINode",
            json!({"spec": {"drivers": []}}),
        ),
        sample(
            "storage.k8s.io/v1 CSIStorageCapacity",
            json!({"storageClassName": "none"}),
            "/capacity",
            ["1Gi", "2Gi"].map(Value::from),
        ),
        noted(
            "storage.k8s.io/v1 VolumeAttachment",
            json!({"spec": {"attacher": "none.example.org", "nodeName": "none", "source": {"persistentVolumeName": "none"}}}),
        ),
        noted(
            "storage.k8s.io/v1 VolumeAttributesClass",
            json!({"driverName": "none.example.org", "parameters": {"a": "1"}}),
        ),
        sample(
            "scheduling.k8s.io/v1 PriorityClass",
            json!({"value": 10}),
            "/description",
            texts(),
        ),
        noted("node.k8s.io/v1 RuntimeClass", json!({"handler": "none"})),
        sample(
            "coordination.k8s.io/v1 Lease",
            json!({"spec": {"holderIdentity": "nobody"}}),
            "/spec/leaseDurationSeconds",
            numbers(),
        ),
        noted(
            "discovery.k8s.io/v1 EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}], "ports": [{"port": 80}]}),
        ),
        sample(
            "flowcontrol.apiserver.k8s.io/v1 FlowSchema",
            json!({"spec": {
                "priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 9999,
                "rules": [{
                    "subjects": [{"kind": "User", "user": {"name": "nobody"}}],
                    "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/none"]}],
                }],
            }}),
            "/spec/distinguisherMethod",
            [json!({"type": "ByUser"}), json!({"type": "ByNamespace"})],
        ),
        sample(
            "flowcontrol.apiserver.k8s.io/v1 PriorityLevelConfiguration",
            json!({"spec": {
                "type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}},
            }}),
            "/spec/limited/lendablePercent",
            numbers(),
        ),
        noted(
            "admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration",
            hook.clone(),
        ),
        noted(
            "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration",
            hook,
        ),
        noted(
            "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy",
            json!({"spec": {
                "matchConstraints": constraints, "validations": [{"expression": "true"}],
            }}),
        ),
        noted(
            "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding",
            json!({"spec": {"policyName": "none", "validationActions": ["Audit"]}}),
        ),
        noted(
            "admissionregistration.k8s.io/v1 MutatingAdmissionPolicy",
            json!({"spec": {
                "matchConstraints": constraints, "reinvocationPolicy": "Never", "failurePolicy": "Ignore",
                "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}],
            }}),
        ),
        noted(
            "admissionregistration.k8s.io/v1 MutatingAdmissionPolicyBinding",
            json!({"spec": {"policyName": "none"}}),
        ),
        noted(
            "apiextensions.k8s.io/v1 CustomResourceDefinition",
            json!({}),
        ),
        noted("apiregistration.k8s.io/v1 APIService", json!({})),
        noted(
            "certificates.k8s.io/v1 CertificateSigningRequest",
            json!({"spec": {
                "request": REQUEST, "signerName": "example.org/nobody", "usages": ["client auth"],
            }}),
        ),
        noted(
            "resource.k8s.io/v1 DeviceClass",
            json!({"spec": {"selectors": [{"cel": {"expression": "true"}}]}}),
        ),
        noted("resource.k8s.io/v1 ResourceClaim", json!({"spec": claim})),
        noted(
            "resource.k8s.io/v1 ResourceClaimTemplate",
            json!({"spec": {"spec": claim}}),
        ),
        noted(
            "resource.k8s.io/v1 ResourceSlice",
            json!({"spec": {
                "driver": "none.example.org", "allNodes": true, "devices": [],
                "pool": {"name": "none", "generation": 1, "resourceSliceCount": 1},
            }}),
        ),
    ]
}

impl Sample {
    fn is_namespaced(&self) -> bool {
        let group = self
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        is_namespaced(group, self.kind).unwrap()
    }

    /// Returns the name of the object, which is unique among the kinds, for the test case in this namespace.
    fn name(&self, ns: &str) -> String {
        let kind = self.kind.to_lowercase();
        match self.kind {
            "CustomResourceDefinition" => format!("foos.{ns}.example.org"),
            "APIService" => format!("v1.{ns}-api.example.org"),
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
                format!("{ns}-{kind}.example.org")
            }
            _ => format!("{ns}-{kind}"),
        }
    }

    /// Returns the object as it is in Git: without the field for variant 0, or with one of its values.
    fn object(&self, ns: &str, variant: u8) -> Value {
        let mut object = self.object.clone();
        match self.kind {
            "CustomResourceDefinition" => {
                object = crate::fixture::definition(&format!("{ns}.example.org"), "Namespaced");
            }
            "APIService" => {
                object["spec"] = json!({
                    "group": format!("{ns}-api.example.org"), "version": "v1",
                    "groupPriorityMinimum": 1000, "versionPriority": 10,
                });
            }
            "Event" => object["involvedObject"]["namespace"] = ns.into(),
            _ => {}
        }
        object["apiVersion"] = self.api_version.into();
        object["kind"] = self.kind.into();
        object["metadata"]["name"] = self.name(ns).into();
        if self.is_namespaced() {
            object["metadata"]["namespace"] = ns.into();
        }
        object["metadata"]["annotations"]["muster.dev/prune"] = "enabled".into();
        if let Some(value) = usize::from(variant)
            .checked_sub(1)
            .map(|at| &self.values[at])
        {
            let (parent, name) = self.field.rsplit_once('/').unwrap();
            let parent = object.pointer_mut(parent).unwrap();
            parent[name.replace("~1", "/")] = value.clone();
        }
        object
    }

    /// Returns the pointer to the varying field in the live object.
    fn live_field(&self) -> String {
        self.field.replace("stringData", "data")
    }

    fn api(&self, fixture: &Fixture, ns: &str) -> Api<DynamicObject> {
        let namespace = self.is_namespaced().then_some(ns);
        fixture.api(self.api_version, self.kind, namespace)
    }
}

/// A change that somebody makes to an object.
#[derive(Debug, Clone, Copy)]
enum Act {
    Label,
    ChangeField,
    TakeAppLabel,
    ClearManagers,
    Delete,
}

#[derive(Debug, Clone)]
struct Edit {
    sample: usize,
    act: Act,
    manager: &'static str,
    /// The pause after the previous edit, in milliseconds.
    after: u8,
}

#[derive(Debug, Clone)]
struct Case {
    /// The variant of the object for each generation and kind; `None` where there is no object.
    generations: Vec<Vec<Option<u8>>>,
    edits: Vec<Edit>,
    /// The interrupted runs of the applier in each generation: after how many milliseconds each of them is stopped.
    interruptions: Vec<Vec<u16>>,
}

const GENERATIONS: usize = 3;
const MANAGERS: [&str; 5] = [
    "kubectl-edit",
    "kubectl-patch",
    "helm",
    "operator",
    "kube-controller-manager",
];

fn case(kinds: usize) -> impl Strategy<Value = Case> {
    let variant = prop_oneof![1 => Just(None), 3 => (0..3_u8).prop_map(Some)];
    let generation = proptest::collection::vec(variant, kinds);
    let act = prop_oneof![
        3 => Just(Act::Label),
        3 => Just(Act::ChangeField),
        2 => Just(Act::TakeAppLabel),
        1 => Just(Act::ClearManagers),
        2 => Just(Act::Delete),
    ];
    let manager = (0..MANAGERS.len()).prop_map(|at| MANAGERS[at]);
    let edit = (0..kinds, act, manager, 0..60_u8).prop_map(|(sample, act, manager, after)| Edit {
        sample,
        act,
        manager,
        after,
    });
    let interruptions = proptest::collection::vec(0..900_u16, 0..3);
    (
        proptest::collection::vec(generation, GENERATIONS),
        proptest::collection::vec(edit, 20..60),
        proptest::collection::vec(interruptions, GENERATIONS),
    )
        .prop_map(|(generations, edits, interruptions)| Case {
            generations,
            edits,
            interruptions,
        })
}

fn generation(
    number: u64,
    ns: &str,
    samples: &[Sample],
    desired: &[Option<u8>],
) -> StoredGeneration {
    // The kinds are divided between two apps.
    let app = |odd: bool| {
        let objects = samples.iter().zip(desired).enumerate();
        let objects = objects.filter(|(at, _)| (at % 2 == 1) == odd);
        let objects =
            objects.filter_map(|(_, (sample, variant))| Some(sample.object(ns, (*variant)?)));
        let objects: Vec<Value> = objects.collect();
        making(if odd { "odd" } else { "even" }, ns)
            .policy(|policy| policy.conflicts = Conflicts::Take)
            .of(&objects)
    };
    let base = making("base", ns).of(&[namespace(ns)]);
    let mut stored = stored(number, vec![base, app(false), app(true)]);
    stored
        .bundles
        .retain(|bundle| !bundle.bundle().objects.is_empty());
    stored
}

/// Carries out an edit. Errors are ignored: the object may not exist, or the API server may refuse the edit.
async fn carry_out(fixture: &Fixture, ns: &str, sample: &Sample, edit: &Edit) {
    let api = sample.api(fixture, ns);
    let name = sample.name(ns);
    let patch = match edit.act {
        Act::Label => json!({"metadata": {"labels": {"added": edit.manager}}}),
        Act::ChangeField => sample
            .field
            .replace("~1", "\n")
            .split('/')
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .fold(
                sample.values[1].clone(),
                |below, name| json!({name.replace('\n', "/"): below}),
            ),
        Act::TakeAppLabel => json!({"metadata": {"labels": {muster_apply::APP_LABEL: null}}}),
        Act::ClearManagers => json!({"metadata": {"managedFields": [{}]}}),
        // Muster does not recreate a Job that had completed when it was deleted.
        Act::Delete if sample.kind == "Job" => return,
        Act::Delete => {
            let _ = api.delete(&name, &DeleteParams::default()).await;
            return;
        }
    };
    let params = PatchParams {
        field_manager: Some(edit.manager.to_owned()),
        ..PatchParams::default()
    };
    let _ = api.patch(&name, &params, &Patch::Merge(&patch)).await;
}

/// Returns the live object and the result of a dry-run apply of the object in Git, or `None` if no live object exists.
async fn as_git_says(
    api: &Api<DynamicObject>,
    name: &str,
    object: &Value,
) -> anyhow::Result<Option<(Value, Value)>> {
    let Some(live) = api.get_opt(name).await? else {
        return Ok(None);
    };
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply("muster").force()
    };
    let mut object = object.clone();
    object["metadata"]["labels"][muster_apply::APP_LABEL] = json!(
        live.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(muster_apply::APP_LABEL))
    );
    let predicted = api.patch(name, &params, &Patch::Apply(&object)).await?;
    let comparable = |mut object: DynamicObject| {
        object.metadata.managed_fields = None;
        object.metadata.resource_version = None;
        object.metadata.generation = None;
        let mut object = serde_json::to_value(object).unwrap_or_default();
        object["status"] = Value::Null;
        object
    };
    Ok(Some((comparable(live), comparable(predicted))))
}

async fn check_property(fixture: &Fixture, others: &Fixture, samples: &[Sample], case: &Case) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let ns = format!("kinds-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let mut fixture = fixture.part(&ns);
    fixture.config.replaced_within = Duration::from_secs(1);
    let names: Vec<String> = samples.iter().map(|sample| sample.name(&ns)).collect();
    let mut before: BTreeSet<&str> = BTreeSet::new();
    for (at, desired) in case.generations.iter().enumerate() {
        let stored = generation(at as u64 + 1, &ns, samples, desired);
        let is_wanted = names
            .iter()
            .zip(desired)
            .filter(|(_, variant)| variant.is_some());
        let now: BTreeSet<&str> = is_wanted.map(|(name, _)| name.as_str()).collect();
        fixture.requests.take_deleted();
        let editing = async {
            for edit in &case.edits {
                // The pause is part of the generated test case; it does not wait for any condition.
                tokio::time::sleep(Duration::from_millis(edit.after.into())).await;
                carry_out(others, &ns, &samples[edit.sample], edit).await;
            }
        };
        let working = async {
            for after in &case.interruptions[at] {
                let applied = fixture.start().await;
                applied.applier.set_desired(Arc::new(stored.clone()));
                tokio::time::sleep(Duration::from_millis(u64::from(*after))).await;
                applied.applier.stop().await;
            }
        };
        tokio::join!(editing, working);
        let mut applied = fixture.start().await;
        applied.settle(stored).await;
        applied
            .until(|o| {
                o.leftovers.is_empty()
                    && o.bundles.iter().all(|b| b.counts.applied == b.counts.total)
            })
            .await;
        // Objects in both the previous and the current generation must never have been deleted.
        for deleted in fixture.requests.take_deleted() {
            let stays = before.contains(&*deleted) && now.contains(&*deleted);
            assert!(!stays, "{deleted} was deleted although it is in Git");
        }
        before = now;
        let edited = |is: &dyn Fn(&Edit) -> bool| -> BTreeSet<usize> {
            let edits = case.edits.iter().filter(|edit| is(edit));
            edits.map(|edit| edit.sample).collect()
        };
        let unknown = edited(&|edit| matches!(edit.act, Act::ClearManagers));
        let controlled =
            edited(&|edit| matches!(edit.act, Act::ChangeField) && !is_persons(edit.manager));
        for (index, (sample, variant)) in samples.iter().zip(desired).enumerate() {
            let (api, name) = (sample.api(&fixture, &ns), &names[index]);
            let is_as_git_says = eventually(
                "the object is as in Git",
                crate::fixture::LONG,
                async || {
                    let Some(variant) = variant else {
                        let gone = api.get_opt(name).await?;
                        ensure!(gone.is_none(), "{name} exists although it is not in Git");
                        return Ok(());
                    };
                    let object = sample.object(&ns, *variant);
                    let Some((live, predicted)) = as_git_says(&api, name, &object).await? else {
                        anyhow::bail!("{name} does not exist");
                    };
                    ensure!(live == predicted, "{name} is {live}, should be {predicted}");
                    if unknown.contains(&index) {
                        return Ok(());
                    }
                    let field = live.pointer(&sample.live_field()).unwrap_or(&Value::Null);
                    let left = *variant == 0
                        && !controlled.contains(&index)
                        && sample.values.contains(field);
                    ensure!(
                        !left,
                        "{name} still has {}, which is not in Git",
                        sample.field
                    );
                    let label = &live["metadata"]["labels"]["added"];
                    let peoples = label.as_str().is_some_and(is_persons);
                    ensure!(!peoples, "{name} still has the label that {label} added");
                    Ok(())
                },
            );
            is_as_git_says.await.unwrap();
        }
        applied.applier.stop().await;
    }
    // Delete everything, so that nothing is left for later cases.
    let mut applied = fixture.start().await;
    let nothing = vec![None; samples.len()];
    let stored = generation(GENERATIONS as u64 + 1, &ns, samples, &nothing);
    applied.settle(stored).await;
    applied.until(|o| o.leftovers.is_empty()).await;
    applied.applier.stop().await;
}

/// Returns the built-in kinds of the API server that can be applied, watched and deleted.
async fn served() -> BTreeSet<String> {
    let mut kubectl = tokio::process::Command::new(Program::Kubectl.build().unwrap());
    kubectl
        .arg("--kubeconfig")
        .arg(cluster().await.kubeconfig_path());
    kubectl.args([
        "api-resources",
        "--verbs=create,delete,patch,watch",
        "--no-headers",
    ]);
    let output = kubectl.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let kind = |line: &str| {
        let mut columns = line.split_whitespace().rev();
        let (kind, _, api_version) = (columns.next()?, columns.next()?, columns.next()?);
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        // Other tests define their own kinds.
        let built_in = !group.contains('.') || group.ends_with(".k8s.io");
        built_in.then(|| format!("{api_version} {kind}"))
    };
    text.lines().filter_map(kind).collect()
}

#[test]
fn objects_of_every_kind_end_as_git_says_whatever_others_do_and_none_is_lost() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let fixture = runtime.block_on(Fixture::new("kinds"));
    // The requests of this fixture are counted separately.
    let others = runtime.block_on(Fixture::new("others"));
    let samples = samples();
    let known: BTreeSet<String> = samples
        .iter()
        .map(|sample| format!("{} {}", sample.api_version, sample.kind))
        .chain(LEFT_OUT.iter().map(|(kind, _)| (*kind).to_owned()))
        .collect();
    assert_eq!(known, runtime.block_on(served()));
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        // Each attempt to shrink takes a minute.
        max_shrink_iters: 0,
        ..Config::default()
    });
    runner
        .run(&case(samples.len()), |case| {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(check_property(&fixture, &others, &samples, &case));
            }));
            done.map_err(|_| TestCaseError::fail("see above"))
        })
        .unwrap();
}
