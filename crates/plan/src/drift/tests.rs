use muster_model::bundle::Gvk;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn id(kind: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version("v1", kind),
        namespace: Some("a".into()),
        name: "b".into(),
    }
}

#[test]
fn fields_are_named_as_people_name_them() {
    let live = json!({
        "metadata": {"resourceVersion": "7", "labels": {"a/b": "1"}, "managedFields": [1]},
        "spec": {"replicas": 5, "containers": [
            {"name": "sidecar", "image": "s"},
            {"name": "web", "image": "web:1", "args": ["x"]},
        ]},
        "status": {"replicas": 5},
    });
    let desired = json!({
        "metadata": {"resourceVersion": "8", "labels": {}},
        "spec": {"replicas": 3, "containers": [
            {"name": "web", "image": "web:2", "args": ["x", "y"]},
        ]},
    });
    let difference = Difference::between(&id("Pod"), &live, &desired);
    assert_eq!(
        difference.to_string(),
        ".metadata.labels[\"a/b\"] is \"1\", should be (none); \
             .spec.containers[name=\"sidecar\"] is {\"image\":\"s\",\"name\":\"sidecar\"}, should be (none); \
             .spec.containers[name=\"web\"].args[1] is (none), should be \"y\"; \
             .spec.containers[name=\"web\"].image is \"web:1\", should be \"web:2\"; \
             .spec.replicas is 5, should be 3"
    );
}

#[test]
fn a_secret_shows_names_and_no_values() {
    let (live, desired) = (
        json!({"data": {"key": "aGVsbG8="}}),
        json!({"data": {"key": "Ynll"}}),
    );
    assert_eq!(
        Difference::between(&id("Secret"), &live, &desired).to_string(),
        ".data.key is (hidden), should be (hidden)"
    );
}

#[test]
fn what_is_long_is_cut() {
    let desired: Map<String, Value> = (0..20)
        .map(|i| (format!("f{i:02}"), json!("ä".repeat(500))))
        .collect();
    let text = Difference::between(&id("Pod"), &json!({}), &desired.into()).to_string();
    assert!(text.ends_with("; and 12 more"), "{text}");
    assert!(text.chars().count() < 1200, "{text}");
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        "[a-c]".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]|name|status|metadata", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn only_what_differs_is_named(a in tree(), b in tree()) {
        prop_assert!(Difference::between(&id("Pod"), &a, &a).is_empty());
        for change in Difference::between(&id("Pod"), &a, &b).changes {
            prop_assert_ne!(change.live, change.desired);
        }
    }

    #[test]
    fn whatever_differs_is_found(a in tree(), b in tree()) {
        let (live, desired) = (json!({"spec": a}), json!({"spec": b}));
        prop_assert_eq!(Difference::between(&id("Pod"), &live, &desired).is_empty(), a == b);
    }
}

#[test]
fn elements_that_share_a_name_are_compared_by_index() {
    let subject = |namespace: &str| json!({"kind": "ServiceAccount", "name": "default", "namespace": namespace});
    let live = json!({"subjects": [subject("a"), subject("evil")]});
    let desired = json!({"subjects": [subject("a")]});
    assert_eq!(
        Difference::between(&id("RoleBinding"), &live, &desired).to_string(),
        ".subjects[1] is {\"kind\":\"ServiceAccount\",\"name\":\"default\",\"namespace\":\"evil\"}, should be (none)"
    );
}

#[test]
fn another_order_is_a_difference() {
    let (live, desired) = (
        json!({"list": [{"name": "a"}, {"name": "b"}]}),
        json!({"list": [{"name": "b"}, {"name": "a"}]}),
    );
    assert_eq!(
        Difference::between(&id("Pod"), &live, &desired).to_string(),
        ".list is [{\"name\":\"a\"},{\"name\":\"b\"}], should be [{\"name\":\"b\"},{\"name\":\"a\"}]"
    );
}
