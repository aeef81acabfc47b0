//! Turns the files of a repository into a checked [`Model`], and reports all problems together.
//!
//! A problem in an app blocks only that app. A problem in the fleet, a tier, a region, a cluster, a health rule or
//! a file of `lib/` blocks the whole commit.

mod apps;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    str::FromStr,
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    decode::{self, Context},
    ids::{AppName, ClusterName, FleetName, ObjectId, RegionName, Role, TierName},
    kinds::{AppSpec, ClusterSpec, Document, FleetSpec, Kind, RegionSpec, TierSpec, Values},
    overseer::{Overseer, Unwatched},
    policy::HealthRule,
    problem::{Problem, Scope},
    tree::{Entry, MAX_FILE_BYTES, Tree},
    yaml::{self, Node, Pos, Yaml},
};

/// A text file of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// The path from the repository's root.
    pub path: String,
    /// The id of the content, which changes whenever the text does.
    pub id: ObjectId,
    /// The text.
    pub text: Arc<str>,
}

/// The fleet document.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// The fleet's name.
    pub name: FleetName,
    /// The spec of the document.
    pub spec: FleetSpec,
}

/// A region with its labels and spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// The labels of the document.
    pub labels: BTreeMap<String, String>,
    /// The spec of the document.
    pub spec: RegionSpec,
}

/// A cluster with its region, labels and spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The region of the cluster.
    pub region: RegionName,
    /// The labels of the document.
    pub labels: BTreeMap<String, String>,
    /// The spec of the document.
    pub spec: ClusterSpec,
}

/// An app with its values and templates.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// The spec of the document.
    pub spec: AppSpec,
    /// The file `app.yaml`, for reporting problems that are found after loading.
    pub file: TextFile,
    /// The values in `values.yaml`.
    pub values: Arc<Values>,
    /// The values in `values/NAME.yaml`, by the name of the region or cluster.
    pub values_at: BTreeMap<String, Arc<Values>>,
    /// Files below `templates/` that end in `.yaml`, `.yml` or `.json`, including partials (`_NAME`).
    pub templates: Vec<TextFile>,
    /// Files below `manifests/` with the same endings. They are not rendered as templates.
    pub manifests: Vec<TextFile>,
}

/// A checked fleet repository.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The fleet.
    pub fleet: Fleet,
    /// Tiers by name.
    pub tiers: BTreeMap<TierName, TierSpec>,
    /// Regions by name.
    pub regions: BTreeMap<RegionName, Region>,
    /// Clusters by name.
    pub clusters: BTreeMap<ClusterName, Cluster>,
    /// The apps without problems, by name.
    pub apps: BTreeMap<AppName, App>,
    /// The health rules, sorted by group and kind.
    pub health: Vec<HealthRule>,
    /// The files below `lib/`, which every app may use.
    pub lib: Vec<TextFile>,
}

/// The role of each app in each cluster where it runs.
pub type Roles = BTreeMap<AppName, BTreeMap<ClusterName, Role>>;

/// The result of loading a repository.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The model; `None` if a problem blocks the whole commit.
    pub model: Option<Model>,
    /// The apps that exist in the repository and have problems.
    pub broken: BTreeSet<AppName>,
    /// The previous name (`formerly`) that each app claims, by app. Apps with problems are included if the
    /// name can be read.
    pub formerly: BTreeMap<AppName, AppName>,
    /// All problems, sorted by file and position.
    pub problems: Vec<Problem>,
}

/// Loads repositories and caches the results, so that the cost of a commit depends on what it changed.
#[derive(Debug, Default)]
pub struct Loader {
    kept: Work,
}

/// Results that depend only on the text that they were made from, and can be reused for the next commit.
#[derive(Debug, Default)]
struct Work {
    parsed: HashMap<(String, ObjectId), Parsed>,
    /// The result of checking each CEL expression, by its text.
    judged: HashMap<(&'static str, String), Result<(), String>>,
}

/// The documents of a file, or the problem in its YAML.
type Parsed = Arc<Result<Vec<Node>, Problem>>;

impl Loader {
    /// Reads and checks a tree.
    pub fn load(&mut self, tree: &Tree) -> Loaded {
        self.load_overseen(tree, &Unwatched)
    }

