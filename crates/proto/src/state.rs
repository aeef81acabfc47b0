//! The state of an app in a cluster, computed in one place for the hub, the command line and everything that waits
//! for a fleet.

use crate::v1::{ClusterApp, ClusterState, Phase};

impl ClusterApp {
    /// Returns true if an object of the app is refused or degraded, or can't be deleted.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.phase() == Phase::Failed || self.health == "Degraded" || self.stuck > 0
    }

    /// Returns true if something is pending approval, or has drifted and is not reverted.
    #[must_use]
    pub fn waits_for_a_person(&self) -> bool {
        !self.holds.is_empty() || self.drifted > 0
    }

    /// Returns the state by the agent's last report: failing, progressing or synced.
    #[must_use]
    pub fn state(&self) -> ClusterState {
        if self.fails() || self.waits_for_a_person() {
            return ClusterState::Failing;
        }
        let on_the_way = matches!(self.health.as_str(), "Progressing" | "Missing" | "");
        let whole = self.phase() == Phase::Applied && self.leaving == 0;
        if self.synced && whole && !on_the_way {
            ClusterState::Synced
        } else {
            ClusterState::Progressing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Hold;

    #[test]
    fn an_app_stands_as_its_worst_part() {
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
}
