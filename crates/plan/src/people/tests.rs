use muster_model::bundle::Gvk;

use super::*;

fn id(api_version: &str, kind: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version(api_version, kind),
        namespace: Some("a".into()),
        name: "b".into(),
    }
}

fn entry(manager: &str, operation: &str, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": "t", "fieldsV1": fields})
}

fn map(data: Value, entries: &[Value]) -> Value {
    json!({
        "metadata": {"resourceVersion": "5", "managedFields": entries},
        "data": data,
    })
}

/// Returns the managers after a take-over, with their fields.
fn managed(take_over: Option<TakeOver>) -> Vec<(String, Value)> {
    let steps = take_over
        .map(|take_over| take_over.patch)
        .unwrap_or_default();
    let steps = steps.as_array().cloned().unwrap_or_default();
    let list = steps
        .iter()
        .find(|step| step["path"] == "/metadata/managedFields");
    let list = list.map(|step| step["value"].as_array().cloned().unwrap_or_default());
    list.unwrap_or_default()
        .into_iter()
        .map(|entry| {
            let name = entry["manager"].as_str().unwrap_or_default().to_owned();
            (name, entry["fieldsV1"].clone())
        })
        .collect()
}

#[test]
fn muster_alone_owns_adopted_fields_and_others_stay_under_a_separate_manager() {
    let mut live = map(
        json!({"a": "1", "old": "1"}),
        &[
            entry(
                "kubectl-client-side-apply",
                "Update",
                json!({
                    "f:data": {".": {}, "f:a": {}},
                    "f:metadata": {"f:annotations": {".": {}, format!("f:{LAST_APPLIED}"): {}}},
                }),
            ),
            entry("operator", "Update", json!({"f:data": {"f:a": {}}})),
            entry("muster", "Apply", json!({"f:data": {"f:a": {}}})),
            entry(
                "helm",
                "Update",
                json!({"f:data": {".": {}, "f:a": {}, "f:old": {}}}),
            ),
            entry(
                "argocd-controller",
                "Apply",
                json!({"f:data": {"f:old": {}, "f:gone": {}}}),
            ),
        ],
    );
    live["metadata"]["annotations"] = json!({LAST_APPLIED: "{}"});
    let taken = take_over(&id("v1", "ConfigMap"), &live, &[], Rest::Adopt).unwrap();
    assert!(!taken.apply);
    let steps = taken.patch.as_array().unwrap();
    assert_eq!(
        steps[0],
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": "5"})
    );
    let annotation = "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";
    assert_eq!(steps[2], json!({"op": "remove", "path": annotation}));
    assert_eq!(
        managed(Some(taken)),
        [
            ("operator".to_owned(), json!({"f:data": {"f:a": {}}})),
            ("muster".to_owned(), json!({"f:data": {"f:a": {}}})),
            (
                BEFORE.to_owned(),
                json!({"f:data": {".": {}, "f:old": {}, "f:gone": {}}})
            ),
        ]
    );
}

#[test]
fn muster_takes_over_fields_that_people_add_to_remove_them() {
    let theirs = json!({
        "f:metadata": {"f:annotations": {"f:muster.dev/prune": {}, "f:note": {}}},
        "f:data": {"f:a": {}, "f:more": {}, "f:ignored": {}, "f:gone": {}},
    });
    let mut live = map(
        json!({"a": "1", "more": "2", "ignored": "3"}),
        &[
            entry("muster", "Apply", json!({"f:data": {"f:a": {}}})),
            entry("kubectl-edit", "Update", theirs),
            entry("controller", "Update", json!({"f:data": {"f:b": {}}})),
        ],
    );
    live["metadata"]["annotations"] = json!({"muster.dev/prune": "disabled", "note": "x"});
    let id = id("v1", "ConfigMap");
    let ignored = ["/data/ignored"];
    let fields = json!({"f:data": {"f:more": {}}, "f:metadata": {"f:annotations": {"f:note": {}}}});
    assert_eq!(added(&id, &live, &ignored), Some(fields.clone()));
    let removed = without_fields(&live, &fields);
    assert_eq!(removed["data"], json!({"a": "1", "ignored": "3"}));
    assert_eq!(
        removed["metadata"]["annotations"],
        json!({"muster.dev/prune": "disabled"})
    );

    let taken = take_over(&id, &live, &ignored, Rest::Take);
    assert!(taken.as_ref().is_some_and(|taken| taken.apply));
    assert_eq!(
        managed(taken),
        [
            (
                "muster".to_owned(),
                json!({
                    "f:data": {"f:a": {}, "f:more": {}},
                    "f:metadata": {"f:annotations": {"f:note": {}}},
                })
            ),
            (
                "kubectl-edit".to_owned(),
                json!({
                    "f:data": {"f:gone": {}, "f:ignored": {}},
                    "f:metadata": {"f:annotations": {"f:muster.dev/prune": {}}},
                })
            ),
            ("controller".to_owned(), json!({"f:data": {"f:b": {}}})),
        ]
    );
    let left = take_over(&id, &live, &ignored, Rest::Leave);
    assert!(left.as_ref().is_some_and(|left| !left.apply));
    assert_eq!(
        managed(left)[1].1["f:data"],
        json!({"f:gone": {}, "f:ignored": {}, "f:more": {}})
    );
}

