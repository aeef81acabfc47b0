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

    fn prune(&self, inventory: &[(ObjectRef, &str)], desired: &[ObjectRef]) -> Prune {
        let owned: Vec<_> = inventory
            .iter()
            .map(|(id, uid)| self.owned(id, uid))
            .collect();
        let desired: Vec<_> = desired.iter().map(|id| self.item(id)).collect();
        prune(
            &owned,
            in_all(&desired),
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
            precious: false,
        }
    }
}

static NONE: (
    BTreeSet<&AppName>,
    BTreeMap<&AppName, &AppName>,
    BTreeMap<&AppName, String>,
    Spent,
) = (
    BTreeSet::new(),
    BTreeMap::new(),
    BTreeMap::new(),
    Spent {
        apps: BTreeMap::new(),
        ceiling: None,
    },
);
static NOT_URGENT: BTreeSet<AppName> = BTreeSet::new();

fn in_all<'a>(items: &'a [Item<'a>]) -> Desired<'a> {
    Desired {
        items,
        emptied: &NONE.0,
        formerly: &NONE.1,
        apps: &NONE.0,
        unfinished: &NONE.2,
        urgent: &NOT_URGENT,
        spent: &NONE.3,
    }
}

fn orders(objects: u32, percent: u8) -> PruneOrders {
    // All apps of these tests may be deleted as a whole.
    let apps = ["a", "new", "other", "app0", "app1", "app2", "app3"];
    PruneOrders {
        budget: PruneBudget { objects, percent },
        approved: apps
            .map(|app| PruneOrders::leaving(&app.parse().unwrap()))
            .into(),
        unknown: BTreeSet::new(),
    }
}

#[test]
fn many_small_cuts_within_an_hour_are_a_large_one() {
    let fixture = Fixture::new();
    many(&fixture, 9, |owned| {
        let apps = BTreeSet::from([&fixture.app]);
        let planned = |spent: usize, ceiling: Option<usize>, gone: usize| {
            let spent = Spent {
                apps: BTreeMap::from([(fixture.app.clone(), spent)]),
                ceiling,
            };
            let kept: Vec<_> = owned[gone..].iter().map(|owned| owned.item).collect();
            let desired = Desired {
                apps: &apps,
                spent: &spent,
                ..in_all(&kept)
            };
            prune(owned, desired, "m", &orders(3, 25))
        };
        let plan = planned(0, None, 2);
        assert_eq!(plan.delete, [0, 1]);
        assert_eq!(plan.unasked, BTreeMap::from([(fixture.app.clone(), 2)]));
        // Two objects were already deleted, and the budget is three.
        let plan = planned(2, None, 2);
        assert_eq!((plan.delete.len(), plan.unasked.len()), (0, 0));
        assert_eq!(
            plan.sets[0].reason,
            "2 of its 10 objects would be deleted, and the prune budget is 1 (2 already deleted within the last hour)"
        );
        assert_eq!(planned(2, None, 1).delete, [0]);
        // The agent's own ceiling applies even if the budget allows more.
        let plan = planned(1, Some(2), 2);
        assert_eq!(
            plan.sets[0].reason,
            "2 objects would be deleted, and this agent's own ceiling (--prune-ceiling) is 1 (1 already deleted within the last hour)"
        );
        assert_eq!(planned(1, Some(2), 1).delete, [0]);
        assert_eq!(planned(0, Some(0), 1).delete, [0; 0]);
    });
}

#[test]
fn an_app_that_the_hub_does_not_remember_is_left_alone() {
    let fixture = Fixture::new();
    many(&fixture, 2, |owned| {
        let mut orders = orders(u32::MAX, 100);
        orders.unknown.insert(fixture.app.clone());
        let plan = prune(&owned[..2], in_all(&[]), "m", &orders);
        assert_eq!(
            plan.not_deleted,
            [(0, NotDeleted::Unknown), (1, NotDeleted::Unknown)]
        );
        assert_eq!((plan.delete.len(), plan.sets.len()), (0, 0));
    });
}

#[test]
fn namespaces_and_definitions_of_desired_objects_stay() {
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
    let desired = [
        id("x.example/v1", "Foo", Some("web"), "f"),
        id("apps/v1", "Deployment", Some("web"), "web"),
        id("networking.k8s.io/v1", "Ingress", Some("web"), "in"),
    ];
    assert_eq!(
        Fixture::new().prune(&inventory, &desired),
        Prune {
            delete: vec![3, 4],
            unasked: BTreeMap::from([("a".parse().unwrap(), 2)]),
            not_deleted: vec![
                (0, NotDeleted::Namespace(desired[1].clone())),
                (1, NotDeleted::Definition(desired[0].clone())),
                (2, NotDeleted::OwnNamespace),
            ],
            handed_over: vec![6],
            ..Prune::default()
        }
    );
}

/// Runs `check` on an inventory of `count` ConfigMaps of app `a` and their namespace.
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
fn a_protected_kind_is_deleted_after_an_approval_of_exactly_that_set() {
    let fixture = Fixture::new();
    many(&fixture, 2, |owned| {
        let plan = prune(owned, in_all(&[]), "m", &orders(5, 0));
        assert_eq!(plan.delete, [0, 1]);
        let set = set_of(owned, &[2]);
        assert_eq!(
            plan.sets,
            [PendingSet {
                app: fixture.app.clone(),
                set,
                reason: "protected: Namespace".into(),
                members: vec![2],
            }]
        );
        let mut approved = orders(5, 0);
        approved.approved.insert(set);
        let plan = prune(owned, in_all(&[]), "m", &approved);
        assert_eq!((plan.delete, plan.sets), (vec![0, 1, 2], vec![]));
        // The approval does not cover another object of the same name.
        let mut other = owned.to_vec();
        other[2].uid = Some("other");
        assert_eq!(prune(&other, in_all(&[]), "m", &approved).sets.len(), 1);
    });
}

#[test]
fn more_than_the_budget_is_pending_approval_as_a_whole() {
    let fixture = Fixture::new();
    many(&fixture, 8, |owned| {
        let plan = prune(owned, in_all(&[]), "m", &orders(5, 25));
        assert_eq!(plan.delete, Vec::<usize>::new());
        let members: Vec<usize> = (0..9).collect();
        assert_eq!(plan.sets[0].members, members);
        assert_eq!(
            plan.sets[0].reason,
            "8 of its 9 objects would be deleted, and the prune budget is 5"
        );
        // Deletions that were decided before continue although they exceed the budget.
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
                .starts_with("8 of the 8 objects of several apps")
        );
    });
}

