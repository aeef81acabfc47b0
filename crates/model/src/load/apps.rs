//! Reads the folders below `apps/`, and checks that the names in their documents exist.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{App, Cluster, Load, TextFile};
use crate::{
    decode::Context,
    ids::{AppName, ClusterName, RegionName, TierName},
    kinds::{AppSpec, Document, Kind, TierSpec},
    problem::{Problem, Scope, suggest},
    tree::Entry,
    yaml::Node,
};

/// All names that an app may refer to.
struct Names<'a> {
    tiers: &'a BTreeMap<TierName, TierSpec>,
    clusters: &'a BTreeMap<ClusterName, Cluster>,
    /// True if `tiers.yaml` has no problem.
    tiers_read: bool,
    /// True if no problem that blocks the whole commit was found.
    all_read: bool,
    /// The names of all regions, including those whose documents have problems.
    region_names: BTreeSet<String>,
    /// The names of all clusters, including those whose documents have problems.
    cluster_names: BTreeSet<String>,
    apps: &'a BTreeSet<String>,
}

/// The maximum number of unknown names in one list that are reported one by one.
const MOST_UNKNOWN: usize = 20;

/// An app and the document that it was read from.
type Read = (App, Node);

impl Load<'_> {
    pub(super) fn apps(
        &mut self,
        tiers: &BTreeMap<TierName, TierSpec>,
        clusters: &BTreeMap<ClusterName, Cluster>,
    ) -> BTreeMap<AppName, App> {
        let folders = self.folders("apps/");
        let mut apps: BTreeMap<AppName, Read> = BTreeMap::new();
        // A document that can't be read has its own problem, so references to its name are not reported.
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
            // A folder with an invalid name can't be an app that ran before, so it blocks nothing else. It
            // is reported as a hint.
            let Some(name) = self.name::<AppName>(&Scope::Hint, "apps", folder) else {
                continue;
            };
            let scope = Scope::App(name.clone());
            let begun = self.overseer.begin(&name);
            let read = match &begun {
                Ok(()) => self.app(&scope, folder),
                Err(refused) => {
                    self.problems.push(Problem::clone(refused));
                    None
                }
            };
            if let Some((app, node)) = read {
                self.formerly
                    .extend(app.spec.formerly.clone().map(|old| (name.clone(), old)));
                let mut check = Check {
                    scope: &scope,
                    file: &app.file,
                    node: &node,
                    found: Vec::new(),
                };
                check.references(&app.spec, &names);
                check.values(&name, &app, &names);
                check.placement(&app.spec, &names);
                let found = check.found;
                self.problems.extend(found);
                self.check_ignored(&scope, &app.file.path, &node, &app.spec.ignore);
                self.check_writer(&scope, &app.file.path, &node, &app.spec);
                self.check_objects(&scope, &name, &app);
                apps.insert(name.clone(), (app, node));
            } else {
                let path = format!("apps/{folder}/app.yaml");
                let text = self.text(&scope, &path).map(|(_, text)| text);
                let old = text.and_then(claimed);
                self.formerly.extend(old.map(|old| (name.clone(), old)));
            }
            if begun.is_ok() {
                self.overseer.end(&name);
            }
        }
        self.check_cycles(&apps);
        self.check_renames(&apps, &folders);
        apps.into_iter()
            .map(|(name, (app, _))| (name, app))
            .collect()
    }

    fn app(&mut self, scope: &Scope, folder: &str) -> Option<Read> {
        let base = format!("apps/{folder}/");
        for inside in ["values", "templates", "manifests"] {
            self.check_folder(scope, &format!("{base}{inside}"));
        }
        let path = format!("{base}app.yaml");
        if !self.tree.entries.contains_key(&path) {
            let problem = Problem::new(scope.clone(), &path, "this app has no app.yaml");
            self.problems
                .push(problem.help("add a document of kind App, or remove the folder"));
        }
        let (node, document): (_, Document<AppName, AppSpec>) =
            self.decoded(scope, &path, Kind::App).pop()?;
        let named = self.named(&path, &node, document.metadata.name.as_str(), folder);
        let (id, text) = self.text(scope, &path)?;
        let file = TextFile {
            path,
            id,
            text: text.into(),
        };
        let values = self.values(scope, &format!("{base}values.yaml"));
        let mut values_at = BTreeMap::new();
        let values_folder = format!("{base}values/");
        for path in self.files(&values_folder) {
            let stem = path[values_folder.len()..].strip_suffix(".yaml");
            if let Some(stem) = stem.filter(|stem| !stem.contains('/')) {
                let values = self.values(scope, &path);
                values_at.insert(stem.to_owned(), values);
            } else if holds_objects(&path) {
                self.not_read(
                    &path,
                    "values of a region or cluster belong in values/NAME.yaml",
                );
            }
        }
        let templates = self.object_files(scope, &format!("{base}templates/"));
        let manifests = self.object_files(scope, &format!("{base}manifests/"));
        let mut strange = BTreeSet::new();
        for path in self.files(&base) {
            let name = &path[base.len()..];
            if let Some((folder, _)) = name.split_once('/') {
                let read = matches!(folder, "values" | "templates" | "manifests");
                if !read && holds_objects(name) {
                    strange.insert(format!("{base}{folder}"));
                }
                continue;
            }
            if matches!(name, "app.yaml" | "values.yaml") {
                continue;
            }
            if KUSTOMIZATIONS.contains(&name) {
                let problem = Problem::new(Scope::Hint, &path, NO_KUSTOMIZE);
                self.problems.push(problem.help(INSTEAD_OF_KUSTOMIZE));
            } else if holds_objects(name) {
                self.not_read(&path, PARTS);
            }
        }
        for folder in strange {
            let problem = Problem::new(Scope::Hint, &folder, "this folder is not read");
            self.problems.push(problem.help(PARTS));
        }
        let app = App {
            spec: document.spec,
            file,
            values,
            values_at,
            templates,
            manifests,
        };
        named.then_some((app, node))
    }

    /// Returns the files of a folder and its subfolders that hold objects. Reports the files that are left out.
    fn object_files(&mut self, scope: &Scope, base: &str) -> Vec<TextFile> {
        let wanted = |path: &str| holds_objects(path) || KUSTOMIZATIONS.contains(&file_name(path));
        let mut files = self.texts(scope, base, wanted);
        let mut unread = Vec::new();
        files.retain(|file| {
            let kustomization = KUSTOMIZATIONS.contains(&file_name(&file.path));
            if kustomization && !is_other_object(&file.text) {
                let problem = Problem::new(scope.clone(), &file.path, NO_KUSTOMIZE);
                self.problems.push(problem.help(INSTEAD_OF_KUSTOMIZE));
                return false;
            }
            if !holds_objects(&file.path) {
                unread.push(file.path.clone());
                return false;
            }
            true
        });
        for path in unread {
            self.not_read(&path, ENDINGS);
        }
        for path in self.files(base) {
            let file = matches!(
                self.tree.entries.get(&path),
                Some(Entry::File { .. } | Entry::TooLarge { .. })
            );
            if file && !wanted(&path) && !is_for_people(file_name(&path)) {
                self.not_read(&path, ENDINGS);
            }
        }
        files
    }

    fn check_objects(&mut self, scope: &Scope, name: &AppName, app: &App) {
        // Files that exist but can't be read were reported before.
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
            let problem = Problem::new(scope.clone(), &app.file.path, "this app has no objects");
            self.problems
                .push(problem.help("add templates/NAME.yaml or manifests/NAME.yaml"));
        }
    }

    fn check_cycles(&mut self, apps: &BTreeMap<AppName, Read>) {
        for (name, (app, node)) in apps {
            if let Some(way) = circle(name, apps) {
                let at = node.descend(["spec", "dependsOn"].into_iter()).at;
                let message = format!("this app depends on itself: {way}");
                let scope = Scope::App(name.clone());
                let help = "remove one of these `dependsOn` entries";
                self.place(&scope, &app.file.path, at, message, Some(help));
            }
        }
    }

    /// Checks `formerly`: the old app must be gone, and its objects can go to only one other app.
    fn check_renames(&mut self, apps: &BTreeMap<AppName, Read>, folders: &BTreeSet<String>) {
        for (name, (app, node)) in apps {
            let Some(old) = &app.spec.formerly else {
                continue;
            };
            let rival = self
                .formerly
                .iter()
                .find(|(other, claimed)| *claimed == old && *other != name);
            let (message, help) = if old == name {
                (
                    format!("`{old}` is this app's name now"),
                    "`formerly` is the app's previous name; remove the line if it had none"
                        .to_owned(),
                )
            } else if folders.contains(old.as_str()) {
                (
                    format!("the app `{old}` still exists, so it keeps its objects"),
                    format!("remove apps/{old}, or this line"),
                )
            } else if let Some((rival, _)) = rival {
                (
                    format!("app `{rival}` also claims `formerly: {old}`"),
                    "the objects can go to only one app; remove one of the two lines".to_owned(),
                )
            } else {
                continue;
            };
            let at = node.descend(["spec", "formerly"].into_iter()).at;
            let scope = Scope::App(name.clone());
            self.place(&scope, &app.file.path, at, message, Some(&help));
        }
    }
}

