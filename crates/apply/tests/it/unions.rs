//! Changes that the API server would refuse because of defaults that it has set itself.

use k8s_openapi::ByteString;
use kube::api::{Patch, PatchParams};
use muster_apply::{ObjectState, Observed};
use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, definition, kubectl_does, namespace, object, stored};

fn workload(kind: &str, name: &str, spec: &Value, pod: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"a": name}},
            "template": {
                "metadata": {"labels": {"a": name}},
                "spec": {"containers": [{"name": "c", "image": "x:1"}]},
            },
        },
    });
    merge(&mut object["spec"], spec);
    merge(&mut object["spec"]["template"]["spec"], pod);
    object
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn deployment(name: &str, spec: &Value, pod: &Value) -> Value {
    workload("Deployment", name, spec, pod)
}

fn probed(name: &str, probe: &Value) -> Value {
    let container = json!({"name": "c", "image": "x:1", "livenessProbe": probe});
    deployment(name, &json!({}), &json!({"containers": [container]}))
}

fn mounted(name: &str, source: &Value) -> Value {
    let container =
        json!({"name": "c", "image": "x:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let mut volume = json!({"name": "v"});
    merge(&mut volume, source);
    let pod = json!({"containers": [container], "volumes": [volume]});
    deployment(name, &json!({}), &pod)
}

fn service(name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"a": "b"}},
    });
    merge(&mut object["spec"], spec);
    object
}

/// Returns pairs of an object before and after a change.
fn pairs() -> Vec<[Value; 2]> {
    let none = json!({});
    let ports = json!([{"port": 80}]);
    let http = json!({"httpGet": {"path": "/", "port": 80}});
    let claim = |name: &str| json!({"persistentVolumeClaim": {"claimName": name}});
    vec![
        [
            deployment("strategy", &none, &none),
            deployment(
                "strategy",
                &json!({"strategy": {"type": "Recreate"}}),
                &none,
            ),
        ],
        [
            workload("StatefulSet", "set", &json!({"serviceName": "s"}), &none),
            workload(
                "StatefulSet",
                "set",
                &json!({"serviceName": "s", "updateStrategy": {"type": "OnDelete"}}),
                &none,
            ),
        ],
        [
            probed("exec", &http),
            probed("exec", &json!({"exec": {"command": ["true"]}})),
        ],
        [
            probed("tcp", &http),
            probed("tcp", &json!({"tcpSocket": {"port": 80}})),
        ],
        [
            mounted("config", &json!({"configMap": {"name": "settings"}})),
            mounted("config", &json!({"secret": {"secretName": "settings"}})),
        ],
        [
            mounted("host", &json!({"hostPath": {"path": "/data"}})),
            mounted("host", &json!({"emptyDir": {}})),
        ],
        [
            mounted("claim", &claim("a")),
            mounted(
                "claim",
                &json!({"projected": {"sources": [{"secret": {"name": "s"}}]}}),
            ),
        ],
        [
            service(
                "affinity",
                &json!({"sessionAffinity": "ClientIP", "ports": ports}),
            ),
            service(
                "affinity",
                &json!({"sessionAffinity": "None", "ports": ports}),
            ),
        ],
        [
            service("balanced", &json!({"type": "LoadBalancer", "ports": ports})),
            service("balanced", &json!({"type": "ClusterIP", "ports": ports})),
        ],
        [
            service(
                "local",
                &json!({
                    "type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports,
                }),
            ),
            service("local", &json!({"type": "ClusterIP", "ports": ports})),
        ],
        [
            service("external", &json!({"ports": ports})),
            service(
                "external",
                &json!({"type": "ExternalName", "externalName": "example.org"}),
            ),
        ],
    ]
}

fn not_applied(observed: &Observed) -> Vec<String> {
    let objects = observed.bundles.iter().flat_map(|bundle| &bundle.objects);
    let wrong = objects.filter(|object| object.state != ObjectState::Applied);
    wrong
        .map(|object| format!("{}: {:?}", object.id, object.state))
        .collect()
}

