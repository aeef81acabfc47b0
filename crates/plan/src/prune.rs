//! What is deleted: everything in the inventory that is no longer wanted, except what would take
//! something wanted with it, what somebody protects, and what is too much to be meant.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash},
    policy::PruneOrders,
};

use crate::{
    immutable::is_precious,
    order::{After, Foundation, Item, order},
};

/// Annotation on a live object that keeps it (`disabled`) or lets a protected kind go (`enabled`).
pub const PRUNE: &str = "muster.dev/prune";

/// What the annotation [`PRUNE`] on the live object says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// Nothing.
    #[default]
    None,
    /// It stays and is nobody's any more.
    Keep,
    /// It may go although its kind is protected.
    MayGo,
}

impl Mark {
    /// Reads the annotation. An unknown word keeps the object: somebody meant to say something.
    #[must_use]
    pub fn of(annotation: Option<&str>) -> Self {
        match annotation {
            None => Self::None,
            Some("enabled") => Self::MayGo,
            Some(_) => Self::Keep,
        }
    }
}

/// One object of the inventory.
#[derive(Debug, Clone, Copy)]
pub struct Owned<'a> {
    /// Which object, of which app, defining what.
    pub item: Item<'a>,
    /// The UID that the API server gave it; `None` where it is not known to exist.
    pub uid: Option<&'a str>,
    /// That it goes was decided before.
    pub going: bool,
    /// What its annotation says.
    pub mark: Mark,
}

/// What a generation wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Every object.
    pub items: &'a [Item<'a>],
    /// Apps that are there and have no object at all.
    pub emptied: &'a BTreeSet<&'a AppName>,
    /// Apps by the names that they had before.
    pub formerly: &'a BTreeMap<&'a AppName, &'a AppName>,
}

/// What happens to the objects of the inventory that are not wanted, by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Deleted, stage by stage: what others need comes last.
    pub delete: Vec<Vec<usize>>,
    /// Left where they are for now, with the reason.
    pub held: Vec<(usize, Held)>,
    /// Left where they are until a person approves exactly this.
    pub sets: Vec<HeldSet>,
    /// Not deleted and no longer the inventory's: the live object is wanted under another type.
    pub handed_over: Vec<usize>,
    /// Not deleted and no longer the inventory's, because somebody said so on the object.
    pub released: Vec<usize>,
}

