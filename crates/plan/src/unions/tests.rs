use super::*;

/// Returns the fields that Muster owns after the patch.
fn cleared(desired: &Value, live: &Value, field: &str, ignored: &[&str]) -> Option<Value> {
    let cause = Cause { message: "", field };
    let patch = clear(desired, live, &[cause], ignored)?;
    let own = patch.as_array()?.iter().find(|step| step["path"] == OWN)?;
    Some(own["value"].clone())
}

const OWN: &str = "/metadata/managedFields/0/fieldsV1";

fn entry(manager: &str, operation: &str, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "fieldsV1": fields})
}

#[test]
fn muster_takes_over_fields_that_are_not_in_git_and_that_nobody_owns() {
    let own = json!({"f:spec": {"f:strategy": {"f:type": {}}}});
    let live = json!({
        "metadata": {"managedFields": [entry("muster", "Apply", own)]},
        "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}},
    });
    let desired = json!({"spec": {"strategy": {"type": "Recreate"}}});
    let rolling = json!({".": {}, "f:maxSurge": {}});
    assert_eq!(
        cleared(&desired, &live, "spec.strategy.rollingUpdate", &[]),
        Some(json!({"f:spec": {"f:strategy": {"f:type": {}, "f:rollingUpdate": rolling}}}))
    );
    for field in [
        "spec",
        "metadata.labels",
        "status.phase",
        "x[",
        "spec.strategy[0]",
        "",
    ] {
        assert_eq!(cleared(&desired, &live, field, &[]), None, "{field}");
    }
}

#[test]
fn the_member_of_a_union_that_is_too_many_is_cleared() {
    let key = "k:{\"name\":\"v\"}";
    let own = json!({"f:spec": {"f:volumes": {key: {".": {}, "f:name": {}}}}});
    let live = json!({
        "metadata": {"managedFields": [entry("muster", "Apply", own)]},
        "spec": {"volumes": [
            {"name": "injected", "emptyDir": {}},
            {"name": "v", "secret": {"defaultMode": 420}},
        ]},
    });
    let desired = json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}});
    let secret = json!({".": {}, "f:defaultMode": {}});
    assert_eq!(
        cleared(&desired, &live, "spec.volumes[1].configMap", &[]),
        Some(json!({"f:spec": {"f:volumes": {key: {".": {}, "f:name": {}, "f:secret": secret}}}}))
    );
    assert_eq!(
        cleared(&desired, &live, "spec.volumes[0].emptyDir", &[]),
        None
    );
}

#[test]
fn what_a_controller_has_stays_unless_it_is_ignored() {
    let injected = json!({"f:spec": {"f:conversion": {"f:webhook": {"f:caBundle": {}}}}});
    let live = |manager: &str| {
        json!({
            "metadata": {"managedFields": [
                entry("muster", "Apply", json!({"f:spec": {"f:group": {}}})),
                entry(manager, "Update", injected.clone()),
            ]},
            "spec": {"conversion": {"webhook": {"caBundle": "x"}}},
        })
    };
    let desired = json!({"spec": {"group": "g"}});
    // The API server may use a different name for the field.
    let field = "spec.conversion.webhookClientConfig";
    let all = json!({"f:spec": {"f:group": {}, "f:conversion": {
        ".": {}, "f:webhook": {".": {}, "f:caBundle": {}},
    }}});
    assert_eq!(cleared(&desired, &live("cainjector"), field, &[]), None);
    let ignored = ["/spec/conversion/webhook/caBundle"];
    assert_eq!(
        cleared(&desired, &live("cainjector"), field, &ignored),
        Some(all.clone())
    );
    assert_eq!(
        cleared(&desired, &live("kubectl-edit"), field, &[]),
        Some(all)
    );
    let cause = Cause { message: "", field };
    let patch = clear(&desired, &live("kubectl-edit"), &[cause], &[]).unwrap();
    assert_eq!(
        patch[1],
        json!({"op": "remove", "path": "/metadata/managedFields/1"})
    );
}

#[test]
fn fields_are_read_as_the_api_server_names_them() {
    let name = |name: &str| Segment::Name(name.into());
    assert_eq!(
        parse("spec.a[3].b[key.of]"),
        None,
        "a key with a dot is not read"
    );
    assert_eq!(
        parse("spec.a[3].b[key]"),
        Some(vec![
            name("spec"),
            name("a"),
            Segment::Index(3),
            name("b"),
            name("key")
        ])
    );
}
