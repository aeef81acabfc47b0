use muster_model::bundle::{Gvk, ObjectRef};
use proptest::prelude::*;

use super::*;
use crate::order::Definition;

fn id(api: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectRef {
    ObjectRef {
        gvk: Gvk::from_api_version(api, kind),
        namespace: namespace.map(Into::into),
        name: name.into(),
    }
}

struct World {
    apps: Vec<AppName>,
    ids: Vec<(usize, ObjectRef)>,
    foo: Definition,
}

impl World {
    fn new(objects: &[(usize, ObjectRef)]) -> Self {
        Self {
            apps: ["operator", "use", "other"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            ids: objects.to_vec(),
            foo: Definition {
                group: "x.example".into(),
                kind: Some("Foo".into()),
                version: None,
                namespaced: Some(true),
            },
        }
    }

    /// Deletes everything wave by wave. The deletion of the objects in `stuck` never finishes.
    fn waves(&self, after: &After<'_>, stuck: &[usize]) -> (Vec<Vec<usize>>, Wave) {
        let mut gone = BTreeSet::new();
        let mut asked: BTreeSet<usize> = BTreeSet::new();
        let mut waves = Vec::new();
        loop {
            let there: Vec<usize> = (0..self.ids.len()).filter(|i| !gone.contains(i)).collect();
            let leaving: Vec<Leaving<'_>> = there
                .iter()
                .map(|&i| {
                    let (app, id) = &self.ids[i];
                    Leaving {
                        item: Item {
                            id,
                            app: &self.apps[*app],
                            defines: (id.gvk.kind == "CustomResourceDefinition")
                                .then_some(&self.foo),
                            hook: None,
                        },
                        deletable: !asked.contains(&i),
                        aggregates: id.name == "all",
                    }
                })
                .collect();
            let next = wave(&leaving, after);
            if next.delete.is_empty() {
                let back = |i: &usize| there[*i];
                let behind = next.behind.iter().map(|(a, b)| (back(a), back(b)));
                let behind = behind.collect();
                return (
                    waves,
                    Wave {
                        delete: vec![],
                        behind,
                    },
                );
            }
            let wave: Vec<usize> = next.delete.iter().map(|&i| there[i]).collect();
            asked.extend(&wave);
            gone.extend(wave.iter().copied().filter(|i| !stuck.contains(i)));
            waves.push(wave);
        }
    }
}

fn crd() -> ObjectRef {
    id(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        None,
        "foos.x.example",
    )
}

#[test]
fn custom_resources_go_before_their_operator_and_it_waits_for_their_finalizers() {
    let world = World::new(&[
        (0, crd()),
        (0, id("apps/v1", "Deployment", Some("op"), "operator")),
        (0, id("v1", "ServiceAccount", Some("op"), "operator")),
        (0, id("v1", "Namespace", None, "op")),
        (1, id("x.example/v1", "Foo", Some("web"), "f")),
        (1, id("v1", "ConfigMap", Some("web"), "c")),
        (2, id("v1", "ConfigMap", Some("web"), "unrelated")),
    ]);
    let none = After::new();
    let (waves, rest) = world.waves(&none, &[]);
    assert_eq!(waves, [vec![4, 6], vec![1, 5], vec![2], vec![0, 3]]);
    assert_eq!(rest, Wave::default());
    // The resource's finalizer does not finish, so the operator and the definition stay.
    let (waves, rest) = world.waves(&none, &[4]);
    assert_eq!(waves, [vec![4, 6]]);
    assert_eq!(rest.behind, [(0, 1), (1, 4), (2, 1), (3, 1), (5, 4)]);
}

#[test]
fn an_app_goes_after_those_that_depend_on_it() {
    let world = World::new(&[
        (0, id("apps/v1", "Deployment", Some("db"), "db")),
        (1, id("apps/v1", "Deployment", Some("web"), "web")),
        (1, id("v1", "ConfigMap", Some("web"), "c")),
    ]);
    let before = [world.apps[0].clone()];
    let after = After::from([(&world.apps[1], &before[..])]);
    assert_eq!(world.waves(&after, &[]).0, [vec![1], vec![2], vec![0]]);
    // In a cycle, no app waits.
    let circle = [world.apps[1].clone()];
    let after = After::from([(&world.apps[1], &before[..]), (&world.apps[0], &circle[..])]);
    assert_eq!(world.waves(&after, &[]).0, [vec![0, 1], vec![2]]);
}

#[test]
fn an_aggregated_role_goes_before_its_parts() {
    let rbac = "rbac.authorization.k8s.io/v1";
    let world = World::new(&[
        (0, id(rbac, "ClusterRole", None, "part")),
        (0, id(rbac, "ClusterRole", None, "all")),
    ]);
    assert_eq!(world.waves(&After::new(), &[]).0, [[1], [0]]);
}

proptest! {
    #[test]
    fn everything_goes_in_the_end_and_a_namespace_after_what_is_in_it(
        objects in proptest::collection::btree_set((0..3_usize, 0..6_u8, 0..2_u8, 0..3_u8), 0..20),
        depends in proptest::collection::btree_set((0..3_usize, 0..3_usize), 0..5),
    ) {
        let mut seen = BTreeSet::new();
        let objects = objects.into_iter().map(|(app, kind, ns, name)| {
            let (ns, name) = (format!("ns{ns}"), format!("n{name}"));
            let id = match kind {
                0 => id("v1", "Namespace", None, &ns),
                1 => crd(),
                2 => id("x.example/v1", "Foo", Some(&ns), &name),
                3 => id("v1", "ConfigMap", Some(&ns), &name),
                4 => id("rbac.authorization.k8s.io/v1", "ClusterRole", None, if name == "n0" { "all" } else { &name }),
                _ => id("apps/v1", "Deployment", Some(&ns), &name),
            };
            (app, id)
        });
        let objects: Vec<_> = objects.filter(|(_, id)| seen.insert(id.clone())).collect();
        let world = World::new(&objects);
        let mut lists: BTreeMap<usize, Vec<AppName>> = BTreeMap::new();
        for (app, before) in depends {
            lists.entry(app).or_default().push(world.apps[before].clone());
        }
        let after: After<'_> =
            lists.iter().map(|(app, list)| (&world.apps[*app], list.as_slice())).collect();
        let (waves, rest) = world.waves(&after, &[]);
        prop_assert_eq!(rest, Wave::default());
        let all: Vec<usize> = waves.iter().flatten().copied().collect();
        prop_assert_eq!(all.len(), objects.len());
        for (at, &index) in all.iter().enumerate() {
            let (_, id) = &objects[index];
            for &later in &all[at..] {
                let other = &objects[later].1;
                prop_assert!(id.gvk.kind != "Namespace" || other.namespace.as_ref() != Some(&id.name));
                prop_assert!(id.gvk.kind != "CustomResourceDefinition" || other.gvk.kind != "Foo");
            }
        }
    }
}
