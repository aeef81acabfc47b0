use super::*;

fn live(entries: &[Value]) -> Value {
    json!({"metadata": {
        "resourceVersion": "5",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        "managedFields": entries,
    }})
}

fn entry(manager: &str, operation: &str, time: &str, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "time": time, "fieldsV1": fields})
}

fn conflict(manager: &str, field: &str) -> Conflict {
    Conflict {
        manager: manager.into(),
        subresource: String::new(),
        field: field.into(),
    }
}

#[test]
fn conflicts_are_read_from_causes() {
    let of = |message: &str| Conflict::of_cause("FieldManagerConflict", message, ".spec.replicas");
    assert_eq!(
        of(
            "conflict with \"hpa\" with subresource \"scale\" using apps/v1 at 2026-01-01T00:00:00Z"
        ),
        Some(Conflict {
            subresource: "scale".into(),
            ..conflict("hpa", ".spec.replicas")
        })
    );
    assert_eq!(
        of("conflict with \"me\" using v1"),
        Some(conflict("me", ".spec.replicas"))
    );
    assert_eq!(Conflict::of_cause("FieldValueInvalid", "x", ".a"), None);
}

#[test]
fn what_was_taken_since_is_drift_and_what_was_there_before_is_a_conflict() {
    let live = live(&[
        entry("muster", "Apply", "2026-01-02T00:00:00Z", json!({})),
        entry("kubectl-edit", "Update", "2026-01-03T00:00:00Z", json!({})),
        entry("operator", "Update", "2026-01-01T00:00:00Z", json!({})),
        entry("helm", "Update", "2026-01-01T00:00:00Z", json!({})),
    ]);
    let all = || {
        vec![
            conflict("kubectl-edit", ".a"),
            conflict("operator", ".b"),
            conflict("helm", ".c"),
        ]
    };
    let (operator, edit) = (conflict("operator", ".b"), conflict("kubectl-edit", ".a"));
    assert_eq!(
        judge(&live, all(), Conflicts::Fail, Drift::Correct, true),
        Verdict::Leave(vec![operator.clone()])
    );
    assert_eq!(
        judge(&live, all(), Conflicts::Fail, Drift::Report, true),
        Verdict::Leave(vec![edit.clone(), operator.clone()])
    );
    assert_eq!(
        judge(&live, all(), Conflicts::Fail, Drift::Correct, false),
        Verdict::Leave(vec![edit, operator])
    );
    assert_eq!(
        judge(&live, all(), Conflicts::Take, Drift::Report, false),
        Verdict::Take
    );
    let helm = vec![conflict("helm", ".c")];
    assert_eq!(
        judge(&live, helm, Conflicts::Fail, Drift::Correct, false),
        Verdict::Take
    );
}

#[test]
fn a_version_that_is_not_served_any_more_is_left() {
    let mut live = live(&[
        entry("muster", "Apply", "", json!({})),
        entry("operator", "Update", "", json!({})),
    ]);
    live["metadata"]["managedFields"][0]["apiVersion"] = json!("x.org/v1");
    live["metadata"]["managedFields"][1]["apiVersion"] = json!("x.org/v2");
    assert_eq!(
        leave_version(&live, "x.org/v1", "x.org/v2"),
        Some(json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "5"},
            {"op": "replace", "path": "/metadata/managedFields/0/apiVersion", "value": "x.org/v2"},
        ]))
    );
    assert_eq!(leave_version(&live, "x.org/v0", "x.org/v2"), None);
}

#[test]
fn a_conflict_names_fields_by_manager() {
    let text = explain(&[
        conflict("a", ".x"),
        conflict("b", ".y"),
        conflict("a", ".z"),
    ]);
    assert!(text.contains("`a` owns .x, .z; `b` owns .y;"), "{text}");
}
