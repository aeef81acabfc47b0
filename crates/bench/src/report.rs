//! Reports figures with their spread: as a table, as a JSON file, and as a block in `docs/benchmarks.md`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use muster_testkit::documents::with_block;
use serde::Serialize;

use crate::machine;

/// The results of one benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// The name of the result files, without extension.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    /// The notes that a reader needs to judge the figures.
    pub(crate) notes: Vec<String>,
    machine: String,
}

/// One figure that was measured several times.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) spread: Spread,
    /// The ratio for the last column: usually Muster's median divided by this row's median.
    pub(crate) ratio: Option<f64>,
}

/// The spread of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns the spread of at least one sample. Percentiles use the nearest rank, so they are samples themselves.
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        Self {
            min: rank(0),
            median: rank(50),
            p99: rank(99),
            max: rank(100),
        }
    }
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            spread: Spread::of(&samples),
            ratio: None,
        }
    }

    /// Sets the ratio of Muster's figure to this one. It is meant for figures where more is better.
    pub(crate) fn beside(mut self, ours: &Self) -> Self {
        self.ratio = Some(ours.spread.median / self.spread.median);
        self
    }
}

impl Section {
    pub(crate) fn new(
        name: &'static str,
        title: impl Into<String>,
        rows: Vec<Row>,
        notes: Vec<String>,
    ) -> Self {
        Self {
            name,
            title: title.into(),
            rows,
            notes,
            machine: machine::describe(),
        }
    }

    /// Returns the section as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        text.push_str("| | unit | min | median | P99 | max | Muster is |\n");
        text.push_str("|---|---|--:|--:|--:|--:|--:|\n");
        for row in &self.rows {
            let Spread {
                min,
                median,
                p99,
                max,
            } = row.spread;
            let ratio = row
                .ratio
                .map_or(String::new(), |ratio| format!("{} ×", number(ratio)));
            let figures = [min, median, p99, max].map(number).join(" | ");
            text.push_str(&format!(
                "| {} | {} | {figures} | {ratio} |\n",
                row.what, row.unit
            ));
        }
        text.push('\n');
        for note in self
            .notes
            .iter()
            .chain([&format!("Measured on {}.", self.machine)])
        {
            text.push_str(&format!("- {note}\n"));
        }
        text
    }

    /// Writes `bench/results/NAME.json` and `NAME.md`.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let folder = root().join("bench/results");
        let json = serde_json::to_string_pretty(self)?;
        write(
            &folder.join(format!("{}.json", self.name)),
            &format!("{json}\n"),
        )?;
        write(&folder.join(format!("{}.md", self.name)), &self.table())
    }
}

/// Returns the root of the repository that this program was built from.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    }
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

/// Writes the newest figures of every benchmark between the markers in `docs/benchmarks.md`.
pub(crate) fn update_document() -> anyhow::Result<()> {
    let results = root().join("bench/results");
    let mut files: Vec<PathBuf> = fs::read_dir(&results)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .with_context(|| format!("can't read {}", results.display()))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let tables: Result<Vec<String>, _> = files.iter().map(fs::read_to_string).collect();
    let document = root().join("docs/benchmarks.md");
    let text = fs::read_to_string(&document)
        .with_context(|| format!("can't read {}", document.display()))?;
    match replace_block(&text, &tables.context("can't read the figures")?.join("\n")) {
        Some(new) if new != text => write(&document, &new),
        Some(_) => Ok(()),
        None => anyhow::bail!("{} has no markers for the figures", document.display()),
    }
}

/// Replaces the figures in a document. Returns `None` if it has no markers.
fn replace_block(text: &str, block: &str) -> Option<String> {
    with_block(text, "bench", block)
}

/// Formats a number: small numbers with about three significant digits, large ones with commas between thousands.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "?".into();
    }
    if value < 100.0 {
        let digits = if value < 1.0 {
            3
        } else if value < 10.0 {
            2
        } else {
            1
        };
        return format!("{value:.digits$}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
