use serde_json::json;

use super::*;

#[test]
fn what_is_large_is_left_out() {
    let text = json!({
        "kind": "Foo",
        "metadata": {"name": "a", "uid": "u", "managedFields": [{"manager": "kubectl"}]},
        "spec": {"n": [1, -2, 0.5, null, true, "x"], "versions": [{"openAPIV3Schema": {"a": {}}}]},
    })
    .to_string();
    let slim: Trimmed<false> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        slim.value,
        json!({
            "kind": "Foo",
            "metadata": {"name": "a", "uid": "u"},
            "spec": {"n": [1, -2, 0.5, null, true, "x"], "versions": [{}]},
        })
    );
    assert_eq!(slim.managers.others, ["kubectl"]);
    assert_eq!(
        (slim.meta.name.as_deref(), slim.meta.uid.as_deref()),
        (Some("a"), Some("u"))
    );
}
