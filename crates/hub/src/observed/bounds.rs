//! Bounds the size of one cluster's observed state: a compromised agent must fill neither the hub's memory nor its
//! store.

use std::collections::BTreeMap;

use muster_model::{ids::AppName, writer_rule::MAX_CARRIED};
use muster_proto::v1;
use prost::Message as _;

/// The most apps that an agent may report although the cluster should not run them. Remains of such apps may exist in
/// the cluster. An app that was reported before counts too, but is always kept.
const UNKNOWN: usize = 64;
/// The largest encoded observed state, in bytes.
const LEVEL_BYTES: usize = 8 * 1024 * 1024;
/// The longest text, in characters. Agents cut their texts at a thousand.
const TEXT: usize = 2000;
/// The longest single word, in characters.
const WORD: usize = 64;
/// The most problems and drifts of an app, and the most problems of a cluster.
const FEW: usize = 20;
/// The most cluster-scoped kinds of a cluster.
const KINDS: usize = 2000;
/// The most sets of an app that are pending approval.
const HOLDS: usize = 100;
/// The length of a hash, in bytes.
const HASH: usize = 32;

fn cut(text: &mut String, most: usize) {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
    }
}

fn cut_app(app: &mut v1::AppReport) {
    app.hash.truncate(HASH);
    cut(&mut app.health, WORD);
    app.problems.truncate(FEW);
    for problem in &mut app.problems {
        cut(&mut problem.object, TEXT);
        cut(&mut problem.message, TEXT);
    }
    app.holds.truncate(HOLDS);
    for hold in &mut app.holds {
        hold.set.truncate(HASH);
        cut(&mut hold.reason, TEXT);
        for object in &mut hold.objects {
            cut(object, TEXT);
        }
    }
    if let Some(look) = &mut app.writer {
        cut(&mut look.role, WORD);
        look.rule.truncate(HASH);
        cut(&mut look.why, TEXT);
        for values in [&mut look.uids, &mut look.carried] {
            values.truncate(FEW);
            for v1::NamedValue { name, value } in values {
                cut(name, WORD);
                cut(value, MAX_CARRIED);
            }
        }
    }
    app.drifts.truncate(FEW);
    for drift in &mut app.drifts {
        cut(&mut drift.object, TEXT);
        cut(&mut drift.difference, TEXT);
    }
}

/// Cuts a report to its bounds, and describes the apps that it left out. `has` returns true for the apps that the
/// cluster should run; `known` holds the apps that it reported before.
pub(super) fn bound(
    report: &mut v1::Report,
    has: impl Fn(&str) -> bool,
    known: &BTreeMap<String, v1::AppReport>,
) -> Option<String> {
    report.digest.truncate(HASH);
    report.problems.truncate(FEW);
    report.problems.iter_mut().for_each(|text| cut(text, TEXT));
    report.cluster_scoped.truncate(KINDS);
    report
        .cluster_scoped
        .iter_mut()
        .for_each(|kind| cut(kind, TEXT));
    let mut unknown = known.keys().filter(|app| !has(app)).count();
    let mut invented: Option<String> = None;
    let mut left_out = 0_usize;
    report.apps.retain(|app| {
        let keep = app.app.parse::<AppName>().is_ok()
            && (app.gone || has(&app.app) || known.contains_key(&app.app) || {
                unknown += 1;
                unknown <= UNKNOWN
            });
        if !keep {
            left_out += 1;
            let mut name = app.app.clone();
            cut(&mut name, WORD);
            invented.get_or_insert(name);
        }
        keep
    });
    report.apps.iter_mut().for_each(cut_app);
    let invented = invented?;
    Some(format!(
        "its agent reports {left_out} apps that are not in this cluster, such as {invented:?}; they are left out"
    ))
}

/// Leaves out details of an observed state that is too large. Returns a description if it did.
pub(super) fn bound_level(apps: &mut BTreeMap<String, v1::AppReport>) -> Option<String> {
    let size: usize = apps.values().map(v1::AppReport::encoded_len).sum();
    if size <= LEVEL_BYTES {
        return None;
    }
    let size_of = |apps: &BTreeMap<String, v1::AppReport>| -> usize {
        apps.values().map(v1::AppReport::encoded_len).sum()
    };
    for app in apps.values_mut() {
        app.problems.truncate(1);
        app.drifts.clear();
        app.holds
            .iter_mut()
            .for_each(|hold| hold.objects.truncate(1));
    }
    if size_of(apps) > LEVEL_BYTES {
        for app in apps.values_mut() {
            app.problems.clear();
            app.holds.clear();
        }
    }
    let mut left = size_of(apps);
    while left > LEVEL_BYTES
        && let Some((_, app)) = apps.pop_last()
    {
        left -= app.encoded_len();
    }
    Some(format!(
        "its agent reports {:.1} MiB, and the hub stores at most {} MiB: details of apps are left out",
        size as f64 / 1_048_576.0,
        LEVEL_BYTES / 1_048_576
    ))
}

#[cfg(test)]
mod tests;
