//! The namespaces that an agent may touch in its cluster.

use std::collections::BTreeSet;

use muster_model::bundle::ObjectRef;

/// The part of a cluster that an agent may touch. It is the agent's own setting; neither the fleet
/// repository nor a hub can widen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceAccess {
    /// Only the objects of these namespaces. The service account needs no rights outside of them.
    Only(BTreeSet<String>),
    /// Everything except these namespaces and the objects in them.
    AllBut(BTreeSet<String>),
}

impl Default for NamespaceAccess {
    /// Returns access to the whole cluster.
    fn default() -> Self {
        Self::AllBut(BTreeSet::new())
    }
}

impl NamespaceAccess {
    /// Returns why an object may not be touched, or `None` if it may.
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

    /// Returns true if the agent may touch some namespaces only.
    pub(crate) fn is_limited(&self) -> bool {
        matches!(self, Self::Only(_))
    }

    /// Returns true if this is one of the namespaces that the agent is limited to.
    pub(crate) fn is_limited_to(&self, namespace: &str) -> bool {
        matches!(self, Self::Only(namespaces) if namespaces.contains(namespace))
    }
}

/// Returns true if an object is a Namespace.
pub(crate) fn is_namespace(id: &ObjectRef) -> bool {
    id.gvk.group.is_empty() && id.gvk.kind == "Namespace"
}
