//! Tests what people read after a mistake in a fleet repository: the whole messages, and what each
//! mistake blocks.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

mod files;
mod kinds;
mod references;
mod renames;
mod rules;

use std::collections::BTreeMap;

use muster_model::{
    ids::{ContentHash, ObjectId},
    load::{Loaded, Loader},
    problem::Scope,
    tree::{Entry, Tree},
};

const FLEET: &str = "\
apiVersion: muster.dev/v1alpha1
kind: Fleet
metadata:
  name: harbour
";

const TIERS: &str = "\
apiVersion: muster.dev/v1alpha1
kind: Tier
metadata:
  name: gold
spec:
  rpo: 1m
  rto: 15m
---
apiVersion: muster.dev/v1alpha1
kind: Tier
metadata:
  name: silver
spec:
  rpo: 1h
  rto: 4h
";

fn region(name: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1
kind: Region
metadata:
  name: {name}
spec:
  location:
    continent: EU
    country: IE
    latitude: 53.3
    longitude: -6.3
"
    )
}

fn cluster(name: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1
kind: Cluster
metadata:
  name: {name}
"
    )
}

/// Returns an app's document with additional lines of its spec.
fn app(name: &str, more: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1
kind: App
metadata:
  name: {name}
spec:
  tier: gold
  mode: active-active
{more}"
    )
}

const TEMPLATE: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
";

/// A fleet without problems: two regions, three clusters, two apps.
struct Fleet(BTreeMap<String, Entry>);

impl Fleet {
    fn new() -> Self {
        let mut fleet = Self(BTreeMap::new());
        fleet.file("fleet.yaml", FLEET);
        fleet.file("tiers.yaml", TIERS);
        for (name, clusters) in [
            ("eu-west", &["eu-west-1", "eu-west-2"][..]),
            ("us-east", &["us-east-1"]),
        ] {
            fleet.file(&format!("regions/{name}/region.yaml"), region(name));
            for name_of in clusters {
                fleet.file(&format!("regions/{name}/{name_of}.yaml"), cluster(name_of));
            }
        }
        for name in ["shop", "wiki"] {
            fleet.file(&format!("apps/{name}/app.yaml"), app(name, ""));
            fleet.file(&format!("apps/{name}/templates/settings.yaml"), TEMPLATE);
        }
        fleet
    }

    fn file(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Self {
        let bytes = content.as_ref();
        let mut id = [0; 20];
        id.copy_from_slice(&ContentHash::of(bytes).0[..20]);
        self.entry(
            path,
            Entry::File {
                id: ObjectId(id),
                bytes: bytes.into(),
            },
        )
    }

    fn entry(&mut self, path: &str, entry: Entry) -> &mut Self {
        self.0.insert(path.to_owned(), entry);
        self
    }

    fn without(&mut self, path: &str) -> &mut Self {
        self.0.remove(path).unwrap();
        self
    }

    fn load(&self) -> Loaded {
        Loader::default().load(&Tree {
            entries: self.0.clone(),
        })
    }

    /// Returns what is blocked, and every problem as people read it.
    fn told(&self) -> String {
        let loaded = self.load();
        let held = match &loaded.model {
            None => "the whole commit".to_owned(),
            Some(_) if loaded.broken.is_empty() => "nothing".to_owned(),
            Some(model) => {
                assert!(
                    loaded
                        .broken
                        .iter()
                        .all(|app| !model.apps.contains_key(app))
                );
                let names: Vec<&str> = loaded.broken.iter().map(|app| app.as_str()).collect();
                format!("app {}", names.join(", "))
            }
        };
        let mut told = format!("blocked: {held}\n");
        for problem in &loaded.problems {
            let hint = if problem.scope == Scope::Hint {
                "hint: "
            } else {
                ""
            };
            told.push_str(&format!("\n{hint}{problem}\n"));
        }
        told
    }
}

#[test]
fn a_fleet_without_a_fault_has_no_problem() {
    insta::assert_snapshot!(Fleet::new().told(), @"blocked: nothing");
}
