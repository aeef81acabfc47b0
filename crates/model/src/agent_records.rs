//! Names of the records that an agent stores in its own namespace: its identity, its Lease and what it
//! has applied. No app may contain such an object.

use crate::bundle::ObjectRef;

/// The default namespace of an agent.
pub const NAMESPACE: &str = "muster-system";
/// The Secret with the agent's key and certificate.
pub const IDENTITY: &str = "muster-agent-identity";
/// The Lease that the leading agent holds.
pub const LEASE: &str = "muster-agent";
/// The Secret that names the generation in force.
pub const GENERATION: &str = "muster-generation";
/// The prefix of the names of the Secrets with the parts of stored bundles.
pub const BUNDLE: &str = "muster-bundle-";
/// The prefix of the names of the ConfigMaps that record what was applied.
pub const INVENTORY: &str = "muster-inventory-";
/// The prefix of the names of the copies of objects that are being recreated.
pub const RECREATING: &str = "muster-recreating-";

/// Returns true if an object would be one of the agent's records in this namespace. Anyone who can write
/// these records can take over the agent.
#[must_use]
pub fn is_record(id: &ObjectRef, namespace: &str) -> bool {
    if id.namespace.as_deref() != Some(namespace) {
        return false;
    }
    let name = id.name.as_str();
    match (id.gvk.group.as_str(), id.gvk.kind.as_str()) {
        ("coordination.k8s.io", "Lease") => name == LEASE,
        ("", "Secret" | "ConfigMap") => {
            [IDENTITY, GENERATION].contains(&name)
                || [BUNDLE, INVENTORY, RECREATING]
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
