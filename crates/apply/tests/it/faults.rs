//! API servers that are overloaded, broken or slow, that break off answers, or that refuse some requests.

use std::collections::BTreeMap;

use http::StatusCode;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use muster_apply::{ObjectState, Observed};
use muster_testkit::{
    faults::{Asked, Fault, FaultProxy, Verb},
    local::{Cluster, ClusterOptions},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::fixture::{
    Applied, Fixture, LONG, bundle, cluster, config_map, namespace, object, stored,
};

const MAPS: usize = 60;

/// Starts a proxy in front of the shared cluster and creates a fixture that connects through it.
pub(crate) async fn behind_a_proxy(name: &str) -> (FaultProxy, Fixture) {
    let proxy = FaultProxy::start(cluster().await).await.unwrap();
    let fixture = Fixture::of_config(name, proxy.config().unwrap());
    (proxy, fixture)
}

fn objects(namespace_name: &str) -> Vec<Value> {
    let maps = (0..MAPS).map(|i| config_map(&format!("c{i}"), "1"));
    std::iter::once(namespace(namespace_name))
        .chain(maps)
        .collect()
}

/// Returns true for a PATCH of a ConfigMap, which applies one of the test's objects.
fn map(asked: &Asked) -> bool {
    asked.verb == Verb::Patch && asked.resource == "configmaps"
}

fn all_applied(observed: &Observed) -> bool {
    let mut objects = observed.bundles.iter().flat_map(|bundle| &bundle.objects);
    observed.settled
        && objects.clone().next().is_some()
        && objects.all(|o| o.state == ObjectState::Applied && o.uid.is_some())
}

fn failed(observed: &Observed) -> impl Iterator<Item = &str> {
    let objects = observed.bundles.iter().flat_map(|bundle| &bundle.objects);
    objects.filter_map(|object| match &object.state {
        ObjectState::Failed(message) => Some(message.as_str()),
        _ => None,
    })
}

/// Checks that every ConfigMap is in the cluster with the observed UID, that a new process writes nothing, and that it
/// finds all ConfigMaps again to delete them.
async fn is_whole(fixture: &Fixture, mut applied: Applied, bundle_name: &str) {
    let observed = applied.until(all_applied).await;
    let maps = fixture.config_maps(bundle_name);
    let live: BTreeMap<String, Option<String>> = maps
        .list(&Default::default())
        .await
        .unwrap()
        .into_iter()
        .map(|map| (map.metadata.name.unwrap(), map.metadata.uid))
        .collect();
    let seen = observed.bundles[0].objects.iter();
    let seen = seen.filter(|object| object.id.gvk.kind == "ConfigMap");
    let mut count = 0;
    for object in seen {
        assert_eq!(live[&object.id.name], object.uid, "{}", object.id);
        count += 1;
    }
    assert_eq!(count, MAPS);
    applied.applier.stop().await;

    let mut applied = fixture.start().await;
    let before = fixture.requests.writes();
    let all = bundle("a", bundle_name, &objects(bundle_name));
    applied.settle(stored(8, vec![all])).await;
    applied.until(all_applied).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.settle(stored(9, vec![])).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await, [""; 0]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_storm_of_refusals_with_a_pause_ends_in_everything_applied() {
    let (proxy, fixture) = behind_a_proxy("storm").await;
    let storm = proxy.spoil(40, Fault::too_many(Some(1)), map);
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "storm-a", &objects("storm-a"))]);
    applied.settle(desired).await;
    applied.until(all_applied).await;
    assert_eq!(storm.times(), 40);
    is_whole(&fixture, applied, "storm-a").await;
}

