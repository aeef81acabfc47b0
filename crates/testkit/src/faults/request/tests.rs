use super::*;

#[test]
fn requests_are_told_apart() {
    let cases = [
        ("GET", "/api", Verb::Discover, "", None),
        ("GET", "/apis/apps/v1", Verb::Discover, "", None),
        ("GET", "/readyz", Verb::Other, "", None),
        (
            "GET",
            "/api/v1/namespaces/a",
            Verb::Get,
            "namespaces",
            Some("a"),
        ),
        (
            "PUT",
            "/api/v1/namespaces/a/finalize",
            Verb::Update,
            "namespaces",
            Some("a"),
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b?force=true",
            Verb::Patch,
            "deployments",
            Some("b"),
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b?dryRun=All&force=true",
            Verb::DryRun,
            "deployments",
            Some("b"),
        ),
        (
            "GET",
            "/api/v1/configmaps?labelSelector=a&limit=100",
            Verb::List,
            "configmaps",
            None,
        ),
        (
            "GET",
            "/api/v1/configmaps?watch=true&timeoutSeconds=290",
            Verb::Watch,
            "configmaps",
            None,
        ),
        (
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
            Verb::Lease,
            "leases",
            Some("b"),
        ),
        (
            "DELETE",
            "/api/v1/namespaces/a/secrets/b",
            Verb::Delete,
            "secrets",
            Some("b"),
        ),
        (
            "POST",
            "/api/v1/namespaces/a/secrets",
            Verb::Create,
            "secrets",
            None,
        ),
    ];
    for (method, uri, verb, resource, name) in cases {
        let asked = Asked::of(&method.parse().unwrap(), &uri.parse().unwrap());
        let found = (asked.verb, asked.resource.as_str(), asked.name.as_deref());
        assert_eq!(found, (verb, resource, name), "{method} {uri}");
    }
}
