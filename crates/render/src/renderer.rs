//! Renders whole fleets in parallel, and caches the results that stay valid from one commit to the next.

mod clashes;
mod part;
mod policy;
mod rehearsal;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use muster_model::{
    bundle::{Bundle, BundleError, BundleHeader, Object},
    fleet_record::FleetRecord,
    ids::{AppName, ClusterName, ContentHash, Epoch, Role},
    load::{App, Cluster, Model, Roles, TextFile},
    overseer::{Overseer, Unwatched},
    policy::{HealthRule, IgnoreRule, Policy},
    problem::{Problem, Scope},
    scopes::Scopes,
    values::layer,
    yaml::Pos,
};
use rayon::prelude::*;
use serde_json::{Value as Json, json};

use self::{
    clashes::kind_keys,
    policy::policy,
    rehearsal::{Work, carried_in, rehearsals},
};
pub use self::{
    clashes::{conflicts, scopes},
    part::Part,
};
use crate::{
    context::{Context, Digest, Layer, Overlay},
    objects::{self, NoObject},
    template::Templates,
    trie::Trie,
};

/// A rendered bundle with its encoded bytes and their hash.
#[derive(Debug)]
pub struct RenderedBundle {
    /// The hash of `bytes`.
    pub hash: ContentHash,
    /// The encoded bundle.
    pub bytes: Vec<u8>,
    /// The number of objects in the bundle.
    pub objects: usize,
    /// The parts that the bundle was joined from. Bundles with the same content share parts.
    parts: Vec<Arc<Part>>,
    app: AppName,
    /// The length of the first line, in bytes.
    header: usize,
}

impl RenderedBundle {
    /// Creates a bundle from the bytes of one that was rendered before.
    ///
    /// # Errors
    /// If the bytes are not a valid bundle.
    pub fn from_encoded(bytes: Vec<u8>) -> Result<Self, BundleError> {
        let bundle = Bundle::decode(&bytes)?;
        let file: Arc<str> = format!("apps/{} (last good version)", bundle.header.app).into();
        let part = Part::new(&file, &bundle.header.namespace, bundle.objects);
        let header = bytes.iter().position(|byte| *byte == b'\n');
        Ok(Self {
            hash: ContentHash::of(&bytes),
            objects: part.ids.len(),
            parts: vec![Arc::new(part)],
            app: bundle.header.app,
            header: header.unwrap_or(bytes.len()),
            bytes,
        })
    }

    /// Creates a bundle from its first line and its parts, as returned by [`RenderedBundle::header`] and
    /// [`RenderedBundle::parts`].
    ///
    /// # Errors
    /// If the line is not a valid first line of a bundle.
    pub fn from_parts(header: &str, parts: Vec<Arc<Part>>) -> Result<Self, BundleError> {
        let app = Bundle::decode(header.as_bytes())?.header.app;
        Ok(Self::join(app, header.as_bytes().to_vec(), parts))
    }

    fn join(app: AppName, mut bytes: Vec<u8>, parts: Vec<Arc<Part>>) -> Self {
        let header = bytes.len();
        bytes.reserve_exact(parts.iter().map(|part| part.lines.len()).sum());
        parts
            .iter()
            .for_each(|part| bytes.extend_from_slice(part.lines.as_bytes()));
        Self {
            hash: ContentHash::of(&bytes),
            objects: parts.iter().map(|part| part.ids.len()).sum(),
            bytes,
            parts,
            app,
            header,
        }
    }

    /// Returns the first line of the bundle.
    #[must_use]
    pub fn header(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.header]).unwrap_or_default()
    }

    /// Returns the parts that the bundle was joined from, in order.
    pub fn parts(&self) -> impl Iterator<Item = &Arc<Part>> {
        self.parts.iter()
    }
}

/// The result of rendering a fleet.
#[derive(Debug, Default)]
pub struct Rendered {
    /// The bundles by app and cluster. An app with a problem in any cluster has none.
    pub bundles: BTreeMap<AppName, BTreeMap<ClusterName, Arc<RenderedBundle>>>,
    /// The problems that were found.
    pub problems: Vec<Problem>,
}

/// The largest number of bytes that an app may have in one cluster.
pub const MAX_BUNDLE_BYTES: usize = 32 * 1024 * 1024;
/// The largest number of objects that an app may have in one cluster.
pub const MAX_BUNDLE_OBJECTS: usize = 20_000;

