//! Decides whether an app's desired objects are applied and healthy, so that objects that left Git
//! may be deleted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use muster_model::ids::{AppName, ContentHash};

use tokio_util::sync::CancellationToken;

use super::{Engine, PATIENCE, desired::DesiredObject};
use crate::{
    StoredGeneration, inventory::Identity, namespace_access::is_namespace, object_tracker::Gate,
    watches::is_plain,
};

/// The apps of a generation whose desired objects are not applied and healthy yet.
#[derive(Default)]
pub(super) struct Replacements {
    unfinished: BTreeMap<AppName, String>,
    /// Groups of objects. When all objects of a group are healthy, the deletions can continue.
    pub(super) gates: Vec<Gate>,
    /// The time at which the deletions continue even if the objects are not healthy.
    pub(super) due: Option<Instant>,
}

impl Replacements {
    pub(super) fn waits_for(&self) -> BTreeMap<&AppName, String> {
        self.unfinished
            .iter()
            .map(|(app, why)| (app, why.clone()))
            .collect()
    }
}

/// For each app, the bundle that is completely applied, and the time at which a run first found
/// that.
pub(super) type ObjectState = HashMap<AppName, (ContentHash, Instant)>;

impl Engine {
    /// Waits a moment until the watches have seen the applied objects. It does so only if objects
    /// have left Git.
    pub(super) async fn observe_soon(
        &self,
        desired: &[Arc<DesiredObject>],
        cancel: &CancellationToken,
    ) {
        let keys: HashSet<&Identity> = desired.iter().map(|object| &object.key).collect();
        let entries = self.inventory.entries();
        if entries.iter().all(|(key, _)| keys.contains(key)) {
            return;
        }
        let observed = desired.iter().filter(|object| !is_plain(&object.id.gvk));
        let keys: Vec<&Identity> = observed.map(|object| &object.key).collect();
        let observed = tokio::time::timeout(PATIENCE, self.tracker.until_observed(&keys));
        // A gate waits for the objects that are still unobserved then.
        let _ = cancel.run_until_cancelled(observed).await;
    }

    /// Returns true if the object is a Namespace that the agent is limited to. Such an agent never
    /// applies the Namespace, because somebody else creates it, so deletions do not wait for it.
    fn is_own_place(&self, object: &DesiredObject) -> bool {
        is_namespace(&object.id) && self.config.namespaces.is_limited_to(&object.id.name)
    }

    /// Checks for every app whether its desired objects are applied and healthy, or whether the
    /// time limit has passed. `refused` are objects that an app defines and another app owns.
    pub(super) fn replacements(
        &self,
        stored: &StoredGeneration,
        desired: &[Arc<DesiredObject>],
        refused: Vec<(AppName, String)>,
    ) -> Replacements {
        let mut by_app: BTreeMap<&AppName, Vec<&DesiredObject>> = BTreeMap::new();
        for object in desired {
            let members = by_app.entry(object.app()).or_default();
            if !self.is_own_place(object) {
                members.push(object);
            }
        }
        let now = Instant::now();
        let mut state = self.state();
        state.retain(|app, _| by_app.contains_key(app));
        let mut found = Replacements::default();
        for bundle in &stored.bundles {
            let app = &bundle.bundle().header.app;
            let objects = by_app.get(app).map_or(&[][..], Vec::as_slice);
            let refused = objects
                .iter()
                .find_map(|object| Some((object, self.tracker.why_not_applied(&object.key)?)));
            if let Some((object, why)) = refused {
                state.remove(app);
                found
                    .unfinished
                    .insert(app.clone(), format!("{}: {why}", object.id));
                continue;
            }
            let hash = bundle.hash();
            let since = state.entry(app.clone()).or_insert((hash, now));
            if since.0 != hash {
                *since = (hash, now);
            }
            let until = since.1 + self.config.replaced_within;
            let unwell = objects
                .iter()
                .filter(|object| !is_plain(&object.id.gvk))
                .find(|object| !self.is_well(object));
            let Some(object) = unwell.filter(|_| until > now) else {
                continue;
            };
            let why = format!(
                "{}; this delays the deletion for at most {}",
                self.waits_for(object),
                minutes(self.config.replaced_within)
            );
            found.unfinished.insert(app.clone(), why);
            let observed = objects.iter().filter(|object| !is_plain(&object.id.gvk));
            let gate = observed.map(|object| (object.key.clone(), object.marks().hook.is_some()));
            found.gates.push(gate.collect());
            found.due = found.due.into_iter().chain([until]).min();
        }
        found.unfinished.extend(refused);
        found
    }
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