    /// Reads and checks a tree. Apps that the overseer refuses are left out.
    pub fn load_overseen(&mut self, tree: &Tree, overseer: &dyn Overseer) -> Loaded {
        let mut load = Load {
            tree,
            overseer,
            before: std::mem::take(&mut self.kept),
            after: Work::default(),
            formerly: BTreeMap::new(),
            problems: Vec::new(),
        };
        let model = load.model();
        self.kept = load.after;
        let formerly = load.formerly;
        let mut problems = load.problems;
        problems.sort_by(|a, b| (&a.file, a.at, &a.message).cmp(&(&b.file, b.at, &b.message)));
        problems.dedup();
        let held = problems.iter().any(|problem| problem.scope == Scope::Fleet);
        let broken: BTreeSet<AppName> = problems
            .iter()
            .filter_map(|problem| match &problem.scope {
                Scope::App(app) => Some(app.clone()),
                Scope::Fleet | Scope::Hint | Scope::Hub => None,
            })
            .collect();
        let model = model.filter(|_| !held).map(|mut model| {
            model.apps.retain(|name, _| !broken.contains(name));
            model
        });
        Loaded {
            model,
            broken,
            formerly,
            problems,
        }
    }
}

/// The first bytes of Git LFS pointer files.
const LFS: [&[u8]; 2] = [
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
];

struct Load<'a> {
    tree: &'a Tree,
    overseer: &'a dyn Overseer,
    before: Work,
    after: Work,
    formerly: BTreeMap<AppName, AppName>,
    problems: Vec<Problem>,
}

impl<'a> Load<'a> {
    fn model(&mut self) -> Option<Model> {
        self.check_paths();
        for folder in ["regions", "lib", "apps", "health"] {
            self.check_folder(&Scope::Fleet, folder);
        }
        let fleet = self.fleet();
        let tiers = self.tiers();
        let (regions, clusters) = self.regions();
        let lib = self.texts(&Scope::Fleet, "lib/", |_| true);
        let health = self.health();
        let apps = self.apps(&tiers, &clusters);
        Some(Model {
            fleet: fleet?,
            tiers,
            regions,
            clusters,
            apps,
            health,
            lib,
        })
    }

    /// Refuses paths that could lead outside the repository, before anything reads them. Git allows any
    /// name in a crafted tree.
    fn check_paths(&mut self) {
        for path in self.tree.entries.keys() {
            let bad =
                |part: &str| matches!(part, "" | "." | "..") || part.eq_ignore_ascii_case(".git");
            if path.split('/').any(bad) || path.contains(['\\', '\0', '\u{fffd}']) {
                let message = "this path is not allowed: a part of it is empty, `.`, `..` or `.git`, \
                               or holds a backslash or bytes that are not UTF-8";
                let scope = app_of(path).map_or(Scope::Fleet, Scope::App);
                self.problems
                    .push(Problem::new(scope, path, message).help("rename the file"));
            }
        }
    }

    /// Reports a link or submodule in place of a folder, since all files expected in the folder are missing.
    fn check_folder(&mut self, scope: &Scope, path: &str) {
        if matches!(
            self.tree.entries.get(path),
            Some(Entry::Symlink { .. } | Entry::Submodule)
        ) {
            self.text(scope, path);
        }
    }

    /// Returns the text of a file. Records a problem if the file exists but can't be used.
    fn text(&mut self, scope: &Scope, path: &str) -> Option<(ObjectId, &'a str)> {
        let (message, help) = match self.tree.entries.get(path)? {
            Entry::File { bytes, .. } if LFS.iter().any(|start| bytes.starts_with(start)) => (
                "this is a Git LFS pointer; the file itself is not in the repository".to_owned(),
                "take the file out of LFS: `git lfs untrack FILE`, then `git add --renormalize FILE`, and commit",
            ),
            Entry::File { id, bytes } => match std::str::from_utf8(bytes) {
                Ok(text) => return Some((*id, text)),
                Err(error) => {
                    let good = &bytes[..error.valid_up_to()];
                    let line = good.iter().filter(|b| **b == b'\n').count() + 1;
                    let message = format!(
                        "not UTF-8: invalid byte {:#04x} at offset {} (line {line})",
                        bytes[error.valid_up_to()],
                        error.valid_up_to(),
                    );
                    (message, "save the file as UTF-8")
                }
            },
            Entry::TooLarge { size } => (
                format!(
                    "the file has {:.1} MiB; the limit is {} MiB",
                    *size as f64 / 1_048_576.0,
                    MAX_FILE_BYTES / 1_048_576
                ),
                "split it: one object can't exceed 1.5 MiB in Kubernetes anyway",
            ),
            Entry::Symlink { target } => (
                format!("a symbolic link to `{target}`; links are not followed"),
                "put the files themselves here; files that apps share belong in lib/",
            ),
            Entry::Submodule => (
                "a Git submodule; its files are not part of this repository".to_owned(),
                "copy the manifests into the repository",
            ),
        };
        self.problems
            .push(Problem::new(scope.clone(), path, message).help(help));
        None
    }

