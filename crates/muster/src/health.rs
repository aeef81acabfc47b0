//! `muster health`: the health of objects, read from the objects alone.

mod stream;

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use muster_model::{
    policy::HealthRule,
    yaml::{self, Node, Pos, to_yaml},
};
use muster_plan::health::{Assessment, Health, Rules, SILENCE};
use serde::Serialize;
use serde_json::Value;

use self::stream::{Document, Documents, Unreadable};
use crate::{
    output::{Output, print, quit_unless_written},
    problems::WrongUse,
    status::terminal::{Cell, Grid, Terminal, Tone, count, one_line},
};

/// The arguments of `muster health`, which exits with 0 if all objects are Healthy or Suspended, 1 if one is
/// not, and 2 if a document is not a Kubernetes object.
#[derive(Debug, Clone, Args)]
pub(crate) struct HealthArgs {
    /// A file with objects in YAML or JSON, also lists; `-` for standard input; can be repeated.
    #[arg(short, long = "filename", value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Files with your own health rules: HealthRule documents, or only their specs.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    rules: Vec<PathBuf>,
}

/// The health of one object, as printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    kind: String,
    namespace: String,
    name: String,
    /// The same value as `health`, under its older name.
    status: Health,
    message: String,
    api_version: String,
    uid: String,
    health: Health,
}

/// Reads objects and prints their health. Returns false if one is neither Healthy nor Suspended.
pub(crate) fn run(args: &HealthArgs, output: Output) -> anyhow::Result<bool> {
    let rules = read_rules(&args.rules)?;
    let mut answer = Answer::new(output, io::BufWriter::new(io::stdout()));
    for file in &args.files {
        let name = file.display().to_string();
        if name == "-" {
            answer.read("standard input", io::stdin(), &rules)?;
        } else {
            let open = File::open(file)
                .map_err(|error| WrongUse(format!("can't read {name}: {error}")))?;
            answer.read(&name, open, &rules)?;
        }
    }
    answer.end(Terminal::of_stdout(None))
}

/// Writes the health of objects to `out`, and collects what the exit code depends on.
struct Answer<W: Write> {
    output: Output,
    out: W,
    /// The table's rows. They are collected because the column widths depend on all of them.
    rows: Vec<Line>,
    all_well: bool,
    /// The number of documents that are not Kubernetes objects.
    refused: usize,
}

impl<W: Write> Answer<W> {
    fn new(output: Output, out: W) -> Self {
        Self {
            output,
            out,
            rows: Vec::new(),
            all_well: true,
            refused: 0,
        }
    }

    /// Assesses all objects in a stream.
    fn read(&mut self, name: &str, input: impl Read, rules: &Rules) -> anyhow::Result<()> {
        let mut documents = Documents::new(input);
        loop {
            // Flush before waiting for the next object, so that a reader that follows the output sees each result.
            let document = documents.next(|| quit_unless_written(self.out.flush()));
            let Some(document) = document.with_context(|| format!("can't read {name}"))? else {
                return Ok(());
            };
            self.document(name, document, rules);
        }
    }

    fn document(&mut self, name: &str, document: Document, rules: &Rules) {
        let Document {
            number,
            line,
            value,
        } = document;
        match value {
            Ok(value) => {
                for (item, object) in unfold(value) {
                    match refusal(&object) {
                        None => self.object(&object, rules),
                        Some(why) => {
                            let item = item
                                .map(|item| format!(", item {item}"))
                                .unwrap_or_default();
                            self.refuse(&format!("{name}:{line}: document {number}{item} is not a Kubernetes object: {why}"));
                        }
                    }
                }
            }
            Err(Unreadable {
                line,
                column,
                message,
            }) => self.refuse(&format!(
                "{name}:{line}:{column}: document {number} can't be read: {message}"
            )),
        }
    }

    fn refuse(&mut self, why: &str) {
        self.refused += 1;
        anstream::eprintln!("\x1b[1;31merror\x1b[0m: {}", one_line(why));
    }

