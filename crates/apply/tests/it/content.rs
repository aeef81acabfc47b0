//! Objects arrive with unchanged content: with every character and every significant null, but without the fields
//! that only an API server may set.

use muster_apply::{ObjectState, Observed};
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, bundle, config_map, namespace, object, stored};

/// Returns all Unicode characters, in texts that each fit into one object, with 16 characters in a line.
fn unicode() -> Vec<String> {
    let all: Vec<char> = ('\0'..=char::MAX).collect();
    all.chunks(150_000)
        .map(|chars| {
            let mut text = String::new();
            for line in chars.chunks(16) {
                text.extend(line);
                text.push('\n');
            }
            text
        })
        .collect()
}

/// Returns the states of all objects of the first app that are not applied.
fn troubles(observed: &Observed) -> Vec<String> {
    let objects = observed.bundles[0].objects.iter();
    let troubled = objects.filter(|object| object.state != ObjectState::Applied);
    troubled
        .map(|object| format!("{}: {:.300}", object.id, format!("{:?}", object.state)))
        .collect()
}

/// Returns the definition of a kind with a free-form field and nullable fields.
fn definition(group: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "values": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "limit": {"type": "integer", "nullable": true, "default": 5},
        "fixed": {"type": "integer", "default": 5},
        "names": {"type": "array", "items": {"type": "string", "nullable": true}},
    }}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("releases.{group}")},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "Release", "plural": "releases", "singular": "release", "listKind": "ReleaseList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn with_data(kind: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn every_character_arrives() {
    let fixture = Fixture::new("unicode").await;
    let mut applied = fixture.start().await;
    let texts = unicode();
    let odd = "\u{85}\u{2028}\u{2029}\u{7f}\u{80}\u{9f}\u{a0}\u{feff}\u{fffe}\u{ffff}\u{1ffff}🚀 # : \u{85}";
    let names: Vec<String> = (0..texts.len()).map(|n| format!("c{n}")).collect();
    let mut objects = vec![namespace("unicode-a"), definition("unicode.example")];
    objects.extend(
        names
            .iter()
            .zip(&texts)
            .map(|(name, text)| with_data("ConfigMap", name, json!({"text": text}))),
    );
    let release = |values: &Value| {
        json!({
            "apiVersion": "unicode.example/v1", "kind": "Release", "metadata": {"name": "r", "annotations": {"a": odd}},
            "spec": {"values": values},
        })
    };
    // The odd characters are also used in keys, in annotations, and in an immutable Secret, which is recreated
    // below.
    let values = json!({odd: {odd: [odd, format!("{odd}\n{odd}")]}});
    objects.push(release(&values));
    let secret = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "annotations": {"a": text}},
            "stringData": {"text": text}, "immutable": true,
        })
    };
    objects.push(secret(odd));
    let desired = stored(1, vec![bundle("a", "unicode-a", &objects)]);
    let observed = applied.settle(desired).await;
    assert_eq!(troubles(&observed), [""; 0]);
    for (name, text) in names.iter().zip(&texts) {
        let live = fixture.get("v1", "ConfigMap", "unicode-a", name).await;
        let arrived = live["data"]["text"].as_str().unwrap();
        let different = arrived.chars().zip(text.chars()).find(|(a, b)| a != b);
        assert_eq!(different, None, "{name}");
        assert_eq!(arrived.len(), text.len(), "{name}");
    }
    let live = fixture
        .get("unicode.example/v1", "Release", "unicode-a", "r")
        .await;
    assert_eq!(live["spec"]["values"], values);
    assert_eq!(live["metadata"]["annotations"]["a"], odd);

    // A changed immutable object is recreated, which also needs a dry run and a copy of the object.
    let changed = format!("{odd}, changed");
    let last = objects.len() - 1;
    objects[last] = secret(&changed);
    let desired = stored(2, vec![bundle("a", "unicode-a", &objects)]);
    let observed = applied.settle(desired).await;
    assert_eq!(
        object(&observed, "Secret unicode-a/s").state,
        ObjectState::Applied
    );
    let live = fixture.get("v1", "Secret", "unicode-a", "s").await;
    assert_eq!(live["metadata"]["annotations"]["a"], changed);
    let data: k8s_openapi::ByteString =
        serde_json::from_value(live["data"]["text"].clone()).unwrap();
    assert_eq!(String::from_utf8(data.0).unwrap(), changed);
    applied.applier.stop().await;
}