/// Checks the document of one app and collects the problems.
struct Check<'a> {
    scope: &'a Scope,
    file: &'a TextFile,
    node: &'a Node,
    found: Vec<Problem>,
}

impl Check<'_> {
    fn tell(&mut self, path: &[&str], message: String, help: Option<String>) {
        let context = Context {
            scope: self.scope,
            file: &self.file.path,
            text: &self.file.text,
        };
        let at = self.node.descend(path.iter().copied()).at;
        let problem = context.problem(at, message);
        self.found.push(match help {
            Some(help) => problem.help(help),
            None => problem,
        });
    }

    fn unknown<'n>(
        &mut self,
        path: &[&str],
        what: &str,
        word: &str,
        known: impl IntoIterator<Item = &'n str>,
    ) {
        let message = format!("there is no {what} `{word}`");
        self.tell(path, message, suggest(word, known));
    }

    fn references(&mut self, spec: &AppSpec, known: &Names<'_>) {
        if known.tiers_read && !known.tiers.contains_key(&spec.tier) {
            let tiers = known.tiers.keys().map(TierName::as_str);
            self.unknown(&["spec", "tier"], "tier", spec.tier.as_str(), tiers);
        }
        if let Some(tier) = known.tiers.get(&spec.tier)
            && !tier.modes.is_empty()
            && !tier.modes.contains(&spec.mode)
        {
            let modes: Vec<String> = tier.modes.iter().map(ToString::to_string).collect();
            let message = format!(
                "tier `{}` does not allow mode `{}`; use {}",
                spec.tier,
                spec.mode,
                modes.join(" or ")
            );
            self.tell(&["spec", "mode"], message, None);
        }
        let regions = spec.placement.regions.iter().map(RegionName::as_str);
        let clusters = spec.placement.clusters.iter().map(ClusterName::as_str);
        let apps = spec.depends_on.iter().map(AppName::as_str);
        self.each(
            &["spec", "placement", "regions"],
            "region",
            regions,
            &known.region_names,
        );
        self.each(
            &["spec", "placement", "clusters"],
            "cluster",
            clusters,
            &known.cluster_names,
        );
        self.each(&["spec", "dependsOn"], "app", apps, known.apps);
    }

    /// Checks that every name in a list is known.
    fn each<'n>(
        &mut self,
        list: &[&str],
        what: &str,
        names: impl Iterator<Item = &'n str>,
        known: &BTreeSet<String>,
    ) {
        let mut told = 0;
        for (index, name) in names.enumerate() {
            if !known.contains(name) {
                told += 1;
                if told > MOST_UNKNOWN {
                    let message =
                        format!("this list has more than {MOST_UNKNOWN} unknown {what} names");
                    self.tell(list, message, None);
                    return;
                }
                let index = index.to_string();
                let path: Vec<&str> = list.iter().copied().chain([index.as_str()]).collect();
                self.unknown(&path, what, name, known.iter().map(String::as_str));
            }
        }
    }

    fn values(&mut self, name: &AppName, app: &App, known: &Names<'_>) {
        for stem in app.values_at.keys() {
            if !known.region_names.contains(stem) && !known.cluster_names.contains(stem) {
                let path = format!("apps/{name}/values/{stem}.yaml");
                let message = format!("there is no region or cluster `{stem}`");
                let names = known.region_names.iter().chain(&known.cluster_names);
                let problem = Problem::new(self.scope.clone(), &path, message);
                self.found
                    .push(match suggest(stem, names.map(String::as_str)) {
                        Some(help) => problem.help(help),
                        None => problem,
                    });
            }
        }
    }

    fn placement(&mut self, spec: &AppSpec, known: &Names<'_>) {
        let fits = known
            .clusters
            .iter()
            .any(|(name, cluster)| spec.placement.allows(name, cluster));
        // Unknown names were reported before.
        let mut regions = spec.placement.regions.iter();
        let mut clusters = spec.placement.clusters.iter();
        let all_known = regions.all(|name| known.region_names.contains(name.as_str()))
            && clusters.all(|name| known.cluster_names.contains(name.as_str()));
        if !fits && !known.clusters.is_empty() && known.all_read && all_known {
            let message = "no cluster of the fleet fits this placement".to_owned();
            let help = "a cluster must match all of `regions`, `clusters` and `clusterSelector` that are set";
            self.tell(&["spec", "placement"], message, Some(help.to_owned()));
        }
    }
}

