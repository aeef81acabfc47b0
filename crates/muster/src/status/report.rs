//! The status as a page for people: what is wrong first, then the fleet, its clusters, its apps.
//!
//! A fleet of a few clusters is shown whole. Of a large one the regions and apps are counted, and only
//! the clusters that are not in sync are named.

mod overview;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use muster_model::problem::{Problem, Scope};

use super::{
    document::{Cluster, Document, Placed, State},
    terminal::{Terminal, Tone, count, length, names, one_line, short},
};
use crate::problems;

pub(crate) use overview::cluster_grid;

/// Problems of one sort that are shown one by one.
const MOST: usize = 10;
/// Objects of a failing app that are shown.
const MOST_OBJECTS: usize = 3;
/// Clusters that are named in a sentence.
const MOST_NAMES: usize = 4;

/// The whole page.
pub(crate) fn render(document: &Document, terminal: Terminal) -> String {
    let mut report = Report {
        document,
        terminal,
        text: String::new(),
    };
    let groups = [
        Report::repository,
        Report::held,
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

/// The status in one line.
pub(crate) fn summary(document: &Document) -> String {
    let repo = &document.repo;
    let mut parts = Vec::new();
    if repo.problem.is_some() {
        parts.push("the repository is unreachable".to_owned());
    }
    if let Some(tip) = repo.tip.as_deref().filter(|_| repo.behind) {
        let held = document.problems.iter().any(|p| p.scope == Scope::Fleet);
        let how = if held {
            "held back"
        } else {
            "being worked through"
        };
        parts.push(format!("{} is {how}", short(tip)));
    }
    let held = document.apps.iter().filter(|app| app.held);
    let held: Vec<&str> = held.map(|app| app.name.as_str()).collect();
    if !held.is_empty() {
        parts.push(format!("{} held back", names(held, MOST_NAMES)));
    }
    let all = &document.clusters;
    let placed = all.iter().flat_map(|cluster| &cluster.apps);
    let waiting = placed.filter(|placed| !placed.holds.is_empty());
    let waiting: BTreeSet<&str> = waiting.map(|placed| placed.app.as_str()).collect();
    if !waiting.is_empty() {
        let which = names(waiting, MOST_NAMES);
        parts.push(format!("approval wanted for objects of {which}"));
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
    /// Puts an empty line between groups that say something.
    fn group(&mut self, group: fn(&mut Self)) {
        let before = self.text.len();
        group(self);
        if before > 0 && self.text.len() > before && !self.text[before..].starts_with('\n') {
            self.text.insert(before, '\n');
        }
    }

    /// A sentence on something that is not as it should be.
    fn item(&mut self, tone: Tone, mark: char, text: &str) {
        let label = match tone {
            Tone::Bad => "error:",
            Tone::Busy => "in progress:",
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

    /// More on the item above.
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
        let since = since.map_or_else(String::new, |age| format!(" for {age}"));
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
                format!("the next try is in {wait}")
            }
            _ => "the next try is now".to_owned(),
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
        let whole = errors.iter().any(|problem| problem.scope == Scope::Fleet);
        if let Some(tip) = repo.tip.as_deref().filter(|_| repo.behind) {
            let tip = self.strong(short(tip));
            let stays = match &repo.commit {
                Some(commit) => format!("{} stays in force", short(commit)),
                None => "no commit is in force yet".to_owned(),
            };
            if whole {
                let text = format!("commit {tip} is held back; {stays}");
                self.item(Tone::Bad, '✗', &text);
            } else {
                let text = format!("commit {tip} is being worked through; {stays}");
                self.item(Tone::Busy, '↻', &text);
            }
        }
        let held: Vec<&str> = self.held_apps().collect();
        if !held.is_empty() {
            let apps = self.strong(&names(held.iter().copied(), MOST_NAMES));
            let verb = if held.len() == 1 { "is" } else { "are" };
            let text = format!("{apps} {verb} held back; what was last good stays in force");
            self.item(Tone::Bad, '✗', &text);
        }
        for problem in errors.iter().take(MOST) {
            self.problem(problem);
        }
        self.rest(errors.len(), MOST, "problem");
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
            // The source line keeps its columns, so that the caret stays below its place.
            let source = problem.line.is_some() && line.contains(" | ") || line.ends_with('^');
            if source || self.terminal.width.is_none() {
                self.text.push_str(line);
                self.text.push('\n');
            } else {
                self.text.push_str(&self.terminal.fold("", "  ", line));
            }
        }
    }

    /// Says how many were not shown.
    fn rest(&mut self, all: usize, shown: usize, noun: &str) {
        if all > shown {
            let text = format!(
                "{} more; `muster status -o json` has all",
                count(all - shown, noun)
            );
            self.more(&text);
        }
    }

    /// Clusters that are not there, and what keeps whole clusters.
    fn absent(&mut self) {
        let all = &self.document.clusters;
        let offline: Vec<&Cluster> = of_state(all, State::Offline).collect();
        if offline.len() <= MOST_NAMES {
            for cluster in offline {
                let since = self.terminal.age(cluster.last_seen);
                let name = self.strong(&cluster.name);
                let text = match since {
                    Some(age) => format!("{name} is offline: its last known level is {age} old"),
                    None => format!("{name} is offline: nothing was heard of it yet"),
                };
                self.item(Tone::Warning, '○', &text);
            }
        } else {
            let oldest = offline.iter().filter_map(|cluster| cluster.last_seen).min();
            let since = self.terminal.age(oldest);
            let since = since.map_or_else(String::new, |age| format!(", the first for {age}"));
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
        self.rest(troubled.len(), MOST, "problem");
    }

    fn failing(&mut self) {
        self.by_app(State::Failing);
    }

    fn progressing(&mut self) {
        self.by_app(State::Progressing);
        // Clusters that have not yet taken what is wanted, where no app says so.
        let silent = of_state(&self.document.clusters, State::Progressing)
            .filter(|c| c.apps.iter().all(|app| app.state == State::Synced));
        let silent: Vec<&str> = silent.map(|cluster| cluster.name.as_str()).collect();
        if !silent.is_empty() {
            let which = self.strong(&names(silent.iter().copied(), MOST_NAMES));
            let verb = if silent.len() == 1 { "takes" } else { "take" };
            self.item(Tone::Busy, '↻', &format!("{which} {verb} a new generation"));
        }
    }

    /// The apps of a state, each once with all its clusters.
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
                " is on its way in "
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
        self.rest(apps.len(), MOST, "app");
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
            self.more(&format!("{more}; `muster get objects --app {app}` has all"));
        }
    }

    fn hints(&mut self) {
        let all = &self.document.problems;
        let hints: Vec<&Problem> = all.iter().filter(|p| p.scope == Scope::Hint).collect();
        for problem in hints.iter().take(MOST) {
            self.problem(problem);
        }
        self.rest(hints.len(), MOST, "hint");
    }

    fn header(&mut self) {
        let Document {
            fleet,
            repo,
            clusters,
            ..
        } = self.document;
        let mut title = match fleet.as_str() {
            "" => self.strong("a fleet without a name yet"),
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

/// How an app that is not synced stands, in words.
fn standing(placed: &Placed) -> String {
    let Placed {
        objects, applied, ..
    } = placed;
    if placed.role.is_empty() {
        return "it is leaving".to_owned();
    }
    if !placed.synced && placed.state == State::Progressing {
        return "not yet at what is wanted".to_owned();
    }
    if applied < objects {
        return format!("{applied} of {objects} objects applied");
    }
    match placed.health.as_deref() {
        Some(health) => format!("{}, {health}", count(*objects as usize, "object")),
        None => count(*objects as usize, "object"),
    }
}
