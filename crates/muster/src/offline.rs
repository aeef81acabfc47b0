//! Commands that need no hub: `validate`, `render`, `schema`.

mod namespaces;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use muster_apply::applied_objects;
use muster_model::{
    bundle::{Bundle, BundleHeader},
    ids::{AppName, ClusterName, Epoch, Role},
    load::{Loader, Model, Roles},
    problem::{Problem, Scope, suggest},
    yaml::to_yaml,
};
use muster_plan::placement::place;
use muster_render::{Rendered, Renderer, conflicts, scopes};
use serde_json::{Value, json};

use crate::status::look::count;
use crate::{
    output::{Output, print},
    problems,
};

/// Everything that an offline command knows of a fleet repository.
struct Checked {
    model: Option<Model>,
    roles: Roles,
    rendered: Rendered,
    problems: Vec<Problem>,
}

fn check(dir: &Path, roles: impl FnOnce(&Model) -> Roles) -> anyhow::Result<Checked> {
    let tree = muster_git::read_dir(dir)
        .with_context(|| format!("can't read the fleet repository in {}", dir.display()))?;
    let loaded = Loader::default().load(&tree);
    let mut problems = loaded.problems;
    let (roles, rendered) = match &loaded.model {
        Some(model) => {
            let roles = roles(model);
            let rendered = Renderer::default().render(model, &roles, Epoch(1));
            (roles, rendered)
        }
        None => (Roles::new(), Rendered::default()),
    };
    problems.extend(rendered.problems.iter().cloned());
    problems.extend(clashes(&rendered));
    if problems.iter().all(|problem| problem.scope == Scope::Hint) {
        problems.extend(namespaces::hints(&rendered)?);
    }
    problems.sort_by(|a, b| (&a.file, a.at, &a.message).cmp(&(&b.file, b.at, &b.message)));
    problems.dedup();
    Ok(Checked {
        model: loaded.model,
        roles,
        rendered,
        problems,
    })
}

/// Objects that two apps of one cluster both hold.
fn clashes(rendered: &Rendered) -> Vec<Problem> {
    let mut by_cluster: BTreeMap<&ClusterName, Vec<_>> = BTreeMap::new();
    for (cluster, bundle) in rendered.bundles.values().flatten() {
        by_cluster.entry(cluster).or_default().push(bundle);
    }
    let all = rendered.bundles.values().flat_map(BTreeMap::values);
    let scopes = scopes(all);
    let met = by_cluster.into_iter().map(|(cluster, bundles)| {
        let met = conflicts(bundles.into_iter(), &scopes);
        (cluster.clone(), met)
    });
    muster_plan::compose::problems_of(&met.collect())
}

/// `muster validate`: whether the repository is good.
pub(crate) fn validate(dir: &Path, output: Output) -> anyhow::Result<bool> {
    let checked = check(dir, place)?;
    let good = !checked
        .problems
        .iter()
        .any(|problem| problem.scope != Scope::Hint);
    match output {
        Output::Table => {
            for problem in &checked.problems {
                problems::show(problem);
            }
            if let Some(model) = checked.model.as_ref().filter(|_| good) {
                let mut placed = 0;
                let mut objects = 0;
                for bundle in checked.rendered.bundles.values().flat_map(BTreeMap::values) {
                    placed += 1;
                    objects += bundle.objects;
                }
                print(&format!(
                    "ok: fleet {}, {}, {}, {} in {}, {}\n",
                    model.fleet.name,
                    count(model.regions.len(), "region"),
                    count(model.clusters.len(), "cluster"),
                    count(model.apps.len(), "app"),
                    count(placed, "place"),
                    count(objects, "object"),
                ));
            } else {
                let errors = checked
                    .problems
                    .iter()
                    .filter(|p| p.scope != Scope::Hint)
                    .count();
                print(&format!(
                    "{errors} problem{} in {}\n",
                    if errors == 1 { "" } else { "s" },
                    dir.display()
                ));
            }
        }
        Output::Json | Output::Yaml => {
            output.document(&json!({"valid": good, "problems": checked.problems}));
        }
    }
    Ok(good)
}

