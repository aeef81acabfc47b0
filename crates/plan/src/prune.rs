//! What is deleted: everything in the inventory that is no longer wanted, except what would take
//! something wanted with it, what somebody protects, and what is too much to be meant.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use muster_model::{
    bundle::ObjectRef,
    ids::{AppName, ContentHash},
    policy::PruneOrders,
    tree::PRUNE_TRAILER,
};

use crate::{
    immutable::is_precious,
    order::{Definition, Foundation, Item},
};

mod wave;

pub use wave::{Leaving, Wave, wave};

/// Annotation on a live object that keeps it (`disabled`), lets a protected kind go (`enabled`), or lets
/// it go before what replaces it is there (`first`).
pub const PRUNE: &str = "muster.dev/prune";

/// Namespaces that an API server makes and does not let go, or that come back at once.
const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Priority classes of the same sort.
const SYSTEM_PRIORITIES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];

/// Groups of Kubernetes' own kinds; all other kinds are custom resources or of aggregated APIs.
const OWN_GROUPS: [&str; 24] = [
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// Whether an object's kind is none of Kubernetes' own.
#[must_use]
pub fn is_custom(id: &ObjectRef) -> bool {
    !OWN_GROUPS.contains(&id.gvk.group.as_str())
}

/// Whether Kubernetes never lets this object go, or makes it again at once.
fn is_system(id: &ObjectRef) -> bool {
    let name = id.name.as_str();
    match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
        ("", "Namespace") => SYSTEM_NAMESPACES.contains(&name),
        ("scheduling.k8s.io", "PriorityClass") => SYSTEM_PRIORITIES.contains(&name),
        _ => false,
    }
}

/// Whether Kubernetes itself makes an object of the whole cluster again whenever it is gone. `label` reads
/// the live object's labels.
#[must_use]
pub fn is_permanent<'l>(id: &ObjectRef, label: impl Fn(&str) -> Option<&'l str>) -> bool {
    match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
        ("", "Service" | "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => {
            id.namespace.as_deref() == Some("default") && id.name == "kubernetes"
        }
        ("networking.k8s.io", "ServiceCIDR") => id.name == "kubernetes",
        ("flowcontrol.apiserver.k8s.io", _) => matches!(id.name.as_str(), "exempt" | "catch-all"),
        ("rbac.authorization.k8s.io", _) => {
            label("kubernetes.io/bootstrapping") == Some("rbac-defaults")
        }
        ("apiregistration.k8s.io", "APIService") => {
            label("kube-aggregator.kubernetes.io/automanaged").is_some()
        }
        _ => false,
    }
}

/// Whether an object stands between the API server and everybody's requests. It may be the very reason
/// why what an app wants is refused.
fn is_gate(id: &ObjectRef) -> bool {
    matches!(
        id.gvk.group.as_str(),
        "admissionregistration.k8s.io" | "apiregistration.k8s.io"
    )
}

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
    /// It goes before what replaces it is there.
    First,
}

