use muster_store::SqliteStore;

use super::*;

/// Returns the report of an app with one recreation.
fn app(name: &str) -> v1::AppReport {
    let drift = v1::DriftEvent {
        at: 1,
        object: "Job.batch wiki/migrate".to_owned(),
        recreated: true,
        ..v1::DriftEvent::default()
    };
    v1::AppReport {
        app: name.to_owned(),
        drifts: vec![drift],
        ..v1::AppReport::default()
    }
}

/// Returns the report of an app whose objects pending approval have names of 10 MB.
fn large() -> v1::AppReport {
    let hold = v1::Hold {
        objects: vec!["o".repeat(2000); 5000],
        ..v1::Hold::default()
    };
    v1::AppReport {
        holds: vec![hold],
        ..app("large")
    }
}

fn message(full: bool, digest: &[u8], apps: impl IntoIterator<Item = v1::AppReport>) -> v1::Report {
    v1::Report {
        apps: apps.into_iter().collect(),
        full,
        digest: digest.to_vec(),
        ..v1::Report::default()
    }
}

#[test]
fn what_was_left_out_is_missing_until_a_full_report() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let observed = Observed::default();
    let hear = |report: v1::Report| {
        observed.report(&cluster, report, |app| !app.starts_with("invented"));
        let level = observed.get(&cluster).unwrap();
        (level.cut.is_some(), level.digest)
    };
    let whole = |digest: u8| (false, vec![digest]);
    let cut = (true, Vec::<u8>::new());
    assert_eq!(hear(message(true, &[1], [app("web"), large()])), cut);
    assert_eq!(hear(message(false, &[2], [app("web")])), cut);
    assert_eq!(hear(message(true, &[3], [app("web")])), whole(3));
    assert_eq!(hear(message(false, &[4], [app("wiki")])), whole(4));

    // The first of two messages of a full report has too many invented apps.
    let invented = (0..100).map(|n| app(&format!("invented-{n}")));
    assert_eq!(hear(message(true, &[], invented)), cut);
    assert_eq!(hear(message(false, &[5], [app("web")])), cut);
    assert_eq!(hear(message(true, &[6], [app("web")])), whole(6));
}

#[test]
fn recreations_are_recorded_once_although_the_state_loses_them() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let observed = Observed::default();
    let recorded = |reports: &[v1::Report]| {
        for report in reports {
            observed.report(&cluster, report.clone(), |_| true);
        }
        lock(&observed.recreations).take().len()
    };
    // The first message of a full report clears the state.
    let in_two = [
        message(true, &[], [app("web")]),
        message(false, &[1], [app("wiki")]),
    ];
    assert_eq!(recorded(&in_two), 2);
    assert_eq!(recorded(&in_two), 0);
    // The state is too large, so the drifts are left out.
    let too_large = [message(true, &[2], [app("web"), app("wiki"), large()])];
    assert_eq!(recorded(&too_large), 1);
    let level = observed.get(&cluster).unwrap();
    assert!(level.apps["web"].drifts.is_empty());
    assert_eq!(recorded(&too_large), 0);
}

#[tokio::test]
async fn stored_recreations_are_not_recorded_again() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("hub.db")).unwrap();
    let observed = Observed::default();
    observed.report(&cluster, message(true, &[1], [app("web")]), |_| true);
    observed.write_down(&store).await.unwrap();
    assert_eq!(store.keys(store_schema::AUDIT).await.unwrap().len(), 1);

    let observed = Observed::load(&store).await.unwrap();
    let both = [app("web"), app("wiki")];
    observed.report(&cluster, message(true, &[2], both), |_| true);
    assert_eq!(lock(&observed.recreations).take().len(), 1);
}
