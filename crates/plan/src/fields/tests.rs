use super::*;

#[test]
fn fields_of_the_other_tree_are_removed() {
    let helm = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:heritage": {}}},
        "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}, "f:tty": {}},
        }}}},
    });
    let ours = json!({
        "f:metadata": {"f:labels": {"f:app": {}, "f:muster.dev/app": {}}},
        "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}},
        }}}},
    });
    assert_eq!(
        without(&helm, &ours),
        Some(json!({
            "f:metadata": {"f:labels": {".": {}, "f:heritage": {}}},
            "f:spec": {"f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"web\"}": {"f:tty": {}},
            }}}},
        }))
    );
    assert_eq!(without(&ours, &ours), None);
    assert_eq!(without(&ours, &json!({})), Some(ours));
}

#[test]
fn elements_are_found_by_key_value_or_index() {
    let tree = json!({
        "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {"f:a": {}},
        "v:\"blue\"": {},
        "i:3": {"f:b": {}},
    });
    let port = json!({"containerPort": 80, "protocol": "TCP", "name": "http"});
    assert_eq!(element(&tree, 0, &port), Some(&json!({"f:a": {}})));
    assert_eq!(element(&tree, 0, &json!("blue")), Some(&json!({})));
    assert_eq!(element(&tree, 3, &json!("red")), Some(&json!({"f:b": {}})));
    assert_eq!(element(&tree, 2, &json!("red")), None);
}