/// The reason why there is no bundle.
enum Failure {
    /// The app has problems.
    Wrong(Arc<Vec<Problem>>),
    /// The overseer refuses to continue with the app for now.
    Refused(Box<Problem>),
}

type BundleResult = Result<Arc<RenderedBundle>, Arc<Vec<Problem>>>;
type FileResult = Result<Arc<Part>, Arc<Vec<Problem>>>;

/// One app at one version of its files: its compiled templates and their results so far.
#[derive(Debug)]
struct AppUnit {
    scope: Scope,
    templates: Templates,
    /// The problems of files that can't be compiled or read at all.
    problems: Arc<Vec<Problem>>,
    files: Vec<(TextFile, RwLock<Trie<FileResult>>)>,
    manifests: Vec<Arc<Part>>,
    namespace: String,
    values: BTreeMap<String, Arc<Layer>>,
    own_values: Arc<Layer>,
    facts: Arc<Layer>,
    kept: RwLock<Kept>,
}

/// The cached bundles of an app, by what they were made from.
#[derive(Debug, Default)]
struct Kept {
    by_inputs: HashMap<Digest, BundleResult>,
    by_outputs: HashMap<ContentHash, Arc<RenderedBundle>>,
}

/// The role of an app in a cluster, and the epochs that templates see.
#[derive(Clone, Copy)]
struct Turn<'a> {
    role: Role,
    /// The epoch at which the app's roles last changed.
    since: Epoch,
    /// The values with the fleet's epoch.
    epoch: &'a Arc<Layer>,
    /// The values that were carried over from the old side of a move.
    carried: &'a BTreeMap<String, String>,
}

/// Renders one commit after another, and caches results between them.
#[derive(Debug, Default)]
pub struct Renderer {
    apps: HashMap<AppName, (ContentHash, Arc<AppUnit>)>,
    /// The fleet's rules for every app's objects at the time when the cached bundles were made.
    rules: (Vec<IgnoreRule>, Vec<HealthRule>),
}

impl Renderer {
    /// Renders every app in every cluster that has a role for it.
    pub fn render(&mut self, model: &Model, roles: &Roles, record: &FleetRecord) -> Rendered {
        self.render_overseen(model, roles, record, &Unwatched)
    }

