//! Tests of the charts with Helm 3 and Helm 4: the charts pass the linter, render exactly the golden files, and refuse
//! invalid values. `MUSTER_UPDATE_GOLDEN=1` writes the golden files from the current rendering.

mod hygiene;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;
use muster_testkit::tools::Program;
use serde::Deserialize as _;
use similar::TextDiff;

const CHARTS: [&str; 2] = ["muster-hub", "muster-agent"];
/// The versions of Helm, which must render the same.
const HELMS: [Program; 2] = [Program::Helm, Program::Helm4];

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

fn run(helm: Program, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(helm.build()?)
        .current_dir(charts())
        .args(arguments)
        .output();
    output.with_context(|| format!("cannot start {helm:?}"))
}

/// Returns the values files of a chart in a folder. Each is a test case.
fn cases(chart: &str, folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folder = charts().join("tests").join(chart).join(folder);
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut cases: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    cases.retain(|path| path.to_string_lossy().ends_with(".values.yaml"));
    cases.sort();
    anyhow::ensure!(
        !cases.is_empty(),
        "there is no case in {}",
        folder.display()
    );
    Ok(cases)
}

fn template(helm: Program, chart: &str, values: &Path) -> anyhow::Result<Output> {
    let values = values.to_string_lossy();
    let place = ["--namespace", "muster-system"];
    let arguments = ["template", chart, chart, "--values", &values];
    run(helm, &[&arguments[..], &place].concat())
}

/// Returns every combination of Helm version, chart and values file in a folder.
fn all(folder: &str) -> anyhow::Result<Vec<(Program, &'static str, PathBuf)>> {
    let mut all = Vec::new();
    for chart in CHARTS {
        for values in cases(chart, folder)? {
            all.extend(HELMS.map(|helm| (helm, chart, values.clone())));
        }
    }
    Ok(all)
}

#[test]
fn charts_render_as_they_did() -> anyhow::Result<()> {
    let update = std::env::var_os("MUSTER_UPDATE_GOLDEN").is_some();
    for (helm, chart, values) in all("")? {
        let output = template(helm, chart, &values)?;
        let mut rendered = String::from_utf8(output.stdout)?;
        if helm == Program::Helm4 {
            // Helm 4 adds an empty line before each document.
            rendered = rendered.replace("\n\n---\n", "\n---\n");
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let case = format!("{helm:?}, {}", values.display());
        assert!(output.status.success(), "{case}: {said}");
        let golden = values
            .to_string_lossy()
            .replace(".values.yaml", ".golden.yaml");
        if update && helm == Program::Helm {
            fs::write(&golden, &rendered)?;
        }
        let wanted = fs::read_to_string(&golden).with_context(|| golden.clone())?;
        let diff = TextDiff::from_lines(&wanted, &rendered);
        assert!(wanted == rendered, "{case}:\n{}", diff.unified_diff());
    }
    Ok(())
}

#[test]
fn charts_pass_the_linter() -> anyhow::Result<()> {
    for (helm, chart, values) in all("")? {
        let path = values.to_string_lossy();
        let output = run(helm, &["lint", "--strict", chart, "--values", &path])?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{helm:?}, {path}: {said}");
    }
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused() -> anyhow::Result<()> {
    for (helm, chart, values) in all("bad")? {
        let case = format!("{helm:?}, {}", values.display());
        let text = fs::read_to_string(&values)?;
        let expected = text
            .lines()
            .find_map(|line| line.strip_prefix("# expect: "));
        let expected = expected.with_context(|| format!("{case} has no line `# expect: `"))?;
        let output = template(helm, chart, &values)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{case} is accepted");
        assert!(said.contains(expected), "{case}: {said}");
    }
    Ok(())
}

#[test]
fn charts_ask_for_no_more_than_they_need() -> anyhow::Result<()> {
    let mut found = Vec::new();
    let mut seen = 0;
    for chart in CHARTS {
        for values in cases(chart, "")? {
            let rendered = String::from_utf8(template(Program::Helm, chart, &values)?.stdout)?;
            let objects: Vec<serde_json::Value> = serde_yaml::Deserializer::from_str(&rendered)
                .map(serde_json::Value::deserialize)
                .filter(|object| !object.as_ref().is_ok_and(serde_json::Value::is_null))
                .collect::<Result<_, _>>()?;
            seen += objects.len();
            let problems = hygiene::problems(&objects).into_iter();
            found.extend(problems.map(|problem| format!("{}: {problem}", values.display())));
        }
    }
    assert!(seen > 30, "only {seen} objects were checked");
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