    /// Returns the documents of a YAML file, without empty ones.
    fn documents(&mut self, scope: &Scope, path: &str) -> Option<(&'a str, Vec<Node>)> {
        let (id, text) = self.text(scope, path)?;
        let key = (path.to_owned(), id);
        let parsed = self.before.parsed.remove(&key).unwrap_or_else(|| {
            let context = Context {
                scope,
                file: path,
                text,
            };
            let documents =
                yaml::parse_written(text).map_err(|error| context.problem(error.at, error.message));
            Arc::new(documents.map(|nodes| nodes.into_iter().filter(|n| !n.is_null()).collect()))
        });
        self.after.parsed.insert(key, Arc::clone(&parsed));
        match parsed.as_ref() {
            Ok(nodes) => Some((text, nodes.clone())),
            Err(problem) => {
                self.problems.push(problem.clone());
                None
            }
        }
    }

    /// Returns the typed documents of a file that holds documents of one kind.
    fn decoded<N: DeserializeOwned, S: DeserializeOwned>(
        &mut self,
        scope: &Scope,
        path: &str,
        kind: Kind,
    ) -> Vec<(Node, Document<N, S>)> {
        let Some((text, nodes)) = self.documents(scope, path) else {
            return Vec::new();
        };
        let context = Context {
            scope,
            file: path,
            text,
        };
        if nodes.is_empty() {
            let problem = Problem::new(
                scope.clone(),
                path,
                format!("this file is empty; it should hold a document of kind {kind}"),
            );
            self.problems.push(problem);
        }
        if nodes.len() > 1 && !matches!(kind, Kind::Tier | Kind::HealthRule) {
            let message =
                format!("this file must hold only one {kind} document, but this is another one");
            self.problems.push(context.problem(nodes[1].at, message));
        }
        let mut documents = Vec::new();
        for node in nodes {
            if let Some(values) = node.get("spec").and_then(|spec| spec.get("values")) {
                decode::check_numbers(values, context, &mut self.problems);
            }
            match decode::document(&node, kind, context) {
                Ok(document) => documents.push((node, document)),
                Err(problems) => self.problems.extend(problems),
            }
        }
        documents
    }

    fn fleet(&mut self) -> Option<Fleet> {
        if !self.tree.entries.contains_key("fleet.yaml") {
            let problem = Problem::new(Scope::Fleet, "fleet.yaml", "there is no fleet.yaml");
            self.problems
                .push(problem.help("add a document of kind Fleet at the root of the repository"));
        }
        let mut found = self.decoded(&Scope::Fleet, "fleet.yaml", Kind::Fleet);
        let (node, document): (_, Document<FleetName, FleetSpec>) = found.pop()?;
        self.check_ignored(&Scope::Fleet, "fleet.yaml", &node, &document.spec.ignore);
        Some(Fleet {
            name: document.metadata.name,
            spec: document.spec,
        })
    }

    fn tiers(&mut self) -> BTreeMap<TierName, TierSpec> {
        let mut tiers = BTreeMap::new();
        for (node, document) in self.decoded(&Scope::Fleet, "tiers.yaml", Kind::Tier) {
            let Document { metadata, spec, .. }: Document<TierName, TierSpec> = document;
            if tiers.insert(metadata.name.clone(), spec).is_some() {
                let message = format!("the tier `{}` is defined twice", metadata.name);
                self.place(&Scope::Fleet, "tiers.yaml", name_at(&node), message, None);
            }
        }
        tiers
    }

