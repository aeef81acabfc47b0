//! Converts rendered bundles into an answer and back. The answer omits the parts and bundles that the reader already
//! has.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ClusterName, ContentHash},
    load::Loaded,
    problem::{Problem, Scope},
};
use muster_plan::placement::Placed;
use muster_render::{Part, Rendered, RenderedBundle};

use crate::{
    outcome::{Facts, Outcome},
    overseer::problem,
    wire::{Answer, AnswerBundle},
};

/// The maximum number of problems that are reported for one app, or for the fleet.
const MAX_PROBLEMS: usize = 100;
/// The maximum length of a problem's message or advice, in characters.
const MAX_TEXT: usize = 2000;

type PartKey = (ContentHash, String, String);
type BundleKey = (ContentHash, Vec<u64>);

/// The parts and bundles that the reader has, each with its number.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    next: u64,
    parts: HashMap<PartKey, u64>,
    bundles: HashMap<BundleKey, u64>,
}

impl Sent {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns the answer. Calls `part` to send each new part before the answer itself.
    pub(crate) fn answer(
        &mut self,
        loaded: Loaded,
        placed: Placed,
        mut rendered: Rendered,
        most_bytes: u64,
        mut part: impl FnMut(u64, &str, &str, &str) -> io::Result<()>,
    ) -> io::Result<Answer> {
        let mut problems = loaded.problems;
        problems.extend(placed.problems);
        problems.append(&mut rendered.problems);
        problems.extend(leave_out(&mut rendered, most_bytes));
        let before = std::mem::take(self);
        self.next = before.next;
        let mut bundles = Vec::new();
        let mut places = BTreeMap::new();
        for (app, by_cluster) in &rendered.bundles {
            let mut seen: HashMap<*const RenderedBundle, usize> = HashMap::new();
            let mut of_app: Vec<(usize, Vec<ClusterName>)> = Vec::new();
            for (cluster, bundle) in by_cluster {
                let at = match seen.get(&Arc::as_ptr(bundle)) {
                    Some(at) => *at,
                    None => {
                        bundles.push(self.bundle(&before, bundle, &mut part)?);
                        of_app.push((bundles.len() - 1, Vec::new()));
                        seen.insert(Arc::as_ptr(bundle), of_app.len() - 1);
                        of_app.len() - 1
                    }
                };
                of_app[at].1.push(cluster.clone());
            }
            places.insert(app.clone(), of_app);
        }
        Ok(Answer {
            facts: loaded.model.as_ref().map(Facts::of),
            broken: loaded.broken,
            formerly: loaded.formerly,
            roles: placed.roles,
            record: placed.record,
            problems: bounded(problems),
            slow: false,
            bundles,
            places,
        })
    }

    fn bundle(
        &mut self,
        before: &Self,
        bundle: &RenderedBundle,
        part: &mut impl FnMut(u64, &str, &str, &str) -> io::Result<()>,
    ) -> io::Result<AnswerBundle> {
        let mut parts = Vec::new();
        for one in bundle.parts() {
            parts.push(self.part(before, one, part)?);
        }
        let key = (bundle.hash, parts);
        let known = before.bundles.get(&key).or_else(|| self.bundles.get(&key));
        let known = known.copied();
        let id = known.unwrap_or_else(|| self.number());
        let new = known
            .is_none()
            .then(|| (bundle.header().to_owned(), key.1.clone()));
        self.bundles.insert(key, id);
        Ok(AnswerBundle { id, new })
    }

    fn part(
        &mut self,
        before: &Self,
        one: &Part,
        send: &mut impl FnMut(u64, &str, &str, &str) -> io::Result<()>,
    ) -> io::Result<u64> {
        let namespace = one.namespace();
        let key = (one.hash(), one.file().to_owned(), namespace.to_owned());
        if let Some(id) = self.parts.get(&key) {
            return Ok(*id);
        }
        let id = match before.parts.get(&key) {
            Some(id) => *id,
            None => {
                let id = self.number();
                send(id, one.file(), namespace, one.lines())?;
                id
            }
        };
        self.parts.insert(key, id);
        Ok(id)
    }
}