impl Mark {
    /// Reads the annotation. An unknown word keeps the object: somebody meant to say something.
    #[must_use]
    pub fn of(annotation: Option<&str>) -> Self {
        match annotation {
            None => Self::None,
            Some("enabled") => Self::MayGo,
            Some("first") => Self::First,
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
    /// It is a custom resource that has more than itself to lose: its controller wants to clean up after
    /// it (it has finalizers), other objects have it as their owner and would go with it (a database's
    /// pods and volumes), or it concerns the whole cluster, so that nobody sees who refers to it.
    pub precious: bool,
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
    /// Every app.
    pub apps: &'a BTreeSet<&'a AppName>,
    /// Apps that are not as they should be yet, with what they wait for. Nothing of theirs is deleted.
    pub unfinished: &'a BTreeMap<&'a AppName, String>,
}

/// What happens to the objects of the inventory that are not wanted, by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Deleted, in an order that [`wave`] gives.
    pub delete: Vec<usize>,
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
    /// What replaces it is not there yet.
    #[error(
        "no longer wanted; it stays until what its app wants is there ({0}). Where it has to go first, \
         annotate it with {PRUNE}: first"
    )]
    Replacement(String),
    /// A namespace or definition with an object that a person keeps.
    #[error("{0} would go with it, and the annotation {PRUNE} on that keeps it")]
    Keeps(ObjectRef),
    /// An object that a person keeps, in a namespace or of a definition that would go.
    #[error("the annotation {PRUNE} on it keeps it, and {0} with it")]
    Kept(ObjectRef),
    /// Another object that waits for an approval would be deleted with it.
    #[error("it would take {object} with it, which waits for the approval of app {app}")]
    Elsewhere {
        /// The object.
        object: ObjectRef,
        /// The app that it is held for.
        app: AppName,
    },
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

    let (keeps, kept_with) = kept_inside(inventory, &unwanted);
    let mut plan = Prune::default();
    let mut delete = Vec::new();
    let mut asked: BTreeMap<&AppName, Vec<usize>> = BTreeMap::new();
    for index in unwanted {
        let owned = &inventory[index];
        if owned.uid.is_some_and(|uid| kept_uids.contains(uid)) {
            plan.handed_over.push(index);
        } else if let Some(held) = held(&owned.item, wanted.items, own_namespace) {
            plan.held.push((index, held));
        } else if let Some(&inside) = keeps.get(&index) {
            let id = inventory[inside].item.id.clone();
            plan.held.push((index, Held::Keeps(id)));
        } else if let Some(&around) = kept_with.get(&index) {
            let id = inventory[around].item.id.clone();
            plan.held.push((index, Held::Kept(id)));
        } else if owned.mark == Mark::Keep || is_system(owned.item.id) {
            plan.released.push(index);
        } else if owned.going || owned.uid.is_none() {
            delete.push(index);
        } else {
            let app = wanted.now(owned.item.app);
            let goes_first = owned.mark == Mark::First || is_gate(owned.item.id);
            match wanted.unfinished.get(app).filter(|_| !goes_first) {
                Some(why) => plan.held.push((index, Held::Replacement(why.clone()))),
                None => asked.entry(app).or_default().push(index),
            }
        }
    }
    let (go, sets) = within_budget(inventory, asked, wanted, orders);
    delete.extend(go);
    // What is held elsewhere would go with its namespace or its definition.
    let held: Vec<(&ObjectRef, &AppName)> = sets
        .iter()
        .flat_map(|set| set.members.iter().map(|&index| (index, &set.app)))
        .chain(plan.held.iter().map(|(index, _)| {
            let app = wanted.now(inventory[*index].item.app);
            (*index, app)
        }))
        .map(|(index, app)| (inventory[index].item.id, app))
        .collect();
    let mut elsewhere = Vec::new();
    delete.retain(|&index| {
        let inside = contents(&inventory[index].item);
        let Some((object, app)) = held.iter().find(|(id, _)| inside(id)) else {
            return true;
        };
        let held = Held::Elsewhere {
            object: Clone::clone(*object),
            app: Clone::clone(*app),
        };
        elsewhere.push((index, held));
        false
    });
    delete.sort_unstable();
    plan.held.extend(elsewhere);
    plan.delete = delete;
    plan.sets = sets;
    plan
}

