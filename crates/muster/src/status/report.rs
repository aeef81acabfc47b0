//! The status as a report for people: problems first, then the fleet, its clusters and its apps.
//!
//! A small fleet is shown whole. For a large fleet, the report has a summary of each region and app, and names only
//! clusters that are not in sync.

mod overview;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use muster_model::problem::{Problem, Scope};

use super::{
    document::{App, Cluster, Document, Placed, State},
    terminal::{Terminal, Tone, count, length, names, one_line, short},
};
use crate::problems;

pub(crate) use overview::cluster_grid;

/// The most problems of one sort that are shown one by one.
const MOST: usize = 10;
/// The most objects of an app that are shown.
const MOST_OBJECTS: usize = 3;
/// The most names that are listed in a sentence.
const MOST_NAMES: usize = 4;

/// Returns the whole report.
pub(crate) fn render(document: &Document, terminal: Terminal) -> String {
    let mut report = Report {
        document,
        terminal,
        text: String::new(),
    };
    let groups = [
        Report::repository,
        Report::held,
        Report::moves,
        Report::absent,
        Report::failing,
        Report::waiting,
        Report::progressing,
        Report::hints,
        Report::header,
        Report::clusters,
        Report::apps,
        Report::drifts,
    ];
    for group in groups {
        report.group(group);
    }
    report.text
}

/// Returns the status in one line.
pub(crate) fn summary(document: &Document) -> String {
    let repo = &document.repo;
    let mut parts = Vec::new();
    if repo.problem.is_some() {
        parts.push("the repository is unreachable".to_owned());
    }
    if let Some(tip) = repo.tip.as_deref().filter(|_| repo.behind) {
        let how = match document.is_blocked() {
            true => "blocked",
            false => "in progress",
        };
        parts.push(format!("{} is {how}", short(tip)));
    }
    let held = document.apps.iter().filter(|app| app.held);
    let held: Vec<&str> = held.map(|app| app.name.as_str()).collect();
    if !held.is_empty() {
        parts.push(format!("{} blocked", names(held, MOST_NAMES)));
    }
    let all = &document.clusters;
    let placed = all.iter().flat_map(|cluster| &cluster.apps);
    let waiting = placed.filter(|placed| !placed.holds.is_empty());
    let waiting: BTreeSet<&str> = waiting.map(|placed| placed.app.as_str()).collect();
    if !waiting.is_empty() {
        let which = names(waiting, MOST_NAMES);
        parts.push(format!("objects of {which} pending approval"));
    }
    let moving = |app: &&App| app.writer.as_ref().is_some_and(|w| w.moved.is_some());
    let moving = document.apps.iter().filter(moving);
    let moving: Vec<&str> = moving.map(|app| app.name.as_str()).collect();
    if !moving.is_empty() {
        parts.push(format!("{} moving", names(moving, MOST_NAMES)));
    }
    let in_state = |state| all.iter().filter(move |cluster| cluster.state == state);
    parts.push(format!(
        "{} of {} in sync",
        in_state(State::Synced).count(),
        count(all.len(), "cluster")
    ));
    for state in [
        State::Failing,
        State::Pending,
        State::Offline,
        State::Unjoined,
        State::Progressing,
    ] {
        let clusters: Vec<&str> = in_state(state).map(|c| c.name.as_str()).collect();
        if !clusters.is_empty() {
            parts.push(format!("{} {}", names(clusters, 2), state.word()));
        }
    }
    let at = repo.commit.as_deref().map_or("no commit yet", short);
    format!("{at}: {}", parts.join("; "))
}

struct Report<'a> {
    document: &'a Document,
    terminal: Terminal,
    text: String,
}