    /// Renders every app that the overseer does not refuse, in every cluster that has a role for it.
    pub fn render_overseen(
        &mut self,
        model: &Model,
        roles: &Roles,
        record: &FleetRecord,
        overseer: &dyn Overseer,
    ) -> Rendered {
        let mut refused = self.compile(model, overseer);
        let clusters: BTreeMap<&ClusterName, ClusterFacts> = model
            .clusters
            .par_iter()
            .map(|(name, c)| (name, facts(model, name, c)))
            .collect();
        let epoch = Layer::new(&map(json!({"epoch": record.epoch.0})));
        let none = BTreeMap::new();
        let work: Vec<Work<'_>> = roles
            .iter()
            .flat_map(|(app, places)| {
                let carried = carried_in(record, app).unwrap_or(&none);
                let spec = model.apps.get(app).map(|app| &app.spec);
                let rule = spec.and_then(|spec| Some((spec.writer.as_ref()?, spec.mode)));
                let placed = places.iter().map(|(cluster, role)| Work {
                    app,
                    cluster,
                    role: *role,
                    carried: Cow::Borrowed(match role {
                        Role::Primary => carried,
                        _ => &none,
                    }),
                    is_rehearsal: false,
                });
                let rehearsed = rule
                    .into_iter()
                    .flat_map(|(rule, mode)| rehearsals(app, places, rule, mode));
                placed.chain(rehearsed).collect::<Vec<_>>()
            })
            .collect();
        let done: Vec<_> = work
            .into_par_iter()
            .with_min_len(16)
            .filter_map(|work| {
                let Work { app, cluster, .. } = work;
                let (_, unit) = self.apps.get(app)?;
                let facts = clusters.get(cluster)?;
                let turn = Turn {
                    role: work.role,
                    since: record.epoch_of(app),
                    epoch: &epoch,
                    carried: &work.carried,
                };
                let bundle = unit.bundle(model, app, facts, turn, overseer);
                Some((app, cluster, work.is_rehearsal.then_some(work.role), bundle))
            })
            .collect();
        let mut rendered = Rendered::default();
        let mut broken: BTreeMap<&AppName, BTreeMap<Problem, Vec<&ClusterName>>> = BTreeMap::new();
        let mut failed: BTreeMap<&AppName, BTreeSet<Problem>> = BTreeMap::new();
        for (app, cluster, rehearsed, result) in done {
            match (result, rehearsed) {
                (Ok(_), Some(_)) => {}
                (Ok(bundle), None) => {
                    let bundles = rendered.bundles.entry(app.clone()).or_default();
                    bundles.insert(cluster.clone(), bundle);
                }
                (Err(Failure::Refused(problem)), _) => {
                    refused.insert(app, *problem);
                }
                (Err(Failure::Wrong(problems)), Some(role)) => {
                    let problems = problems.iter().cloned().map(|mut problem| {
                        let more = format!(", in role {role}, which `muster app move` gives it");
                        problem.message.push_str(&more);
                        problem
                    });
                    failed.entry(app).or_default().extend(problems);
                }
                (Err(Failure::Wrong(problems)), None) => {
                    let places = broken.entry(app).or_default();
                    for problem in problems.iter() {
                        places.entry(problem.clone()).or_default().push(cluster);
                    }
                }
            }
        }
        for (app, problems) in failed {
            // A commit after which the writer could not be moved blocks the app, as if it could not run.
            rendered.bundles.remove(app);
            if !broken.contains_key(app) && !refused.contains_key(app) {
                rendered.problems.extend(problems);
            }
        }
        for (app, problem) in refused {
            rendered.bundles.remove(app);
            broken.remove(app);
            rendered.problems.push(problem);
        }
        for (app, problems) in broken {
            // A commit is never applied partially: a problem in one cluster blocks the app in all clusters.
            rendered.bundles.remove(app);
            let all = roles.get(app).map_or(0, BTreeMap::len);
            let told = |(problem, places): (Problem, Vec<&ClusterName>)| {
                if places.len() == all {
                    problem
                } else {
                    only_in(problem, &places, all)
                }
            };
            rendered.problems.extend(problems.into_iter().map(told));
        }
        rendered.problems.sort();
        rendered
    }

    /// Compiles the apps that changed, and returns the apps that the overseer refused.
    fn compile<'m>(
        &mut self,
        model: &'m Model,
        overseer: &dyn Overseer,
    ) -> BTreeMap<&'m AppName, Problem> {
        let rules = (&model.fleet.spec.ignore, &model.health);
        let same_rules = (&self.rules.0, &self.rules.1) == rules;
        if !same_rules {
            self.rules = (rules.0.clone(), rules.1.clone());
        }
        let mut before = std::mem::take(&mut self.apps);
        let jobs: Vec<_> = model
            .apps
            .iter()
            .map(|(name, app)| {
                (
                    name,
                    app,
                    fingerprint(name, app, model),
                    before.remove(name),
                )
            })
            .collect();
        let compiled: Vec<_> = jobs
            .into_par_iter()
            .map(|(name, app, fingerprint, before)| {
                let unit = match before {
                    Some((same, unit)) if same == fingerprint => {
                        if !same_rules {
                            unit.forget_bundles();
                        }
                        unit.trim(model.clusters.len());
                        unit
                    }
                    _ => {
                        overseer.begin(name).map_err(|refused| (name, *refused))?;
                        let unit = AppUnit::new(name, app, model);
                        overseer.end(name);
                        Arc::new(unit)
                    }
                };
                Ok((name.clone(), (fingerprint, unit)))
            })
            .collect();
        let mut refused = BTreeMap::new();
        for result in compiled {
            match result {
                Ok((name, unit)) => {
                    self.apps.insert(name, unit);
                }
                Err((name, problem)) => {
                    refused.insert(name, problem);
                }
            }
        }
        refused
    }
}

/// Returns a hash of everything that an [`AppUnit`] is made from: the app, its tier and the library.
fn fingerprint(name: &AppName, app: &App, model: &Model) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    let tier = model.tiers.get(&app.spec.tier);
    let facts = json!([name, app.spec, tier, app.values, app.values_at]);
    hasher.update(facts.to_string().as_bytes());
    for file in model.lib.iter().chain(&app.templates).chain(&app.manifests) {
        hasher.update(&(file.path.len() as u64).to_le_bytes());
        hasher.update(file.path.as_bytes());
        hasher.update(&file.id.0);
    }
    ContentHash(*hasher.finalize().as_bytes())
}