/// Objects of one app that wait for an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSet {
    /// The app that they came from.
    pub app: AppName,
    /// Names exactly these objects.
    pub set: ContentHash,
    /// Why they are held.
    pub reason: String,
    /// The objects.
    pub members: Vec<usize>,
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
pub fn prune(
    inventory: &[Owned<'_>],
    wanted: Wanted<'_>,
    own_namespace: &str,
    orders: &PruneOrders,
) -> Prune {
    let identities: HashSet<_> = wanted.items.iter().map(|item| item.id.identity()).collect();
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
    let mut asked: BTreeMap<&AppName, Vec<usize>> = BTreeMap::new();
    for index in unwanted {
        let owned = &inventory[index];
        if owned.uid.is_some_and(|uid| kept_uids.contains(uid)) {
            plan.handed_over.push(index);
        } else if let Some(held) = held(&owned.item, wanted.items, own_namespace) {
            plan.held.push((index, held));
        } else if owned.mark == Mark::Keep {
            plan.released.push(index);
        } else if owned.going || owned.uid.is_none() {
            delete.push(index);
        } else {
            let app = wanted
                .formerly
                .get(owned.item.app)
                .unwrap_or(&owned.item.app);
            asked.entry(app).or_default().push(index);
        }
    }
    let (go, sets) = within_budget(inventory, asked, wanted, orders);
    delete.extend(go);
    delete.sort_unstable();
    plan.sets = sets;
    let items: Vec<_> = delete.iter().map(|&index| inventory[index].item).collect();
    let stages = order(&items, &After::new()).stages.into_iter().rev();
    plan.delete = stages
        .map(|stage| stage.into_iter().map(|i| delete[i]).collect())
        .collect();
    plan
}

/// Splits what could go into what goes and what is asked first.
fn within_budget(
    inventory: &[Owned<'_>],
    asked: BTreeMap<&AppName, Vec<usize>>,
    wanted: Wanted<'_>,
    orders: &PruneOrders,
) -> (Vec<usize>, Vec<HeldSet>) {
    let mut of_app: HashMap<&AppName, usize> = HashMap::new();
    for owned in inventory {
        let app = wanted
            .formerly
            .get(owned.item.app)
            .unwrap_or(&owned.item.app);
        *of_app.entry(app).or_default() += 1;
    }
    let budget = orders.budget;
    let (mut go, mut sets) = (Vec::new(), Vec::new());
    let mut free = Vec::new();
    for (app, all) in asked {
        if orders.approved.contains(&set_of(inventory, &all)) {
            go.extend(all);
            continue;
        }
        let (precious, rest): (Vec<usize>, Vec<usize>) = all.iter().partition(|&&index| {
            is_precious(inventory[index].item.id) && inventory[index].mark != Mark::MayGo
        });
        if orders.approved.contains(&set_of(inventory, &precious)) {
            go.extend(&precious);
            free.push((app, rest, Vec::new()));
        } else {
            free.push((app, rest, precious));
        }
    }
    let (total, allowed_in_all) = (inventory.len(), budget.of(inventory.len()));
    let mut together = 0;
    let mut reasons: Vec<Option<String>> = Vec::new();
    for (app, rest, _) in &free {
        let of_app = of_app.get(app).copied().unwrap_or_default();
        let allowed = budget.of(of_app);
        reasons.push(if rest.is_empty() {
            None
        } else if wanted.emptied.contains(app) {
            Some("the app renders to nothing, which would delete all that it has".to_owned())
        } else if rest.len() > allowed {
            let number = rest.len();
            Some(format!(
                "{number} of its {of_app} objects would be deleted, and the prune budget is {allowed}"
            ))
        } else {
            together += rest.len();
            None
        });
    }
    for ((app, rest, precious), reason) in free.into_iter().zip(reasons) {
        let reason = match reason {
            None if together > allowed_in_all && !rest.is_empty() => Some(format!(
                "{together} of the cluster's {total} objects would be deleted, and the prune budget is \
                 {allowed_in_all}"
            )),
            reason => reason,
        };
        let (members, reason) = match reason {
            Some(reason) => ([rest, precious].concat(), reason),
            None => {
                go.extend(rest);
                let kinds: BTreeSet<&str> = precious
                    .iter()
                    .map(|&index| inventory[index].item.id.gvk.kind.as_str())
                    .collect();
                let kinds: Vec<&str> = kinds.into_iter().collect();
                (precious, format!("protected: {}", kinds.join(", ")))
            }
        };
        if !members.is_empty() {
            let mut members = members;
            members.sort_unstable();
            sets.push(HeldSet {
                app: app.clone(),
                set: set_of(inventory, &members),
                reason,
                members,
            });
        }
    }
    (go, sets)
}

/// The name of exactly these live objects.
fn set_of(inventory: &[Owned<'_>], members: &[usize]) -> ContentHash {
    let mut lines: Vec<String> = members
        .iter()
        .map(|&index| {
            let owned = &inventory[index];
            let (group, kind, namespace, name) = owned.item.id.identity();
            let namespace = namespace.unwrap_or_default();
            let uid = owned.uid.unwrap_or_default();
            format!("{group}/{kind}/{namespace}/{name}/{uid}\n")
        })
        .collect();
    lines.sort_unstable();
    ContentHash::of(lines.concat().as_bytes())
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
    use muster_model::{bundle::Gvk, policy::PruneBudget};
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
                hook: None,
            }
        }

        fn prune(&self, inventory: &[(ObjectRef, &str)], wanted: &[ObjectRef]) -> Prune {
            let owned: Vec<_> = inventory
                .iter()
                .map(|(id, uid)| self.owned(id, uid))
                .collect();
            let wanted: Vec<_> = wanted.iter().map(|id| self.item(id)).collect();
            prune(
                &owned,
                in_all(&wanted),
                "muster-system",
                &orders(u32::MAX, 100),
            )
        }

        fn owned<'a>(&'a self, id: &'a ObjectRef, uid: &'a str) -> Owned<'a> {
            Owned {
                item: self.item(id),
                uid: Some(uid),
                going: false,
                mark: Mark::MayGo,
            }
        }
    }

    static NONE: (BTreeSet<&AppName>, BTreeMap<&AppName, &AppName>) =
        (BTreeSet::new(), BTreeMap::new());

    fn in_all<'a>(items: &'a [Item<'a>]) -> Wanted<'a> {
        Wanted {
            items,
            emptied: &NONE.0,
            formerly: &NONE.1,
        }
    }

    fn orders(objects: u32, percent: u8) -> PruneOrders {
        PruneOrders {
            budget: PruneBudget { objects, percent },
            approved: BTreeSet::new(),
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
                ..Prune::default()
            }
        );
    }

    /// An inventory of so many ConfigMaps of app `a`, with a namespace.
    fn many(fixture: &Fixture, count: usize, check: impl Fn(&[Owned<'_>])) {
        let ids: Vec<ObjectRef> = (0..count)
            .map(|i| id("v1", "ConfigMap", Some("web"), &format!("c{i}")))
            .chain([id("v1", "Namespace", None, "web")])
            .collect();
        let uids: Vec<String> = (0..ids.len()).map(|i| format!("u{i}")).collect();
        let mut owned: Vec<Owned<'_>> = ids
            .iter()
            .zip(&uids)
            .map(|(id, uid)| fixture.owned(id, uid))
            .collect();
        for owned in &mut owned {
            owned.mark = Mark::None;
        }
        check(&owned);
    }

    #[test]
    fn a_protected_kind_waits_for_approval_of_exactly_that_set() {
        let fixture = Fixture::new();
        many(&fixture, 2, |owned| {
            let plan = prune(owned, in_all(&[]), "m", &orders(5, 0));
            assert_eq!(plan.delete, [[0, 1]]);
            let set = set_of(owned, &[2]);
            assert_eq!(
                plan.sets,
                [HeldSet {
                    app: fixture.app.clone(),
                    set,
                    reason: "protected: Namespace".into(),
                    members: vec![2],
                }]
            );
            let mut approved = orders(5, 0);
            approved.approved.insert(set);
            let plan = prune(owned, in_all(&[]), "m", &approved);
            assert_eq!(
                (plan.delete, plan.sets),
                (vec![vec![0, 1], vec![2]], vec![])
            );
            // Another object of the same name is not what was approved.
            let mut other = owned.to_vec();
            other[2].uid = Some("other");
            assert_eq!(prune(&other, in_all(&[]), "m", &approved).sets.len(), 1);
        });
    }

    #[test]
    fn more_than_the_budget_is_held_as_a_whole() {
        let fixture = Fixture::new();
        many(&fixture, 8, |owned| {
            let plan = prune(owned, in_all(&[]), "m", &orders(5, 25));
            assert_eq!(plan.delete, Vec::<Vec<usize>>::new());
            let members: Vec<usize> = (0..9).collect();
            assert_eq!(plan.sets[0].members, members);
            assert_eq!(
                plan.sets[0].reason,
                "8 of its 9 objects would be deleted, and the prune budget is 5"
            );
            // What was decided before goes on although it is more.
            let mut going = owned.to_vec();
            for owned in &mut going {
                owned.going = true;
            }
            assert_eq!(prune(&going, in_all(&[]), "m", &orders(5, 25)).sets, []);
        });
    }

    #[test]
    fn small_cuts_everywhere_are_a_large_one() {
        let fixture = Fixture::new();
        let apps: Vec<AppName> = (0..4).map(|i| format!("app{i}").parse().unwrap()).collect();
        many(&fixture, 8, |owned| {
            let mut owned = owned[..8].to_vec();
            for (index, owned) in owned.iter_mut().enumerate() {
                owned.item.app = &apps[index / 2];
            }
            let plan = prune(&owned, in_all(&[]), "m", &orders(3, 0));
            assert_eq!((plan.delete.len(), plan.sets.len()), (0, 4));
            assert!(
                plan.sets[0]
                    .reason
                    .starts_with("8 of the cluster's 8 objects")
            );
        });
    }

    #[test]
    fn an_app_that_renders_to_nothing_is_held() {
        let fixture = Fixture::new();
        let emptied = BTreeSet::from([&fixture.app]);
        many(&fixture, 1, |owned| {
            let wanted = Wanted {
                emptied: &emptied,
                ..in_all(&[])
            };
            let plan = prune(owned, wanted, "m", &orders(100, 100));
            assert_eq!((plan.delete.len(), plan.sets[0].members.len()), (0, 2));
        });
    }

    #[test]
    fn a_person_may_keep_an_object() {
        let fixture = Fixture::new();
        many(&fixture, 1, |owned| {
            let mut owned = owned.to_vec();
            owned[0].mark = Mark::Keep;
            owned[1].mark = Mark::MayGo;
            let plan = prune(&owned, in_all(&[]), "m", &orders(100, 100));
            assert_eq!((plan.released, plan.delete), (vec![0], vec![vec![1]]));
        });
    }

    #[test]
    fn a_renamed_app_counts_as_one() {
        let fixture = Fixture::new();
        let new: AppName = "new".parse().unwrap();
        let formerly = BTreeMap::from([(&fixture.app, &new)]);
        many(&fixture, 40, |owned| {
            let mut owned = owned[..40].to_vec();
            for owned in &mut owned[..32] {
                owned.item.app = &new;
            }
            let items: Vec<_> = owned[..32].iter().map(|owned| owned.item).collect();
            let wanted = |formerly| Wanted {
                formerly,
                ..in_all(&items)
            };
            let plan = prune(&owned, wanted(&formerly), "m", &orders(5, 25));
            assert_eq!((plan.delete.len(), plan.sets.len()), (1, 0));
            let plan = prune(&owned, wanted(&NONE.1), "m", &orders(5, 0));
            assert_eq!((plan.delete.len(), plan.sets.len()), (0, 1));
        });
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