#[test]
fn deleting_an_app_that_renders_to_nothing_is_pending_approval() {
    let fixture = Fixture::new();
    let emptied = BTreeSet::from([&fixture.app]);
    many(&fixture, 1, |owned| {
        let desired = Desired {
            emptied: &emptied,
            ..in_all(&[])
        };
        let plan = prune(owned, desired, "m", &orders(100, 100));
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
        // The other object is its namespace, whose deletion would also delete it.
        let plan = prune(&owned, in_all(&[]), "m", &orders(100, 100));
        let [kept, namespace] = [0, 1].map(|index| owned[index].item.id.clone());
        assert_eq!((plan.released, plan.delete), (vec![], vec![]));
        assert_eq!(
            plan.not_deleted,
            [
                (0, NotDeleted::Kept(namespace)),
                (1, NotDeleted::Keeps(kept))
            ]
        );
    });
    many(&fixture, 2, |owned| {
        let mut owned = owned[..2].to_vec();
        owned[0].mark = Mark::Keep;
        let plan = prune(&owned, in_all(&[]), "m", &orders(100, 100));
        assert_eq!((plan.released, plan.delete), (vec![0], vec![1]));
    });
}

#[test]
fn an_operator_stays_while_a_resource_of_its_kind_is_pending_approval() {
    let fixture = Fixture::new();
    let user: AppName = "user".parse().unwrap();
    let crd = "CustomResourceDefinition";
    let ids = [
        id("apps/v1", "Deployment", Some("web"), "operator"),
        id("apiextensions.k8s.io/v1", crd, None, "foos.x.example"),
        id("x.example/v1", "Foo", Some("web"), "used"),
        id("v1", "ConfigMap", Some("web"), "of the user"),
    ];
    let uids = ["0", "1", "2", "3"];
    let mut owned: Vec<Owned<'_>> = ids
        .iter()
        .zip(uids)
        .map(|(id, uid)| fixture.owned(id, uid))
        .collect();
    owned[2].item.app = &user;
    owned[3].item.app = &user;
    owned[2].mark = Mark::None;
    owned[2].precious = true;
    let apps = BTreeSet::from([&fixture.app, &user]);
    let want = Desired {
        apps: &apps,
        ..in_all(&[])
    };
    let mut said = orders(100, 100);
    let plan = prune(&owned, want, "m", &said);
    let (object, app) = (ids[2].clone(), user.clone());
    assert!(
        plan.not_deleted
            .contains(&(0, NotDeleted::Operator { object, app }))
    );
    assert_eq!(
        (&*plan.delete, &*plan.sets[0].members),
        (&[3][..], &[2][..])
    );
    said.approved.insert(plan.sets[0].set);
    assert_eq!(prune(&owned, want, "m", &said).delete, [0, 1, 2, 3]);
}

