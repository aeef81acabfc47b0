//! Muster reads manifests exactly as kubectl does: real ones of other projects, and unusual YAML that real ones
//! contain.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use muster_model::yaml::{self, Node};
use muster_testkit::{
    tools::Program,
    upstream::{Upstream, manifests},
};
use serde_json::{Value, json};

/// Returns the objects that kubectl reads from a text. kubectl needs no cluster for this, and adds an annotation to
/// each object.
fn by_kubectl(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut kubectl = Command::new(Program::Kubectl.build()?);
    kubectl.args([
        "annotate",
        "--local",
        "--overwrite",
        "-o",
        "json",
        "-f",
        "-",
        "read=1",
    ]);
    let piped = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn()?;
    let mut stdin = child
        .stdin
        .take()
        .context("kubectl has no standard input")?;
    let input = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let wrong = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{wrong}");
    let objects = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    Ok(objects.collect::<Result<_, _>>()?)
}

/// Returns the objects that Muster reads from a text, with the items of each list in place of the list.
pub(crate) fn by_muster(text: &str) -> anyhow::Result<Vec<Value>> {
    let nodes = yaml::parse(text).map_err(|error| anyhow::anyhow!("{}: {error}", error.at))?;
    let documents = nodes.into_iter().map(Node::into_json);
    let mut objects = Vec::new();
    for document in documents.filter(|document| !document.is_null()) {
        match document["items"].as_array() {
            Some(items) => objects.extend(items.iter().cloned()),
            None => objects.push(document),
        }
    }
    Ok(objects)
}

/// Prepares an object for comparison: equal numbers get the same form, and annotations are removed.
fn comparable(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("annotations");
    }
    numbers(object);
}

fn numbers(value: &mut Value) {
    match value {
        Value::Number(number) => *value = json!(number.as_f64()),
        Value::Array(items) => items.iter_mut().for_each(numbers),
        Value::Object(fields) => fields.values_mut().for_each(numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn compare(name: &str, text: &str) -> anyhow::Result<usize> {
    let mut theirs =
        by_kubectl(text).with_context(|| format!("cannot read {name} with kubectl"))?;
    let mut ours = by_muster(text).with_context(|| format!("cannot read {name} with Muster"))?;
    theirs.iter_mut().chain(&mut ours).for_each(comparable);
    ensure!(
        theirs.len() == ours.len(),
        "{name}: kubectl reads {} objects, and Muster {}",
        theirs.len(),
        ours.len()
    );
    for (theirs, ours) in theirs.iter().zip(&ours) {
        ensure!(
            theirs == ours,
            "{name}: kubectl reads\n{theirs:#}\nand Muster\n{ours:#}"
        );
    }
    Ok(ours.len())
}

#[test]
fn real_manifests_are_read_as_kubectl_reads_them() -> anyhow::Result<()> {
    let sets = [
        (Upstream::PrometheusOperator, 15),
        (Upstream::CertManager, 6),
        (Upstream::GatewayApi, 15),
        (Upstream::GatewayApiConformance, 453),
        (Upstream::ArgoCd, 59),
        (Upstream::Lists, 3),
    ];
    for (upstream, least) in sets {
        let texts: Vec<String> = manifests(upstream)?
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let count = compare(&format!("{upstream:?}"), &texts.join("\n---\n"))?;
        ensure!(count >= least, "{upstream:?} has only {count} objects");
    }
    Ok(())
}

#[test]
fn oddities_are_read_as_kubectl_reads_them() -> anyhow::Result<()> {
    let head = "apiVersion: a.example/v1\nkind: Own\nmetadata: {name: a}\n";
    let specs = [
        // Brackets, braces and quotes that close at the key's column or before it.
        "spec:\n  args: [\n    \"one\",\n    two\n  ]\n  next: {\n    a: 1,\n  }\n",
        "spec:\n  args:\n  - [\n  a, {b: c\n}\n]\n  - d\n",
        "spec:\n    text: \"one\ntwo\n\n  three\"\n    more: 'four\n\tfive'\n    next: 1\n",
        "spec:\n  text: \"one \\\n  two\\n\\\n three\"\n",
        // Tabs.
        "spec:\ta\n",
        "spec:\n  a:\t b\t\n  c: [d,\te]\t# note\n  f: g\th\n",
        "spec: >\n  folded\n  \ttab\n\n  text\n",
        // Block scalars.
        "spec:\n  a: |2\n      two\n    one\n  b: >-\n    x\n    y\n\n    z\n  c: |+\n    keep\n\n  d: end\n",
        "spec:\n  a: |\n\n    first line is empty\n   \n  b: |-\n    no break\n",
        "spec: |\n  no break at the end",
        // Colons, hashes and commas in plain text.
        "spec: {a: x#y, b: http://x:80/a=b&c, c: [fd00::, 2001:db8::1, a:b, c::], d: a b, e: '' , f: }\n",
        "spec:\n  command: [sh, -c, \"a: b # c\"]\n",
        // Numbers and keys.
        "spec: {a: 0644, b: 0x1F, c: 1e3, d: 1.10, e: -0, f: .5, g: 9007199254740993, h: 18446744073709551615}\n",
        "spec: {1: a, 1.5: b, true: c, 0x10: d, 1e3: e, 010: f}\n",
        // Anchors, merges, nulls, tags.
        "spec:\n  base: &base {a: 1, b: [x]}\n  use: {<<: *base, c: 2}\n  list: [*base, null, ~, ]\n  empty:\n",
        "spec: {a: !!str 12, b: !!binary aGVsbG8=, c: ! x, d: !!int \"7\", e: !!map {x: !!seq [z]}}\n",
        // Line ends, escapes, byte order marks, document markers, nested sequences and explicit keys.
        "spec:\r\n  a: b\r\n  c: |\r\n    d\r\n    e\r\n",
        "spec: {a: \"\\x41\\u00e9\\U0001F680\\_\\N\\L\\P\\0\\e\", b: 'it''s'}\n",
        "spec: 1\n---\n\u{feff}apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n...\n---\n# nothing\n---\n",
        "spec: 1\n---   \napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n",
        "spec:\n- a\n-   - b\n    - c\n- - d\n- e: f\n  g: h\n-\n  i: j\n",
        "spec:\n  ? a\n  : b\n  \"quoted key\": c\n",
    ];
    let mut wrong = Vec::new();
    for spec in specs {
        wrong.extend(compare(spec, &format!("{head}{spec}")).err());
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    let mark = format!("\u{feff}{head}spec: {{}}\n");
    compare("a byte order mark", &mark)?;
    compare(
        "JSON",
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "\ud83d\ude80\t\u2028"}}"#,
    )?;
    Ok(())
}
