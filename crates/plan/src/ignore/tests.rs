use muster_model::bundle::Gvk;
use serde_json::json;

use super::*;

fn manager(name: &str, operation: &str, fields: Value) -> Value {
    json!({"manager": name, "operation": operation, "fieldsV1": fields})
}

#[test]
fn what_another_owns_is_dropped() {
    let live = json!({
        "metadata": {"managedFields": [
            manager("muster", "Apply", json!({"f:webhooks": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}})),
            manager("cainjector", "Update", json!({"f:webhooks": {"k:{\"name\":\"a\"}": {"f:clientConfig": {"f:caBundle": {}}}}})),
        ]},
        "webhooks": [
            {"name": "b", "clientConfig": {"caBundle": "own"}},
            {"name": "a", "clientConfig": {"caBundle": "injected"}},
        ],
    });
    let mut desired = json!({"webhooks": [
        {"name": "a", "clientConfig": {"caBundle": "", "url": "u"}},
        {"name": "b", "clientConfig": {"caBundle": ""}},
    ]});
    assert!(settle(
        &mut desired,
        &live,
        &["/webhooks/*/clientConfig/caBundle"]
    ));
    assert_eq!(
        desired,
        json!({"webhooks": [
            {"name": "a", "clientConfig": {"url": "u"}},
            {"name": "b", "clientConfig": {"caBundle": "own"}},
        ]})
    );
}

#[test]
fn what_nobody_else_owns_keeps_its_live_value() {
    let live = json!({
        "metadata": {
            "annotations": {"a/b": "live", "c": "1"},
            "managedFields": [manager("muster", "Apply", json!({"f:spec": {"f:replicas": {}}}))],
        },
        "spec": {"replicas": 7},
    });
    let mut desired =
        json!({"metadata": {"annotations": {"a/b": "git", "d": "2"}}, "spec": {"replicas": 2}});
    let pointers = [
        REPLICAS,
        "/metadata/annotations/a~1b",
        "/metadata/annotations/d",
        "/status/x",
    ];
    assert!(settle(&mut desired, &live, &pointers));
    assert_eq!(
        desired,
        json!({"metadata": {"annotations": {"a/b": "live", "d": "2"}}, "spec": {"replicas": 7}})
    );
    assert!(!settle(&mut desired, &live, &pointers));
}

#[test]
fn the_owner_of_a_whole_map_owns_its_fields() {
    let live = json!({
        "metadata": {"managedFields": [manager("x", "Update", json!({"f:spec": {"f:selector": {}}}))]},
        "spec": {"selector": {"a": "1"}},
    });
    let mut desired = json!({"spec": {"selector": {"a": "2"}}});
    assert!(settle(&mut desired, &live, &["/spec/selector/a"]));
    assert_eq!(desired, json!({"spec": {"selector": {}}}));
}

#[test]
fn rules_are_by_group_kind_and_name() {
    let id = ObjectRef {
        gvk: Gvk::from_api_version("apps/v1", "Deployment"),
        namespace: Some("web".into()),
        name: "web".into(),
    };
    let rule = |kind: Option<&str>, name: Option<&str>, field: &str| IgnoreRule {
        group: None,
        kind: kind.map(Into::into),
        name: name.map(Into::into),
        fields: vec![field.into()],
    };
    let rules = [
        rule(None, None, "/a"),
        rule(Some("Deployment"), Some("web"), "/b"),
        rule(Some("Deployment"), Some("api"), "/c"),
        rule(Some("Service"), None, "/d"),
    ];
    assert_eq!(ignored(&id, &rules, true), [REPLICAS, "/a", "/b"]);
}
