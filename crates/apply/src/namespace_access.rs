//! Which namespaces of its cluster an agent touches.

use std::collections::BTreeSet;

use muster_model::bundle::ObjectRef;

/// What of a cluster an agent may touch. It is the agent's own setting, which neither the fleet
/// repository nor a hub can widen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceAccess {
    /// The objects of these namespaces and nothing else: the service account needs no rights in the whole
    /// cluster.
    Only(BTreeSet<String>),
    /// Everything but these namespaces and what is in them.
    AllBut(BTreeSet<String>),
}

impl Default for NamespaceAccess {
    /// The whole cluster.
    fn default() -> Self {
        Self::AllBut(BTreeSet::new())
    }
}

impl NamespaceAccess {
    /// Why an object may not be touched; `None` where it may.
    #[must_use]
    pub fn forbids(&self, id: &ObjectRef) -> Option<String> {
        let namespace = id.namespace.as_ref();
        match self {
            Self::Only(namespaces) => {
                let within = namespace.is_some_and(|name| namespaces.contains(name));
                (!within).then(|| {
                    let names: Vec<&str> = namespaces.iter().map(String::as_str).collect();
                    let s = if names.len() == 1 { "" } else { "s" };
                    let names = names.join(", ");
                    format!("this agent is limited to the namespace{s} {names}")
                })
            }
            Self::AllBut(denied) => {
                let own = is_namespace(id).then_some(&id.name);
                let name = namespace.or(own).filter(|name| denied.contains(*name))?;
                Some(format!(
                    "this agent is not allowed to touch the namespace {name} (see --deny-namespaces)"
                ))
            }
        }
    }

    /// Whether there are rights in some namespaces only.
    pub(crate) fn is_limited(&self) -> bool {
        matches!(self, Self::Only(_))
    }

    /// Whether this is one of the namespaces that the agent is limited to.
    pub(crate) fn is_limited_to(&self, namespace: &str) -> bool {
        matches!(self, Self::Only(namespaces) if namespaces.contains(namespace))
    }
}

/// Whether an object is a namespace.
pub(crate) fn is_namespace(id: &ObjectRef) -> bool {
    id.gvk.group.is_empty() && id.gvk.kind == "Namespace"
}