#[tokio::test]
async fn a_change_to_another_member_of_a_union_and_back_is_applied() {
    let fixture = Fixture::new("union").await;
    let mut applied = fixture.start().await;
    let ns = "union-a";
    for (number, side) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
        let objects = pairs().into_iter().map(|pair| pair[side].clone());
        let objects: Vec<_> = [namespace(ns)].into_iter().chain(objects).collect();
        let observed = applied
            .settle(stored(number, vec![bundle("a", ns, &objects)]))
            .await;
        assert_eq!(
            not_applied(&observed),
            Vec::<String>::new(),
            "generation {number}"
        );
    }
    let live = fixture.get("apps/v1", "Deployment", ns, "strategy").await;
    assert_eq!(live["spec"]["strategy"], json!({"type": "Recreate"}));
    let live = fixture.get("apps/v1", "Deployment", ns, "config").await;
    let volume = &live["spec"]["template"]["spec"]["volumes"][0];
    assert!(
        volume["configMap"].is_null() && volume["secret"].is_object(),
        "{volume}"
    );
    // Nothing drifts, and a new process writes nothing.
    let writes = fixture.requests.writes();
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let objects = pairs().into_iter().map(|pair| pair[1].clone());
    let objects: Vec<_> = [namespace(ns)].into_iter().chain(objects).collect();
    applied
        .settle(stored(5, vec![bundle("a", ns, &objects)]))
        .await;
    assert_eq!(fixture.requests.writes(), writes);
    applied.applier.stop().await;
}

/// An injected sidecar comes before the containers from Git, so the indices of the containers differ between the API
/// server and Git.
#[tokio::test]
async fn a_member_is_found_beside_elements_that_others_have_put_before_it() {
    let fixture = Fixture::new("unionbefore").await;
    let ns = "unionbefore-a";
    let mut applied = fixture.start().await;
    let http = json!({"httpGet": {"path": "/", "port": 80}});
    let first = [namespace(ns), probed("web", &http)];
    applied
        .settle(stored(1, vec![bundle("a", ns, &first)]))
        .await;
    let sidecar = json!({"name": "sidecar", "image": "s:1"});
    let patch = json!([{
        "op": "add", "path": "/spec/template/spec/containers/0", "value": sidecar,
    }]);
    let patch = [
        "patch",
        "deployment/web",
        "--field-manager=injector",
        "--type=json",
        "-p",
        &patch.to_string(),
    ];
    kubectl_does(ns, &patch).await;
    let then = [
        namespace(ns),
        probed("web", &json!({"tcpSocket": {"port": 80}})),
    ];
    let observed = applied
        .settle(stored(2, vec![bundle("a", ns, &then)]))
        .await;
    assert_eq!(not_applied(&observed), Vec::<String>::new());
    let live = fixture.get("apps/v1", "Deployment", ns, "web").await;
    let containers = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 2);
    let web = containers.iter().find(|one| one["name"] == "c").unwrap();
    assert!(web["livenessProbe"]["httpGet"].is_null(), "{web}");
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_definition_whose_conversion_leaves_git_loses_what_was_injected_into_it() {
    let fixture = Fixture::new("conversion").await;
    let group = "conversion.example";
    let ns = "conversion-a";
    let mut converted = definition(group, "Namespaced");
    converted["spec"]["conversion"] = json!({
        "strategy": "Webhook",
        "webhook": {
            "conversionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": ns, "name": "converter", "path": "/convert"}},
        },
    });
    let mut applied = fixture.start().await;
    let objects = [namespace(ns), converted];
    applied
        .settle(stored(1, vec![bundle("a", ns, &objects)]))
        .await;
    let roots = fixture
        .get("v1", "ConfigMap", "default", "kube-root-ca.crt")
        .await;
    let roots = roots["data"]["ca.crt"]
        .as_str()
        .unwrap()
        .as_bytes()
        .to_vec();
    let injected = json!({"clientConfig": {"caBundle": ByteString(roots)}});
    let injected = json!({"spec": {"conversion": {"webhook": injected}}});
    let definitions = fixture.api("apiextensions.k8s.io/v1", "CustomResourceDefinition", None);
    let name = format!("foos.{group}");
    let params = PatchParams {
        field_manager: Some("cainjector".into()),
        ..PatchParams::default()
    };
    definitions
        .patch(&name, &params, &Patch::Merge(&injected))
        .await
        .unwrap();

    let objects = [namespace(ns), definition(group, "Namespaced")];
    let observed = applied
        .settle(stored(2, vec![bundle("a", ns, &objects)]))
        .await;
    let text = format!("CustomResourceDefinition.apiextensions.k8s.io {name}");
    assert_eq!(object(&observed, &text).state, ObjectState::Applied);
    let live = definitions.get(&name).await.unwrap();
    assert_eq!(live.data["spec"]["conversion"], json!({"strategy": "None"}));
    applied.applier.stop().await;
}