fn map(value: Json) -> serde_json::Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

/// The values of one cluster that the templates of every app can read.
struct ClusterFacts {
    name: ClusterName,
    region: String,
    values: Arc<Layer>,
    layers: Arc<Layer>,
}

fn facts(model: &Model, name: &ClusterName, cluster: &Cluster) -> ClusterFacts {
    let region = model.regions.get(&cluster.region);
    let none = serde_json::Map::new();
    let values = layer([
        &model.fleet.spec.values,
        region.map_or(&none, |region| &region.spec.values),
        &cluster.spec.values,
    ]);
    let location = region.map(|region| &region.spec.location);
    let layers = Layer::new(&map(json!({
        "fleet": {"name": model.fleet.name},
        "region": {
            "name": cluster.region,
            "labels": region.map(|region| &region.labels),
            "continent": location.map(|l| l.continent),
            "country": location.map(|l| &l.country),
            "city": location.and_then(|l| l.city.as_ref()),
            "latitude": location.map(|l| &l.latitude),
            "longitude": location.map(|l| &l.longitude),
        },
        "cluster": {"name": name, "labels": cluster.labels, "endpoints": cluster.spec.endpoints},
    })));
    let region = cluster.region.to_string();
    ClusterFacts {
        name: name.clone(),
        region,
        values: Layer::new(&values),
        layers,
    }
}

/// Returns true if the file is a partial, which is only rendered where another template includes it.
fn is_partial(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with('_'))
}

impl AppUnit {
    fn new(name: &AppName, app: &App, model: &Model) -> Self {
        let scope = Scope::App(name.clone());
        let (templates, mut problems) =
            Templates::compile(&scope, model.lib.iter().chain(&app.templates));
        let namespace = app.spec.namespace_of(name);
        let mut manifests = Vec::new();
        for file in &app.manifests {
            match objects::read(&file.text, namespace, None) {
                Ok(found) => {
                    manifests.push(Arc::new(Part::new(
                        &file.path,
                        namespace,
                        objects_of(found),
                    )));
                }
                Err(wrong) => problems.extend(wrong.into_iter().map(|wrong| {
                    explain(
                        Problem::new(scope.clone(), &file.path, &wrong.message),
                        &file.text,
                        &wrong,
                    )
                })),
            }
        }
        let tier = model.tiers.get(&app.spec.tier);
        let facts = Layer::new(&map(json!({"app": {
            "name": name,
            "namespace": namespace,
            "tier": app.spec.tier,
            "mode": app.spec.mode,
            "rpo": tier.map(|tier| &tier.rpo),
            "rto": tier.map(|tier| &tier.rto),
        }})));
        let values = app
            .values_at
            .iter()
            .map(|(at, v)| (at.clone(), Layer::new(v)))
            .collect();
        let rendered = app.templates.iter().filter(|file| !is_partial(&file.path));
        Self {
            scope,
            templates,
            problems: Arc::new(problems),
            files: rendered
                .map(|file| (file.clone(), RwLock::default()))
                .collect(),
            manifests,
            namespace: namespace.to_owned(),
            values,
            own_values: Layer::new(&app.values),
            facts,
            kept: RwLock::default(),
        }
    }

