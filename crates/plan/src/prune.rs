//! What is deleted: everything in the inventory that is no longer wanted, except what would take
//! something wanted with it.

use std::collections::HashSet;

use muster_model::bundle::ObjectRef;

use crate::order::{After, Foundation, Item, order};

/// One object of the inventory.
#[derive(Debug, Clone, Copy)]
pub struct Owned<'a> {
    /// Which object, of which app, defining what.
    pub item: Item<'a>,
    /// The UID that the API server gave it; `None` where it is not known to exist.
    pub uid: Option<&'a str>,
}

/// What happens to the objects of the inventory that are not wanted, by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Deleted, stage by stage: what others need comes last.
    pub delete: Vec<Vec<usize>>,
    /// Left where they are for now, with the reason.
    pub held: Vec<(usize, Held)>,
    /// Not deleted and no longer the inventory's: the live object is wanted under another type.
    pub handed_over: Vec<usize>,
}

/// Why an unwanted object is not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// A namespace with wanted objects in it.
    #[error("the namespace still holds {0}, which is wanted")]
    Namespace(ObjectRef),
    /// The definition of a wanted object's kind.
    #[error("it defines the kind of {0}, which is wanted")]
    Definition(ObjectRef),
    /// The namespace in which the agent keeps its own records.
    #[error("the agent keeps its own records in it")]
    OwnNamespace,
}

/// Decides what of `inventory` goes when `wanted` is all that should be. `own_namespace` is where the
/// agent lives.
#[must_use]
pub fn prune(inventory: &[Owned<'_>], wanted: &[Item<'_>], own_namespace: &str) -> Prune {
    let identities: HashSet<_> = wanted.iter().map(|item| item.id.identity()).collect();
    let (kept, unwanted): (Vec<usize>, Vec<usize>) = (0..inventory.len())
        .partition(|&index| identities.contains(&inventory[index].item.id.identity()));
    // One live object can be reached as two types (Ingress was in two groups). Deleting it under its
    // old name would delete what is wanted under its new one.
    let kept_uids: HashSet<_> = kept
        .iter()
        .filter_map(|&index| inventory[index].uid)
        .collect();

    let mut plan = Prune::default();
    let mut delete = Vec::new();
    for index in unwanted {
        let owned = &inventory[index];
        if owned.uid.is_some_and(|uid| kept_uids.contains(uid)) {
            plan.handed_over.push(index);
        } else if let Some(held) = held(&owned.item, wanted, own_namespace) {
            plan.held.push((index, held));
        } else {
            delete.push(index);
        }
    }
    let items: Vec<_> = delete.iter().map(|&index| inventory[index].item).collect();
    let stages = order(&items, &After::new()).stages.into_iter().rev();
    plan.delete = stages
        .map(|stage| stage.into_iter().map(|i| delete[i]).collect())
        .collect();
    plan
}