    /// Records a problem at a position in a file that is known to be text.
    fn place(&mut self, scope: &Scope, file: &str, at: Pos, message: String, help: Option<&str>) {
        let text = match self.tree.entries.get(file) {
            Some(Entry::File { bytes, .. }) => std::str::from_utf8(bytes).unwrap_or_default(),
            _ => "",
        };
        let problem = Context { scope, file, text }.problem(at, message);
        self.problems.push(match help {
            Some(help) => problem.help(help),
            None => problem,
        });
    }

    /// Checks that a document has the name of its folder or file, and returns true if it does.
    fn named(&mut self, file: &str, node: &Node, name: &str, expected: &str) -> bool {
        if name != expected {
            let scope = app_of(file).map_or(Scope::Fleet, Scope::App);
            let message = format!(
                "`metadata.name` is `{name}`, but its folder or file is named `{expected}`"
            );
            let help = "the two names must match; rename one of them";
            self.place(&scope, file, name_at(node), message, Some(help));
        }
        name == expected
    }

    fn regions(&mut self) -> (BTreeMap<RegionName, Region>, BTreeMap<ClusterName, Cluster>) {
        let mut regions: BTreeMap<RegionName, Region> = BTreeMap::new();
        let mut clusters: BTreeMap<ClusterName, Cluster> = BTreeMap::new();
        for folder in self.folders("regions/") {
            let Some(region) = self.name::<RegionName>(&Scope::Fleet, "regions", &folder) else {
                continue;
            };
            let file = format!("regions/{folder}/region.yaml");
            if !self.tree.entries.contains_key(&file) {
                let problem = Problem::new(Scope::Fleet, &file, "this region has no region.yaml");
                self.problems
                    .push(problem.help("add a document of kind Region, or remove the folder"));
            }
            for (node, document) in self.decoded(&Scope::Fleet, &file, Kind::Region) {
                let Document { metadata, spec, .. }: Document<RegionName, RegionSpec> = document;
                if self.named(&file, &node, metadata.name.as_str(), &folder) {
                    regions.insert(
                        metadata.name,
                        Region {
                            labels: metadata.labels,
                            spec,
                        },
                    );
                }
            }
            for path in self.files(&format!("regions/{folder}/")) {
                let rest = &path["regions/".len() + folder.len() + 1..];
                let Some(stem) = rest.strip_suffix(".yaml") else {
                    if apps::holds_objects(&path) {
                        self.not_read(&path, "clusters belong in regions/REGION/CLUSTER.yaml");
                    }
                    continue;
                };
                if stem == "region" {
                    continue;
                }
                for (node, document) in self.decoded(&Scope::Fleet, &path, Kind::Cluster) {
                    let Document { metadata, spec, .. }: Document<ClusterName, ClusterSpec> =
                        document;
                    if !self.named(&path, &node, metadata.name.as_str(), stem) {
                        continue;
                    }
                    let cluster = Cluster {
                        region: region.clone(),
                        labels: metadata.labels,
                        spec,
                    };
                    if let Some(other) = clusters.insert(metadata.name.clone(), cluster) {
                        let message = format!(
                            "there is also a cluster `{}` in region `{}`; cluster names must be unique in a fleet",
                            metadata.name, other.region
                        );
                        let at = name_at(&node);
                        self.place(&Scope::Fleet, &path, at, message, None);
                    }
                }
            }
        }
        for name in clusters
            .keys()
            .filter(|name| regions.contains_key(name.as_str()))
        {
            let file = format!("regions/{}/{name}.yaml", clusters[name].region);
            let message = format!(
                "a region is also named `{name}`, so an app's `values/{name}.yaml` could mean either"
            );
            self.problems
                .push(Problem::new(Scope::Fleet, &file, message).help("rename the cluster"));
        }
        (regions, clusters)
    }

