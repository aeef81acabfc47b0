use muster_model::bundle::Gvk;
use serde_json::json;

use super::*;

fn removed(api_version: &str, kind: &str, object: Value) -> (bool, Value) {
    let id = ObjectRef {
        gvk: Gvk::from_api_version(api_version, kind),
        namespace: None,
        name: "a".into(),
    };
    let concerned = may_concern(&id, &object.to_string());
    let Value::Object(mut object) = object else {
        panic!("it is an object");
    };
    remove(&id, &mut object);
    (concerned, object.into())
}

#[test]
fn the_rules_of_an_aggregated_role_are_not_sent() {
    let rbac = "rbac.authorization.k8s.io/v1";
    let rules = json!([{"verbs": ["get"]}]);
    let aggregated = json!({"aggregationRule": {"clusterRoleSelectors": []}, "rules": rules});
    assert_eq!(
        removed(rbac, "ClusterRole", aggregated),
        (
            true,
            json!({"aggregationRule": {"clusterRoleSelectors": []}})
        )
    );
    for plain in [
        json!({"rules": rules}),
        json!({"aggregationRule": null, "rules": rules}),
    ] {
        assert_eq!(removed(rbac, "ClusterRole", plain.clone()).1, plain);
    }
}

#[test]
fn annotations_that_controllers_write_are_not_sent() {
    let exported = json!({"metadata": {"annotations": {
        "deployment.kubernetes.io/revision": "3", "team": "web",
    }}});
    assert_eq!(
        removed("apps/v1", "Deployment", exported),
        (true, json!({"metadata": {"annotations": {"team": "web"}}}))
    );
    let plain = json!({"metadata": {"annotations": {"team": "web"}}});
    assert_eq!(
        removed("apps/v1", "Deployment", plain.clone()),
        (false, plain)
    );
}

#[test]
fn the_content_of_a_token_secret_is_not_sent() {
    let token = json!({
        "type": TOKEN,
        "metadata": {"annotations": {
            "kubernetes.io/service-account.name": "ci",
            "kubernetes.io/service-account.uid": "1",
        }},
        "data": {"token": "eA==", "ca.crt": "eA==", "extra": "eA=="},
    });
    assert_eq!(
        removed("v1", "Secret", token),
        (
            true,
            json!({
                "type": TOKEN,
                "metadata": {"annotations": {"kubernetes.io/service-account.name": "ci"}},
                "data": {"extra": "eA=="},
            })
        )
    );
}
