use serde_json::json;

use crate::objects::read;

use super::*;

fn written(text: &str) -> Value {
    let objects = read(text, "a", None).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    serde_json::from_str(&objects[0].1.json).unwrap()
}

#[test]
fn nulls_stay_where_an_api_server_keeps_them() {
    let metadata = "metadata: {name: a, annotations: , labels: {l: }, creationTimestamp: null}";
    let kept = json!({"name": "a", "labels": {"l": ""}});
    for (text, wanted) in [
        (
            "apiVersion: a.example/v1\nkind: Release\nspec:\n  limit: null\n  values: {cpu: , list: [a, null, {x: ~}]}\nstatus:\n",
            json!({"spec": {"limit": null, "values": {"cpu": null, "list": ["a", null, {"x": null}]}}}),
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nspec:\n",
            json!({"spec": null}),
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {a: , b: x}\nimmutable:\n",
            json!({"data": {"a": "", "b": "x"}}),
        ),
        (
            "apiVersion: v1\nkind: Service\nspec: {selector: {a: }, type: , ports: [{port: 80, nodePort: }]}\n",
            json!({"spec": {"selector": {"a": ""}, "ports": [{"port": 80}]}}),
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas:\n  template: {spec: {volumes: , nodeSelector: {a: }, containers: [{name: c, env: [{name: A, value: }]}]}}\n",
            json!({"spec": {"template": {"spec": {"nodeSelector": {"a": ""}, "containers": [{"name": "c", "env": [{"name": "A"}]}]}}}}),
        ),
        (
            "apiVersion: apps/v1\nkind: ControllerRevision\nrevision: 1\ndata: {a: null}\n",
            json!({"revision": 1, "data": {"a": null}}),
        ),
        (
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {conversion: , schema: {default: {a: }, metadata: {labels: {x: }}, enum: [null]}}\n",
            json!({"spec": {"schema": {"default": {"a": null}, "metadata": {"labels": {}}, "enum": [null]}}}),
        ),
        (
            "apiVersion: lifecycle.k8s.io/v1alpha1\nkind: Eviction\nspec: {a: , b: x}\n",
            json!({"spec": {"b": "x"}}),
        ),
        (
            "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nspec: {config: [{opaque: {driver: d, parameters: {a: }}}], selectors: }\n",
            json!({"spec": {"config": [{"opaque": {"driver": "d", "parameters": {"a": null}}}]}}),
        ),
    ] {
        let mut object = written(&format!("{text}{metadata}\n"));
        let fields = object.as_object_mut().unwrap();
        assert_eq!(fields.remove("metadata"), Some(kept.clone()), "{text}");
        fields.retain(|key, _| key != "apiVersion" && key != "kind");
        assert_eq!(object, wanted, "{text}");
    }
}

#[test]
fn numbers_and_booleans_are_no_text() {
    let told = |text: &str| -> Vec<String> {
        let told = read(text, "a", None).err().unwrap_or_default();
        let told = told.into_iter();
        told.map(|wrong| {
            let help = wrong.help.unwrap_or_default();
            format!("{}: {}; {help}", wrong.at, wrong.message)
        })
        .collect()
    };
    let text = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: a, annotations: {port: 9090}, labels: {on: true}}
data:
  port: 8080
  ratio: 1.10
  nested: {a: b}
  fine: \"8080\"
";
    assert_eq!(
        told(text),
        [
            "3:41: `port` in `annotations` must be text, not a number; put it in quotes",
            "3:61: `on` in `labels` must be text, not true or false; put it in quotes",
            "5:9: `port` in `data` must be text, not a number; put it in quotes",
            "6:10: `ratio` in `data` must be text, not a number; put it in quotes",
            "7:11: `nested` in `data` must be text, not a map; ",
        ]
    );
    let text = "\
apiVersion: batch/v1
kind: CronJob
metadata: {name: a}
spec:
  jobTemplate:
    metadata: {labels: {v: 1}}
    spec:
      template:
        metadata: {annotations: {v: 1.5}}
        spec:
          nodeSelector: {ssd: true}
          initContainers: [{name: i, command: [sleep, 10]}]
          containers:
          - name: c
            env: [{name: PORT, value: 80}, {name: A, valueFrom: {fieldRef: {fieldPath: a}}}]
            args: [--port, 80, \"80\"]
          affinity: {podAffinity: {x: [{labelSelector: {matchLabels: {n: 1}}}]}}
";
    assert_eq!(
        told(text),
        [
            "6:28: `v` in `labels` must be text, not a number; put it in quotes",
            "9:37: `v` in `annotations` must be text, not a number; put it in quotes",
            "11:31: `ssd` in `nodeSelector` must be text, not true or false; put it in quotes",
            "12:55: an item of `command` must be text, not a number; put it in quotes",
            "15:39: `value` in `env` must be text, not a number; put it in quotes",
            "16:28: an item of `args` must be text, not a number; put it in quotes",
            "17:74: `n` in `matchLabels` must be text, not a number; put it in quotes",
        ]
    );
    for text in [
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {a: 1}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, data: {a: true}}",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {a: 1}}}",
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: a}, parameters: {a: 1}}",
        "{apiVersion: a.example/v1, kind: Own, metadata: {name: a, labels: {a: 1}}}",
    ] {
        assert_eq!(told(text).len(), 1, "{text}");
    }
    let text = "{apiVersion: v1, kind: Secret, metadata: {name: a}, data: {a: not base64, b: \"aGVs\\nbG8=\", c: , d: aGVsbG9=, e: aGVsbG8}}";
    assert_eq!(
        told(text),
        [
            "1:63: `a` in `data` is not base64: Invalid symbol 32, offset 3.; a Secret's `stringData` and a ConfigMap's `data` take plain text",
            "1:113: `e` in `data` is not base64: Invalid padding; a Secret's `stringData` and a ConfigMap's `data` take plain text",
        ]
    );
    // Only a schema could tell that these are wrong.
    for text in [
        "{apiVersion: a.example/v1, kind: Own, metadata: {name: a}, data: {a: 1}, spec: {metadata: {labels: {a: 1}}, env: [{value: 1}]}}",
        "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: a}, spec: {metadata: {labels: {a: 1}}, env: [{value: 1}]}}",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {selector: {matchLabels: {a: b}}, replicas: 1, template: {spec: {containers: [{resources: {limits: {cpu: 1}}}]}}}}",
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: a}, spec: {hard: {pods: 1}}}",
    ] {
        assert_eq!(told(text), [""; 0], "{text}");
    }
}

#[test]
fn text_of_values_that_becomes_a_number_is_told_where_no_schema_would() {
    let author = |digits: &str| digits == "0644";
    let text = "\
apiVersion: a.example/v1
kind: Own
metadata: {name: a}
spec: {tag: 1.10, mode: 0644, sha: [1e3], port: 8080, ratio: 1.5, small: 1e-7, 1.20: x, text: \"1.10\"}
---
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{resources: {limits: {cpu: 0.50}}}]}
";
    let told = read(text, "a", Some(&author)).unwrap_err();
    let told = told
        .iter()
        .map(|wrong| format!("{}: {}", wrong.at, wrong.message));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            "4:13: `1.10` becomes the number 1.1 here",
            "4:37: `1e3` becomes the number 1000.0 here",
        ]
    );
    let objects = read(
        &text.replace("1.10,", "1,").replace("1e3", "1"),
        "a",
        Some(&author),
    )
    .unwrap();
    let own: Value = serde_json::from_str(&objects[0].1.json).unwrap();
    assert_eq!(own["spec"]["1.20"], "x");
    assert_eq!(own["spec"]["mode"], 420);
}