/// Every object that a cluster of the repository would get now.
pub(crate) fn objects(dir: &Path) -> anyhow::Result<Vec<Value>> {
    let checked = check(dir, place)?;
    let mut objects = Vec::new();
    for bundle in checked.rendered.bundles.values().flat_map(BTreeMap::values) {
        let bundle =
            Bundle::decode(&bundle.bytes).context("a rendered bundle can't be read back")?;
        for object in &bundle.objects {
            objects.push(serde_json::from_str(&object.json)?);
        }
    }
    Ok(objects)
}

/// What `muster render` was asked for.
pub(crate) struct RenderRequest<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) app: Option<&'a str>,
    pub(crate) role: Option<Role>,
}

/// An app's objects with what its bundle says of them all.
type AppObjects = (BundleHeader, Vec<Value>);

/// The objects of every app as a cluster's agent would apply them, and whether nothing is wrong.
fn applied(request: &RenderRequest<'_>) -> anyhow::Result<(Vec<AppObjects>, bool)> {
    let RenderRequest {
        dir,
        cluster,
        app,
        role,
    } = *request;
    let checked = check(dir, |model| {
        let mut roles = place(model);
        if let (Some(role), Ok(cluster)) = (role, cluster.parse::<ClusterName>()) {
            for (name, places) in &mut roles {
                let wanted = app.is_none_or(|app| app == name.as_str());
                if let Some(place) = places.get_mut(&cluster).filter(|_| wanted) {
                    *place = role;
                }
            }
        }
        roles
    })?;
    let concerns = |problem: &&Problem| match (&problem.scope, app) {
        (Scope::Fleet, _) => true,
        (Scope::App(name), Some(app)) => name.as_str() == app,
        (Scope::App(name), None) => checked
            .roles
            .get(name)
            .is_none_or(|places| places.keys().any(|place| place.as_str() == cluster)),
        (Scope::Hint, _) => false,
    };
    let mut good = true;
    for problem in checked.problems.iter().filter(concerns) {
        problems::warn(problem);
        good = false;
    }
    let Some(model) = &checked.model else {
        return Ok((Vec::new(), false));
    };
    if !model.clusters.contains_key(cluster) {
        let help = suggest(cluster, model.clusters.keys().map(ClusterName::as_str));
        bail!(
            "there is no cluster `{cluster}`; {}",
            help.unwrap_or_default()
        );
    }
    if let Some(app) = app
        && !model.apps.contains_key(app)
        && good
    {
        let help = suggest(app, model.apps.keys().map(AppName::as_str));
        bail!("there is no app `{app}`; {}", help.unwrap_or_default());
    }
    let all = checked.rendered.bundles.values().flat_map(BTreeMap::values);
    let scopes = scopes(all);
    let mut found = Vec::new();
    for (name, places) in &checked.rendered.bundles {
        let Some(rendered) = places
            .get(cluster)
            .filter(|_| app.is_none_or(|app| app == name.as_str()))
        else {
            continue;
        };
        let bundle =
            Bundle::decode(&rendered.bytes).context("a rendered bundle can't be read back")?;
        let objects = applied_objects(&bundle, rendered.hash, |gvk| {
            scopes.is_namespaced(&gvk.group, &gvk.kind)
        })?;
        found.push((bundle.header, objects));
    }
    Ok((found, good))
}

/// `muster render`: what a cluster would get, as its agent would apply it. What is wrong goes to standard
/// error, so that standard output is a document whatever happens.
pub(crate) fn render(request: &RenderRequest<'_>, output: Output) -> anyhow::Result<bool> {
    let rendered = applied(request);
    let (apps, result) = match rendered {
        Ok((apps, good)) => (apps, Ok(good)),
        Err(error) => (Vec::new(), Err(error)),
    };
    if output == Output::Table {
        for (header, objects) in &apps {
            print(&format!("# app {}, role {}\n", header.app, header.role));
            for object in objects {
                print(&format!("---\n{}\n", to_yaml(object)));
            }
        }
    } else {
        let items: Vec<Value> = apps.into_iter().flat_map(|(_, objects)| objects).collect();
        output.document(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    }
    result
}