#[test]
fn objects_that_kubernetes_recreates_are_known() {
    let none = |_: &str| None;
    let service = |namespace| id("v1", "Service", Some(namespace), "kubernetes");
    assert!(is_permanent(&service("default"), none));
    assert!(!is_permanent(&service("web"), none));
    let role = id("rbac.authorization.k8s.io/v1", "ClusterRole", None, "view");
    assert!(!is_permanent(&role, none));
    let label = |key: &str| (key == "kubernetes.io/bootstrapping").then_some("rbac-defaults");
    assert!(is_permanent(&role, label));
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
        let desired = |formerly| Desired {
            formerly,
            ..in_all(&items)
        };
        let plan = prune(&owned, desired(&formerly), "m", &orders(5, 25));
        assert_eq!((plan.delete.len(), plan.sets.len()), (8, 0));
        let plan = prune(&owned, desired(&NONE.1), "m", &orders(5, 0));
        assert_eq!((plan.delete.len(), plan.sets.len()), (0, 1));
    });
}

#[test]
fn nothing_is_deleted_while_its_apps_desired_objects_are_not_healthy() {
    let fixture = Fixture::new();
    let why = "Deployment web/new: refused".to_owned();
    let unfinished = BTreeMap::from([(&fixture.app, why.clone())]);
    let ids = [
        id("apps/v1", "Deployment", Some("web"), "old"),
        id("v1", "Service", Some("web"), "old"),
        id(
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            None,
            "old",
        ),
        id("v1", "ConfigMap", Some("web"), "going"),
    ];
    let mut owned: Vec<Owned<'_>> = ids.iter().map(|id| fixture.owned(id, "u")).collect();
    owned[1].mark = Mark::First;
    owned[3].going = true;
    let desired = Desired {
        unfinished: &unfinished,
        ..in_all(&[])
    };
    let plan = prune(&owned, desired, "m", &orders(100, 100));
    assert_eq!(plan.not_deleted, [(0, NotDeleted::Replacement(why))]);
    assert_eq!(plan.delete, [1, 2, 3]);
}

#[test]
fn what_kubernetes_never_lets_go_is_released() {
    let fixture = Fixture::new();
    let ids = [
        id("v1", "Namespace", None, "kube-system"),
        id("v1", "Namespace", None, "web"),
    ];
    let owned: Vec<Owned<'_>> = ids.iter().map(|id| fixture.owned(id, "u")).collect();
    let plan = prune(&owned, in_all(&[]), "m", &orders(100, 100));
    assert_eq!((plan.released, plan.delete), (vec![0], vec![1]));
}

#[test]
fn an_approved_namespace_stays_while_it_contains_what_is_pending_approval() {
    let fixture = Fixture::new();
    let other: AppName = "other".parse().unwrap();
    let ids = [
        id("v1", "Namespace", None, "web"),
        id("v1", "PersistentVolumeClaim", Some("web"), "data"),
    ];
    let mut owned: Vec<Owned<'_>> = ids.iter().map(|id| fixture.owned(id, "u")).collect();
    for owned in &mut owned {
        owned.mark = Mark::None;
    }
    owned[1].item.app = &other;
    let mut approved = orders(100, 100);
    approved.approved.insert(set_of(&owned, &[0]));
    let plan = prune(&owned, in_all(&[]), "m", &approved);
    let not_deleted = NotDeleted::Elsewhere {
        object: ids[1].clone(),
        app: other.clone(),
    };
    assert_eq!(
        (plan.not_deleted, plan.delete),
        (vec![(0, not_deleted)], vec![])
    );
    assert_eq!(plan.sets[0].app, other);
}