/// Removes the apps with the most bytes, until the bundles of the others fit into `most` bytes together.
fn leave_out(rendered: &mut Rendered, most: u64) -> Vec<Problem> {
    let mut sizes: Vec<(u64, AppName)> = Vec::new();
    for (app, places) in &rendered.bundles {
        let distinct: HashMap<*const RenderedBundle, u64> = places
            .values()
            .map(|bundle| (Arc::as_ptr(bundle), bundle.bytes.len() as u64))
            .collect();
        sizes.push((distinct.values().sum(), app.clone()));
    }
    let mut all: u64 = sizes.iter().map(|(size, _)| size).sum();
    sizes.sort();
    let mut problems = Vec::new();
    while all > most
        && let Some((size, app)) = sizes.pop()
    {
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        let message = format!(
            "this app has {:.1} MiB of distinct objects over all clusters, and all apps together have {:.1} MiB; the limit is {:.1} MiB",
            mib(size),
            mib(all),
            mib(most),
        );
        let help = "make the app smaller, render the same objects for more clusters, or give the hub more memory (--render-memory)";
        problems.push(problem(&app, message).help(help));
        rendered.bundles.remove(&app);
        all -= size;
    }
    problems
}

fn shortened(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(at);
        text.push('…');
    }
}

/// Limits the number of problems for each scope and the length of their texts.
fn bounded(problems: Vec<Problem>) -> Vec<Problem> {
    let mut counts: BTreeMap<Scope, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for mut problem in problems {
        let count = counts.entry(problem.scope.clone()).or_default();
        *count += 1;
        if *count <= MAX_PROBLEMS {
            shortened(&mut problem.message);
            problem.help.as_mut().map(shortened);
            kept.push(problem);
        }
    }
    for (scope, count) in counts
        .into_iter()
        .filter(|(_, count)| *count > MAX_PROBLEMS)
    {
        let left_out = count - MAX_PROBLEMS;
        let file = match &scope {
            Scope::App(app) => format!("apps/{app}"),
            Scope::Fleet | Scope::Hint | Scope::Hub => "fleet.yaml".to_owned(),
        };
        kept.push(Problem::new(
            scope,
            &file,
            format!("{left_out} more problems are not shown"),
        ));
    }
    kept
}

/// The parts and bundles that the reader has received, by number.
#[derive(Debug, Default)]
pub(crate) struct Received {
    parts: HashMap<u64, Arc<Part>>,
    bundles: HashMap<u64, Arc<RenderedBundle>>,
}

impl Received {
    pub(crate) fn part(&mut self, id: u64, part: Part) {
        self.parts.insert(id, Arc::new(part));
    }

    /// Assembles the outcome from an answer and the parts received so far.
    pub(crate) fn outcome(&mut self, answer: Answer) -> io::Result<Outcome> {
        let unknown =
            || io::Error::other("the worker refers to a part or bundle that it did not send");
        let mut bundles = HashMap::new();
        let mut list = Vec::new();
        for AnswerBundle { id, new } in answer.bundles {
            let known = self.bundles.get(&id).or_else(|| bundles.get(&id)).cloned();
            let bundle = match (known, new) {
                (Some(bundle), _) => bundle,
                (None, Some((header, parts))) => {
                    let parts = parts.iter().map(|part| self.parts.get(part).cloned());
                    let parts = parts.collect::<Option<Vec<_>>>().ok_or_else(unknown)?;
                    let bundle = RenderedBundle::from_parts(&header, parts);
                    Arc::new(bundle.map_err(io::Error::other)?)
                }
                (None, None) => return Err(unknown()),
            };
            bundles.insert(id, Arc::clone(&bundle));
            list.push(bundle);
        }
        let mut by_app = BTreeMap::new();
        for (app, places) in answer.places {
            let of_app: &mut BTreeMap<ClusterName, Arc<RenderedBundle>> =
                by_app.entry(app).or_default();
            for (at, clusters) in places {
                let bundle = list.get(at).ok_or_else(unknown)?;
                of_app.extend(
                    clusters
                        .into_iter()
                        .map(|cluster| (cluster, Arc::clone(bundle))),
                );
            }
        }
        self.bundles = bundles;
        // Drop the parts that no bundle of this answer uses.
        self.parts.retain(|_, part| Arc::strong_count(part) > 1);
        Ok(Outcome {
            facts: answer.facts,
            broken: answer.broken,
            formerly: answer.formerly,
            roles: answer.roles,
            record: answer.record,
            bundles: by_app,
            problems: answer.problems,
        })
    }
}
