//! The documents match the code: their commands and flags exist, their links have targets, and the messages that they
//! explain are in the sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the documents for people: the path and text of each.
fn documents() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut paths = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ]
    .map(|name| root().join(name))
    .to_vec();
    for chart in ["muster-hub", "muster-agent"] {
        paths.push(root().join("charts").join(chart).join("README.md"));
    }
    for entry in fs::read_dir(root().join("docs"))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path, text))
    };
    paths.into_iter().map(read).collect()
}

/// Returns the `muster` commands in the shell blocks of a document, each as the words after `muster`.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut in_shell = false;
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_shell = language == "sh";
            continue;
        }
        if !in_shell {
            continue;
        }
        let line = line.split(" #").next().unwrap_or_default();
        for part in line.split(['|', '&', '>', '<']) {
            let words: Vec<&str> = part.split_whitespace().collect();
            // The command may also follow `kubectl exec … --`.
            let Some(at) = words.iter().position(|word| *word == "muster") else {
                continue;
            };
            if at == 0 || words[at - 1] == "--" {
                commands.push(
                    words[at + 1..]
                        .iter()
                        .map(|word| (*word).to_owned())
                        .collect(),
                );
            }
        }
    }
    commands
}

#[test]
fn commands_and_flags_exist() -> anyhow::Result<()> {
    let mut checked = 0;
    for (path, text) in documents()? {
        for words in commands(&text) {
            let is_name = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let mut subcommands: Vec<&String> = words.iter().take_while(is_name).collect();
            subcommands.retain(|word| !word.starts_with('-'));
            // `--help` fails if the last word is an argument and not a subcommand, so that word is dropped.
            let help = loop {
                let output = Command::new(env!("CARGO_BIN_EXE_muster"))
                    .args(&subcommands)
                    .arg("--help")
                    .output()?;
                if output.status.success() || subcommands.len() < 2 {
                    ensure!(output.status.success(), "{}: {words:?}", path.display());
                    break String::from_utf8(output.stdout)?;
                }
                subcommands.pop();
            };
            ensure!(!subcommands.is_empty(), "{}: {words:?}", path.display());
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                ensure!(
                    help.contains(flag),
                    "{}: {words:?} has no {flag}",
                    path.display()
                );
            }
            checked += 1;
        }
    }
    ensure!(checked > 20, "only {checked} commands were found");
    Ok(())
}

#[test]
fn links_lead_somewhere() -> anyhow::Result<()> {
    let mut checked = 0;
    for (path, text) in documents()? {
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = path.parent().context("the document has no folder")?;
            ensure!(folder.join(target).exists(), "{}: {target}", path.display());
            checked += 1;
        }
    }
    ensure!(checked > 20, "only {checked} links were found");
    Ok(())
}

/// Returns the text of all sources, with string literals that span several lines joined.
fn sources() -> anyhow::Result<String> {
    let mut text = String::new();
    let mut open = vec![root().join("crates")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir()
                && !["tests", "target", "corpora"]
                    .iter()
                    .any(|other| *other == name)
            {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(&path)?);
            }
        }
    }
    let mut joined = String::with_capacity(text.len());
    let mut parts = text.split("\\\n");
    joined.push_str(parts.next().unwrap_or_default());
    for part in parts {
        joined.push_str(part.trim_start());
    }
    Ok(joined)
}

#[test]
fn messages_that_are_explained_are_those_of_the_code() -> anyhow::Result<()> {
    let sources = sources()?;
    let text = fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let mut checked = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let symptom = row.split(" | ").next().unwrap_or_default();
        for message in symptom.split('`').skip(1).step_by(2) {
            // `…` is a placeholder, so only the text around it is compared.
            for part in message
                .split('…')
                .map(str::trim)
                .filter(|part| part.len() > 8)
            {
                ensure!(sources.contains(part), "no message says {part:?}");
                checked += 1;
            }
        }
    }
    ensure!(checked > 15, "only {checked} messages were found");
    Ok(())
}

/// The YAML blocks of a document.
fn yaml_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```yaml" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}

/// Every example in the document on the fleet repository begins with a comment that names its file. Together they
/// are a fleet that `muster validate` accepts without a hint, and that renders.
#[test]
fn the_examples_are_a_valid_fleet() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let text = fs::read_to_string(root().join("docs/fleet-repository.md"))?;
    let blocks = yaml_blocks(&text);
    ensure!(
        blocks.len() > 5,
        "only {} examples were found",
        blocks.len()
    );
    for block in blocks {
        let name = block
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "));
        let path = folder
            .path()
            .join(name.context("an example names no file")?);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, &block)?;
    }
    let muster = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(arguments)
            .current_dir(folder.path())
            .output()?;
        let (out, err) = (output.stdout, output.stderr);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&err));
        anyhow::Ok((String::from_utf8(out)?, String::from_utf8(err)?))
    };
    let (out, err) = muster(&["validate", "-o", "json"])?;
    let problems: serde_json::Value = serde_json::from_str(&out)?;
    ensure!(problems["problems"] == serde_json::json!([]), "{out}{err}");
    let (objects, err) = muster(&["render", "--cluster", "eu-west-1", "-o", "json"])?;
    ensure!(objects.contains("\"replicas\": 3"), "{objects}{err}");
    Ok(())
}
