//! Remembers the apps that a worker could not finish.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use muster_model::{
    ids::{AppName, ContentHash},
    problem::Problem,
    tree::{Entry, Tree},
};
use serde::{Deserialize, Serialize};

/// The time after which an app is tried again with the same inputs. The failure may have had another cause, such as a
/// temporary shortage of memory.
pub(crate) const TRY_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// The apps that are left out, each with the problem that is reported for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdicts(BTreeMap<AppName, Verdict>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Verdict {
    inputs: ContentHash,
    since: SystemTime,
    problem: Problem,
}

impl Verdicts {
    pub(crate) fn add(&mut self, app: AppName, tree: &Tree, problem: Problem) {
        let verdict = Verdict {
            inputs: inputs(&app, tree),
            since: SystemTime::now(),
            problem,
        };
        self.0.insert(app, verdict);
    }

    /// Removes the verdicts that are too old, and those whose app has different inputs in this tree.
    pub(crate) fn trim(&mut self, tree: &Tree) {
        let now = SystemTime::now();
        self.0.retain(|app, verdict| {
            // A start time in the future means that the clock was set back. Such a verdict is removed, because it could
            // otherwise last forever.
            let age = now.duration_since(verdict.since);
            age.is_ok_and(|age| age < TRY_AGAIN_AFTER) && verdict.inputs == inputs(app, tree)
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn problems(&self) -> BTreeMap<AppName, Problem> {
        let all = self.0.iter();
        all.map(|(app, verdict)| (app.clone(), verdict.problem.clone()))
            .collect()
    }
}

/// Returns a hash of everything that an app's work depends on: its own folder, and all files outside of `apps/`.
fn inputs(app: &AppName, tree: &Tree) -> ContentHash {
    let own = format!("apps/{app}/");
    let mut hasher = blake3::Hasher::new();
    for (path, entry) in &tree.entries {
        if path.starts_with("apps/") && !path.starts_with(&own) {
            continue;
        }
        hasher.update(&(path.len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        match entry {
            Entry::File { id, .. } => hasher.update(&id.0),
            Entry::TooLarge { size } => hasher.update(&size.to_le_bytes()),
            Entry::Symlink { target } => hasher.update(target.as_bytes()),
            Entry::Submodule => hasher.update(b"submodule"),
        };
    }
    ContentHash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests;