    fn object(&mut self, object: &Value, rules: &Rules) {
        let mut assessment = rules.assess(object);
        if assessment.is_silence() && is_older_than(object, SILENCE) {
            // No controller has reported on the object in time, so it is treated as healthy. Agents do the same.
            assessment = Assessment::HEALTHY;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let line = Line {
            kind: text(&object["kind"]),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            status: assessment.health,
            message: assessment.message.unwrap_or_default(),
            api_version: text(&object["apiVersion"]),
            uid: text(&object["metadata"]["uid"]),
            health: assessment.health,
        };
        self.all_well &= matches!(line.status, Health::Healthy | Health::Suspended);
        let written = match self.output {
            Output::Table => {
                self.rows.push(line);
                return;
            }
            Output::Json => serde_json::to_writer(&mut self.out, &line)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n")),
            Output::Yaml => serde_json::to_value(&line)
                .map_err(io::Error::from)
                .and_then(|line| writeln!(self.out, "---\n{}", to_yaml(&line))),
        };
        quit_unless_written(written);
    }

    /// Prints the table, if any, and flushes the output. Returns false if an object is neither Healthy nor Suspended.
    fn end(mut self, terminal: Terminal) -> anyhow::Result<bool> {
        if self.output == Output::Table {
            if self.rows.is_empty() && self.refused == 0 {
                anstream::eprintln!("no objects found");
            } else if !self.rows.is_empty() {
                print(&table(&self.rows, terminal));
            }
        }
        quit_unless_written(self.out.flush());
        if self.refused > 0 {
            let documents = count(self.refused, "document");
            return Err(WrongUse(format!("{documents} could not be judged; see above")).into());
        }
        Ok(self.all_well)
    }
}

/// Returns true if an object was created longer ago than this.
fn is_older_than(object: &Value, time: Duration) -> bool {
    let created = object["metadata"]["creationTimestamp"].as_str();
    let created = created.and_then(|created| created.parse::<Timestamp>().ok());
    let age = created.map(|created| Timestamp::now().duration_since(created));
    // A time in the future, as of a clock that is ahead, is an age of zero. Agents do the same.
    age.and_then(|age| Duration::try_from(age).ok())
        .is_some_and(|age| age > time)
}

fn table(rows: &[Line], terminal: Terminal) -> String {
    let mut grid =
        Grid::new(["KIND", "NAMESPACE", "NAME", "HEALTH", "MESSAGE"]).spare(&["NAMESPACE"]);
    for line in rows {
        let tone = match line.status {
            Health::Healthy => Tone::Good,
            Health::Suspended => Tone::Faint,
            Health::Progressing => Tone::Busy,
            Health::Unknown => Tone::Warning,
            Health::Missing | Health::Degraded => Tone::Bad,
        };
        grid.row([
            Cell::from(one_line(&line.kind)),
            Cell::or_dash(Some(&one_line(&line.namespace))),
            Cell::or_dash(Some(&one_line(&line.name))),
            Cell::new(tone, line.status.as_str()),
            Cell::from(one_line(&line.message)),
        ]);
    }
    grid.draw(terminal)
}

/// Returns the objects of a document. If it is a list, each has its position, from 1.
fn unfold(document: Value) -> Vec<(Option<usize>, Value)> {
    let (items, of_list) = match document {
        Value::Array(items) => (items, None),
        Value::Object(mut list) if is_list(&list) => match list.remove("items") {
            Some(Value::Array(items)) => (items, Some(list)),
            _ => return Vec::new(),
        },
        object => return vec![(None, object)],
    };
    // The items of a PodList are Pods, although they may have no kind.
    let of_list = of_list.map(|list| {
        let text = |key: &str| {
            list.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        (
            text("apiVersion"),
            text("kind").trim_end_matches("List").to_owned(),
        )
    });
    let items = items.into_iter().enumerate().map(|(place, mut item)| {
        if let (Some((api_version, kind)), Value::Object(item)) = (&of_list, &mut item)
            && !kind.is_empty()
        {
            item.entry("apiVersion")
                .or_insert_with(|| api_version.as_str().into());
            item.entry("kind").or_insert_with(|| kind.as_str().into());
        }
        (Some(place + 1), item)
    });
    items.collect()
}

fn is_list(object: &serde_json::Map<String, Value>) -> bool {
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let has_name = object
        .get("metadata")
        .is_some_and(|metadata| metadata["name"].is_string());
    kind.ends_with("List") && !has_name && object.get("items").is_some_and(Value::is_array)
}

/// Returns why a value is not a Kubernetes object, or `None` if it is one.
fn refusal(value: &Value) -> Option<&'static str> {
    let has = |key: &str| value[key].as_str().is_some_and(|text| !text.is_empty());
    if !value.is_object() {
        Some("it is not a map")
    } else if !has("apiVersion") {
        Some("it has no apiVersion")
    } else if !has("kind") {
        Some("it has no kind")
    } else {
        None
    }
}

/// Reads health rules from files.
fn read_rules(files: &[PathBuf]) -> anyhow::Result<Rules> {
    let mut all = Vec::new();
    for file in files {
        let name = file.display();
        let text = std::fs::read_to_string(file)
            .map_err(|error| WrongUse(format!("can't read {name}: {error}")))?;
        let documents =
            yaml::parse(&text).map_err(|error| wrong(file, error.at, &error.message))?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            all.push((file, rule(file, &document)?, document));
        }
    }
    let rules: Vec<HealthRule> = all.iter().map(|(_, rule, _)| rule.clone()).collect();
    Rules::compile(&rules).map_err(|error| {
        let (file, _, document) = &all[error.rule];
        let case = error.case.to_string();
        let place = spec_of(document).descend(["cases", &case, error.field].into_iter());
        wrong(file, place.at, &error.to_string()).into()
    })
}

fn wrong(file: &Path, at: Pos, message: &str) -> WrongUse {
    WrongUse(format!("{}:{at}: {message}", file.display()))
}

/// Returns the spec of a document, or the document itself if it is only a spec.
fn spec_of(document: &Node) -> &Node {
    document.get("spec").unwrap_or(document)
}

fn rule(file: &Path, document: &Node) -> Result<HealthRule, WrongUse> {
    let spec = spec_of(document);
    serde_json::from_value(spec.clone().into_json()).map_err(|error| {
        wrong(
            file,
            spec.at,
            &format!("this is not a health rule: {error}"),
        )
    })
}
