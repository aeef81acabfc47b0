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
    order::{Definition, Foundation, Item, Phase},
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
    /// What was deleted unasked lately.
    pub spent: &'a Spent,
}

/// What was deleted unasked within the last hour. Many small changes are a large one, so it counts against the
/// budget of the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spent {
    /// How many objects of an app.
    pub apps: BTreeMap<AppName, usize>,
    /// The most in an hour, whatever the orders say.
    pub ceiling: Option<usize>,
}

impl Spent {
    fn of(&self, app: &AppName) -> usize {
        self.apps.get(app).copied().unwrap_or_default()
    }

    fn total(&self) -> usize {
        self.apps.values().sum()
    }
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
    /// How many of those that are deleted nobody was asked about, by app.
    pub unasked: BTreeMap<AppName, usize>,
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
    /// The hub knows nothing good of its app, which stands in the repository.
    #[error(
        "the app stands in the repository with a problem, and the hub does not know what it was before; it \
         stays until that is mended"
    )]
    Unknown,
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
    /// A custom resource that its operator may have to finish waits for an approval.
    #[error(
        "it may have to clean up after {object}, which waits for the approval of app {app}; it goes when \
         that is gone"
    )]
    Operator {
        /// The custom resource.
        object: ObjectRef,
        /// The app that it is held for.
        app: AppName,
    },
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
        } else if orders.unknown.contains(wanted.now(owned.item.app)) {
            plan.held.push((index, Held::Unknown));
        } else {
            let app = wanted.now(owned.item.app);
            let goes_first = owned.mark == Mark::First || is_gate(owned.item.id);
            match wanted.unfinished.get(app).filter(|_| !goes_first) {
                Some(why) => plan.held.push((index, Held::Replacement(why.clone()))),
                None => asked.entry(app).or_default().push(index),
            }
        }
    }
    let (go, unasked, sets) = within_budget(inventory, asked, wanted, orders);
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
    let operated = operated(inventory, &sets, wanted.apps);
    delete.retain(|&index| {
        let item = &inventory[index].item;
        let runs = matches!(Phase::of(item.id), Phase::Settings | Phase::Workload);
        let Some(&(object, app)) = operated.get(item.app).filter(|_| runs) else {
            return true;
        };
        let (object, app) = (object.clone(), app.clone());
        elsewhere.push((index, Held::Operator { object, app }));
        false
    });
    delete.sort_unstable();
    for index in delete.iter().filter(|index| unasked.contains(*index)) {
        let app = wanted.now(inventory[*index].item.app);
        *plan.unasked.entry(app.clone()).or_default() += 1;
    }
    plan.held.extend(elsewhere);
    plan.delete = delete;
    plan.sets = sets;
    plan
}

/// By app, a custom resource that waits for an approval and of which it may have the operator: it defines
/// the kind, or has the resource itself and leaves as a whole. Without its operator the resource's finalizers are never done.
fn operated<'a>(
    inventory: &[Owned<'a>],
    sets: &'a [HeldSet],
    apps: &BTreeSet<&AppName>,
) -> BTreeMap<&'a AppName, (&'a ObjectRef, &'a AppName)> {
    let mut operated = BTreeMap::new();
    let held = sets
        .iter()
        .flat_map(|set| set.members.iter().map(move |&index| (index, &set.app)));
    for (index, app) in held.filter(|(index, _)| is_custom(inventory[*index].item.id)) {
        let item = inventory[index].item;
        if !apps.contains(app) {
            operated.entry(item.app).or_insert((item.id, app));
        }
        for definer in inventory {
            let defines = definer.item.defines;
            if defines.is_some_and(|defines| defines.covers(item.id)) {
                operated.entry(definer.item.app).or_insert((item.id, app));
            }
        }
    }
    operated
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

/// Splits what could go into what goes, which of that nobody was asked about, and what is asked first.
fn within_budget(
    inventory: &[Owned<'_>],
    asked: BTreeMap<&AppName, Vec<usize>>,
    wanted: Wanted<'_>,
    orders: &PruneOrders,
) -> (Vec<usize>, HashSet<usize>, Vec<HeldSet>) {
    let mut unasked = HashSet::new();
    let mut of_app: HashMap<&AppName, usize> = HashMap::new();
    // What is on its way out counts as spent.
    for owned in inventory.iter().filter(|owned| !owned.going) {
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
    let cut = free.iter().filter(|(_, rest, _)| !rest.is_empty());
    let cut = cut.map(|(app, ..)| *app).chain(wanted.spent.apps.keys());
    let cut: BTreeSet<&AppName> = cut.collect();
    let total: usize = cut.iter().filter_map(|app| of_app.get(*app)).sum();
    // What went within the hour is counted as if it went now.
    let spent = wanted.spent.total();
    let allowed_in_all = budget.of(total + spent).saturating_sub(spent);
    let ceiling = wanted
        .spent
        .ceiling
        .map(|ceiling| ceiling.saturating_sub(spent));
    let lately = |spent: usize| match spent {
        0 => String::new(),
        spent => format!(", since {spent} went within the last hour"),
    };
    let mut together = 0;
    let mut reasons: Vec<Option<String>> = Vec::new();
    for (app, rest, _) in &free {
        let of_app = of_app.get(app).copied().unwrap_or_default();
        let spent_of_app = wanted.spent.of(app);
        let allowed = budget
            .of(of_app + spent_of_app)
            .saturating_sub(spent_of_app);
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
                "{number} of its {of_app} objects would be deleted, and the prune budget is {allowed}{}",
                lately(spent_of_app)
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
                 {allowed_in_all}{}",
                lately(spent)
            )),
            None if ceiling.is_some_and(|ceiling| together > ceiling) && !rest.is_empty() => {
                Some(format!(
                    "{together} objects would be deleted, and this agent's own ceiling (--prune-ceiling) is {}{}",
                    ceiling.unwrap_or_default(),
                    lately(spent)
                ))
            }
            reason => reason,
        };
        let (members, reason) = match reason {
            Some(reason) => ([rest, precious].concat(), reason),
            None => {
                unasked.extend(&rest);
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
    (go, unasked, sets)
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
mod tests;
