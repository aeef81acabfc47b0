//! Clusters and apps as tables. A small fleet is listed in full. For a large one, the tables contain counts, and only
//! clusters that are not in sync are listed.

use std::collections::BTreeMap;

use super::{Report, of_state};
use crate::status::{
    document::{App, Cluster, Placed, State},
    terminal::{Cell, Grid, Terminal, Tone, count, names, short},
};

/// The most clusters that are listed one by one. A larger fleet is summarized by region.
const MOST_CLUSTERS: usize = 16;
/// The most clusters of each state that are listed for a large fleet.
const MOST_OF_STATE: usize = 5;
/// The most clusters that have columns in the table of apps.
const MOST_COLUMNS: usize = 8;

impl Report<'_> {
    pub(super) fn clusters(&mut self) {
        let all = &self.document.clusters;
        if all.is_empty() {
            return;
        }
        if all.len() <= MOST_CLUSTERS {
            let grid = cluster_grid(all.iter(), self.terminal);
            self.text.push_str(&grid.draw(self.terminal));
            return;
        }
        // The column for pending clusters is left out if there are none, because the table is wide.
        let is_shown = |state| state != State::Pending || all.iter().any(|c| c.state == state);
        let states = [
            State::Synced,
            State::Progressing,
            State::Failing,
            State::Pending,
            State::Offline,
            State::Unjoined,
        ]
        .into_iter()
        .filter(|state| is_shown(*state));
        let mut header = vec!["REGION".to_owned(), "CLUSTERS".to_owned()];
        header.extend(states.clone().map(|state| state.word().to_uppercase()));
        header.push("OBJECTS".to_owned());
        let mut grid = Grid::new(header).spare(&["OBJECTS", "UNJOINED"]);
        for region in &self.document.regions {
            let own: Vec<&Cluster> = all.iter().filter(|c| c.region == region.name).collect();
            let number = |state: State| {
                let number = own.iter().filter(|cluster| cluster.state == state).count();
                match number {
                    0 => Cell::or_dash(None),
                    n => Cell::new(State::tone(state), n.to_string()),
                }
            };
            let mut row = vec![region.name.as_str().into(), own.len().to_string().into()];
            row.extend(states.clone().map(number));
            row.push(objects(own.iter().copied()));
            grid.row(row);
        }
        self.text.push_str(&grid.draw(self.terminal));
        let astray = all.iter().filter(|c| c.state != State::Synced).count();
        if astray == 0 {
            return;
        }
        self.text.push('\n');
        let states = [
            State::Failing,
            State::Pending,
            State::Offline,
            State::Unjoined,
            State::Progressing,
        ];
        let shown: Vec<&Cluster> = states
            .into_iter()
            .flat_map(|state| of_state(all, state).take(MOST_OF_STATE))
            .collect();
        let grid = cluster_grid(shown.iter().copied(), self.terminal);
        self.text.push_str(&grid.draw(self.terminal));
        if astray > shown.len() {
            let left = count(astray - shown.len(), "more cluster");
            self.faint(&format!(
                "and {left} not in sync; `muster get clusters` lists all"
            ));
        }
    }

    pub(super) fn apps(&mut self) {
        let apps = &self.document.apps;
        if apps.is_empty() || self.document.clusters.is_empty() {
            return;
        }
        let matrix = (self.document.clusters.len() <= MOST_COLUMNS).then(|| self.matrix());
        let fits = |grid: &Grid| {
            self.terminal
                .width
                .is_none_or(|w| grid.natural_width() <= w)
        };
        let grid = match matrix {
            Some(grid) if fits(&grid) => grid,
            _ => self.app_summary(),
        };
        self.text.push_str(&grid.draw(self.terminal));
    }

    /// Returns the table of apps by clusters.
    fn matrix(&self) -> Grid {
        let clusters = &self.document.clusters;
        let header = clusters.iter().map(|cluster| cluster.name.to_uppercase());
        let mut grid = Grid::new(std::iter::once("APP".to_owned()).chain(header));
        for app in &self.document.apps {
            let cell = |cluster: &Cluster| {
                let placed = cluster.apps.iter().find(|placed| placed.app == app.name);
                placed.map_or_else(|| Cell::or_dash(None), |placed| self.place(placed))
            };
            grid.row(std::iter::once(app_name(app)).chain(clusters.iter().map(cell)));
        }
        grid
    }

    /// Returns the cell with an app's role and state in a cluster.
    fn place(&self, placed: &Placed) -> Cell {
        let role = match placed.role.as_str() {
            "" => "leaving",
            role => role,
        };
        let words = match placed.state {
            State::Progressing if placed.applied < placed.objects => {
                format!("{role} {}/{}", placed.applied, placed.objects)
            }
            State::Synced => role.to_owned(),
            _ if self.terminal.styled => role.to_owned(),
            state => format!("{role} {}", state.word()),
        };
        Cell::state(self.terminal, placed.state, &words)
    }

    /// Returns the table of apps: in how many clusters each one is synced, and in which clusters it is not in sync.
    fn app_summary(&self) -> Grid {
        let mut grid =
            Grid::new(["APP", "TIER", "MODE", "SYNCED", "NOT IN SYNC"]).spare(&["MODE", "TIER"]);
        let mut astray: BTreeMap<&str, BTreeMap<State, Vec<&str>>> = BTreeMap::new();
        for cluster in &self.document.clusters {
            for placed in cluster.apps.iter().filter(|p| p.state != State::Synced) {
                let states = astray.entry(&placed.app).or_default();
                states.entry(placed.state).or_default().push(&cluster.name);
            }
        }
        for app in &self.document.apps {
            let states = astray.get(app.name.as_str());
            let worst = states.and_then(|states| states.keys().next_back().copied());
            let parts = states.into_iter().flatten().rev().map(|(state, clusters)| {
                let number = clusters.len();
                let which = names(clusters.iter().copied(), 2);
                format!("{number} {} ({which})", state.word())
            });
            let parts = parts.collect::<Vec<_>>().join(", ");
            let synced = format!("{}/{}", app.synced, app.clusters);
            grid.row([
                app_name(app),
                Cell::or_dash(Some(&app.tier)),
                Cell::or_dash(Some(&app.mode)),
                Cell::state(self.terminal, worst.unwrap_or(State::Synced), &synced),
                Cell::or_dash(Some(&parts)),
            ]);
        }
        grid
    }
}

