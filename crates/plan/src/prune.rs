//! Decides what is deleted: every object of the inventory that is no longer in the desired state. Some of these objects
//! are not deleted: protected objects, objects whose deletion would also delete a desired object, and objects beyond
//! the prune budget.

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

/// The annotation on a live object that prevents its deletion (`disabled`), allows the deletion of a protected
/// kind (`enabled`), or allows its deletion before its replacement is healthy (`first`).
pub const PRUNE: &str = "muster.dev/prune";

/// Namespaces that the API server creates and does not delete, or recreates immediately.
const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Priority classes that the API server creates and does not delete, or recreates immediately.
const SYSTEM_PRIORITIES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];

/// Groups of Kubernetes' own kinds. All other kinds are custom resources or belong to aggregated APIs.
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

/// Returns true if an object's kind is not one of Kubernetes' own.
#[must_use]
pub fn is_custom(id: &ObjectRef) -> bool {
    !OWN_GROUPS.contains(&id.gvk.group.as_str())
}

/// Returns true if Kubernetes never deletes this object, or if it recreates the object immediately.
fn is_system(id: &ObjectRef) -> bool {
    let name = id.name.as_str();
    match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
        ("", "Namespace") => SYSTEM_NAMESPACES.contains(&name),
        ("scheduling.k8s.io", "PriorityClass") => SYSTEM_PRIORITIES.contains(&name),
        _ => false,
    }
}

/// Returns true if Kubernetes itself recreates an object whenever it is deleted. `label` reads the live
/// object's labels.
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

/// Returns true if an object affects every client's requests to the API server (a webhook or an aggregated
/// API). Such an object may be the reason why the app's other objects are rejected.
fn is_gate(id: &ObjectRef) -> bool {
    matches!(
        id.gvk.group.as_str(),
        "admissionregistration.k8s.io" | "apiregistration.k8s.io"
    )
}

/// The value of the annotation [`PRUNE`] on the live object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// There is no annotation.
    #[default]
    None,
    /// The object is not deleted. Muster no longer manages it, unless its namespace or definition has left Git, too
    /// ([`NotDeleted::Kept`]).
    Keep,
    /// The object may be deleted although its kind is protected.
    MayGo,
    /// The object is deleted before its replacement is healthy.
    First,
}

impl Mark {
    /// Reads the annotation. An unknown value prevents the deletion, because its intent is unclear.
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
    /// The object, its app, and the kinds that it defines.
    pub item: Item<'a>,
    /// The object's UID; `None` if the object is not known to exist.
    pub uid: Option<&'a str>,
    /// True if an earlier run already decided to delete the object.
    pub going: bool,
    /// The value of its annotation [`PRUNE`].
    pub mark: Mark,
    /// True if the object is a custom resource whose deletion loses more than the object itself: it has
    /// finalizers (its controller cleans up after it), it owns other objects, which would be deleted with it
    /// (a database's pods and volumes), or it is cluster-scoped, so that its users are unknown.
    pub precious: bool,
}

/// The desired state of a generation.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// All desired objects.
    pub items: &'a [Item<'a>],
    /// Apps of the generation that have no objects.
    pub emptied: &'a BTreeSet<&'a AppName>,
    /// The current names of renamed apps, by their former names.
    pub formerly: &'a BTreeMap<&'a AppName, &'a AppName>,
    /// All apps of the generation.
    pub apps: &'a BTreeSet<&'a AppName>,
    /// Apps that are not fully applied and healthy yet, with what they wait for. Their old objects are not
    /// deleted yet.
    pub unfinished: &'a BTreeMap<&'a AppName, String>,
    /// Apps that are fenced here, or that a move makes the primary here. Their old objects are deleted at once, without
    /// the generation's budget. The agent's own limit holds.
    pub urgent: &'a BTreeSet<AppName>,
    /// The objects that were deleted without approval within the last hour.
    pub spent: &'a Spent,
}

/// The number of objects that were deleted without approval within the last hour. They count against the budget of
/// the next deletion, because many small deletions add up to a large one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spent {
    /// The number of deleted objects, by app.
    pub apps: BTreeMap<AppName, usize>,
    /// The agent's own limit of deletions without approval per hour, which the hub can't raise; `None` for no
    /// limit.
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