#[test]
fn actions_of_people_that_are_no_changes_of_the_desired_state_are_not_reverted() {
    let restarted = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {
        ".": {}, "f:kubectl.kubernetes.io/restartedAt": {},
    }}}}});
    let scaled = json!({
        "manager": "kubectl", "operation": "Update", "subresource": "scale",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    });
    let live = json!({
        "metadata": {"managedFields": [
            entry("muster", "Apply", json!({"f:spec": {"f:selector": {}}})),
            entry("kubectl-rollout", "Update", restarted),
            scaled,
        ]},
        "spec": {"replicas": 3, "template": {"metadata": {"annotations": {
            "kubectl.kubernetes.io/restartedAt": "now",
        }}}},
    });
    let deployment = id("apps/v1", "Deployment");
    assert_eq!(added(&deployment, &live, &[]), None);
    assert_eq!(take_over(&deployment, &live, &[], Rest::Take), None);

    let live = json!({
        "metadata": {"managedFields": [
            entry("muster", "Apply", json!({"f:metadata": {"f:labels": {"f:a": {}}}})),
            entry("kubectl-cordon", "Update", json!({"f:spec": {"f:unschedulable": {}}})),
        ]},
        "spec": {"unschedulable": true},
    });
    assert_eq!(added(&id("v1", "Node"), &live, &[]), None);
    assert!(added(&id("example.org/v1", "Node"), &live, &[]).is_some());
}

#[test]
fn elements_of_lists_are_taken_whole() {
    let sidecar = json!({"f:spec": {"f:containers": {
        "k:{\"name\":\"sidecar\"}": {".": {}, "f:image": {}, "f:name": {}},
        "k:{\"name\":\"web\"}": {"f:env": {".": {}, "k:{\"name\":\"B\"}": {".": {}, "f:name": {}}}},
    }, "f:finalizers": {"v:\"mine\"": {}}}});
    let web =
        json!({"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:name": {}}}}});
    let live = json!({
        "metadata": {"managedFields": [
            entry("muster", "Apply", web),
            entry("kubectl-patch", "Update", sidecar),
        ]},
        "spec": {
            "finalizers": ["mine", "theirs"],
            "containers": [
                {"name": "sidecar", "image": "s"},
                {"name": "web", "env": [{"name": "B"}]},
            ],
        },
    });
    let pod = id("v1", "Pod");
    let fields = added(&pod, &live, &[]).unwrap();
    assert_eq!(
        without_fields(&live, &fields)["spec"],
        json!({"finalizers": ["theirs"], "containers": [{"name": "web"}]})
    );
    // The sidecar is the first container.
    let fields = added(&pod, &live, &["/spec/containers/0", "/spec/finalizers"]).unwrap();
    assert_eq!(
        without_fields(&live, &fields)["spec"]["containers"],
        json!([{"name": "sidecar", "image": "s"}, {"name": "web"}])
    );
}

#[test]
fn fields_of_before_first_apply_stay_because_their_owners_are_unknown() {
    let all = json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}});
    let live = map(
        json!({"a": "1", "b": "2"}),
        &[
            entry("before-first-apply", "Update", all),
            entry("muster", "Apply", json!({"f:data": {"f:a": {}}})),
        ],
    );
    let id = id("v1", "ConfigMap");
    assert_eq!(added(&id, &live, &[]), None);
    let taken = take_over(&id, &live, &[], Rest::Take);
    assert!(
        taken
            .as_ref()
            .is_some_and(|taken| !taken.apply && taken.unknown)
    );
    assert_eq!(
        managed(taken),
        [
            ("muster".to_owned(), json!({"f:data": {"f:a": {}}})),
            (BEFORE.to_owned(), json!({"f:data": {".": {}, "f:b": {}}})),
        ]
    );
}