/// While a drift can't be reverted, the status reports the failure the whole time.
#[tokio::test]
async fn a_correction_that_is_refused_is_reported_until_it_succeeds_or_is_not_needed() {
    let (proxy, fixture) = behind_a_proxy("uncorrected").await;
    let ns = "uncorrected-a";
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", ns, &objects(ns))]);
    applied.settle(desired).await;
    applied.until(all_applied).await;
    applied
        .until(|o| o.bundles[0].counts.healthy == o.bundles[0].counts.total)
        .await;
    let direct = Fixture::new("uncorrected").await;
    let change = async |value: &str| {
        let patch = json!({"data": {"v": value}});
        direct
            .edit_as("kubectl-edit", "v1", "ConfigMap", (ns, "c0"), &patch)
            .await;
    };
    let denied = || Fault::status(StatusCode::FORBIDDEN, "Forbidden", "not on a Friday");
    let named = |asked: &Asked| map(asked) && asked.name.as_deref() == Some("c0");
    for repaired in [false, true] {
        let denial = proxy.spoil(usize::MAX, denied(), named);
        change("theirs").await;
        let told = |o: &Observed| failed(o).any(|why| why.contains("not on a Friday"));
        applied.until(told).await;
        // The correction is retried, and the failure is reported the whole time.
        let tries = denial.times();
        let mut observed = applied.applier.observed();
        let hidden = async move { observed.wait_for(|o| !told(o)).await.map(drop) };
        let tried = eventually("the correction is retried", LONG, async || {
            anyhow::ensure!(denial.times() > tries + 4);
            Ok(())
        });
        tokio::select! {
            tried = tried => tried.unwrap(),
            _ = hidden => panic!("the failure is not reported although it persists"),
        }
        if repaired {
            change("1").await;
        }
        proxy.heal();
        applied.until(all_applied).await;
        let live = direct.get("v1", "ConfigMap", ns, "c0").await;
        assert_eq!(live["data"]["v"], "1");
    }
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_storm_of_refusals_in_plain_text_ends_in_everything_applied() {
    let (proxy, fixture) = behind_a_proxy("gale").await;
    let storm = proxy.spoil(300, Fault::too_many(None), map);
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "gale-a", &objects("gale-a"))]);
    applied.settle(desired).await;
    applied.until(all_applied).await;
    assert_eq!(storm.times(), 300);
    is_whole(&fixture, applied, "gale-a").await;
}

#[tokio::test]
async fn a_pause_that_the_server_asks_for_does_not_delay_the_stop() {
    let (proxy, fixture) = behind_a_proxy("hush").await;
    let hush = proxy.spoil(usize::MAX, Fault::too_many(Some(3_600)), map);
    let applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "hush-a", &objects("hush-a"))]);
    applied.applier.set_desired(desired.into());
    eventually("the server refuses a request", LONG, async || {
        anyhow::ensure!(hush.times() > 0);
        Ok(())
    })
    .await
    .unwrap();
    // The applier would pause for one minute, the longest pause that it accepts from a server.
    tokio::time::timeout(LONG / 2, applied.applier.stop())
        .await
        .expect("the applier stops");
}

#[tokio::test]
async fn failures_of_the_server_and_of_its_proxies_end_in_everything_applied() {
    let (proxy, fixture) = behind_a_proxy("mangled").await;
    let error = Fault::status(
        StatusCode::INTERNAL_SERVER_ERROR,
        "InternalError",
        "etcdserver: leader changed",
    );
    let errors = proxy.spoil(150, error, map);
    let away = Fault::page(StatusCode::SERVICE_UNAVAILABLE);
    let writes = |asked: &Asked| matches!(asked.verb, Verb::Create | Verb::Update);
    let aways = proxy.spoil(2, away, writes);
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "mangled-a", &objects("mangled-a"))]);
    applied.settle(desired).await;
    applied.until(all_applied).await;
    assert_eq!((errors.times(), aways.times()), (150, 2));

    let bad = proxy.spoil(usize::MAX, Fault::page(StatusCode::BAD_GATEWAY), map);
    let mut changed = objects("mangled-a");
    changed[1] = config_map("c0", "2");
    applied
        .settle(stored(2, vec![bundle("a", "mangled-a", &changed)]))
        .await;
    let observed = applied.until(|o| failed(o).next().is_some()).await;
    let message = failed(&observed).next().unwrap();
    assert!(
        message.contains("502 Bad Gateway; something in front of the API server"),
        "{message}"
    );
    assert!(bad.times() > 0);
    proxy.heal();
    applied.until(all_applied).await;
    applied
        .settle(stored(
            3,
            vec![bundle("a", "mangled-a", &objects("mangled-a"))],
        ))
        .await;
    is_whole(&fixture, applied, "mangled-a").await;
}