fn held(item: &Item<'_>, wanted: &[Item<'_>], own_namespace: &str) -> Option<Held> {
    let first = |inside: &dyn Fn(&ObjectRef) -> bool| {
        wanted
            .iter()
            .map(|item| item.id)
            .filter(|id| inside(id))
            .min()
            .cloned()
    };
    match Foundation::of(item.id)? {
        Foundation::Namespace if item.id.name == own_namespace => Some(Held::OwnNamespace),
        Foundation::Namespace => {
            first(&|id| id.namespace.as_ref() == Some(&item.id.name)).map(Held::Namespace)
        }
        Foundation::Definition | Foundation::ApiService => match item.defines {
            Some(defines) => first(&|id| defines.covers(id)),
            // Not understood: its name ends with its group, and that has to be enough.
            None => first(&|id| {
                let name = item.id.name.strip_suffix(id.gvk.group.as_str());
                !id.gvk.group.is_empty() && name.is_some_and(|rest| rest.ends_with('.'))
            }),
        }
        .map(Held::Definition),
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{bundle::Gvk, ids::AppName};
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

    struct Fixture {
        app: AppName,
        defines: Definition,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                app: "a".parse().unwrap(),
                defines: Definition {
                    group: "x.example".into(),
                    kind: Some("Foo".into()),
                    version: None,
                    namespaced: Some(true),
                },
            }
        }

        fn item<'a>(&'a self, id: &'a ObjectRef) -> Item<'a> {
            let crd = id.gvk.kind == "CustomResourceDefinition";
            Item {
                id,
                app: &self.app,
                defines: crd.then_some(&self.defines),
            }
        }

        fn prune(&self, inventory: &[(ObjectRef, &str)], wanted: &[ObjectRef]) -> Prune {
            let owned: Vec<_> = inventory
                .iter()
                .map(|(id, uid)| Owned {
                    item: self.item(id),
                    uid: Some(uid),
                })
                .collect();
            let wanted: Vec<_> = wanted.iter().map(|id| self.item(id)).collect();
            prune(&owned, &wanted, "muster-system")
        }
    }

    #[test]
    fn what_holds_something_wanted_stays() {
        let crd = id(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            None,
            "foos.x.example",
        );
        let inventory = [
            (id("v1", "Namespace", None, "web"), "1"),
            (crd, "2"),
            (id("v1", "Namespace", None, "muster-system"), "3"),
            (id("v1", "Namespace", None, "old"), "4"),
            (id("v1", "ConfigMap", Some("old"), "c"), "5"),
            (id("apps/v1beta1", "Deployment", Some("web"), "web"), "6"),
            (id("extensions/v1", "Ingress", Some("web"), "in"), "7"),
            (
                id("networking.k8s.io/v1", "Ingress", Some("web"), "in"),
                "7",
            ),
        ];
        let wanted = [
            id("x.example/v1", "Foo", Some("web"), "f"),
            id("apps/v1", "Deployment", Some("web"), "web"),
            id("networking.k8s.io/v1", "Ingress", Some("web"), "in"),
        ];
        assert_eq!(
            Fixture::new().prune(&inventory, &wanted),
            Prune {
                delete: vec![vec![4], vec![3]],
                held: vec![
                    (0, Held::Namespace(wanted[1].clone())),
                    (1, Held::Definition(wanted[0].clone())),
                    (2, Held::OwnNamespace),
                ],
                handed_over: vec![6],
            }
        );
    }

    fn objects() -> impl Strategy<Value = Vec<ObjectRef>> {
        let object = (0..5u8, 0..3u8, 0..3u8, 1..3u8).prop_map(|(kind, ns, name, version)| {
            let (ns, name) = (format!("ns{ns}"), format!("n{name}"));
            match kind {
                0 => id("v1", "Namespace", None, &ns),
                1 => id(
                    "apiextensions.k8s.io/v1",
                    "CustomResourceDefinition",
                    None,
                    "foos.x.example",
                ),
                2 => id(&format!("x.example/v{version}"), "Foo", Some(&ns), &name),
                3 => id("v1", "ConfigMap", Some(&ns), &name),
                _ => id(&format!("apps/v{version}"), "Deployment", Some(&ns), &name),
            }
        });
        proptest::collection::vec(object, 0..25).prop_map(|objects| {
            let mut seen = HashSet::new();
            let new = |id: &ObjectRef| {
                let (group, kind, namespace, name) = id.identity();
                let namespace = namespace.map(str::to_owned);
                seen.insert((
                    group.to_owned(),
                    kind.to_owned(),
                    namespace,
                    name.to_owned(),
                ))
            };
            let mut new = new;
            objects.into_iter().filter(|id| new(id)).collect()
        })
    }

    proptest! {
        #[test]
        fn only_unwanted_objects_of_the_inventory_go_and_a_second_look_finds_nothing(
            inventory in objects(),
            wanted in objects(),
        ) {
            let fixture = Fixture::new();
            let uids: Vec<String> = (0..inventory.len()).map(|i| format!("uid{i}")).collect();
            let owned: Vec<_> =
                inventory.iter().cloned().zip(uids.iter().map(String::as_str)).collect();
            let plan = fixture.prune(&owned, &wanted);

            let deleted: Vec<usize> = plan.delete.iter().flatten().copied().collect();
            let held: HashSet<usize> = plan.held.iter().map(|(index, _)| *index).collect();
            let is_wanted = |id: &ObjectRef| wanted.iter().any(|w| w.identity() == id.identity());
            for (index, id) in inventory.iter().enumerate() {
                let times = deleted.iter().filter(|d| **d == index).count();
                prop_assert!(times <= 1);
                prop_assert_eq!(times == 1, !is_wanted(id) && !held.contains(&index));
                if times == 1 && id.gvk.kind == "Namespace" {
                    let inside = wanted.iter().any(|w| w.namespace.as_ref() == Some(&id.name));
                    prop_assert!(!inside);
                }
            }
            // What is inside a namespace goes in an earlier stage than the namespace.
            for (stage, indices) in plan.delete.iter().enumerate() {
                for later in plan.delete.iter().skip(stage).flatten() {
                    for index in indices {
                        let namespace = &inventory[*index];
                        prop_assert!(
                            namespace.gvk.kind != "Namespace"
                                || inventory[*later].namespace.as_ref() != Some(&namespace.name)
                        );
                    }
                }
            }
            // Afterwards the inventory is what is wanted and what is held: nothing more to delete.
            let mut after: Vec<_> = wanted.iter().map(|id| (id.clone(), "new")).collect();
            after.extend(held.iter().map(|&index| owned[index].clone()));
            let again = fixture.prune(&after, &wanted);
            prop_assert_eq!(again.delete, Vec::<Vec<usize>>::new());
        }
    }
}