impl Report<'_> {
    /// Appends a group. An empty line separates it from the previous one, unless it is empty.
    fn group(&mut self, group: fn(&mut Self)) {
        let before = self.text.len();
        group(self);
        if before > 0 && self.text.len() > before && !self.text[before..].starts_with('\n') {
            self.text.insert(before, '\n');
        }
    }

    /// Appends a sentence about something that is not in sync.
    fn item(&mut self, tone: Tone, mark: char, text: &str) {
        let label = match tone {
            Tone::Bad => "error:",
            Tone::Busy => "note:",
            _ => "warning:",
        };
        let style = tone.style().bold();
        let first = if self.terminal.styled {
            format!("{} ", self.terminal.paint(style, &mark.to_string()))
        } else {
            format!("{label} ")
        };
        self.text.push_str(&self.terminal.fold(&first, "  ", text));
    }

    /// Appends a detail of the item above.
    fn more(&mut self, text: &str) {
        self.text
            .push_str(&self.terminal.fold("    ", "      ", text));
    }

    fn strong(&self, text: &str) -> String {
        self.terminal.paint(Tone::Strong.style(), text)
    }

    fn repository(&mut self) {
        let repo = &self.document.repo;
        let Some(problem) = &repo.problem else {
            return;
        };
        let since = self.terminal.age(repo.problem_since);
        let since = since.map_or_else(String::new, |age| format!(" (for {age})"));
        let title = self.strong("the repository is unreachable");
        self.item(
            Tone::Bad,
            '✗',
            &format!("{title}{since}: {}", one_line(problem)),
        );
        let stays = match &repo.commit {
            Some(commit) => format!("{} stays in force", short(commit)),
            None => "no commit is in force yet".to_owned(),
        };
        let next = match (repo.retry_at, self.terminal.now) {
            (Some(retry), Some(now)) if retry > now => {
                let wait = length(retry.as_second() - now.as_second());
                format!("retrying in {wait}")
            }
            _ => "retrying now".to_owned(),
        };
        self.more(&format!("{stays}; {next}"));
    }

    fn held(&mut self) {
        let repo = &self.document.repo;
        let errors: Vec<&Problem> = self
            .document
            .problems
            .iter()
            .filter(|problem| problem.scope != Scope::Hint)
            .collect();
        if let Some(tip) = repo.tip.as_deref().filter(|_| repo.behind) {
            let tip = self.strong(short(tip));
            let stays = match &repo.commit {
                Some(commit) => format!("{} stays in force", short(commit)),
                None => "no commit is in force yet".to_owned(),
            };
            if self.document.is_blocked() {
                let text = format!("commit {tip} is blocked; {stays}");
                self.item(Tone::Bad, '✗', &text);
            } else {
                let text = format!("commit {tip} is in progress; {stays}");
                self.item(Tone::Busy, '↻', &text);
            }
            if let Some(commit) = self.document.blocked_before() {
                let commit = short(commit);
                self.more(&format!(
                    "the problems below are those of {commit}, which was blocked"
                ));
            }
        }
        let held: Vec<&str> = self.held_apps().collect();
        if !held.is_empty() {
            let apps = self.strong(&names(held.iter().copied(), MOST_NAMES));
            let verb = if held.len() == 1 { "is" } else { "are" };
            let text = format!("{apps} {verb} blocked; the last good state stays in force");
            self.item(Tone::Bad, '✗', &text);
        }
        for problem in errors.iter().take(MOST) {
            self.problem(problem);
        }
        self.rest(errors.len(), MOST, "more problem");
    }

    fn held_apps(&self) -> impl Iterator<Item = &str> {
        let apps = self.document.apps.iter().filter(|app| app.held);
        apps.map(|app| app.name.as_str())
    }

    fn problem(&mut self, problem: &Problem) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
        let text = problems::text(problem);
        let text = if self.terminal.styled {
            text
        } else {
            anstream::adapter::strip_str(&text).to_string()
        };
        for line in text.lines() {
            // Don't fold the source line, so that the caret stays below its place.
            let source = problem.line.is_some() && line.contains(" | ") || line.ends_with('^');
            if source || self.terminal.width.is_none() {
                self.text.push_str(line);
                self.text.push('\n');
            } else {
                self.text.push_str(&self.terminal.fold("", "  ", line));
            }
        }
    }

    /// Appends how many items were not shown.
    fn rest(&mut self, all: usize, shown: usize, noun: &str) {
        if all > shown {
            let text = format!(
                "and {}; `muster status -o json` shows all",
                count(all - shown, noun)
            );
            self.more(&text);
        }
    }

    /// Appends the clusters that are offline or unjoined, and the problems of whole clusters.
    fn absent(&mut self) {
        let all = &self.document.clusters;
        let offline: Vec<&Cluster> = of_state(all, State::Offline).collect();
        if offline.len() <= MOST_NAMES {
            for cluster in offline {
                let since = self.terminal.age(cluster.last_seen);
                let name = self.strong(&cluster.name);
                let text = match since {
                    Some(age) => format!("{name} is offline: last seen {age} ago"),
                    None => format!("{name} is offline: not seen yet"),
                };
                self.item(Tone::Warning, '○', &text);
            }
        } else {
            let oldest = offline.iter().filter_map(|cluster| cluster.last_seen).min();
            let since = self.terminal.age(oldest);
            let since = since.map_or_else(String::new, |age| format!(", the longest for {age}"));
            let title = self.strong(&format!("{} are offline", count(offline.len(), "cluster")));
            let which = names(offline.iter().map(|c| c.name.as_str()), MOST_NAMES);
            self.item(Tone::Warning, '○', &format!("{title}{since}: {which}"));
        }
        let unjoined: Vec<&str> = of_state(all, State::Unjoined)
            .map(|cluster| cluster.name.as_str())
            .collect();
        if let Some(first) = unjoined.first() {
            let verb = if unjoined.len() == 1 { "has" } else { "have" };
            let which = self.strong(&names(unjoined.iter().copied(), MOST_NAMES));
            let text = format!("{which} {verb} never joined: `muster cluster join-token {first}`");
            self.item(Tone::Warning, '○', &text);
        }
        let mut troubled: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for cluster in all {
            for problem in &cluster.problems {
                troubled.entry(problem).or_default().push(&cluster.name);
            }
        }
        for (problem, clusters) in troubled.iter().take(MOST) {
            let which = self.strong(&names(clusters.iter().copied(), MOST_NAMES));
            self.item(Tone::Bad, '✗', &format!("{which}: {}", one_line(problem)));
        }
        self.rest(troubled.len(), MOST, "more problem");
    }

    fn failing(&mut self) {
        self.by_app(State::Failing);
    }

    /// Appends the writers that are being moved, and what each move waits for.
    fn moves(&mut self) {
        for app in &self.document.apps {
            let Some((writer, step)) = app
                .writer
                .as_ref()
                .and_then(|writer| Some((writer, writer.moved.as_ref()?)))
            else {
                continue;
            };
            let (from, to) = match step.step.as_str() {
                "fencing" => (&writer.cluster, &step.cluster),
                _ => (&step.cluster, &writer.cluster),
            };
            let (tone, mark) = match step.unproven {
                true => (Tone::Bad, '✗'),
                false => (Tone::Busy, '↻'),
            };
            let since = self.terminal.age(writer.since);
            let since = since.map_or_else(String::new, |age| format!(" (for {age})"));
            let text = format!(
                "{} moves from {from} to {to}, {}{since}: {}",
                self.strong(&app.name),
                step.step,
                one_line(&step.waits_for)
            );
            self.item(tone, mark, &text);
        }
    }

    fn progressing(&mut self) {
        self.by_app(State::Progressing);
        // Clusters that have not received their generation yet, although all their apps are synced.
        let silent = of_state(&self.document.clusters, State::Progressing)
            .filter(|c| c.apps.iter().all(|app| app.state == State::Synced));
        let silent: Vec<&str> = silent.map(|cluster| cluster.name.as_str()).collect();
        if !silent.is_empty() {
            let which = self.strong(&names(silent.iter().copied(), MOST_NAMES));
            let verb = if silent.len() == 1 { "is" } else { "are" };
            self.item(
                Tone::Busy,
                '↻',
                &format!("{which} {verb} receiving a new generation"),
            );
        }
    }

    /// Appends the apps in a state, each once with all its clusters.
    fn by_app(&mut self, state: State) {
        let mut apps: BTreeMap<&str, Vec<(&Cluster, &Placed)>> = BTreeMap::new();
        for cluster in &self.document.clusters {
            let told = |app: &&Placed| app.state == state;
            for placed in cluster.apps.iter().filter(told) {
                apps.entry(&placed.app).or_default().push((cluster, placed));
            }
        }
        for (app, places) in apps.iter().take(MOST) {
            let mut text = self.strong(app);
            let verb = if state == State::Failing {
                " fails in "
            } else {
                " is progressing in "
            };
            text.push_str(verb);
            if places.len() > MOST_NAMES + 1 {
                text.push_str(&format!("{}: ", count(places.len(), "cluster")));
            }
            let clusters = places.iter().map(|(cluster, _)| cluster.name.as_str());
            text.push_str(&names(clusters, MOST_NAMES));
            if let [(_, placed)] = places.as_slice() {
                text.push_str(&format!(" ({})", standing(placed)));
            }
            let (tone, mark) = (state.tone(), state.mark());
            self.item(tone, mark, &text);
            self.objects(places);
        }
        self.rest(apps.len(), MOST, "more app");
    }

    fn objects(&mut self, places: &[(&Cluster, &Placed)]) {
        let mut found: Vec<(&super::document::ObjectProblem, Vec<&str>)> = Vec::new();
        for (cluster, placed) in places {
            for problem in &placed.problems {
                match found.iter_mut().find(|(known, _)| *known == problem) {
                    Some((_, clusters)) => clusters.push(&cluster.name),
                    None => found.push((problem, vec![&cluster.name])),
                }
            }
        }
        for (problem, clusters) in found.iter().take(MOST_OBJECTS) {
            let place = match (clusters.as_slice(), places.len()) {
                (all, of) if all.len() == of => String::new(),
                ([one], _) => format!(" ({one})"),
                (some, _) => format!(" ({})", count(some.len(), "cluster")),
            };
            self.more(&format!(
                "{}{place}: {}",
                problem.object,
                one_line(&problem.message)
            ));
        }
        let left = found.len().saturating_sub(MOST_OBJECTS);
        if left > 0 {
            let app = places.first().map_or("", |(_, placed)| placed.app.as_str());
            let more = count(left, "more object");
            self.more(&format!(
                "and {more}; `muster get objects --app {app}` shows all"
            ));
        }
    }

    fn hints(&mut self) {
        let all = &self.document.problems;
        let hints: Vec<&Problem> = all.iter().filter(|p| p.scope == Scope::Hint).collect();
        for problem in hints.iter().take(MOST) {
            self.problem(problem);
        }
        self.rest(hints.len(), MOST, "more hint");
    }

    fn header(&mut self) {
        let Document {
            fleet,
            repo,
            clusters,
            ..
        } = self.document;
        let mut title = match fleet.as_str() {
            "" => self.strong("unnamed fleet"),
            name => self.strong(name),
        };
        if let Some(commit) = &repo.commit {
            let commit = self.terminal.paint(Tone::Warning.style(), short(commit));
            title.push_str(&format!(" at {commit} {}", one_line(&repo.subject)));
        } else {
            title.push_str(": no commit is in force yet");
        }
        self.text.push_str(&self.terminal.fold("", "  ", &title));
        if !repo.author.is_empty() {
            let age = self.terminal.age(repo.committed_at);
            let age = age.map_or_else(String::new, |age| format!(", {age} ago"));
            self.faint(&format!("by {}{age}", one_line(&repo.author)));
        }
        self.faint(&format!("{}, {}", repo.url, repo.reference));
        let synced = of_state(clusters, State::Synced).count();
        let (applied, objects) = clusters.iter().map(Cluster::objects).fold(
            (0_u64, 0_u64),
            |(applied, all), (more_applied, more)| {
                (applied + u64::from(more_applied), all + u64::from(more))
            },
        );
        let state = if self.document.synced {
            State::Synced
        } else {
            clusters
                .iter()
                .map(|c| c.state)
                .max()
                .unwrap_or(State::Progressing)
        };
        let objects = if applied == objects {
            count(usize::try_from(objects).unwrap_or(usize::MAX), "object")
        } else {
            format!("{applied} of {objects} objects applied")
        };
        let clusters = if synced == clusters.len() {
            format!("{} in sync", count(synced, "cluster"))
        } else {
            format!("{synced} of {} in sync", count(clusters.len(), "cluster"))
        };
        let apps = count(self.document.apps.len(), "app");
        let text = format!("{clusters}, {apps}, {objects}");
        let text = self.terminal.paint(state.tone().style(), &text);
        self.text.push_str(&self.terminal.fold("  ", "  ", &text));
    }

    fn faint(&mut self, text: &str) {
        let text = self.terminal.paint(Tone::Faint.style(), text);
        self.text.push_str(&self.terminal.fold("  ", "  ", &text));
    }
}

fn of_state(clusters: &[Cluster], state: State) -> impl Iterator<Item = &Cluster> {
    clusters
        .iter()
        .filter(move |cluster| cluster.state == state)
}

/// Describes the state of an app that is not synced.
fn standing(placed: &Placed) -> String {
    let Placed {
        objects, applied, ..
    } = placed;
    if placed.role.is_empty() {
        return "leaving".to_owned();
    }
    if !placed.synced && placed.state == State::Progressing {
        return "not yet in the desired state".to_owned();
    }
    if applied < objects {
        return format!("{applied} of {objects} objects applied");
    }
    match placed.health.as_deref() {
        Some(health) => format!("{}, {health}", count(*objects as usize, "object")),
        None => count(*objects as usize, "object"),
    }
}