#[tokio::test]
async fn requests_without_an_answer_end_in_everything_applied() {
    let (proxy, fixture) = behind_a_proxy("hang").await;
    let hang = proxy.spoil(10, Fault::Hang, map);
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "hang-a", &objects("hang-a"))]);
    applied.applier.set_desired(desired.into());
    applied.until(all_applied).await;
    assert_eq!(hang.times(), 10);
    is_whole(&fixture, applied, "hang-a").await;
}

#[tokio::test]
async fn answers_that_break_off_leave_every_object_applied_and_recorded() {
    let (proxy, fixture) = behind_a_proxy("cut").await;
    let maps = proxy.spoil(90, Fault::Cut, map);
    // The answers for the agent's own records are cut off, too.
    let records = proxy.spoil(6, Fault::Cut, |asked| {
        matches!(asked.verb, Verb::Create | Verb::Update)
    });
    let mut applied = fixture.start().await;
    let desired = stored(1, vec![bundle("a", "cut-a", &objects("cut-a"))]);
    applied.applier.set_desired(desired.into());
    applied.until(all_applied).await;
    assert_eq!((maps.times(), records.times()), (90, 6));
    is_whole(&fixture, applied, "cut-a").await;
}

#[tokio::test]
async fn an_object_that_is_only_created_belongs_to_muster_even_if_the_answer_is_lost() {
    let (proxy, fixture) = behind_a_proxy("lostonce").await;
    let cut = proxy.spoil(1, Fault::Cut, |asked| {
        asked.verb == Verb::Create
            && asked.resource == "configmaps"
            && asked.namespace.as_deref() == Some("lostonce-a")
    });
    let mut once = config_map("once", "1");
    once["metadata"]["annotations"] = json!({"muster.dev/if-not-present": "enabled"});
    let mut applied = fixture.start().await;
    let all = [namespace("lostonce-a"), once];
    let observed = applied
        .settle(stored(1, vec![bundle("a", "lostonce-a", &all)]))
        .await;
    assert_eq!(cut.times(), 1);
    let state = object(&observed, "ConfigMap lostonce-a/once").state;
    assert_eq!(state, ObjectState::Applied);

    let without = [namespace("lostonce-a")];
    let without = stored(2, vec![bundle("a", "lostonce-a", &without)]);
    applied.settle(without).await;
    let maps = fixture.config_maps("lostonce-a");
    assert!(maps.get_opt("once").await.unwrap().is_none());
    applied.applier.stop().await;
}

