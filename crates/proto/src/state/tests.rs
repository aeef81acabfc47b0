use super::*;
use crate::v1::Hold;

#[test]
fn an_app_has_the_state_of_its_worst_part() {
    let well = ClusterApp {
        synced: true,
        phase: Phase::Applied.into(),
        health: "Healthy".to_owned(),
        ..ClusterApp::default()
    };
    let with = |change: fn(&mut ClusterApp)| {
        let mut app = well.clone();
        change(&mut app);
        app.state()
    };
    for (state, changes) in [
        (
            ClusterState::Synced,
            &[
                (|_| {}) as fn(&mut ClusterApp),
                |app| app.health = "Suspended".to_owned(),
                |app| app.health = "Unknown".to_owned(),
            ][..],
        ),
        (
            ClusterState::Progressing,
            &[
                |app| app.synced = false,
                |app| app.phase = Phase::Received.into(),
                |app| app.health.clear(),
                |app| app.health = "Missing".to_owned(),
                |app| app.leaving = 1,
            ],
        ),
        (
            ClusterState::Failing,
            &[
                |app| app.phase = Phase::Failed.into(),
                |app| app.health = "Degraded".to_owned(),
                |app| app.holds.push(Hold::default()),
                |app| app.drifted = 1,
                |app| app.stuck = 1,
            ],
        ),
    ] {
        for (index, change) in changes.iter().enumerate() {
            assert_eq!(with(*change), state, "change {index}");
        }
    }
}
