//! Tests of `muster health`: the output and the exit code for each input.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::Context as _;

/// Runs `muster health` with this standard input, and returns its output, errors and exit code as one text.
fn health(args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_muster"))
        .arg("health")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child
        .stdin
        .take()
        .context("the child has no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let code = output
        .status
        .code()
        .context("the child was ended by a signal")?;
    let (out, errors) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    Ok(format!("{out}{errors}exit {code}"))
}

const OBJECTS: &str = r#"# A deployment, its claim, and a kind that nobody knows.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, generation: 3}
spec: {replicas: 3}
status: {observedGeneration: 3, replicas: 3, updatedReplicas: 3, availableReplicas: 2}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata: {name: data, namespace: shop}
  status: {phase: Lost}
- apiVersion: x.example/v1
  kind: Queue
  metadata: {name: orders}
  spec: {suspend: true}
---
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}}
{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "web-1"}, "status": {"phase": "Failed", "reason": "Evicted"}}]}
"#;

#[test]
fn every_form_says_the_same_in_order() -> anyhow::Result<()> {
    insta::assert_snapshot!(health(&["-o", "json"], OBJECTS)?, @r#"
    {"kind":"Deployment","namespace":"shop","name":"web","status":"Progressing","message":"2 of 3 replicas available","apiVersion":"apps/v1","uid":"","health":"Progressing"}
    {"kind":"PersistentVolumeClaim","namespace":"shop","name":"data","status":"Degraded","message":"its volume is lost","apiVersion":"v1","uid":"","health":"Degraded"}
    {"kind":"Queue","namespace":"","name":"orders","status":"Suspended","message":"suspend is true in its spec","apiVersion":"x.example/v1","uid":"","health":"Suspended"}
    {"kind":"ConfigMap","namespace":"shop","name":"settings","status":"Healthy","message":"","apiVersion":"v1","uid":"","health":"Healthy"}
    {"kind":"Pod","namespace":"","name":"web-1","status":"Degraded","message":"Evicted","apiVersion":"v1","uid":"","health":"Degraded"}
    exit 1
    "#);
    insta::assert_snapshot!(health(&[], OBJECTS)?, @r#"
    KIND                   NAMESPACE  NAME      HEALTH       MESSAGE
    Deployment             shop       web       Progressing  2 of 3 replicas available
    PersistentVolumeClaim  shop       data      Degraded     its volume is lost
    Queue                  -          orders    Suspended    suspend is true in its spec
    ConfigMap              shop       settings  Healthy
    Pod                    -          web-1     Degraded     Evicted
    exit 1
    "#);
    let (first, _) = OBJECTS
        .split_once("---")
        .context("OBJECTS has no separator")?;
    insta::assert_snapshot!(health(&["-o", "yaml", "-f", "-"], first)?, @r#"
    ---
    apiVersion: apps/v1
    health: Progressing
    kind: Deployment
    message: "2 of 3 replicas available"
    name: web
    namespace: shop
    status: Progressing
    uid: ""
    exit 1
    "#);
    Ok(())
}

#[test]
fn all_well_is_success() -> anyhow::Result<()> {
    let well = r#"{"apiVersion": "v1", "kind": "ConfigMap"}
{"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"}, "spec": {"suspend": true}}"#;
    insta::assert_snapshot!(health(&["-o", "json"], well)?, @r#"
    {"kind":"ConfigMap","namespace":"","name":"","status":"Healthy","message":"","apiVersion":"v1","uid":"","health":"Healthy"}
    {"kind":"CronJob","namespace":"","name":"nightly","status":"Suspended","message":"the CronJob is suspended","apiVersion":"batch/v1","uid":"","health":"Suspended"}
    exit 0
    "#);
    insta::assert_snapshot!(health(&[], "")?, @r#"
    no objects found
    exit 0
    "#);
    Ok(())
}

#[test]
fn what_is_no_object_is_named_and_the_others_are_answered() -> anyhow::Result<()> {
    let input = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
{"kind": "ConfigMap", "metadata": {"name": "b"}}
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}
{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d"}}, 5]}
---
kind: [
---
just a text
---
apiVersion: v1
kind: ConfigMap
metadata: {name: e}
"#;
    insta::assert_snapshot!(health(&["-o", "json"], input)?, @r#"
    {"kind":"ConfigMap","namespace":"","name":"a","status":"Healthy","message":"","apiVersion":"v1","uid":"","health":"Healthy"}
    {"kind":"Secret","namespace":"","name":"d","status":"Healthy","message":"","apiVersion":"v1","uid":"","health":"Healthy"}
    {"kind":"ConfigMap","namespace":"","name":"e","status":"Healthy","message":"","apiVersion":"v1","uid":"","health":"Healthy"}
    error: standard input:2: document 2 is not a Kubernetes object: it has no apiVersion
    error: standard input:3:1: document 3 can't be read: the JSON that begins here does not end
    error: standard input:4: document 4, item 2 is not a Kubernetes object: it is not a map
    error: standard input:6:7: document 5 can't be read: not valid YAML, here or in a line above: unclosed bracket '['
    error: standard input:8: document 6 is not a Kubernetes object: it is not a map
    error: 5 documents could not be judged; see above
    exit 2
    "#);
    insta::assert_snapshot!(health(&["-f", "/nowhere/x.yaml"], "")?, @r#"
    error: can't read /nowhere/x.yaml: No such file or directory (os error 2)
    exit 2
    "#);
    Ok(())
}

#[test]
fn rules_of_ones_own_come_first() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let document = file(
        "queue.yaml",
        "apiVersion: muster.dev/v1alpha1
kind: HealthRule
metadata: {name: queues}
spec:
  group: x.example
  kind: Queue
  cases:
  - when: object.status.lag > 100
    health: Degraded
    message: \"'behind by ' + string(object.status.lag)\"
",
    )?;
    let bare = file(
        "map.yaml",
        "kind: ConfigMap\ncases:\n- {when: 'has(object.data.broken)', health: Degraded}\n",
    )?;
    let input = r#"{"apiVersion": "x.example/v1", "kind": "Queue", "metadata": {"name": "a"}, "status": {"lag": 200}}
{"apiVersion": "x.example/v1", "kind": "Queue", "metadata": {"name": "b"}, "status": {"lag": 2, "phase": "Ready"}}
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"broken": "yes"}}
"#;
    insta::assert_snapshot!(health(&["--rules", &document, &bare, "-o", "json"], input)?, @r#"
    {"kind":"Queue","namespace":"","name":"a","status":"Degraded","message":"behind by 200","apiVersion":"x.example/v1","uid":"","health":"Degraded"}
    {"kind":"Queue","namespace":"","name":"b","status":"Healthy","message":"","apiVersion":"x.example/v1","uid":"","health":"Healthy"}
    {"kind":"ConfigMap","namespace":"","name":"c","status":"Degraded","message":"the health rule matches: has(object.data.broken)","apiVersion":"v1","uid":"","health":"Degraded"}
    exit 1
    "#);

    let wrong = |name: &str, text: &str| {
        let file = file(name, text)?;
        let said = health(&["--rules", &file], "")?;
        anyhow::Ok(said.replace(&dir.path().display().to_string(), "DIR"))
    };
    insta::assert_snapshot!(wrong("a.yaml", "kind: Queue\ncases:\n- when: object.spec.a ==\n  health: Degraded\n")?, @r#"
    error: DIR/a.yaml:3:9: the health rule of Queue can't be used: `when` of case 1: this is not a valid CEL expression: mismatched input '<EOF>' at column 17 of the expression
    exit 2
    "#);
    insta::assert_snapshot!(wrong("b.yaml", "kind: Queue\ncases:\n- when: 'true'\n  health: Broken\n")?, @r#"
    error: DIR/b.yaml:1:1: this is not a health rule: unknown variant `Broken`, expected one of `Healthy`, `Suspended`, `Progressing`, `Missing`, `Degraded`, `Unknown`
    exit 2
    "#);
    Ok(())
}

/// `muster health` uses the same rule as the agents: an object that no controller reports on counts as healthy some
/// time after its creation.
#[test]
fn an_object_on_which_nobody_reports_is_well_after_a_while() -> anyhow::Result<()> {
    let object = |metadata: &str| {
        format!(
            r#"{{"apiVersion": "x.example/v1", "kind": "Queue", "metadata": {metadata}, "spec": {{"a": 1}}}}"#
        )
    };
    let input = [
        object(
            r#"{"name": "old", "uid": "u-1", "generation": 1, "creationTimestamp": "2020-01-01T00:00:00Z"}"#,
        ),
        object(r#"{"name": "new", "generation": 1}"#),
        object(
            r#"{"name": "ahead", "generation": 1, "creationTimestamp": "2999-01-01T00:00:00Z"}"#,
        ),
    ];
    insta::assert_snapshot!(health(&["-o", "json"], &input.join("\n"))?, @r#"
    {"kind":"Queue","namespace":"","name":"old","status":"Healthy","message":"","apiVersion":"x.example/v1","uid":"u-1","health":"Healthy"}
    {"kind":"Queue","namespace":"","name":"new","status":"Progressing","message":"nothing has reported on it yet","apiVersion":"x.example/v1","uid":"","health":"Progressing"}
    {"kind":"Queue","namespace":"","name":"ahead","status":"Progressing","message":"nothing has reported on it yet","apiVersion":"x.example/v1","uid":"","health":"Progressing"}
    exit 1
    "#);
    Ok(())
}
