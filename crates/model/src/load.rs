//! From a repository's files to a checked [`Model`], with all problems at once.
//!
//! What is wrong with an app holds back that app alone; what is wrong with the fleet, a tier, a region
//! or a cluster holds back the commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    str::FromStr,
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    decode::{self, Context},
    ids::{AppName, ClusterName, FleetName, ObjectId, RegionName, Role, TierName},
    kinds::{AppSpec, ClusterSpec, Document, FleetSpec, Kind, RegionSpec, TierSpec, Values},
    problem::{Problem, Scope, suggest},
    tree::{Entry, MAX_FILE_BYTES, Tree},
    yaml::{self, Node, Pos, Yaml},
};

/// A file whose text is used as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its path from the repository's root.
    pub path: String,
    /// Changes whenever the text does.
    pub id: ObjectId,
    /// The text.
    pub text: Arc<str>,
}

/// The fleet document.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// The fleet's name.
    pub name: FleetName,
    /// What the document says.
    pub spec: FleetSpec,
}

/// A region and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the document says.
    pub spec: RegionSpec,
}

/// A cluster and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Its region.
    pub region: RegionName,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the document says.
    pub spec: ClusterSpec,
}

/// An app with its values and templates.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// What the document says.
    pub spec: AppSpec,
    /// `app.yaml`, for problems that show only later.
    pub file: TextFile,
    /// `values.yaml`.
    pub values: Arc<Values>,
    /// `values/NAME.yaml` of regions and clusters.
    pub values_at: BTreeMap<String, Arc<Values>>,
    /// `templates/**.yaml`, partials (`_NAME`) included.
    pub templates: Vec<TextFile>,
    /// `manifests/**.yaml`, which are not templates.
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
    /// Apps without problems, by name.
    pub apps: BTreeMap<AppName, App>,
    /// `lib/**`, for every app.
    pub lib: Vec<TextFile>,
}

/// The role of every app in every cluster that carries it.
pub type Roles = BTreeMap<AppName, BTreeMap<ClusterName, Role>>;

/// What loading found.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The model, unless a problem holds back the whole commit.
    pub model: Option<Model>,
    /// Apps that stand in the repository and have problems.
    pub broken: BTreeSet<AppName>,
    /// Everything that is wrong, by file and place.
    pub problems: Vec<Problem>,
}

/// Loads repositories and keeps what it read, so that a commit costs what it changed.
#[derive(Debug, Default)]
pub struct Loader {
    parsed: HashMap<(String, ObjectId), Parsed>,
}

/// A file's documents, or what is wrong with its YAML.
type Parsed = Arc<Result<Vec<Node>, Problem>>;

impl Loader {
    /// Reads and checks a tree.
    pub fn load(&mut self, tree: &Tree) -> Loaded {
        let mut load = Load {
            tree,
            before: std::mem::take(&mut self.parsed),
            parsed: HashMap::new(),
            problems: Vec::new(),
        };
        let model = load.model();
        self.parsed = load.parsed;
        let mut problems = load.problems;
        problems.sort_by(|a, b| (&a.file, a.at, &a.message).cmp(&(&b.file, b.at, &b.message)));
        problems.dedup();
        let held = problems.iter().any(|problem| problem.scope == Scope::Fleet);
        let broken: BTreeSet<AppName> = problems
            .iter()
            .filter_map(|problem| match &problem.scope {
                Scope::App(app) => Some(app.clone()),
                Scope::Fleet | Scope::Hint => None,
            })
            .collect();
        let model = model.filter(|_| !held).map(|mut model| {
            model.apps.retain(|name, _| !broken.contains(name));
            model
        });
        Loaded {
            model,
            broken,
            problems,
        }
    }
}

struct Load<'a> {
    tree: &'a Tree,
    before: HashMap<(String, ObjectId), Parsed>,
    parsed: HashMap<(String, ObjectId), Parsed>,
    problems: Vec<Problem>,
}

impl<'a> Load<'a> {
    fn model(&mut self) -> Option<Model> {
        self.check_paths();
        for folder in ["regions", "lib", "apps"] {
            self.check_folder(&Scope::Fleet, folder);
        }
        let fleet = self.fleet();
        let tiers = self.tiers();
        let (regions, clusters) = self.regions();
        let lib = self.texts(&Scope::Fleet, "lib/", |_| true);
        let apps = self.apps(&tiers, &clusters);
        Some(Model {
            fleet: fleet?,
            tiers,
            regions,
            clusters,
            apps,
            lib,
        })
    }

