//! Computes the state of an app in a cluster. The hub and the command line both use this code, so that they agree.

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

    /// Returns the state according to the agent's last report: failing, progressing or synced. What is pending
    /// counts as failing.
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
mod tests;