#[tokio::test]
async fn labels_that_people_add_after_a_lost_answer_are_drift() {
    let (proxy, fixture) = behind_a_proxy("lostlabel").await;
    let cut = proxy.spoil(usize::MAX, Fault::Cut, |asked| {
        map(asked) && asked.namespace.as_deref() == Some("lostlabel-a")
    });
    let all = [namespace("lostlabel-a"), config_map("a", "1")];
    let desired = stored(1, vec![bundle("a", "lostlabel-a", &all)]);
    let applied = fixture.start().await;
    applied.applier.set_desired(desired.clone().into());
    let maps = fixture.config_maps("lostlabel-a");
    eventually("the object is created", LONG, async || {
        anyhow::ensure!(maps.get_opt("a").await?.is_some() && cut.times() > 0);
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;
    proxy.heal();

    // The agent did not learn that it has created the object, and somebody takes its label away.
    let labels =
        json!({"metadata": {"labels": {"added": "by-hand", muster_apply::APP_LABEL: null}}});
    let object = ("lostlabel-a", "a");
    fixture
        .edit_as("kubectl-patch", "v1", "ConfigMap", object, &labels)
        .await;
    let mut applied = fixture.start().await;
    applied.settle(desired).await;
    let live = fixture.get("v1", "ConfigMap", "lostlabel-a", "a").await;
    assert_eq!(live["metadata"]["labels"]["added"], Value::Null, "{live:#}");
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_kind_that_is_denied_is_named_and_the_rest_is_applied() {
    let admin = Fixture::new("deniedkind").await;
    let user = "deniedkind-agent";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": user},
        "rules": [{"apiGroups": [""], "resources": ["namespaces", "configmaps"], "verbs": ["*"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    admin.create(&role).await;
    admin.create(&binding).await;
    let fixture = Fixture::of_user("deniedkind", user).await;
    let mut applied = fixture.start().await;
    let all = [
        namespace("deniedkind-a"),
        config_map("a", "1"),
        service("front"),
        config_map("b", "1"),
    ];
    let observed = applied
        .settle(stored(1, vec![bundle("a", "deniedkind-a", &all)]))
        .await;
    let ObjectState::Failed(message) = object(&observed, "Service deniedkind-a/front").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.contains(r#"services "front" is forbidden: User "deniedkind-agent" cannot patch"#),
        "{message}"
    );
    for name in ["a", "b"] {
        let map = object(&observed, &format!("ConfigMap deniedkind-a/{name}"));
        assert_eq!(map.state, ObjectState::Applied);
    }
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_broken_webhook_is_named_and_the_rest_is_applied() {
    let fixture = Fixture::new("hook").await;
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "hook-broken"},
        "webhooks": [{
            "name": "services.hook.example.com",
            "clientConfig": {"service": {"namespace": "hook-nowhere", "name": "gone"}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"],
                "operations": ["CREATE", "UPDATE"],
            }],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hook-a"}},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
        }],
    });
    fixture.create(&hook).await;
    fixture.create(&namespace("hook-a")).await;
    // The API server starts to call a new webhook only a moment after it has accepted it.
    let api = fixture.api("v1", "Service", Some("hook-a"));
    let probe: DynamicObject = serde_json::from_value(service("probe")).unwrap();
    eventually("the webhook is called", LONG, async || {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        anyhow::ensure!(api.create(&dry_run, &probe).await.is_err());
        Ok(())
    })
    .await
    .unwrap();
    let mut applied = fixture.start().await;
    let all = [
        namespace("hook-a"),
        service("front"),
        config_map("a", "1"),
        service("back"),
    ];
    let observed = applied
        .settle(stored(1, vec![bundle("a", "hook-a", &all)]))
        .await;
    let messages: Vec<&str> = failed(&observed).collect();
    assert_eq!(messages.len(), 2, "{observed:#?}");
    for message in messages {
        assert!(
            message.contains(r#"failed calling webhook "services.hook.example.com""#),
            "{message}"
        );
    }
    let map = object(&observed, "ConfigMap hook-a/a");
    assert_eq!(map.state, ObjectState::Applied);

    let api = fixture.api(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        None,
    );
    api.delete("hook-broken", &DeleteParams::default())
        .await
        .unwrap();
    applied.until(all_applied).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_broken_aggregated_api_is_named_and_the_rest_is_applied() {
    // A broken aggregated API prevents the deletion of namespaces, so this test needs its own cluster.
    let cluster = Cluster::start(ClusterOptions::new("apply-aggregated"))
        .await
        .unwrap();
    let fixture = Fixture::of_kubeconfig("agg", &cluster.kubeconfig().unwrap()).await;
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1.agg.example.com"},
        "spec": {
            "group": "agg.example.com", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": true,
            "service": {"namespace": "agg-nowhere", "name": "gone"},
        },
    });
    fixture.create(&service).await;
    eventually(
        "the API server reports the APIService as unavailable",
        LONG,
        async || {
            let api = fixture.api("apiregistration.k8s.io/v1", "APIService", None);
            let conditions = &api.get("v1.agg.example.com").await?.data["status"]["conditions"];
            anyhow::ensure!(conditions[0]["status"] == "False", "{conditions}");
            Ok(())
        },
    )
    .await
    .unwrap();

    let mut applied = fixture.start().await;
    let thing = json!({
        "apiVersion": "agg.example.com/v1", "kind": "Thing", "metadata": {"name": "one"},
    });
    let all = [namespace("agg-a"), thing, config_map("a", "1")];
    let observed = applied
        .settle(stored(1, vec![bundle("a", "agg-a", &all)]))
        .await;
    assert_eq!(observed.problem, None);
    let map = object(&observed, "ConfigMap agg-a/a");
    assert_eq!(map.state, ObjectState::Applied);
    let ObjectState::Waiting(message) = object(&observed, "Thing.agg.example.com agg-a/one").state
    else {
        panic!("{observed:#?}");
    };
    assert_eq!(
        message,
        "the server behind the aggregated API agg.example.com/v1 does not answer; \
         see `kubectl get apiservice v1.agg.example.com`"
    );
    applied.applier.stop().await;
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], "selector": {"app": name}},
    })
}