/// What happens to the objects of the inventory that are not in the desired state. Objects are identified by
/// their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Objects to delete. [`wave`] decides the order.
    pub delete: Vec<usize>,
    /// Objects that are not deleted yet, with the reason.
    pub not_deleted: Vec<(usize, NotDeleted)>,
    /// Sets of objects whose deletion is pending approval. An approval applies to exactly one such set.
    pub sets: Vec<PendingSet>,
    /// Objects that leave the inventory without being deleted, because the same live object is desired under
    /// another API group.
    pub handed_over: Vec<usize>,
    /// Objects that leave the inventory without being deleted, because their annotation [`PRUNE`] says so or
    /// because Kubernetes never deletes them.
    pub released: Vec<usize>,
    /// The number of objects to delete without an approval, by app.
    pub unasked: BTreeMap<AppName, usize>,
}

/// Objects of one app whose deletion is pending approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingSet {
    /// The app that the objects belonged to.
    pub app: AppName,
    /// The hash that identifies exactly these objects.
    pub set: ContentHash,
    /// Why the deletion needs an approval.
    pub reason: String,
    /// The objects, by their index in the inventory.
    pub members: Vec<usize>,
}

/// Why an object that is no longer in the desired state is not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDeleted {
    /// The namespace contains a desired object.
    #[error("the namespace still holds {0}, which is in the desired state")]
    Namespace(ObjectRef),
    /// The object defines the kind of a desired object.
    #[error("it defines the kind of {0}, which is in the desired state")]
    Definition(ObjectRef),
    /// The object's app is in the repository, but the hub has no last good version of it.
    #[error(
        "the app is in the repository but has a problem, and the hub does not know its last good version; the \
         object stays until the problem is fixed"
    )]
    Unknown,
    /// The object is the namespace in which the agent stores its own records.
    #[error("the agent stores its own records in it")]
    OwnNamespace,
    /// The object's app is not fully applied and healthy yet.
    #[error(
        "no longer in Git; it is deleted once the app's desired objects are applied and healthy ({0}). To \
         delete it first, annotate it with {PRUNE}: first"
    )]
    Replacement(String),
    /// A namespace or definition whose deletion would also delete an object with [`Mark::Keep`].
    #[error("deleting it would also delete {0}, which its own annotation {PRUNE} protects")]
    Keeps(ObjectRef),
    /// An object with [`Mark::Keep`] whose namespace or definition would otherwise be deleted.
    #[error("its annotation {PRUNE} protects it, so {0} stays too")]
    Kept(ObjectRef),
    /// The object may belong to the operator of a custom resource whose deletion is pending approval.
    #[error(
        "it may have to clean up after {object}, whose deletion is pending approval for app {app}; it is \
         deleted after that object is gone"
    )]
    Operator {
        /// The custom resource.
        object: ObjectRef,
        /// The app whose approval is pending.
        app: AppName,
    },
    /// Deleting the object would also delete another object that must not be deleted yet.
    #[error(
        "deleting it would also delete {object} of app {app}, whose deletion is pending approval or not due yet"
    )]
    Elsewhere {
        /// The other object.
        object: ObjectRef,
        /// The other object's app.
        app: AppName,
    },
}