    fn values(&mut self, scope: &Scope, path: &str) -> Arc<Values> {
        let Some((text, mut nodes)) = self.documents(scope, path) else {
            return Arc::default();
        };
        let context = Context {
            scope,
            file: path,
            text,
        };
        if nodes.len() > 1 {
            self.problems
                .push(context.problem(nodes[1].at, "values must be a single YAML document"));
        }
        match nodes.pop() {
            None => Arc::default(),
            Some(node) if matches!(node.value, Yaml::Map(_)) => {
                decode::check_numbers(&node, context, &mut self.problems);
                match node.into_json() {
                    serde_json::Value::Object(map) => Arc::new(map),
                    _ => Arc::default(),
                }
            }
            Some(node) => {
                self.problems
                    .push(context.problem(node.at, "values must be a map"));
                Arc::default()
            }
        }
    }

    fn texts(&mut self, scope: &Scope, base: &str, wanted: impl Fn(&str) -> bool) -> Vec<TextFile> {
        let mut texts = Vec::new();
        for path in self.tree.entries.keys().filter(|p| p.starts_with(base)) {
            let odd = !matches!(self.tree.entries.get(path), Some(Entry::File { .. }));
            if (wanted(path) || odd)
                && let Some((id, text)) = self.text(scope, path)
            {
                texts.push(TextFile {
                    path: path.clone(),
                    id,
                    text: text.into(),
                });
            }
        }
        texts
    }

    /// Records a hint about a file that is not read, although its path suggests that it is.
    fn not_read(&mut self, path: &str, help: &str) {
        let problem = Problem::new(Scope::Hint, path, "this file is not read");
        self.problems.push(problem.help(help));
    }

    /// Returns the names of the subfolders of a folder. A link or submodule in the folder counts as a subfolder.
    fn folders(&self, base: &str) -> BTreeSet<String> {
        let below = self.tree.entries.iter().filter_map(|(path, entry)| {
            let rest = path.strip_prefix(base)?;
            match rest.split_once('/') {
                Some((folder, _)) => Some(folder),
                None => matches!(entry, Entry::Symlink { .. } | Entry::Submodule).then_some(rest),
            }
        });
        below
            .filter(|folder| !folder.is_empty() && *folder != "..")
            .map(str::to_owned)
            .collect()
    }

    /// Returns the names of all clusters, judging by file names, including clusters that have problems.
    fn cluster_names(&self) -> BTreeSet<String> {
        let name = |path: String| {
            let (_, file) = path.strip_prefix("regions/")?.split_once('/')?;
            let name = file.strip_suffix(".yaml").filter(|name| *name != "region");
            name.map(str::to_owned)
        };
        self.files("regions/")
            .into_iter()
            .filter_map(name)
            .collect()
    }

    /// Returns the paths of the files below a folder.
    fn files(&self, base: &str) -> Vec<String> {
        self.tree
            .entries
            .keys()
            .filter(|path| path.starts_with(base))
            .cloned()
            .collect()
    }

    /// Parses the name of a folder. Records a problem if it is not a folder or its name is not valid.
    fn name<N: FromStr<Err = crate::ids::InvalidId>>(
        &mut self,
        scope: &Scope,
        parent: &str,
        folder: &str,
    ) -> Option<N> {
        let path = format!("{parent}/{folder}");
        if self.tree.entries.contains_key(&path) {
            let scope = app_of(&format!("{path}/")).map_or(scope.clone(), Scope::App);
            self.text(&scope, &path);
            return None;
        }
        match folder.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.problems
                    .push(Problem::new(scope.clone(), &path, error.to_string()));
                None
            }
        }
    }
}

impl crate::kinds::Placement {
    /// Returns true if the placement allows an app to run in this cluster.
    #[must_use]
    pub fn allows(&self, name: &ClusterName, cluster: &Cluster) -> bool {
        (self.regions.is_empty() || self.regions.contains(&cluster.region))
            && (self.clusters.is_empty() || self.clusters.contains(name))
            && self
                .cluster_selector
                .match_labels
                .iter()
                .all(|(key, value)| cluster.labels.get(key) == Some(value))
    }
}

/// Returns the position of the document's name.
fn name_at(node: &Node) -> Pos {
    node.descend(["metadata", "name"].into_iter()).at
}

/// Returns the app in whose folder a path is.
fn app_of(path: &str) -> Option<AppName> {
    path.strip_prefix("apps/")?.split_once('/')?.0.parse().ok()
}
