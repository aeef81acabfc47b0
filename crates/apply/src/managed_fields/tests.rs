use serde_json::json;

use super::*;

fn read(text: &str) -> Option<FieldsDigest> {
    serde_json::from_str::<Managers>(text).unwrap().own
}

#[test]
fn equal_fields_have_one_digest_whatever_their_order() {
    let entry = |fields: &str| {
        format!(
            r#"[{{"fieldsV1":{fields},"manager":"muster","operation":"Apply","time":"x"}},{{"manager":"k","operation":"Update","fieldsV1":{{}}}}]"#
        )
    };
    let one = read(&entry(r#"{"f:spec":{"f:a":{},"f:b":{"f:c":{}}}}"#));
    assert!(one.is_some());
    assert_eq!(
        one,
        read(&entry(r#"{"f:spec":{"f:b":{"f:c":{}},"f:a":{}}}"#))
    );
    for other in [
        r#"{"f:spec":{"f:a":{},"f:b":{}}}"#,
        r#"{"f:spec":{"f:a":{},"f:b":{},"f:c":{}}}"#,
        r#"{"f:spec":{"f:b":{"f:c":{},"f:a":{}}}}"#,
    ] {
        assert_ne!(one, read(&entry(other)), "{other}");
    }
    let text = serde_json::to_string(&one).unwrap();
    assert_eq!(
        serde_json::from_str::<Option<FieldsDigest>>(&text).unwrap(),
        one
    );
}

#[test]
fn entries_of_subresources_and_others_are_not_ours() {
    let entries = json!([
        {"manager": "muster", "operation": "Apply", "subresource": "status", "fieldsV1": {"f:a": {}}},
        {"manager": "muster", "operation": "Update", "fieldsV1": {"f:a": {}}},
        {"manager": "controller", "operation": "Update"},
        {"manager": "kubectl", "operation": "Update", "subresource": "scale"},
    ]);
    let managers: Managers = serde_json::from_value(entries).unwrap();
    let others = vec!["muster".to_owned(), "controller".to_owned()];
    assert_eq!(
        managers,
        Managers {
            others,
            ..Managers::default()
        }
    );
}

#[test]
fn the_digest_of_peoples_fields_depends_on_fields_and_manager() {
    let of = |manager: &str, fields: serde_json::Value| {
        let entries = json!([{"manager": manager, "operation": "Update", "fieldsV1": fields}]);
        serde_json::from_value::<Managers>(entries).unwrap().people
    };
    let edited = of("kubectl-edit", json!({"f:a": {}}));
    assert!(edited.is_some());
    assert_ne!(edited, of("kubectl-edit", json!({"f:a": {}, "f:b": {}})));
    assert_ne!(edited, of("kubectl-patch", json!({"f:a": {}})));
}
