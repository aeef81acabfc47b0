//! Bounds the size of one cluster's observed state: a compromised agent must fill neither the hub's memory nor its
//! store.

use std::collections::BTreeMap;

use muster_model::ids::AppName;
use muster_proto::v1;
use prost::Message as _;

/// The most apps that an agent may report although the cluster should not run them and did not report them before.
/// Remains of such an app may exist in the cluster.
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
mod tests {
    use super::*;

    fn app(name: &str) -> v1::AppReport {
        v1::AppReport {
            app: name.to_owned(),
            ..v1::AppReport::default()
        }
    }

    #[test]
    fn invented_apps_are_left_out_and_those_that_leave_are_not() {
        let mut report = v1::Report {
            apps: (0..1000).map(|n| app(&format!("invented-{n}"))).collect(),
            ..v1::Report::default()
        };
        report.apps.insert(0, app("web"));
        report.apps.insert(1, app("left"));
        report.apps.push(app("../../etc"));
        let known = BTreeMap::from([("left".to_owned(), app("left"))]);
        let said = bound(&mut report, |app| app == "web", &known).unwrap();
        assert!(said.contains("reports 938 apps"), "{said}");
        assert_eq!(report.apps.len(), 2 + UNKNOWN - 1);
        assert_eq!(
            (report.apps[0].app.as_str(), report.apps[1].app.as_str()),
            ("web", "left")
        );
    }

    #[test]
    fn texts_and_lists_are_cut() {
        let long = "ä".repeat(100_000);
        let mut one = app("web");
        one.health.clone_from(&long);
        one.problems = vec![
            v1::ObjectProblem {
                object: long.clone(),
                message: long.clone(),
            };
            1000
        ];
        one.holds = vec![
            v1::Hold {
                objects: vec![long.clone(); 3],
                reason: long.clone(),
                ..v1::Hold::default()
            };
            1000
        ];
        let mut report = v1::Report {
            apps: vec![one],
            problems: vec![long; 1000],
            ..v1::Report::default()
        };
        assert_eq!(bound(&mut report, |_| true, &BTreeMap::new()), None);
        assert!(report.encoded_len() < 2_500_000, "{}", report.encoded_len());
        let mut apps: BTreeMap<String, v1::AppReport> = (0..100)
            .map(|n| (n.to_string(), report.apps[0].clone()))
            .collect();
        assert!(bound_level(&mut apps).unwrap().contains("details"));
        let size: usize = apps.values().map(v1::AppReport::encoded_len).sum();
        assert!(size < LEVEL_BYTES, "{size}");
        assert_eq!(bound_level(&mut apps), None);
    }
}
