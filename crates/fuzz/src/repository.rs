//! Fuzz targets for the content of a fleet repository. Everyone with write access to one app's folder can write such
//! content.

use std::{collections::BTreeMap, sync::Arc};

use muster_model::{
    ids::{ContentHash, ObjectId},
    load::{Loaded, Loader},
    tree::{Entry, Tree},
    yaml,
};
use muster_plan::placement::place_first;
use muster_render::Renderer;

use crate::parts;

/// Parses arbitrary YAML, writes it and parses it again. Both results must be equal.
pub(crate) fn yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = yaml::parse_written(text);
    let Ok(documents) = yaml::parse(text) else {
        return;
    };
    for document in documents {
        let value = document.into_json();
        let written = yaml::to_yaml(&value);
        let again = yaml::parse(&written).expect("written YAML can be parsed");
        let again: Vec<_> = again.into_iter().map(yaml::Node::into_json).collect();
        let same = match again.as_slice() {
            [] => value.is_null(),
            [again] => *again == value,
            _ => false,
        };
        assert!(same, "{value} is written as {written}");
    }
}

const FLEET: [(&str, &str); 4] = [
    (
        "fleet.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: Fleet\nmetadata: {name: f}\nspec: {}\n",
    ),
    (
        "tiers.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: Tier\nmetadata: {name: t}\nspec: {rpo: 1m, rto: 15m}\n",
    ),
    (
        "regions/r/region.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: Region\nmetadata: {name: r}\nspec: {location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.3}}\n",
    ),
    (
        "regions/r/c.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: Cluster\nmetadata: {name: c}\nspec: {}\n",
    ),
];

const APP: &str = "apiVersion: muster.dev/v1alpha1\nkind: App\nmetadata: {name: a}\nspec: {tier: t, mode: active-active}\n";

fn id_of(text: &str) -> ObjectId {
    let mut id = [0; 20];
    id.copy_from_slice(&ContentHash::of(text.as_bytes()).0[..20]);
    ObjectId(id)
}

fn load(files: &BTreeMap<&str, &str>) -> Loaded {
    let entries = files.iter().map(|(path, text)| {
        // The loader caches what it reads by this id.
        let entry = Entry::File {
            id: id_of(text),
            bytes: Arc::from(text.as_bytes()),
        };
        ((*path).to_owned(), entry)
    });
    let entries = entries.collect();
    Loader::default().load(&Tree { entries })
}

fn render(loaded: &Loaded) {
    if let Some(model) = &loaded.model {
        let placed = place_first(model);
        let _ = Renderer::default().render(model, &placed.roles, &placed.record);
    }
}

/// Loads and renders a fleet. Each part of the input is a file; the part's first line is the path.
pub(crate) fn documents(data: &[u8]) {
    let Some(parts) = parts(data) else { return };
    let mut files = BTreeMap::from(FLEET);
    files.insert("apps/a/app.yaml", APP);
    for part in parts {
        let (path, text) = part.split_once('\n').unwrap_or((part, ""));
        files.insert(path, text);
    }
    render(&load(&files));
}

/// Renders an app. The parts of the input are a template, its values, a manifest and a library file.
pub(crate) fn templates(data: &[u8]) {
    let Some(parts) = parts(data) else { return };
    let mut files = BTreeMap::from(FLEET);
    files.insert("apps/a/app.yaml", APP);
    let names = [
        "apps/a/templates/t.yaml",
        "apps/a/values.yaml",
        "apps/a/manifests/m.yaml",
        "lib/l.j2",
    ];
    files.extend(names.into_iter().zip(parts));
    render(&load(&files));
}