/// What a person keeps that would be lost with a namespace or definition that is not wanted: each of these
/// with one such object, and each such object with what would take it along.
fn kept_inside(
    inventory: &[Owned<'_>],
    unwanted: &[usize],
) -> (BTreeMap<usize, usize>, BTreeMap<usize, usize>) {
    let (mut keeps, mut kept_with) = (BTreeMap::new(), BTreeMap::new());
    let kept: Vec<usize> = unwanted
        .iter()
        .copied()
        .filter(|&index| inventory[index].mark == Mark::Keep)
        .collect();
    if kept.is_empty() {
        return (keeps, kept_with);
    }
    for &around in unwanted {
        let owned = &inventory[around];
        if owned.mark == Mark::Keep || is_system(owned.item.id) {
            continue;
        }
        let inside = contents(&owned.item);
        for &index in kept
            .iter()
            .filter(|&&index| inside(inventory[index].item.id))
        {
            keeps.entry(around).or_insert(index);
            kept_with.entry(index).or_insert(around);
        }
    }
    (keeps, kept_with)
}

impl<'a> Wanted<'a> {
    /// The name that an app has now.
    fn now(&self, app: &'a AppName) -> &'a AppName {
        self.formerly.get(app).copied().unwrap_or(app)
    }
}

/// Whether an object would go with `item`: it is in this namespace, or of this definition.
fn contents<'a>(item: &'a Item<'_>) -> Box<dyn Fn(&ObjectRef) -> bool + 'a> {
    match (Foundation::of(item.id), item.defines) {
        (None, _) => Box::new(|_| false),
        (Some(Foundation::Namespace), _) => {
            Box::new(|id| id.namespace.as_ref() == Some(&item.id.name))
        }
        (Some(_), Some(defines)) => Box::new(|id| Definition::covers(defines, id)),
        // Not understood: its name ends with its group, and that has to be enough.
        (Some(_), None) => Box::new(|id| {
            let name = item.id.name.strip_suffix(id.gvk.group.as_str());
            !id.gvk.group.is_empty() && name.is_some_and(|rest| rest.ends_with('.'))
        }),
    }
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
        *of_app.entry(wanted.now(owned.item.app)).or_default() += 1;
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
            let owned = &inventory[index];
            (owned.precious || is_precious(owned.item.id)) && owned.mark != Mark::MayGo
        });
        if orders.approved.contains(&set_of(inventory, &precious)) {
            go.extend(&precious);
            free.push((app, rest, Vec::new()));
        } else {
            free.push((app, rest, precious));
        }
    }
    // All cuts count together, against what the apps have that they are made in: many small ones are a
    // large one.
    let total = free
        .iter()
        .filter(|(_, rest, _)| !rest.is_empty())
        .map(|(app, ..)| of_app.get(app).copied().unwrap_or_default())
        .sum();
    let allowed_in_all = budget.of(total);
    let mut together = 0;
    let mut reasons: Vec<Option<String>> = Vec::new();
    for (app, rest, _) in &free {
        let of_app = of_app.get(app).copied().unwrap_or_default();
        let allowed = budget.of(of_app);
        reasons.push(if rest.is_empty() {
            None
        } else if !wanted.apps.contains(app) && !orders.lets_go(app) {
            Some(format!(
                "the app is gone from the repository; approve that, or say in a commit's message that it is \
                 meant: `{PRUNE_TRAILER}: {app}`"
            ))
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
                "{together} of the {total} objects of several apps would be deleted, and the prune budget is \
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
    let foundation = Foundation::of(item.id)?;
    if foundation == Foundation::Namespace && item.id.name == own_namespace {
        return Some(Held::OwnNamespace);
    }
    let inside = contents(item);
    let first = wanted.iter().map(|item| item.id).filter(|id| inside(id));
    let first = first.min()?.clone();
    Some(match foundation {
        Foundation::Namespace => Held::Namespace(first),
        Foundation::Definition | Foundation::ApiService => Held::Definition(first),
    })
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
                precious: false,
            }
        }
    }

    static NONE: (
        BTreeSet<&AppName>,
        BTreeMap<&AppName, &AppName>,
        BTreeMap<&AppName, String>,
    ) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());

    fn in_all<'a>(items: &'a [Item<'a>]) -> Wanted<'a> {
        Wanted {
            items,
            emptied: &NONE.0,
            formerly: &NONE.1,
            apps: &NONE.0,
            unfinished: &NONE.2,
        }
    }

    fn orders(objects: u32, percent: u8) -> PruneOrders {
        // All apps of these tests may leave.
        let apps = ["a", "new", "other", "app0", "app1", "app2", "app3"];
        PruneOrders {
            budget: PruneBudget { objects, percent },
            approved: apps
                .map(|app| PruneOrders::leaving(&app.parse().unwrap()))
                .into(),
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
                delete: vec![3, 4],
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
            assert_eq!(plan.delete, [0, 1]);
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
            assert_eq!((plan.delete, plan.sets), (vec![0, 1, 2], vec![]));
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
            assert_eq!(plan.delete, Vec::<usize>::new());
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
                    .starts_with("8 of the 8 objects of several apps")
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
            // The other is its namespace, which would take it along.
            let plan = prune(&owned, in_all(&[]), "m", &orders(100, 100));
            let [kept, namespace] = [0, 1].map(|index| owned[index].item.id.clone());
            assert_eq!((plan.released, plan.delete), (vec![], vec![]));
            assert_eq!(
                plan.held,
                [(0, Held::Kept(namespace)), (1, Held::Keeps(kept))]
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
    fn what_kubernetes_makes_again_is_known() {
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
            let wanted = |formerly| Wanted {
                formerly,
                ..in_all(&items)
            };
            let plan = prune(&owned, wanted(&formerly), "m", &orders(5, 25));
            assert_eq!((plan.delete.len(), plan.sets.len()), (8, 0));
            let plan = prune(&owned, wanted(&NONE.1), "m", &orders(5, 0));
            assert_eq!((plan.delete.len(), plan.sets.len()), (0, 1));
        });
    }

    #[test]
    fn nothing_goes_while_what_its_app_wants_is_not_there() {
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
        let wanted = Wanted {
            unfinished: &unfinished,
            ..in_all(&[])
        };
        let plan = prune(&owned, wanted, "m", &orders(100, 100));
        assert_eq!(plan.held, [(0, Held::Replacement(why))]);
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
    fn an_approved_namespace_takes_nothing_with_it_that_is_held_elsewhere() {
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
        let held = Held::Elsewhere {
            object: ids[1].clone(),
            app: other.clone(),
        };
        assert_eq!((plan.held, plan.delete), (vec![(0, held)], vec![]));
        assert_eq!(plan.sets[0].app, other);
    }

    #[test]
    fn an_app_that_is_gone_asks_unless_a_commit_says_so() {
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
            let wanted = Wanted {
                apps: &apps,
                ..in_all(&[])
            };
            assert_eq!(prune(&owned[..2], wanted, "m", &orders).delete, [0, 1]);
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
            wanted in objects(),
        ) {
            let fixture = Fixture::new();
            let uids: Vec<String> = (0..inventory.len()).map(|i| format!("uid{i}")).collect();
            let owned: Vec<_> =
                inventory.iter().cloned().zip(uids.iter().map(String::as_str)).collect();
            let plan = fixture.prune(&owned, &wanted);

            let deleted = &plan.delete;
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
            // Afterwards the inventory is what is wanted and what is held: nothing more to delete.
            let mut after: Vec<_> = wanted.iter().map(|id| (id.clone(), "new")).collect();
            after.extend(held.iter().map(|&index| owned[index].clone()));
            let again = fixture.prune(&after, &wanted);
            prop_assert_eq!(again.delete, Vec::<usize>::new());
        }
    }
}
