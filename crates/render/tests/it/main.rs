//! Tests of rendering through the public API: the messages for wrong templates, and that a renderer with caches has the
//! same results as one without.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

mod memory;
mod mistakes;

use std::collections::BTreeMap;

use muster_model::{
    ids::{ContentHash, ObjectId},
    load::{Loader, Model},
    problem::Problem,
    tree::{Entry, Tree},
};
use muster_plan::placement::place_first;
use muster_render::{Rendered, Renderer};

/// A fleet of two regions with three clusters, whose apps the test writes.
#[derive(Debug, Clone)]
struct Fleet(BTreeMap<String, String>);

impl Fleet {
    fn new() -> Self {
        let mut fleet = Self(BTreeMap::new());
        let document = |kind: &str, name: &str, spec: &str| {
            format!(
                "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            )
        };
        fleet.file("fleet.yaml", document("Fleet", "harbour", "{}"));
        fleet.file(
            "tiers.yaml",
            document("Tier", "gold", "{rpo: 1m, rto: 15m}"),
        );
        let place = "{location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.3}}";
        for (region, clusters) in [
            ("eu-west", &["eu-west-1", "eu-west-2"][..]),
            ("us-east", &["us-east-1"]),
        ] {
            let path = format!("regions/{region}/region.yaml");
            fleet.file(&path, document("Region", region, place));
            for cluster in clusters {
                let path = format!("regions/{region}/{cluster}.yaml");
                fleet.file(&path, document("Cluster", cluster, "{}"));
            }
        }
        fleet
    }

    fn file(&mut self, path: &str, text: impl Into<String>) -> &mut Self {
        self.0.insert(path.to_owned(), text.into());
        self
    }

    /// Adds an app with one template.
    fn app(&mut self, name: &str, template: &str) -> &mut Self {
        let app = format!(
            "apiVersion: muster.dev/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\nspec: {{tier: gold, mode: active-active}}\n"
        );
        self.file(&format!("apps/{name}/app.yaml"), app);
        self.file(&format!("apps/{name}/templates/main.yaml"), template)
    }

    fn model(&self) -> Model {
        let entry = |(path, text): (&String, &String)| {
            let mut id = [0; 20];
            id.copy_from_slice(&ContentHash::of(text.as_bytes()).0[..20]);
            let entry = Entry::File {
                id: ObjectId(id),
                bytes: text.as_bytes().into(),
            };
            (path.clone(), entry)
        };
        let tree = Tree {
            entries: self.0.iter().map(entry).collect(),
        };
        let loaded = Loader::default().load(&tree);
        assert_eq!(loaded.problems, Vec::<Problem>::new());
        loaded.model.unwrap()
    }

    fn render(&self, renderer: &mut Renderer) -> Rendered {
        let model = self.model();
        let placed = place_first(&model);
        renderer.render(&model, &placed.roles, &placed.record)
    }

    /// Returns which apps were rendered, and every problem as it is shown to people.
    fn told(&self) -> String {
        let rendered = self.render(&mut Renderer::default());
        let apps: Vec<&str> = rendered.bundles.keys().map(|app| app.as_str()).collect();
        let mut told = format!("rendered: {}\n", apps.join(", "));
        for problem in &rendered.problems {
            told.push_str(&format!("\n{problem}\n"));
        }
        told
    }
}