    /// Drops the cached bundles, but not the parts that they were joined from.
    fn forget_bundles(&self) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }

    /// Drops the caches once many commits have filled them.
    fn trim(&self, clusters: usize) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.by_inputs.len() > 8 * clusters + 64 {
            *kept = Kept::default();
            for (_, trie) in &self.files {
                *trie.write().unwrap_or_else(PoisonError::into_inner) = Trie::default();
            }
        }
    }

    fn bundle(
        &self,
        model: &Model,
        name: &AppName,
        cluster: &ClusterFacts,
        turn: Turn<'_>,
        overseer: &dyn Overseer,
    ) -> Result<Arc<RenderedBundle>, Failure> {
        if !self.problems.is_empty() {
            return Err(Failure::Wrong(Arc::clone(&self.problems)));
        }
        let Turn {
            role,
            since,
            epoch,
            carried,
        } = turn;
        let facts = json!({"app": {"role": role, "epoch": since.0}, "handover": carried});
        let role_layer = Layer::new(&map(facts));
        let above = [
            self.values.get(cluster.name.as_str()),
            self.values.get(&cluster.region),
        ];
        let layers: Vec<Arc<Layer>> = above
            .into_iter()
            .flatten()
            .chain([&self.own_values, &cluster.values])
            .cloned()
            .collect();
        let facts = [
            role_layer,
            Arc::clone(&self.facts),
            Arc::clone(&cluster.layers),
            Arc::clone(epoch),
        ];
        let inputs = digest_of(layers.iter().chain(&facts));
        let kept = self
            .kept
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_inputs
            .get(&inputs)
            .cloned();
        if let Some(kept) = kept {
            return kept.map_err(Failure::Wrong);
        }
        let context = Context::new(Overlay::new(layers), &facts);
        let result = self.assemble(model, name, &context, role, overseer)?;
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.by_inputs.insert(inputs, result.clone());
        result.map_err(Failure::Wrong)
    }

    fn assemble(
        &self,
        model: &Model,
        name: &AppName,
        context: &Context,
        role: Role,
        overseer: &dyn Overseer,
    ) -> Result<BundleResult, Failure> {
        let mut parts = self.manifests.clone();
        let mut problems = Vec::new();
        for (file, trie) in &self.files {
            let kept = trie
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(context);
            let result = match kept {
                Some(kept) => kept,
                None => {
                    overseer.begin(name).map_err(Failure::Refused)?;
                    let result = self.file(file, trie, context);
                    overseer.end(name);
                    result
                }
            };
            match result {
                Ok(part) => parts.push(part),
                Err(wrong) => problems.extend(wrong.iter().cloned()),
            }
        }
        if !problems.is_empty() {
            return Ok(Err(Arc::new(problems)));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(role.as_str().as_bytes());
        parts.iter().for_each(|part| {
            hasher.update(&part.hash.0);
        });
        let key = ContentHash(*hasher.finalize().as_bytes());
        let kept = self
            .kept
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_outputs
            .get(&key)
            .cloned();
        if let Some(bundle) = kept {
            return Ok(Ok(bundle));
        }
        overseer.begin(name).map_err(Failure::Refused)?;
        let joined = self.join(model, name, parts, role);
        overseer.end(name);
        let bundle = match joined {
            Ok(bundle) => Arc::new(bundle),
            Err(problems) => return Ok(Err(problems)),
        };
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.by_outputs.insert(key, Arc::clone(&bundle));
        Ok(Ok(bundle))
    }

    fn join(
        &self,
        model: &Model,
        name: &AppName,
        parts: Vec<Arc<Part>>,
        role: Role,
    ) -> Result<RenderedBundle, Arc<Vec<Problem>>> {
        let spec = model.apps.get(name).map(|app| &app.spec);
        let mut after = spec.map(|spec| spec.depends_on.clone()).unwrap_or_default();
        after.sort();
        after.dedup();
        let header = BundleHeader {
            app: name.clone(),
            role,
            namespace: self.namespace.clone(),
            after,
            formerly: spec.and_then(|spec| spec.formerly.clone()),
            policy: spec.map_or_else(Policy::default, |spec| policy(model, spec, &parts)),
        };
        let mut defined = Scopes::default();
        defined.extend(parts.iter().flat_map(|part| &part.defines));
        let cluster_scoped = kind_keys(&defined);
        let mut seen: HashMap<u64, &Part> = HashMap::new();
        let mut problems = Vec::new();
        for part in &parts {
            for (index, identity) in part.identities.iter().enumerate() {
                if let Some(first) = seen.insert(identity.settled(&cluster_scoped), part) {
                    let place = if first.file == part.file {
                        "this file twice".to_owned()
                    } else {
                        format!("{} too", first.file)
                    };
                    let message = format!("{} is in {place}", part.name(index));
                    let problem = Problem::new(self.scope.clone(), &part.file, message);
                    problems
                        .push(problem.help("an app can contain an object only once; remove one"));
                }
            }
        }
        if !problems.is_empty() {
            return Err(Arc::new(problems));
        }
        let objects = Vec::new();
        let bytes = Bundle { header, objects }.encode();
        match self.too_large(&parts) {
            Some(problem) => Err(Arc::new(vec![problem])),
            None => Ok(RenderedBundle::join(name.clone(), bytes, parts)),
        }
    }

    /// Returns a problem if the bundle is too large to deliver to an agent.
    fn too_large(&self, parts: &[Arc<Part>]) -> Option<Problem> {
        let bytes: usize = parts.iter().map(|part| part.lines.len()).sum();
        let objects: usize = parts.iter().map(|part| part.ids.len()).sum();
        if bytes <= MAX_BUNDLE_BYTES && objects <= MAX_BUNDLE_OBJECTS {
            return None;
        }
        let largest = parts.iter().max_by_key(|part| part.lines.len());
        let file = largest.map_or("", |part| part.file.as_ref());
        let message = format!(
            "the app has {objects} objects ({:.1} MiB) in one cluster; at most {MAX_BUNDLE_OBJECTS} objects and {} MiB are allowed",
            bytes as f64 / 1_048_576.0,
            MAX_BUNDLE_BYTES / 1_048_576,
        );
        let problem = Problem::new(self.scope.clone(), file, message);
        Some(problem.help("split the app; this file is its largest part"))
    }

    fn file(
        &self,
        file: &TextFile,
        trie: &RwLock<Trie<FileResult>>,
        context: &Context,
    ) -> FileResult {
        let (written, reads) = self.templates.render(&self.scope, &file.path, context);
        let result = match written {
            Err(problem) => Err(Arc::new(vec![problem])),
            Ok(text) => {
                let author = |digits: &str| self.templates.contain(digits);
                match objects::read(&text, &self.namespace, Some(&author)) {
                    Ok(found) => {
                        let part = Part::new(&file.path, &self.namespace, objects_of(found));
                        Ok(Arc::new(part))
                    }
                    Err(wrong) => Err(Arc::new(
                        wrong
                            .iter()
                            .map(|wrong| self.locate(file, context, &text, wrong))
                            .collect(),
                    )),
                }
            }
        };
        trie.write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(reads.take(), result.clone());
        result
    }

    /// Converts a problem in the rendered text into a problem at the template position that produced the text.
    fn locate(&self, file: &TextFile, context: &Context, text: &str, wrong: &NoObject) -> Problem {
        match self.templates.origin(&file.path, context, wrong.at) {
            Some((path, source, at)) => {
                let message = format!("{} (in the rendered output)", wrong.message);
                let problem = Problem::new(self.scope.clone(), &path, message).at(&source, at);
                let written = text
                    .lines()
                    .nth(wrong.at.line as usize - 1)
                    .unwrap_or_default();
                let shown: String = written.chars().take(120).collect();
                let wrote = format!(
                    "line {} of the rendered output is `{}`",
                    wrong.at.line,
                    shown.trim()
                );
                let from_value = problem
                    .line
                    .as_ref()
                    .is_some_and(|line| line.contains("{{"));
                let advice = match wrong.help {
                    None if from_value => Some("text with special characters needs `| tojson`"),
                    advice => advice,
                };
                problem.help(match advice {
                    Some(advice) => format!("{advice}; {wrote}"),
                    None => wrote,
                })
            }
            None => explain(
                Problem::new(self.scope.clone(), &file.path, &wrong.message),
                text,
                wrong,
            ),
        }
    }
}

/// Adds the names of the affected clusters to a problem that not every cluster has.
fn only_in(mut problem: Problem, places: &[&ClusterName], all: usize) -> Problem {
    let mut names: Vec<&str> = places.iter().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let more = if names.len() > 3 { ", …" } else { "" };
    let shown = names.get(..3).unwrap_or(&names).join(", ");
    let few = names.len();
    problem
        .message
        .push_str(&format!(", in {few} of {all} clusters: {shown}{more}"));
    problem
}

fn explain(problem: Problem, text: &str, wrong: &NoObject) -> Problem {
    let problem = problem.at(text, wrong.at);
    match wrong.help {
        Some(help) => problem.help(help),
        None => problem,
    }
}

fn objects_of(found: Vec<(Pos, Object)>) -> Vec<Object> {
    found.into_iter().map(|(_, object)| object).collect()
}

fn digest_of<'a>(layers: impl Iterator<Item = &'a Arc<Layer>>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    layers.for_each(|layer| {
        hasher.update(&layer.digest().to_le_bytes());
    });
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(short)
}