#[tokio::test]
async fn nulls_of_custom_resources_stay() {
    let fixture = Fixture::new("nulls").await;
    let mut applied = fixture.start().await;
    let spec = json!({
        "limit": null,
        "fixed": null,
        "names": ["a", null],
        "values": {
            "resources": {"limits": {"cpu": null, "memory": "1Gi"}},
            "nodeSelector": {},
            "list": ["a", null, {"x": null}],
            "numbers": [1.0, 1000.0, 12_345_678_901_234_567_890_u64, 1e-7, 9_007_199_254_740_993_i64],
        },
    });
    let release = |name: &str| {
        json!({
            "apiVersion": "nulls.example/v1", "kind": "Release",
            "metadata": {"name": name, "namespace": "nulls-a", "annotations": null, "labels": {}},
            "spec": spec,
        })
    };
    let objects = [
        namespace("nulls-a"),
        definition("nulls.example"),
        release("r"),
    ];
    let bundles = vec![bundle("a", "nulls-a", &objects)];
    let observed = applied.settle(stored(1, bundles.clone())).await;
    assert_eq!(troubles(&observed), [""; 0]);
    let live = async || {
        fixture
            .get("nulls.example/v1", "Release", "nulls-a", "r")
            .await["spec"]
            .clone()
    };
    let theirs = fixture
        .apply_as("kubectl", "nulls-a", &release("theirs"))
        .await;
    let desired = live().await;
    assert_eq!(desired, theirs["spec"]);
    assert_eq!(desired["limit"], Value::Null);
    assert_eq!(desired["values"]["list"], spec["values"]["list"]);
    assert_eq!(desired["values"]["resources"], spec["values"]["resources"]);

    // A value instead of a null is drift.
    let patch = json!({"spec": {"limit": 7, "values": {"resources": {"limits": {"cpu": "1"}}}}});
    let at = ("nulls-a", "r");
    fixture
        .edit_as("somebody", "nulls.example/v1", "Release", at, &patch)
        .await;
    muster_testkit::wait::eventually("the nulls are restored", LONG, async || {
        anyhow::ensure!(live().await == desired, "{}", live().await);
        Ok(())
    })
    .await
    .unwrap();
    applied.applier.stop().await;

    // The nulls themselves are not drift: a new process writes nothing.
    let mut applied = fixture.start().await;
    let before = fixture.requests.writes();
    applied.settle(stored(2, bundles)).await;
    applied.until(|o| o.bundles[0].counts.applied == 3).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.applier.stop().await;
}

#[tokio::test]
async fn what_only_an_api_server_sets_is_not_sent() {
    let fixture = Fixture::new("exported").await;
    let mut applied = fixture.start().await;
    let mut exported = config_map("c", "1");
    exported["metadata"] = json!({
        "name": "c",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "deletionTimestamp": "2024-01-02T00:00:00Z",
        "deletionGracePeriodSeconds": 0,
        "generation": 7,
        "resourceVersion": "12345",
        "selfLink": "/api/v1/namespaces/exported-a/configmaps/c",
        "uid": "11111111-2222-3333-4444-555555555555",
        "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}}],
    });
    let objects = [namespace("exported-a"), exported];
    let bundles = vec![bundle("a", "exported-a", &objects)];
    let observed = applied.settle(stored(1, bundles.clone())).await;
    assert_eq!(troubles(&observed), [""; 0]);
    let live = fixture.get("v1", "ConfigMap", "exported-a", "c").await;
    assert_eq!(live["data"]["v"], "1");
    let managers = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers.len(), 1, "{managers:?}");
    let owned = &managers[0]["fieldsV1"]["f:metadata"];
    let owned: Vec<&String> = owned.as_object().unwrap().keys().collect();
    assert_eq!(owned, ["f:labels"]);

    // The omitted fields count neither as drift nor as a change.
    let before = fixture.requests.writes();
    applied.settle(stored(2, bundles)).await;
    assert_eq!(fixture.requests.writes() - before, 0);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_value_of_string_data_that_is_not_text_is_refused() {
    let fixture = Fixture::new("notext").await;
    let mut applied = fixture.start().await;
    let secret = |value: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"port": value}});
    let desired = |n, value| {
        stored(
            n,
            vec![bundle(
                "a",
                "notext-a",
                &[namespace("notext-a"), secret(value)],
            )],
        )
    };
    let observed = applied.settle(desired(1, json!(8080))).await;
    let ObjectState::Failed(message) = object(&observed, "Secret notext-a/s").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.ends_with(".data.port: expected string, got another type"),
        "{message}"
    );
    let observed = applied.settle(desired(2, json!({"a": [1, "}"]}))).await;
    let ObjectState::Failed(message) = object(&observed, "Secret notext-a/s").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.ends_with(".data.port: expected string, got another type"),
        "{message}"
    );
    let whole = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": "hunter2"});
    let all = bundle("a", "notext-a", &[namespace("notext-a"), whole]);
    let observed = applied.settle(stored(3, vec![all])).await;
    let ObjectState::Failed(message) = object(&observed, "Secret notext-a/s").state else {
        panic!("{observed:#?}");
    };
    assert!(
        message.ends_with(".stringData: expected map, got another type"),
        "{message}"
    );
    let observed = applied.settle(desired(4, json!(null))).await;
    assert_eq!(troubles(&observed), [""; 0]);
    let live = fixture.get("v1", "Secret", "notext-a", "s").await;
    assert_eq!(live["data"], json!({"port": ""}));
    applied.applier.stop().await;
}
