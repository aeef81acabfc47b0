//! Checks every rendering of the charts as manifest linters do: pods have no privileges and declare their resources,
//! and roles have no wildcards.

use std::collections::BTreeSet;

use serde_json::Value;

/// Returns all problems of the objects of a rendering.
pub(crate) fn problems(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for object in objects {
        let name = format!(
            "{} {}",
            text(&object["kind"]),
            text(&object["metadata"]["name"])
        );
        let mut wrong = |what: String| found.push(format!("{name}: {what}"));
        match text(&object["kind"]) {
            "Deployment" | "StatefulSet" => pod(object, &mut wrong),
            "Role" | "ClusterRole" => rules(object, &mut wrong),
            "Service" if !selects(object, objects) => {
                wrong("selects no pod of the chart".to_owned())
            }
            "PodDisruptionBudget" if !selects(object, objects) => {
                wrong("guards no pod of the chart".to_owned());
            }
            "ServiceAccount" if object["automountServiceAccountToken"] != false => {
                wrong("mounts its token into every pod that uses it".to_owned());
            }
            _ => {}
        }
        for label in [
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "helm.sh/chart",
        ] {
            if object["metadata"]["labels"][label].is_null() {
                wrong(format!("has no label {label}"));
            }
        }
    }
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn selects(object: &Value, objects: &[Value]) -> bool {
    let spec = &object["spec"]["selector"];
    let wanted = spec.get("matchLabels").unwrap_or(spec).as_object();
    objects.iter().any(|other| {
        let labels = &other["spec"]["template"]["metadata"]["labels"];
        !labels.is_null()
            && wanted.is_some_and(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value))
    })
}

fn pod(object: &Value, wrong: &mut impl FnMut(String)) {
    let spec = &object["spec"]["template"]["spec"];
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[shared] == true {
            wrong(format!("uses {shared}"));
        }
    }
    if matches!(text(&spec["serviceAccountName"]), "" | "default")
        && spec["automountServiceAccountToken"] != false
    {
        wrong("runs as the namespace's default account".to_owned());
    }
    for volume in list(&spec["volumes"]).filter(|volume| !volume["hostPath"].is_null()) {
        wrong(format!("mounts {} of the node", volume["hostPath"]));
    }
    let of_pod = &spec["securityContext"];
    for container in list(&spec["containers"]).chain(list(&spec["initContainers"])) {
        let own = &container["securityContext"];
        let either = |key: &str| {
            if own[key].is_null() {
                &of_pod[key]
            } else {
                &own[key]
            }
        };
        let mut needs = |good: bool, what: &str| {
            if !good {
                wrong(format!("container {}: {what}", text(&container["name"])));
            }
        };
        needs(*either("runAsNonRoot") == true, "may run as root");
        needs(
            either("seccompProfile")["type"] == "RuntimeDefault",
            "no seccomp profile",
        );
        needs(
            own["readOnlyRootFilesystem"] == true,
            "its root file system is writable",
        );
        needs(
            own["allowPrivilegeEscalation"] == false,
            "may gain privileges",
        );
        needs(own["privileged"] != true, "is privileged");
        let drops_all = list(&own["capabilities"]["drop"]).any(|dropped| dropped == "ALL");
        needs(
            drops_all && own["capabilities"]["add"].is_null(),
            "does not drop all capabilities",
        );
        let resources = &container["resources"];
        needs(!resources["requests"]["cpu"].is_null(), "requests no CPU");
        needs(
            !resources["requests"]["memory"].is_null(),
            "requests no memory",
        );
        needs(
            !resources["limits"]["memory"].is_null(),
            "has no memory limit",
        );
        needs(
            !container["livenessProbe"].is_null(),
            "has no liveness probe",
        );
        needs(
            !container["readinessProbe"].is_null(),
            "has no readiness probe",
        );
        let image = text(&container["image"]);
        let tag = image.rsplit_once([':', '@']).map_or("", |(_, tag)| tag);
        needs(
            !matches!(tag, "" | "latest") && !tag.contains('/'),
            "its image has no fixed version",
        );
        let mut seen = BTreeSet::new();
        for variable in list(&container["env"]) {
            let name = text(&variable["name"]);
            needs(seen.insert(name), "sets a variable twice");
            let lower = name.to_lowercase();
            let secret = ["password", "secret", "token", "key"]
                .iter()
                .any(|word| lower.contains(word));
            let is_path = text(&variable["value"]).starts_with('/');
            needs(
                !secret || is_path || variable["value"].is_null(),
                "has a secret in its environment",
            );
        }
    }
}

fn rules(object: &Value, wrong: &mut impl FnMut(String)) {
    for rule in list(&object["rules"]) {
        for part in ["apiGroups", "resources", "verbs"] {
            if list(&rule[part]).any(|entry| entry == "*") {
                wrong(format!("grants {part} by *: {rule}"));
            }
        }
        let forbidden = [
            "pods/exec",
            "pods/attach",
            "nodes/proxy",
            "serviceaccounts/token",
        ];
        if list(&rule["resources"]).any(|resource| forbidden.contains(&text(resource))) {
            wrong(format!("grants a way into pods or nodes: {rule}"));
        }
        if list(&rule["verbs"]).any(|verb| verb == "impersonate" || verb == "deletecollection") {
            wrong(format!("grants more than anything here needs: {rule}"));
        }
    }
}

#[test]
fn what_is_wrong_is_found() {
    let object = serde_json::json!({
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"template": {"spec": {
            "hostNetwork": true,
            "volumes": [{"name": "node", "hostPath": {"path": "/"}}],
            "containers": [{
                "name": "web",
                "image": "registry:5000/web",
                "env": [{"name": "DB_PASSWORD", "value": "hunter2"}],
                "securityContext": {"privileged": true},
            }],
        }}},
    });
    let role = serde_json::json!({
        "kind": "Role",
        "metadata": {"name": "all"},
        "rules": [
            {"apiGroups": [""], "resources": ["*"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]},
        ],
    });
    let service = serde_json::json!({
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}},
    });
    let found = problems(&[object, role, service]).join("\n");
    for word in [
        "uses hostNetwork",
        "default account",
        "of the node",
        "may run as root",
        "no seccomp profile",
        "its root file system is writable",
        "may gain privileges",
        "is privileged",
        "does not drop all capabilities",
        "requests no CPU",
        "requests no memory",
        "has no memory limit",
        "no liveness probe",
        "no readiness probe",
        "no fixed version",
        "a secret in its environment",
        "grants resources by *",
        "a way into pods",
        "more than anything here needs",
        "selects no pod",
        "has no label helm.sh/chart",
    ] {
        assert!(found.contains(word), "{word} is not in\n{found}");
    }
}
