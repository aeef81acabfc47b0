//! The objects that are pending approval, and drift.

use std::collections::{BTreeMap, BTreeSet};

use super::{MOST, MOST_NAMES, MOST_OBJECTS, Report};
use crate::status::{
    document::{Cluster, Hold, Placed},
    terminal::{Cell, Grid, Terminal, Tone, count, names, one_line},
};

impl Report<'_> {
    pub(super) fn waiting(&mut self) {
        let places = |waits: fn(&Placed) -> bool| {
            let mut apps: BTreeMap<&str, Vec<(&Cluster, &Placed)>> = BTreeMap::new();
            for cluster in &self.document.clusters {
                for placed in cluster.apps.iter().filter(|placed| waits(placed)) {
                    apps.entry(&placed.app).or_default().push((cluster, placed));
                }
            }
            apps
        };
        let held = places(|placed| !placed.holds.is_empty());
        let drifted = places(|placed| placed.drifted > 0);
        for (app, places) in held.iter().take(MOST) {
            self.held_objects(app, places, false);
            self.held_objects(app, places, true);
        }
        self.rest(held.len(), MOST, "more app");
        for (app, places) in drifted.iter().take(MOST) {
            let objects: u32 = places.iter().map(|(_, placed)| placed.drifted).sum();
            let app = self.strong(app);
            let (objects, verbs) = subject(objects, "has drifted", "have drifted");
            let text = format!(
                "{app}: {objects} {} {verbs}, not reverted (`drift: report`)",
                in_clusters(places)
            );
            self.item(Tone::Warning, '!', &text);
            if places.iter().all(|(_, placed)| !placed.fails) {
                self.objects(places);
            }
        }
        self.rest(drifted.len(), MOST, "more app");
    }

    /// Appends the objects of an app that are pending approval to be deleted, or to be recreated.
    fn held_objects(&mut self, app: &str, places: &[(&Cluster, &Placed)], recreate: bool) {
        let is = |hold: &&Hold| hold.recreate == recreate;
        let waits = places
            .iter()
            .filter(|(_, placed)| placed.holds.iter().any(|hold| is(&hold)));
        let places: Vec<(&Cluster, &Placed)> = waits.copied().collect();
        if places.is_empty() {
            return;
        }
        let holds = || {
            places
                .iter()
                .flat_map(|(_, placed)| placed.holds.iter().filter(is))
        };
        let name = self.strong(app);
        let (objects, verb) = subject(holds().map(|hold| hold.count).sum(), "is", "are");
        let what = if recreate { "recreated" } else { "deleted" };
        let text = format!(
            "{name}: {objects} {} {verb} pending approval to be {what}: `muster app approve {app}`",
            in_clusters(&places)
        );
        self.item(Tone::Warning, '!', &text);
        let told: BTreeSet<String> = holds()
            .map(|hold| format!("{}: {}", one_line(&hold.reason), objects_of(hold)))
            .collect();
        for line in told.iter().take(MOST_OBJECTS) {
            self.more(line);
        }
        self.rest(told.len(), MOST_OBJECTS, "more reason");
    }

    /// Appends the latest drift of the selected apps.
    pub(super) fn drifts(&mut self) {
        let mut all = Vec::new();
        for cluster in &self.document.clusters {
            for placed in &cluster.apps {
                all.extend(placed.drifts.iter().map(|drift| (drift, cluster, placed)));
            }
        }
        if all.is_empty() {
            return;
        }
        all.sort_by_key(|(drift, ..)| std::cmp::Reverse(drift.at));
        let mut grid =
            Grid::new(["DRIFT", "CLUSTER", "APP", "OBJECT", "ACTION", "FIELDS"]).spare(&["APP"]);
        for (drift, cluster, placed) in all.iter().take(MOST) {
            let then = if drift.recreated {
                Cell::new(Tone::Warning, "recreated")
            } else if drift.corrected {
                Cell::new(Tone::Good, "reverted")
            } else {
                Cell::new(Tone::Warning, "reported")
            };
            grid.row([
                when(self.terminal, drift.at).into(),
                cluster.name.as_str().into(),
                placed.app.as_str().into(),
                drift.object.as_str().into(),
                then,
                one_line(&drift.difference).into(),
            ]);
        }
        self.text.push_str(&grid.draw(self.terminal));
        self.rest(all.len(), MOST, "more drift");
    }
}

fn when(terminal: Terminal, at: Option<jiff::Timestamp>) -> String {
    terminal
        .age(at)
        .map_or_else(|| "-".to_owned(), |age| format!("{age} ago"))
}

/// Returns `1 object` or `3 objects`, with the verb that fits.
fn subject(objects: u32, one: &'static str, many: &'static str) -> (String, &'static str) {
    let text = count(usize::try_from(objects).unwrap_or(usize::MAX), "object");
    (text, if objects == 1 { one } else { many })
}

fn in_clusters(places: &[(&Cluster, &Placed)]) -> String {
    let all = places.iter().map(|(cluster, _)| cluster.name.as_str());
    let which = names(all, MOST_NAMES);
    if places.len() > MOST_NAMES + 1 {
        format!("in {} ({which})", count(places.len(), "cluster"))
    } else {
        format!("in {which}")
    }
}

/// Returns the first objects, and how many more there are.
fn objects_of(hold: &Hold) -> String {
    let shown: Vec<&str> = hold
        .objects
        .iter()
        .take(MOST_OBJECTS)
        .map(String::as_str)
        .collect();
    let more = usize::try_from(hold.count).unwrap_or(usize::MAX);
    match more.saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