/// Decides which objects of `inventory` are deleted, given the desired state. `own_namespace` is the agent's
/// namespace.
#[must_use]
pub fn prune(
    inventory: &[Owned<'_>],
    desired: Desired<'_>,
    own_namespace: &str,
    orders: &PruneOrders,
) -> Prune {
    let identities: HashSet<_> = desired
        .items
        .iter()
        .map(|item| item.id.identity())
        .collect();
    let (kept, unwanted): (Vec<usize>, Vec<usize>) = (0..inventory.len())
        .partition(|&index| identities.contains(&inventory[index].item.id.identity()));
    // One live object can be served in two API groups (as Ingress was). Deleting it in its old group would delete
    // the object that is desired in its new group.
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
        } else if let Some(not_deleted) = not_deleted(&owned.item, desired.items, own_namespace) {
            plan.not_deleted.push((index, not_deleted));
        } else if let Some(&inside) = keeps.get(&index) {
            let id = inventory[inside].item.id.clone();
            plan.not_deleted.push((index, NotDeleted::Keeps(id)));
        } else if let Some(&around) = kept_with.get(&index) {
            let id = inventory[around].item.id.clone();
            plan.not_deleted.push((index, NotDeleted::Kept(id)));
        } else if owned.mark == Mark::Keep || is_system(owned.item.id) {
            plan.released.push(index);
        } else if owned.going || owned.uid.is_none() {
            delete.push(index);
        } else if orders.unknown.contains(desired.now(owned.item.app)) {
            plan.not_deleted.push((index, NotDeleted::Unknown));
        } else {
            let app = desired.now(owned.item.app);
            let goes_first =
                owned.mark == Mark::First || is_gate(owned.item.id) || desired.urgent.contains(app);
            match desired.unfinished.get(app).filter(|_| !goes_first) {
                Some(why) => plan
                    .not_deleted
                    .push((index, NotDeleted::Replacement(why.clone()))),
                None => asked.entry(app).or_default().push(index),
            }
        }
    }
    let (go, unasked, sets) = within_budget(inventory, asked, desired, orders);
    delete.extend(go);
    // Deleting a namespace or a definition would also delete the objects in it that must not be deleted yet.
    let not_deleted: Vec<(&ObjectRef, &AppName)> = sets
        .iter()
        .flat_map(|set| set.members.iter().map(|&index| (index, &set.app)))
        .chain(plan.not_deleted.iter().map(|(index, _)| {
            let app = desired.now(inventory[*index].item.app);
            (*index, app)
        }))
        .map(|(index, app)| (inventory[index].item.id, app))
        .collect();
    let mut elsewhere = Vec::new();
    delete.retain(|&index| {
        let inside = contents(&inventory[index].item);
        let Some((object, app)) = not_deleted.iter().find(|(id, _)| inside(id)) else {
            return true;
        };
        let not_deleted = NotDeleted::Elsewhere {
            object: Clone::clone(*object),
            app: Clone::clone(*app),
        };
        elsewhere.push((index, not_deleted));
        false
    });
    let operated = operated(inventory, &sets, desired.apps);
    delete.retain(|&index| {
        let item = &inventory[index].item;
        let runs = matches!(Phase::of(item.id), Phase::Settings | Phase::Workload);
        let Some(&(object, app)) = operated.get(item.app).filter(|_| runs) else {
            return true;
        };
        let (object, app) = (object.clone(), app.clone());
        elsewhere.push((index, NotDeleted::Operator { object, app }));
        false
    });
    delete.sort_unstable();
    for index in delete.iter().filter(|index| unasked.contains(*index)) {
        let app = desired.now(inventory[*index].item.app);
        *plan.unasked.entry(app.clone()).or_default() += 1;
    }
    plan.not_deleted.extend(elsewhere);
    plan.delete = delete;
    plan.sets = sets;
    plan
}

