use muster_apply::{Counts, DriftEvent, Leftover};
use muster_model::{
    bundle::{Gvk, ObjectRef},
    ids::{ContentHash, Role},
};

use super::*;

fn id(name: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version("v1", "ConfigMap"),
        namespace: Some("wiki".to_owned()),
        name: name.to_owned(),
    }
}

fn drift(at: u64) -> DriftEvent {
    DriftEvent {
        at,
        id: id("b"),
        difference: "/data/size: 2, not 1".to_owned(),
        corrected: false,
        recreated: false,
    }
}

#[test]
fn what_waits_for_a_person_is_in_the_report_of_its_app() {
    let object = |name: &str, object_state| ObservedObject {
        id: Arc::new(id(name)),
        uid: None,
        state: object_state,
        health: Health::Healthy,
        message: None,
        has_pods: false,
    };
    let left = ObjectState::Drifted("/data/size".to_owned());
    let bundle = ObservedBundle {
        app: "wiki".parse().unwrap(),
        role: Role::Active,
        hash: ContentHash::of(b"wiki"),
        objects: vec![object("a", ObjectState::Applied), object("b", left)],
        counts: Counts {
            total: 2,
            applied: 1,
            drifted: 1,
            healthy: 2,
            ..Counts::default()
        },
        health: Health::Healthy,
        drifts: (0..12).map(drift).collect(),
    };
    let hold = |app: &str, objects: usize| PendingApproval {
        app: app.parse().unwrap(),
        set: ContentHash::of(app.as_bytes()),
        recreate: false,
        reason: "too many".to_owned(),
        objects: (0..objects).map(|n| id(&n.to_string())).collect(),
    };
    let left_over = |state| Leftover {
        id: id("old"),
        app: "wiki".parse().unwrap(),
        state,
        message: "it stays".to_owned(),
    };
    let observed = Observed {
        settled: true,
        cluster_scoped: vec!["Issuer.x.example".to_owned()],
        bundles: vec![Arc::new(bundle)],
        pending_approvals: vec![hold("wiki", 2), hold("gone", 60)],
        leftovers: [
            LeftoverState::Approval,
            LeftoverState::Deleting,
            LeftoverState::Refused,
        ]
        .map(left_over)
        .into(),
        ..Observed::default()
    };
    let mut summary = Summary::default();
    let level = summary.level(&observed);
    let names = |count: usize| (0..count).map(|n| format!("ConfigMap wiki/{n}")).collect();
    let waiting = |app: &str, named: usize, count| v1::Hold {
        set: ContentHash::of(app.as_bytes()).0.to_vec(),
        reason: "too many".to_owned(),
        objects: names(named),
        count,
        recreate: false,
    };
    let wiki = v1::AppReport {
        writer: None,
        app: "wiki".to_owned(),
        hash: ContentHash::of(b"wiki").0.to_vec(),
        phase: v1::Phase::Applied.into(),
        objects: 2,
        applied: 1,
        health: "Healthy".to_owned(),
        problems: [
            ("b", "/data/size"),
            ("old", "it stays"),
            ("old", "it stays"),
        ]
        .map(|(name, message)| v1::ObjectProblem {
            object: format!("ConfigMap wiki/{name}"),
            message: message.to_owned(),
        })
        .into(),
        gone: false,
        holds: vec![waiting("wiki", 2, 2)],
        drifted: 1,
        drifts: (2..12)
            .map(|at| v1::DriftEvent {
                at,
                object: "ConfigMap wiki/b".to_owned(),
                difference: "/data/size: 2, not 1".to_owned(),
                corrected: false,
                recreated: false,
            })
            .collect(),
        leaving: 1,
        stuck: 1,
    };
    let gone = v1::AppReport {
        app: "gone".to_owned(),
        phase: v1::Phase::Received.into(),
        health: "Progressing".to_owned(),
        holds: vec![waiting("gone", 60, 60)],
        ..v1::AppReport::default()
    };
    let apps = [
        ("gone".to_owned(), Arc::new(gone)),
        ("wiki".to_owned(), Arc::new(wiki)),
    ];
    let expected = Level {
        settled: true,
        cluster_scoped: vec!["Issuer.x.example".to_owned()],
        apps: apps.into(),
        ..Level::default()
    };
    assert_eq!(level, expected);
    // Additions go to a copy, so they are not added twice to the cached report.
    assert_eq!(summary.level(&observed), expected);
}
