//! Checks the most important rules of `deny.toml` without `cargo-deny`: licences, sources and bans.
//! `cargo-deny` itself also checks advisories and duplicates.

use std::{collections::BTreeMap, fs};

use anyhow::Context;
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::metadata::{Metadata, Package};

/// The parts of `deny.toml` that this check reads.
#[derive(Debug, Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// Additional licences that are allowed for one crate.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// Checks this workspace against its `deny.toml` and returns the problems.
pub(crate) fn check_workspace() -> anyhow::Result<Vec<String>> {
    let metadata = Metadata::read()?;
    let file = metadata.workspace_root.join("deny.toml");
    let text = fs::read_to_string(&file);
    let text = text.with_context(|| format!("can't read {}", file.display()))?;
    let rules = toml::from_str(&text);
    let rules = rules.with_context(|| format!("can't parse {}", file.display()))?;
    Ok(check(&rules, &metadata.packages))
}

fn check(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let exceptions: BTreeMap<&str, &[String]> = rules
        .licenses
        .exceptions
        .iter()
        .map(|exception| (exception.name.as_str(), exception.allow.as_slice()))
        .collect();
    let mut problems = Vec::new();
    for package in packages {
        let what = format!("{} {}", package.name, package.version);
        let more = exceptions
            .get(package.name.as_str())
            .copied()
            .unwrap_or_default();
        if let Err(why) = licence(package.license.as_deref(), &rules.licenses.allow, more) {
            problems.push(format!("{what}: {why}"));
        }
        if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
            problems.push(format!("{what} is banned: {}", ban.reason));
        }
        if let Some(source) = &package.source {
            let registry = source.strip_prefix("registry+");
            if !registry.is_some_and(|from| rules.sources.allow_registry.iter().any(|a| a == from))
            {
                problems.push(format!(
                    "{what} comes from {source}, which deny.toml does not allow"
                ));
            }
        }
    }
    problems
}

/// Checks that a licence expression can be satisfied with the allowed licences.
fn licence(expression: Option<&str>, allow: &[String], more: &[String]) -> Result<(), String> {
    let text = expression.ok_or("it names no licence")?;
    // Old manifests use forms such as `MIT/Apache-2.0`.
    let parsed = Expression::parse_mode(text, ParseMode::LAX)
        .map_err(|error| format!("can't parse its licence `{text}`: {}", error.reason))?;
    let allowed = |wanted: &LicenseReq| {
        let wanted = wanted.to_string();
        allow.iter().chain(more).any(|name| *name == wanted)
    };
    if parsed.evaluate(allowed) {
        Ok(())
    } else {
        Err(format!("its licence `{text}` is not allowed by deny.toml"))
    }
}

#[cfg(test)]
mod tests;