/// Returns, by app, a custom resource whose deletion is pending approval and whose operator the app may contain: the
/// app defines the resource's kind, or it contains the resource and leaves as a whole. Without its operator, the
/// resource's finalizers would never be removed.
fn operated<'a>(
    inventory: &[Owned<'a>],
    sets: &'a [PendingSet],
    apps: &BTreeSet<&AppName>,
) -> BTreeMap<&'a AppName, (&'a ObjectRef, &'a AppName)> {
    let mut operated = BTreeMap::new();
    let not_deleted = sets
        .iter()
        .flat_map(|set| set.members.iter().map(move |&index| (index, &set.app)));
    for (index, app) in not_deleted.filter(|(index, _)| is_custom(inventory[*index].item.id)) {
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

/// Finds the objects with [`Mark::Keep`] that would be deleted together with an undesired namespace or definition.
/// Returns a map from each such namespace or definition to one such object, and a map in the other direction.
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

impl<'a> Desired<'a> {
    /// Returns the current name of an app.
    fn now(&self, app: &'a AppName) -> &'a AppName {
        self.formerly.get(app).copied().unwrap_or(app)
    }
}

/// Returns a predicate for the objects that would be deleted together with `item`: those in this namespace, or
/// of this definition.
fn contents<'a>(item: &'a Item<'_>) -> Box<dyn Fn(&ObjectRef) -> bool + 'a> {
    match (Foundation::of(item.id), item.defines) {
        (None, _) => Box::new(|_| false),
        (Some(Foundation::Namespace), _) => {
            Box::new(|id| id.namespace.as_ref() == Some(&item.id.name))
        }
        (Some(_), Some(defines)) => Box::new(|id| Definition::covers(defines, id)),
        // The definition could not be parsed, or it is an APIService without a service. Only its name is known, which
        // ends with its group.
        (Some(_), None) => Box::new(|id| {
            let name = item.id.name.strip_suffix(id.gvk.group.as_str());
            !id.gvk.group.is_empty() && name.is_some_and(|rest| rest.ends_with('.'))
        }),
    }
}

/// Splits the candidates for deletion. Returns the objects to delete, those of them without an approval, and the
/// sets that are pending approval.
fn within_budget(
    inventory: &[Owned<'_>],
    asked: BTreeMap<&AppName, Vec<usize>>,
    desired: Desired<'_>,
    orders: &PruneOrders,
) -> (Vec<usize>, HashSet<usize>, Vec<PendingSet>) {
    let mut unasked = HashSet::new();
    let mut of_app: HashMap<&AppName, usize> = HashMap::new();
    // Objects whose deletion was already decided do not count as objects of their app.
    for owned in inventory.iter().filter(|owned| !owned.going) {
        *of_app.entry(desired.now(owned.item.app)).or_default() += 1;
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
    // The sum of the deletions of all apps is also checked against a budget for the sum of their objects, because many
    // small deletions add up to a large one.
    let cut = free.iter().filter(|(_, rest, _)| !rest.is_empty());
    let cut = cut.map(|(app, ..)| *app).chain(desired.spent.apps.keys());
    let cut: BTreeSet<&AppName> = cut.collect();
    let total: usize = cut.iter().filter_map(|app| of_app.get(*app)).sum();
    // Objects that were deleted within the last hour are counted as if they were deleted now.
    let spent = desired.spent.total();
    let allowed_in_all = budget.of(total + spent).saturating_sub(spent);
    let ceiling = desired
        .spent
        .ceiling
        .map(|ceiling| ceiling.saturating_sub(spent));
    let lately = |spent: usize| match spent {
        0 => String::new(),
        spent => format!(" ({spent} already deleted within the last hour)"),
    };
    let mut together = 0;
    let mut reasons: Vec<Option<String>> = Vec::new();
    for (app, rest, _) in &free {
        let of_app = of_app.get(app).copied().unwrap_or_default();
        let spent_of_app = desired.spent.of(app);
        let allowed = budget
            .of(of_app + spent_of_app)
            .saturating_sub(spent_of_app);
        reasons.push(if rest.is_empty() {
            None
        } else if !desired.apps.contains(app) && !orders.lets_go(app) {
            Some(format!(
                "the app is no longer in the repository; approve the deletion, or add `{PRUNE_TRAILER}: \
                 {app}` to a commit message"
            ))
        } else if desired.emptied.contains(app) {
            Some("the app renders to nothing, which would delete all of its objects".to_owned())
        } else if rest.len() > allowed && !desired.urgent.contains(*app) {
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
            None if together > allowed_in_all
                && !rest.is_empty()
                && !desired.urgent.contains(app) =>
            {
                Some(format!(
                    "{together} of the {total} objects of several apps would be deleted, and the prune budget is \
                 {allowed_in_all}{}",
                    lately(spent)
                ))
            }
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
            sets.push(PendingSet {
                app: app.clone(),
                set: set_of(inventory, &members),
                reason,
                members,
            });
        }
    }
    (go, unasked, sets)
}

/// Returns the hash that identifies exactly these live objects.
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

fn not_deleted(item: &Item<'_>, desired: &[Item<'_>], own_namespace: &str) -> Option<NotDeleted> {
    let foundation = Foundation::of(item.id)?;
    if foundation == Foundation::Namespace && item.id.name == own_namespace {
        return Some(NotDeleted::OwnNamespace);
    }
    let inside = contents(item);
    let first = desired.iter().map(|item| item.id).filter(|id| inside(id));
    let first = first.min()?.clone();
    Some(match foundation {
        Foundation::Namespace => NotDeleted::Namespace(first),
        Foundation::Definition | Foundation::ApiService => NotDeleted::Definition(first),
    })
}

#[cfg(test)]
mod tests;
