//! What an agent keeps in its own namespace: its identity, the lead, what it has applied. No app has a
//! say in it.

use crate::bundle::ObjectRef;

/// The namespace of an agent, where nobody says otherwise.
pub const NAMESPACE: &str = "muster-system";
/// The Secret with the agent's key and certificate.
pub const IDENTITY: &str = "muster-agent-identity";
/// The Lease of the agent that leads.
pub const LEASE: &str = "muster-agent";
/// The Secret that says which generation is in force.
pub const GENERATION: &str = "muster-generation";
/// What the names of the pieces of kept bundles begin with.
pub const BUNDLE: &str = "muster-bundle-";
/// What the names of the ConfigMaps begin with that say what was applied.
pub const INVENTORY: &str = "muster-inventory-";
/// What the names of copies of objects begin with that are being recreated.
pub const RECREATING: &str = "muster-recreating-";

/// Whether an object would be a record of the agent in this namespace. Whoever writes those is the agent,
/// or takes it over.
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
mod tests {
    use super::*;
    use crate::bundle::Gvk;

    #[test]
    fn records_are_known_by_kind_namespace_and_name() {
        let is = |api_version: &str, kind: &str, namespace: Option<&str>, name: &str| {
            let id = ObjectRef {
                gvk: Gvk::from_api_version(api_version, kind),
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
            };
            is_record(&id, NAMESPACE)
        };
        let own = Some(NAMESPACE);
        for (kind, name) in [
            ("Secret", "muster-agent-identity"),
            ("Secret", "muster-generation"),
            ("Secret", "muster-bundle-0123-4"),
            ("Secret", "muster-recreating-0123"),
            ("ConfigMap", "muster-inventory-15"),
        ] {
            assert!(is("v1", kind, own, name), "{name}");
            assert!(!is("v1", kind, Some("shop"), name), "{name}");
            assert!(!is("v1", kind, None, name), "{name}");
        }
        assert!(is("coordination.k8s.io/v1", "Lease", own, "muster-agent"));
        // What its chart brings is an app's like any other's.
        for (api_version, kind, name) in [
            ("apps/v1", "Deployment", "muster-agent"),
            ("v1", "ServiceAccount", "muster-agent"),
            ("v1", "Secret", "muster-agent-join"),
            ("v1", "ConfigMap", "muster-agent-dashboard"),
            ("coordination.k8s.io/v1", "Lease", "other"),
        ] {
            assert!(!is(api_version, kind, own, name), "{name}");
        }
    }
}
