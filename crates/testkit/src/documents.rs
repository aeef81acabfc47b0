//! Checks the parts of documents that are generated from the code, so that a test fails when a part is out of date.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The environment variable with which tests rewrite the documents instead of checking them.
const UPDATE: &str = "MUSTER_UPDATE_DOCS";

/// Checks a file in `docs/`, or rewrites it if `MUSTER_UPDATE_DOCS` is set.
///
/// # Errors
/// Fails if the file differs.
pub fn is(name: &str, text: &str) -> anyhow::Result<()> {
    let path = path(name);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    if old == text {
        return Ok(());
    }
    if std::env::var_os(UPDATE).is_some() {
        return std::fs::write(&path, text)
            .with_context(|| format!("can't write {}", path.display()));
    }
    anyhow::bail!(
        "docs/{name} is out of date at {}\n\
         run the test again with {UPDATE}=1, and look at the difference",
        difference(&old, text)
    )
}

/// Returns the first line where two different texts differ, with what each has there.
fn difference(old: &str, new: &str) -> String {
    let (mut old, mut new) = (old.split_inclusive('\n'), new.split_inclusive('\n'));
    let mut number = 1;
    loop {
        let (old, new) = (old.next(), new.next());
        if old != new || old.is_none() {
            let (old, new) = (shown(old), shown(new));
            return format!("line {number}:\n  it has {old}\n  it should have {new}");
        }
        number += 1;
    }
}

/// Returns a line for people. The last line may have no newline, and the text may have ended before this line.
fn shown(line: Option<&str>) -> String {
    match line.map(|line| (line, line.strip_suffix('\n'))) {
        None => "no such line".to_owned(),
        Some((_, Some(line))) => line.to_owned(),
        Some((line, None)) => format!("{line} (without a newline at the end)"),
    }
}

/// Checks or rewrites the part of a file in `docs/` between `<!-- BLOCK:begin -->` and `<!-- BLOCK:end -->`.
///
/// # Errors
/// Fails if that part differs, or the file has no such part.
pub fn block_is(name: &str, block: &str, text: &str) -> anyhow::Result<()> {
    let path = path(name);
    let old =
        std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let new = with_block(&old, block, text);
    is(
        name,
        &new.with_context(|| format!("docs/{name} has no part `{block}`"))?,
    )
}

/// Replaces the part of a document between `<!-- BLOCK:begin -->` and `<!-- BLOCK:end -->`. Returns `None` if the
/// document has no such part.
pub fn with_block(document: &str, block: &str, text: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {block}:begin -->"),
        format!("<!-- {block}:end -->"),
    );
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

#[cfg(test)]
mod tests;