#[test]
fn deleting_a_removed_app_needs_an_approval_unless_a_commit_allows_it() {
    let fixture = Fixture::new();
    many(&fixture, 2, |owned| {
        let mut orders = PruneOrders {
            budget: PruneBudget {
                objects: 100,
                percent: 100,
            },
            ..PruneOrders::default()
        };
        let plan = prune(&owned[..2], in_all(&[]), "m", &orders);
        assert_eq!((plan.delete.len(), plan.sets.len()), (0, 1));
        assert!(plan.sets[0].reason.contains("`Muster-Prune: a`"));
        let apps = BTreeSet::from([&fixture.app]);
        let desired = Desired {
            apps: &apps,
            ..in_all(&[])
        };
        assert_eq!(prune(&owned[..2], desired, "m", &orders).delete, [0, 1]);
        orders.approved.insert(PruneOrders::leaving(&fixture.app));
        assert_eq!(prune(&owned[..2], in_all(&[]), "m", &orders).delete, [0, 1]);
    });
}

#[test]
fn a_custom_resource_that_has_more_than_itself_to_lose_is_protected() {
    let fixture = Fixture::new();
    let foo = id("x.example/v1", "Foo", Some("web"), "f");
    let mut owned = [fixture.owned(&foo, "u")];
    owned[0].mark = Mark::None;
    assert_eq!(prune(&owned, in_all(&[]), "m", &orders(9, 9)).delete, [0]);
    owned[0].precious = true;
    let plan = prune(&owned, in_all(&[]), "m", &orders(9, 9));
    assert_eq!(plan.sets[0].reason, "protected: Foo");
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
        desired in objects(),
    ) {
        let fixture = Fixture::new();
        let uids: Vec<String> = (0..inventory.len()).map(|i| format!("uid{i}")).collect();
        let owned: Vec<_> =
            inventory.iter().cloned().zip(uids.iter().map(String::as_str)).collect();
        let plan = fixture.prune(&owned, &desired);

        let deleted = &plan.delete;
        let not_deleted: HashSet<usize> = plan.not_deleted.iter().map(|(index, _)| *index).collect();
        let is_wanted = |id: &ObjectRef| desired.iter().any(|w| w.identity() == id.identity());
        for (index, id) in inventory.iter().enumerate() {
            let times = deleted.iter().filter(|d| **d == index).count();
            prop_assert!(times <= 1);
            prop_assert_eq!(times == 1, !is_wanted(id) && !not_deleted.contains(&index));
            if times == 1 && id.gvk.kind == "Namespace" {
                let inside = desired.iter().any(|w| w.namespace.as_ref() == Some(&id.name));
                prop_assert!(!inside);
            }
        }
        // Afterwards, the inventory has only desired objects and objects that may not be deleted, so nothing more is
        // deleted.
        let mut after: Vec<_> = desired.iter().map(|id| (id.clone(), "new")).collect();
        after.extend(not_deleted.iter().map(|&index| owned[index].clone()));
        let again = fixture.prune(&after, &desired);
        prop_assert_eq!(again.delete, Vec::<usize>::new());
    }
}

#[test]
fn the_objects_of_a_moved_app_wait_for_nothing() {
    let fixture = Fixture::new();
    many(&fixture, 9, |owned| {
        let urgent = BTreeSet::from([fixture.app.clone()]);
        let unfinished = BTreeMap::from([(&fixture.app, "a Deployment".to_owned())]);
        let desired = Desired {
            unfinished: &unfinished,
            ..in_all(&[])
        };
        let held = prune(owned, desired, "m", &orders(3, 25));
        assert!(held.delete.is_empty());
        let urgently = Desired {
            urgent: &urgent,
            ..desired
        };
        let plan = prune(owned, urgently, "m", &orders(3, 25));
        assert_eq!(plan.delete.len(), 9);
        // What would lose data still needs an approval: here, the namespace.
        assert_eq!(plan.sets[0].members, [9]);
        // So does an app of which nothing is left, and what is beyond the agent's own limit.
        let emptied = BTreeSet::from([&fixture.app]);
        let spent = Spent {
            apps: BTreeMap::new(),
            ceiling: Some(3),
        };
        let (emptied, spent) = (&emptied, &spent);
        for held in [
            Desired {
                emptied,
                ..urgently
            },
            Desired { spent, ..urgently },
        ] {
            let plan = prune(owned, held, "m", &orders(3, 25));
            assert!(plan.delete.is_empty());
        }
    });
}
