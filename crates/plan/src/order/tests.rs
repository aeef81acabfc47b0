use muster_model::bundle::Gvk;
use proptest::prelude::*;

use super::*;

fn id(api: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version(api, kind),
        namespace: namespace.map(Into::into),
        name: name.into(),
    }
}

fn crd(group: &str, kind: &str) -> (ObjectRef, Option<Definition>) {
    let name = format!("{}s.{group}", kind.to_lowercase());
    let definition = Definition {
        group: group.into(),
        kind: Some(kind.into()),
        version: None,
        namespaced: Some(true),
    };
    (
        id(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            None,
            &name,
        ),
        Some(definition),
    )
}

fn names(items: &[Item<'_>], order: &Order) -> Vec<Vec<String>> {
    let name = |&i: &usize| items[i].id.to_string();
    order
        .stages
        .iter()
        .map(|stage| stage.iter().map(name).collect())
        .collect()
}

#[test]
fn a_set_is_staged_by_what_it_needs_and_by_its_apps() {
    let (db, web): (AppName, AppName) = ("db".parse().unwrap(), "web".parse().unwrap());
    let (crd, defines) = crd("db.example", "Cluster");
    let ids = [
        id("apps/v1", "Deployment", Some("web"), "web"),
        id("v1", "ConfigMap", Some("web"), "web"),
        id("v1", "Namespace", None, "web"),
        id("db.example/v1", "Cluster", Some("web"), "pg"),
        id(
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            None,
            "db",
        ),
    ];
    let item = |id, app| Item {
        id,
        app,
        defines: None,
        hook: None,
    };
    let items = [
        item(&ids[0], &web),
        item(&ids[1], &web),
        item(&ids[2], &web),
        item(&ids[3], &db),
        item(&ids[4], &db),
        Item {
            id: &crd,
            app: &db,
            defines: defines.as_ref(),
            hook: None,
        },
    ];
    let before = [db.clone()];
    let order = order(&items, &After::from([(&web, &before[..])]));
    assert_eq!(
        names(&items, &order),
        [
            vec![
                "Namespace web",
                "CustomResourceDefinition.apiextensions.k8s.io clusters.db.example"
            ],
            vec!["Cluster.db.example web/pg"],
            vec!["ValidatingWebhookConfiguration.admissionregistration.k8s.io db"],
            vec!["ConfigMap web/web"],
            vec!["Deployment.apps web/web"],
        ]
    );
    assert_eq!(
        order.needs,
        [vec![2], vec![2], vec![], vec![2, 5], vec![], vec![]]
    );
}

#[test]
fn apps_in_a_circle_are_still_applied() {
    let (a, b): (AppName, AppName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let ids = [
        id("v1", "ConfigMap", Some("x"), "a"),
        id("v1", "ConfigMap", Some("x"), "b"),
    ];
    let items = [
        Item {
            id: &ids[0],
            app: &a,
            defines: None,
            hook: None,
        },
        Item {
            id: &ids[1],
            app: &b,
            defines: None,
            hook: None,
        },
    ];
    let (after_a, after_b) = ([b.clone()], [a.clone()]);
    let after = After::from([(&a, &after_a[..]), (&b, &after_b[..])]);
    assert_eq!(order(&items, &after).stages, [[0, 1]]);
}

#[test]
fn definitions_are_read_from_objects() {
    let object = |id: ObjectRef, json: &str| Object {
        id,
        json: json.into(),
    };
    let crd = object(
        crd("x.example", "Foo").0,
        r#"{"spec":{"group":"x.example","names":{"kind":"Foo","plural":"foos"},"scope":"Cluster","versions":[{"schema":{}}]}}"#,
    );
    assert_eq!(
        Definition::of(&crd),
        Some(Definition {
            group: "x.example".into(),
            kind: Some("Foo".into()),
            version: None,
            namespaced: Some(false)
        })
    );
    let service = object(
        id(
            "apiregistration.k8s.io/v1",
            "APIService",
            None,
            "v1.metrics",
        ),
        r#"{"spec":{"group":"metrics","version":"v1","service":{"name":"m"}}}"#,
    );
    let defined = Definition::of(&service).unwrap();
    assert!(defined.covers(&id("metrics/v1", "NodeMetrics", None, "n")));
    assert!(!defined.covers(&id("metrics/v2", "NodeMetrics", None, "n")));
    assert_eq!(
        Definition::of(&object(id("v1", "Namespace", None, "x"), "{}")),
        None
    );
}

type Element = (ObjectRef, AppName, Option<Definition>);

/// Generates a set of namespaces, definitions, custom resources and other objects, each at most once, with
/// arbitrary dependencies between apps.
fn sets() -> impl Strategy<Value = (Vec<Element>, Vec<(u8, u8)>)> {
    let object = (0..8u8, 0..4u8, 0..4u8, 0..4u8).prop_map(|(kind, namespace, name, app)| {
        let (ns, name) = (format!("ns{namespace}"), format!("n{name}"));
        let (id, defines) = match kind {
            0 => (id("v1", "Namespace", None, &ns), None),
            1 => crd(&format!("g{namespace}.example"), "Foo"),
            2 => (
                id(&format!("g{namespace}.example/v1"), "Foo", Some(&ns), &name),
                None,
            ),
            3 => (id("v1", "ConfigMap", Some(&ns), &name), None),
            4 => (id("apps/v1", "Deployment", Some(&ns), &name), None),
            5 => (
                id("apiregistration.k8s.io/v1", "APIService", None, &ns),
                Some(Definition {
                    group: format!("g{namespace}.example"),
                    kind: None,
                    version: Some("v2".into()),
                    namespaced: None,
                }),
            ),
            6 => (
                id(&format!("g{namespace}.example/v2"), "Bar", Some(&ns), &name),
                None,
            ),
            _ => (
                id(
                    "admissionregistration.k8s.io/v1",
                    "MutatingWebhookConfiguration",
                    None,
                    &name,
                ),
                None,
            ),
        };
        (id, format!("app{app}").parse::<AppName>().unwrap(), defines)
    });
    let objects = proptest::collection::vec(object, 0..40).prop_map(|mut objects| {
        objects.sort_by(|a, b| a.0.cmp(&b.0));
        objects.dedup_by(|a, b| a.0 == b.0);
        objects
    });
    (objects, proptest::collection::vec((0..4u8, 0..4u8), 0..6))
}

fn staged(objects: &[Element], edges: &[(u8, u8)]) -> (Order, Vec<Vec<String>>) {
    let apps: Vec<AppName> = (0..4).map(|i| format!("app{i}").parse().unwrap()).collect();
    let mut before: BTreeMap<&AppName, Vec<AppName>> = BTreeMap::new();
    for (a, b) in edges {
        before
            .entry(&apps[usize::from(*a)])
            .or_default()
            .push(apps[usize::from(*b)].clone());
    }
    let after: After<'_> = before.iter().map(|(k, v)| (*k, v.as_slice())).collect();
    let items: Vec<_> = objects
        .iter()
        .map(|(id, app, defines)| Item {
            id,
            app,
            defines: defines.as_ref(),
            hook: None,
        })
        .collect();
    let order = order(&items, &after);
    let names = names(&items, &order);
    (order, names)
}

proptest! {
    #[test]
    fn each_object_once_and_dependencies_first(
        (objects, edges) in sets(),
        seed in any::<u64>(),
    ) {
        let (order, names) = staged(&objects, &edges);
        let mut stage_of = vec![None; objects.len()];
        for (stage, indices) in order.stages.iter().enumerate() {
            prop_assert!(!indices.is_empty());
            for &i in indices {
                prop_assert_eq!(stage_of[i].replace(stage), None);
            }
        }
        for (i, (id, _, _)) in objects.iter().enumerate() {
            prop_assert!(stage_of[i].is_some());
            for (j, (other, _, defines)) in objects.iter().enumerate() {
                let namespace = other.gvk.kind == "Namespace"
                    && id.namespace.as_ref() == Some(&other.name);
                let needed = namespace || defines.as_ref().is_some_and(|d| d.covers(id));
                prop_assert_eq!(order.needs[i].contains(&j), needed);
                prop_assert!(!needed || stage_of[j] < stage_of[i]);
            }
        }
        // The same set in another order has the same stages.
        let mut shuffled = objects.clone();
        shuffled.sort_by_key(|(id, ..)| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (seed, id).hash(&mut hasher);
            hasher.finish()
        });
        prop_assert_eq!(staged(&shuffled, &edges).1, names);
    }
}
