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
    // An app may contain the objects of the agent's own chart.
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