/// Names of files that only Kustomize understands.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
const NO_KUSTOMIZE: &str = "Muster does not run Kustomize";
const INSTEAD_OF_KUSTOMIZE: &str = "commit the output of `kustomize build` as manifests/NAME.yaml and remove this \
     file, or use templates and values for what differs between clusters";

/// Advice that lists what is read in an app's folder.
const PARTS: &str = "an app has app.yaml, values.yaml, values/, templates/ and manifests/";
/// Advice that lists what is read below `templates/` and `manifests/`.
const ENDINGS: &str = "objects belong in files that end in .yaml, .yml or .json; files that templates include \
     belong in templates/_NAME.yaml or lib/";

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns true if a file holds objects, judging by its name.
pub(super) fn holds_objects(path: &str) -> bool {
    let ending = file_name(path).rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known))
    })
}

/// Returns true if a file next to objects is only for people or for Git.
fn is_for_people(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.ends_with(".md")
        || ["readme", "license", "notice", "owners", "codeowners"]
            .iter()
            .any(|known| lower.split('.').next() == Some(known))
        || matches!(
            name,
            ".gitkeep" | ".keep" | ".gitignore" | ".gitattributes" | ".editorconfig"
        )
}

/// Returns true if a file with one of Kustomize's names holds a Kubernetes object, such as Flux's
/// Kustomization.
fn is_other_object(text: &str) -> bool {
    let mut versions = text.lines().filter_map(|line| {
        line.trim_start_matches('\u{feff}')
            .strip_prefix("apiVersion:")
    });
    versions.any(|version| !version.contains("kustomize.config.k8s.io"))
}

/// Returns the previous name (`formerly`) in a document that can't be parsed as a whole. Objects under that
/// name must not be lost because another line is wrong.
fn claimed(text: &str) -> Option<AppName> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let mut rest = lines.filter_map(|line| Some(line.split_once("formerly:")?.1));
    let word = rest.next()?.trim_start().trim_start_matches(['"', '\'']);
    let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    word[..end.unwrap_or(word.len())].parse().ok()
}

/// Returns the shortest path from an app through `dependsOn` back to itself, as text for people.
fn circle(name: &AppName, apps: &BTreeMap<AppName, Read>) -> Option<String> {
    let after = |name: &AppName| {
        let (app, _) = apps.get(name)?;
        Some(app.spec.depends_on.as_slice())
    };
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