fn app_name(app: &App) -> Cell {
    if app.held {
        Cell::new(Tone::Bad, format!("{} (blocked)", app.name))
    } else {
        app.name.as_str().into()
    }
}

/// Returns a cell with the number of applied objects and the number of all objects.
fn objects<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> Cell {
    let (applied, all) = clusters
        .map(Cluster::objects)
        .fold((0_u64, 0_u64), |sum, more| {
            (sum.0 + u64::from(more.0), sum.1 + u64::from(more.1))
        });
    format!("{applied}/{all}").into()
}

/// Returns the table of clusters. On a terminal, a region is named only in its first row.
pub(crate) fn cluster_grid<'a>(
    clusters: impl Iterator<Item = &'a Cluster>,
    terminal: Terminal,
) -> Grid {
    let mut grid = Grid::new([
        "REGION",
        "CLUSTER",
        "STATE",
        "GENERATION",
        "COMMIT",
        "APPS",
        "OBJECTS",
        "AGENT",
    ])
    .spare(&["AGENT", "GENERATION", "OBJECTS", "REGION"]);
    let mut last = None;
    for cluster in clusters {
        let region = cluster.region.as_str();
        let words = match (cluster.state, terminal.age(cluster.last_seen)) {
            (State::Offline, Some(age)) => format!("offline {age}"),
            (state, _) => state.word().to_owned(),
        };
        let (generation, wanted) = (cluster.generation, cluster.wanted_generation);
        let arrow = if terminal.styled { " → " } else { "->" };
        let generation = match (generation, wanted) {
            (0, 0) => String::new(),
            (is, wanted) if is == wanted => is.to_string(),
            (0, wanted) => format!("none{arrow}{wanted}"),
            (is, wanted) => format!("{is}{arrow}{wanted}"),
        };
        grid.row([
            if terminal.styled && last == Some(region) {
                ""
            } else {
                region
            }
            .into(),
            cluster.name.as_str().into(),
            Cell::state(terminal, cluster.state, &words),
            Cell::or_dash(Some(&generation)),
            Cell::or_dash(cluster.commit.as_deref().map(short)),
            {
                let (synced, all) = cluster.apps_synced();
                format!("{synced}/{all}").into()
            },
            objects(std::iter::once(cluster)),
            Cell::or_dash(cluster.agent_version.as_deref()),
        ]);
        last = Some(region);
    }
    grid
}