    /// Git lets a crafted tree hold any name; what would leave the repository anywhere else is refused
    /// before anything reads it.
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

    /// What stands in the place of a folder and is none: all that should be in it is missing.
    fn check_folder(&mut self, scope: &Scope, path: &str) {
        if matches!(
            self.tree.entries.get(path),
            Some(Entry::Symlink { .. } | Entry::Submodule)
        ) {
            self.text(scope, path);
        }
    }

    /// The text of a file, or a problem.
    fn text(&mut self, scope: &Scope, path: &str) -> Option<(ObjectId, &'a str)> {
        let (message, help) = match self.tree.entries.get(path)? {
            Entry::File { id, bytes } => match std::str::from_utf8(bytes) {
                Ok(text) => return Some((*id, text)),
                Err(error) => {
                    let good = &bytes[..error.valid_up_to()];
                    let line = good.iter().filter(|b| **b == b'\n').count() + 1;
                    let message = format!(
                        "not UTF-8: the byte {:#04x} at offset {} (line {line}) belongs to no character",
                        bytes[error.valid_up_to()],
                        error.valid_up_to(),
                    );
                    (message, "save the file as UTF-8")
                }
            },
            Entry::TooLarge { size } => (
                format!(
                    "the file has {:.1} MiB; at most {} MiB are read",
                    *size as f64 / 1_048_576.0,
                    MAX_FILE_BYTES / 1_048_576
                ),
                "split it: one object can't exceed 1.5 MiB in Kubernetes anyway",
            ),
            Entry::Symlink { target } => (
                format!("a symbolic link to `{target}`; links are not followed"),
                "put the files themselves here; what apps share belongs in lib/",
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

    /// The documents of a YAML file; empty ones are left out.
    fn documents(&mut self, scope: &Scope, path: &str) -> Option<(&'a str, Vec<Node>)> {
        let (id, text) = self.text(scope, path)?;
        let key = (path.to_owned(), id);
        let parsed = self.before.remove(&key).unwrap_or_else(|| {
            let context = Context {
                scope,
                file: path,
                text,
            };
            let documents =
                yaml::parse(text).map_err(|error| context.problem(error.at, error.message));
            Arc::new(documents.map(|nodes| nodes.into_iter().filter(|n| !n.is_null()).collect()))
        });
        self.parsed.insert(key, Arc::clone(&parsed));
        match parsed.as_ref() {
            Ok(nodes) => Some((text, nodes.clone())),
            Err(problem) => {
                self.problems.push(problem.clone());
                None
            }
        }
    }

    /// The documents of a file that has one or more of a kind.
    fn decoded<N: DeserializeOwned, S: DeserializeOwned>(
        &mut self,
        scope: &Scope,
        path: &str,
        kind: Kind,
    ) -> Vec<(Pos, Document<N, S>)> {
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
        if nodes.len() > 1 && kind != Kind::Tier {
            let message = format!("this file holds one {kind} document, and this is another");
            self.problems.push(context.problem(nodes[1].at, message));
        }
        let mut documents = Vec::new();
        for node in nodes {
            let at = node
                .get("metadata")
                .and_then(|m| m.get("name"))
                .map_or(node.at, |n| n.at);
            match decode::document(node, kind, context) {
                Ok(document) => documents.push((at, document)),
                Err(problems) => self.problems.extend(problems),
            }
        }
        documents
    }

    fn fleet(&mut self) -> Option<Fleet> {
        if !self.tree.entries.contains_key("fleet.yaml") {
            let problem = Problem::new(Scope::Fleet, "fleet.yaml", "there is no fleet.yaml");
            self.problems
                .push(problem.help("a fleet repository has one at its root, of kind Fleet"));
        }
        let mut found = self.decoded(&Scope::Fleet, "fleet.yaml", Kind::Fleet);
        let (_, document): (_, Document<FleetName, FleetSpec>) = found.pop()?;
        Some(Fleet {
            name: document.metadata.name,
            spec: document.spec,
        })
    }

    fn tiers(&mut self) -> BTreeMap<TierName, TierSpec> {
        let mut tiers = BTreeMap::new();
        for (at, document) in self.decoded(&Scope::Fleet, "tiers.yaml", Kind::Tier) {
            let Document { metadata, spec, .. }: Document<TierName, TierSpec> = document;
            if tiers.insert(metadata.name.clone(), spec).is_some() {
                let message = format!("the tier `{}` stands here twice", metadata.name);
                self.place(&Scope::Fleet, "tiers.yaml", at, message, None);
            }
        }
        tiers
    }

    /// A problem at a place of a file that is known to be text.
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

    /// The name must be what the folder or file says, so that one can be found from the other.
    fn named(&mut self, file: &str, at: Pos, name: &str, expected: &str) -> bool {
        if name != expected {
            let scope = app_of(file).map_or(Scope::Fleet, Scope::App);
            let message = format!("`metadata.name` is `{name}`, but its place says `{expected}`");
            let help = "a name and the folder or file that it stands in agree; rename one of them";
            self.place(&scope, file, at, message, Some(help));
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
                    .push(problem.help("add one of kind Region, or remove the folder"));
            }
            for (at, document) in self.decoded(&Scope::Fleet, &file, Kind::Region) {
                let Document { metadata, spec, .. }: Document<RegionName, RegionSpec> = document;
                if self.named(&file, at, metadata.name.as_str(), &folder) {
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
                let Some(stem) = rest.strip_suffix(".yaml").filter(|s| *s != "region") else {
                    continue;
                };
                for (at, document) in self.decoded(&Scope::Fleet, &path, Kind::Cluster) {
                    let Document { metadata, spec, .. }: Document<ClusterName, ClusterSpec> =
                        document;
                    if !self.named(&path, at, metadata.name.as_str(), stem) {
                        continue;
                    }
                    let cluster = Cluster {
                        region: region.clone(),
                        labels: metadata.labels,
                        spec,
                    };
                    if let Some(other) = clusters.insert(metadata.name.clone(), cluster) {
                        let message = format!(
                            "a cluster `{}` stands in region `{}` too; names are unique in a fleet",
                            metadata.name, other.region
                        );
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
                "a region has the name `{name}` too, so an app's `values/{name}.yaml` could mean either"
            );
            self.problems
                .push(Problem::new(Scope::Fleet, &file, message).help("rename the cluster"));
        }
        (regions, clusters)
    }

    fn apps(
        &mut self,
        tiers: &BTreeMap<TierName, TierSpec>,
        clusters: &BTreeMap<ClusterName, Cluster>,
    ) -> BTreeMap<AppName, App> {
        let folders = self.folders("apps/");
        let mut apps = BTreeMap::new();
        // A document that can't be read has told so itself: whoever refers to it is right to.
        let names = Names {
            tiers,
            clusters,
            tiers_read: self.problems.iter().all(|p| p.file != "tiers.yaml"),
            all_read: self.problems.iter().all(|p| p.scope != Scope::Fleet),
            region_names: self.folders("regions/"),
            cluster_names: self.cluster_names(),
            apps: &folders,
        };
        for folder in &folders {
            // A folder with a bad name can't be an app that ran before, so it holds back nothing but
            // itself; yet someone must hear of it.
            let Some(name) = self.name::<AppName>(&Scope::Hint, "apps", folder) else {
                continue;
            };
            let scope = Scope::App(name.clone());
            if let Some(app) = self.app(&scope, folder) {
                self.check_app(&scope, &name, &app, &names);
                apps.insert(name, app);
            }
        }
        self.check_cycles(&apps);
        apps
    }

    fn app(&mut self, scope: &Scope, folder: &str) -> Option<App> {
        let base = format!("apps/{folder}/");
        for inside in ["values", "templates", "manifests"] {
            self.check_folder(scope, &format!("{base}{inside}"));
        }
        let path = format!("{base}app.yaml");
        if !self.tree.entries.contains_key(&path) {
            let problem = Problem::new(scope.clone(), &path, "this app has no app.yaml");
            self.problems
                .push(problem.help("add one of kind App, or remove the folder"));
        }
        let (at, document): (_, Document<AppName, AppSpec>) =
            self.decoded(scope, &path, Kind::App).pop()?;
        let named = self.named(&path, at, document.metadata.name.as_str(), folder);
        let (id, text) = self.text(scope, &path)?;
        let file = TextFile {
            path,
            id,
            text: text.into(),
        };
        let values = self.values(scope, &format!("{base}values.yaml"));
        let mut values_at = BTreeMap::new();
        for path in self.files(&format!("{base}values/")) {
            let stem = path
                .rsplit('/')
                .next()
                .and_then(|name| name.strip_suffix(".yaml"));
            if let Some(stem) = stem {
                let values = self.values(scope, &path);
                values_at.insert(stem.to_owned(), values);
            }
        }
        let yaml = |path: &str| path.ends_with(".yaml") || path.ends_with(".yml");
        let templates = self.texts(scope, &format!("{base}templates/"), yaml);
        let manifests = self.texts(scope, &format!("{base}manifests/"), yaml);
        for path in self.files(&base) {
            let name = &path[base.len()..];
            if yaml(name) && !name.contains('/') && !matches!(name, "app.yaml" | "values.yaml") {
                let problem = Problem::new(Scope::Hint, &path, "this file is not read");
                self.problems.push(
                    problem.help(
                        "an app has app.yaml, values.yaml, values/, templates/ and manifests/",
                    ),
                );
            }
        }
        named.then_some(App {
            spec: document.spec,
            file,
            values,
            values_at,
            templates,
            manifests,
        })
    }

    fn check_app(&mut self, scope: &Scope, name: &AppName, app: &App, known: &Names<'_>) {
        let file = app.file.clone();
        let node = yaml::parse(&file.text)
            .ok()
            .and_then(|mut nodes| nodes.pop());
        let mut unknown = |path: &[&str], what: &str, word: &str, help: Option<String>| {
            let at = node
                .as_ref()
                .map(|node| node.descend(path.iter().copied()).at);
            let mut problem = Problem::new(
                scope.clone(),
                &file.path,
                format!("there is no {what} `{word}`"),
            );
            if let Some(at) = at {
                problem = problem.at(&file.text, at);
            }
            self.problems.push(match help {
                Some(help) => problem.help(help),
                None => problem,
            });
        };
        let spec = &app.spec;
        if known.tiers_read && !known.tiers.contains_key(&spec.tier) {
            let help = suggest(spec.tier.as_str(), known.tiers.keys().map(TierName::as_str));
            unknown(&["spec", "tier"], "tier", spec.tier.as_str(), help);
        }
        for (i, region) in spec.placement.regions.iter().enumerate() {
            if !known.region_names.contains(region.as_str()) {
                let names = known.region_names.iter().map(String::as_str);
                let help = suggest(region.as_str(), names);
                let path = ["spec", "placement", "regions", &i.to_string()];
                unknown(&path, "region", region.as_str(), help);
            }
        }
        for (i, cluster) in spec.placement.clusters.iter().enumerate() {
            if !known.cluster_names.contains(cluster.as_str()) {
                let names = known.cluster_names.iter().map(String::as_str);
                let help = suggest(cluster.as_str(), names);
                let path = ["spec", "placement", "clusters", &i.to_string()];
                unknown(&path, "cluster", cluster.as_str(), help);
            }
        }
        for (i, other) in spec.depends_on.iter().enumerate() {
            if !known.apps.contains(other.as_str()) {
                let help = suggest(other.as_str(), known.apps.iter().map(String::as_str));
                unknown(
                    &["spec", "dependsOn", &i.to_string()],
                    "app",
                    other.as_str(),
                    help,
                );
            }
        }
        let place = |path: &[&str]| {
            node.as_ref().map_or(Pos { line: 1, col: 1 }, |node| {
                node.descend(path.iter().copied()).at
            })
        };
        if let Some(tier) = known.tiers.get(&spec.tier)
            && !tier.modes.is_empty()
            && !tier.modes.contains(&spec.mode)
        {
            let modes: Vec<String> = tier.modes.iter().map(ToString::to_string).collect();
            let message = format!(
                "tier `{}` can't be kept with mode `{}`; it asks for {}",
                spec.tier,
                spec.mode,
                modes.join(" or ")
            );
            self.place(scope, &file.path, place(&["spec", "mode"]), message, None);
        }
        for stem in app.values_at.keys() {
            if !known.region_names.contains(stem) && !known.cluster_names.contains(stem) {
                let path = format!("apps/{name}/values/{stem}.yaml");
                let message = format!("there is no region or cluster `{stem}`");
                let names = known.region_names.iter().chain(&known.cluster_names);
                let problem = Problem::new(scope.clone(), &path, message);
                self.problems
                    .push(match suggest(stem, names.map(String::as_str)) {
                        Some(help) => problem.help(help),
                        None => problem,
                    });
            }
        }
        let fits = known
            .clusters
            .iter()
            .any(|(name, cluster)| spec.placement.allows(name, cluster));
        // Names that are not there were told above.
        let named = spec.placement.regions.iter().map(RegionName::as_str);
        let all_known = named
            .into_iter()
            .all(|name| known.region_names.contains(name))
            && (spec.placement.clusters.iter())
                .all(|name| known.cluster_names.contains(name.as_str()));
        if !fits && !known.clusters.is_empty() && known.all_read && all_known {
            let message = "no cluster of the fleet fits this placement".to_owned();
            let at = place(&["spec", "placement"]);
            let help = "a cluster has to pass `regions`, `clusters` and `clusterSelector`, as far as they are given";
            self.place(scope, &file.path, at, message, Some(help));
        }
        // Where there are some that can't be read, that was told above.
        let base = format!("apps/{name}/");
        let none = |folder: &str| {
            let folder = format!("{base}{folder}");
            !self
                .tree
                .entries
                .keys()
                .any(|path| path.starts_with(&folder))
        };
        if none("templates") && none("manifests") {
            let problem = Problem::new(scope.clone(), &file.path, "this app has no objects");
            self.problems
                .push(problem.help("add templates/NAME.yaml or manifests/NAME.yaml"));
        }
    }

    fn check_cycles(&mut self, apps: &BTreeMap<AppName, App>) {
        for (name, app) in apps {
            if let Some(way) = circle(name, apps) {
                let node = yaml::parse(&app.file.text)
                    .ok()
                    .and_then(|mut nodes| nodes.pop());
                let path = ["spec", "dependsOn"];
                let at = node.map_or(Pos { line: 1, col: 1 }, |n| n.descend(path.into_iter()).at);
                let message = format!("this app waits for itself: {way}");
                let scope = Scope::App(name.clone());
                let help = "remove one of these from a `dependsOn`";
                self.place(&scope, &app.file.path, at, message, Some(help));
            }
        }
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
                .push(context.problem(nodes[1].at, "values are one YAML document"));
        }
        match nodes.pop() {
            None => Arc::default(),
            Some(node) if matches!(node.value, Yaml::Map(_)) => match node.into_json() {
                serde_json::Value::Object(map) => Arc::new(map),
                _ => Arc::default(),
            },
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

    /// The names right below a folder that are folders themselves, or stand in one's place.
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

    /// The names of all files that should be clusters.
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

    /// The files below a folder.
    fn files(&self, base: &str) -> Vec<String> {
        self.tree
            .entries
            .keys()
            .filter(|path| path.starts_with(base))
            .cloned()
            .collect()
    }

    /// A folder's name as a typed name.
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

/// Every name that an app may refer to.
struct Names<'a> {
    tiers: &'a BTreeMap<TierName, TierSpec>,
    clusters: &'a BTreeMap<ClusterName, Cluster>,
    /// Whether the tiers had no problem.
    tiers_read: bool,
    /// Whether no document of the fleet's had one.
    all_read: bool,
    /// Of regions and clusters also those whose documents have problems.
    region_names: BTreeSet<String>,
    cluster_names: BTreeSet<String>,
    apps: &'a BTreeSet<String>,
}

/// The shortest way from an app through `dependsOn` back to itself, for people.
fn circle(name: &AppName, apps: &BTreeMap<AppName, App>) -> Option<String> {
    let after = |name: &AppName| apps.get(name).map(|app| app.spec.depends_on.as_slice());
    let mut ways: VecDeque<Vec<&AppName>> = VecDeque::new();
    let mut reached = BTreeSet::new();
    ways.extend(after(name)?.iter().map(|first| vec![first]));
    while let Some(way) = ways.pop_front() {
        let last = *way.last()?;
        if last == name {
            let words: Vec<&str> = way.iter().map(|app| app.as_str()).collect();
            return Some(format!("{name} → {}", words.join(" → ")));
        }
        if reached.insert(last) {
            let longer = |next| way.iter().copied().chain([next]).collect();
            ways.extend(after(last).unwrap_or_default().iter().map(longer));
        }
    }
    None
}

impl crate::kinds::Placement {
    /// Whether the placement lets an app run in this cluster.
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

/// The app in whose folder a path stands.
fn app_of(path: &str) -> Option<AppName> {
    path.strip_prefix("apps/")?.split_once('/')?.0.parse().ok()
}
