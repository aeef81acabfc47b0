//! Services, volumes, budgets, definitions and the Gateway API.

use super::*;

#[test]
fn services_claims_and_definitions() {
    let balanced = json!({"type": "LoadBalancer"});
    let waits = "no load balancer has been provisioned yet";
    check(
        "v1",
        "Service",
        balanced.clone(),
        json!({"loadBalancer": {}}),
        Health::Progressing,
        waits,
    );
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}});
    check("v1", "Service", balanced, ingress, Health::Healthy, "");
    check("v1", "Service", json!({}), json!({}), Health::Healthy, "");

    let claim = |phase: &str, health, said| {
        check(
            "v1",
            "PersistentVolumeClaim",
            json!({}),
            json!({"phase": phase}),
            health,
            said,
        );
    };
    claim("Bound", Health::Healthy, "");
    claim(
        "Pending",
        Health::Progressing,
        "no volume is bound to it yet",
    );
    claim("Lost", Health::Degraded, "its volume is lost");

    let definition = |conditions, health, said| {
        let status = json!({"conditions": conditions});
        let api = "apiextensions.k8s.io/v1";
        check(
            api,
            "CustomResourceDefinition",
            json!({}),
            status,
            health,
            said,
        );
    };
    definition(
        json!([{"type": "Established", "status": "True"}]),
        Health::Healthy,
        "",
    );
    definition(json!([]), Health::Progressing, "not established yet");
    definition(
        json!([{"type": "NamesAccepted", "status": "False", "message": "foos is taken"}]),
        Health::Degraded,
        "foos is taken",
    );
}

#[test]
fn ingresses_need_no_address() {
    let check = |status, health, said| {
        check(
            "networking.k8s.io/v1",
            "Ingress",
            json!({"rules": []}),
            status,
            health,
            said,
        );
    };
    check(json!({"loadBalancer": {}}), Health::Healthy, "");
    check(Value::Null, Health::Healthy, "");
    check(
        json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ports": [{"port": 443, "error": "Taken"}]}]}}),
        Health::Degraded,
        "its load balancer's port 443: Taken",
    );
}

#[test]
fn volumes_and_namespaces() {
    let volume =
        |status, health, said| check("v1", "PersistentVolume", json!({}), status, health, said);
    volume(json!({"phase": "Released"}), Health::Healthy, "");
    volume(
        json!({"phase": "Failed", "message": "no plugin"}),
        Health::Degraded,
        "no plugin",
    );
    let claim = json!({"phase": "Bound", "conditions": [
        {"type": "NodeResizeError", "status": "True", "message": "no space left"}]});
    check(
        "v1",
        "PersistentVolumeClaim",
        json!({}),
        claim,
        Health::Degraded,
        "no space left",
    );
    let namespace = |conditions: Value, health, said| {
        let status = json!({"phase": "Terminating", "conditions": conditions});
        check("v1", "Namespace", json!({}), status, health, said);
    };
    namespace(json!([]), Health::Progressing, "being deleted");
    namespace(
        json!([{"type": "NamespaceContentRemaining", "status": "True", "message": "2 Foos are left"}]),
        Health::Progressing,
        "being deleted: 2 Foos are left",
    );
    namespace(
        json!([{"type": "NamespaceContentRemaining", "status": "True", "message": "2 Foos are left"},
               {"type": "NamespaceDeletionDiscoveryFailure", "status": "True", "message": "metrics is down"}]),
        Health::Degraded,
        "being deleted: metrics is down",
    );
    check(
        "v1",
        "Namespace",
        json!({}),
        json!({"phase": "Active"}),
        Health::Healthy,
        "",
    );
}

#[test]
fn autoscalers() {
    let check = |status, health, said| {
        check(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({}),
            status,
            health,
            said,
        );
    };
    let conditions = |able: &str, active: &str, reason: &str| {
        json!({"currentReplicas": 2, "conditions": [
            {"type": "AbleToScale", "status": able, "message": "not able"},
            {"type": "ScalingActive", "status": active, "reason": reason, "message": "not active"},
            {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas"}]})
    };
    check(conditions("True", "True", ""), Health::Healthy, "");
    check(
        conditions("False", "True", ""),
        Health::Degraded,
        "not able",
    );
    check(
        conditions("True", "False", "FailedGetResourceMetric"),
        Health::Degraded,
        "not active",
    );
    check(
        conditions("True", "False", "ScalingDisabled"),
        Health::Suspended,
        "not active",
    );
    check(
        json!({}),
        Health::Progressing,
        "its controller has not processed it yet",
    );
    let of_v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"annotations": {
        "autoscaling.alpha.kubernetes.io/conditions": r#"[{"type":"AbleToScale","status":"False","message":"no target"}]"#}},
        "status": {"currentReplicas": 2}});
    assert_eq!(assess(&of_v1), Assessment::degraded("no target"));
}

#[test]
fn disruption_budgets() {
    let check = |status, health, said| {
        check(
            "policy/v1",
            "PodDisruptionBudget",
            json!({"minAvailable": 2}),
            status,
            health,
            said,
        );
    };
    let counts = |have: i64, want: i64, all: i64, reason: &str| {
        json!({"currentHealthy": have, "desiredHealthy": want, "expectedPods": all, "disruptionsAllowed": 0,
            "conditions": [{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": "m"}]})
    };
    check(counts(2, 2, 2, "InsufficientPods"), Health::Healthy, "");
    check(counts(0, 2, 0, "InsufficientPods"), Health::Healthy, "");
    check(
        counts(1, 2, 2, "InsufficientPods"),
        Health::Progressing,
        "1 of 2 required pods are healthy",
    );
    check(counts(2, 2, 2, "SyncFailed"), Health::Degraded, "m");
    check(
        json!({}),
        Health::Progressing,
        "its controller has not processed it yet",
    );
}

#[test]
fn api_services() {
    let check = |conditions, health, said| {
        let status = json!({"conditions": conditions});
        check(
            "apiregistration.k8s.io/v1",
            "APIService",
            json!({}),
            status,
            health,
            said,
        );
    };
    check(
        json!([{"type": "Available", "status": "True"}]),
        Health::Healthy,
        "",
    );
    check(
        json!([{"type": "Available", "status": "False", "reason": "MissingEndpoints", "message": "no endpoints"}]),
        Health::Progressing,
        "no endpoints",
    );
    check(
        json!([]),
        Health::Progressing,
        "its availability has not been checked yet",
    );
}

const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

#[test]
fn a_route_is_as_healthy_as_its_worst_parent_says() {
    let parent = |name: &str, generation: i64, accepted: &str, reason: &str, resolved: &str| {
        json!({"parentRef": {"name": name}, "conditions": [
            {"type": "Accepted", "status": accepted, "reason": reason, "message": reason, "observedGeneration": generation},
            {"type": "ResolvedRefs", "status": resolved, "message": "no such Service", "observedGeneration": generation}]})
    };
    let check = |parents, health, said| {
        for kind in ["HTTPRoute", "GRPCRoute", "TLSRoute"] {
            let status = json!({"parents": parents});
            check(GATEWAYS, kind, json!({}), status, health, said);
        }
    };
    let good = parent("a", 2, "True", "Accepted", "True");
    check(json!([good]), Health::Healthy, "");
    check(
        json!([]),
        Health::Progressing,
        "no gateway has reported on it yet",
    );
    check(
        json!([parent("a", 2, "Unknown", "Pending", "True")]),
        Health::Progressing,
        "Pending",
    );
    check(
        json!([
            good,
            parent("b", 2, "False", "NoMatchingListenerHostname", "True")
        ]),
        Health::Degraded,
        "b: NoMatchingListenerHostname",
    );
    check(
        json!([parent("a", 2, "True", "Accepted", "False")]),
        Health::Degraded,
        "no such Service",
    );
    // Conditions about an older generation are ignored.
    check(
        json!([good, parent("b", 1, "False", "NoMatchingParent", "True")]),
        Health::Healthy,
        "",
    );
    check(
        json!([parent("a", 1, "True", "Accepted", "True")]),
        Health::Progressing,
        NOT_SEEN,
    );
}

#[test]
fn gateways_and_their_policies() {
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": reason});
    let gateway = |conditions: Value, listener: Value, health, said| {
        let status = json!({"conditions": conditions, "listeners": [{"name": "https", "conditions": [listener]}]});
        check(GATEWAYS, "Gateway", json!({}), status, health, said);
    };
    let accepted = condition("Accepted", "True", "Accepted");
    let programmed = condition("Programmed", "True", "Programmed");
    let fine = condition("Conflicted", "False", "NoConflicts");
    gateway(
        json!([accepted, programmed]),
        fine.clone(),
        Health::Healthy,
        "",
    );
    gateway(
        json!([
            accepted,
            condition("Programmed", "False", "AddressNotAssigned")
        ]),
        fine.clone(),
        Health::Progressing,
        "AddressNotAssigned",
    );
    gateway(
        json!([condition("Accepted", "False", "Invalid")]),
        fine,
        Health::Degraded,
        "Invalid",
    );
    gateway(
        json!([accepted, programmed]),
        condition("ResolvedRefs", "False", "InvalidCertificateRef"),
        Health::Degraded,
        "listener https: InvalidCertificateRef",
    );
    let class = |conditions, health, said| {
        check(
            GATEWAYS,
            "GatewayClass",
            json!({}),
            json!({"conditions": conditions}),
            health,
            said,
        );
    };
    class(
        json!([condition("Accepted", "Unknown", "Pending")]),
        Health::Progressing,
        "Pending",
    );
    class(
        json!([condition("Accepted", "False", "InvalidParameters")]),
        Health::Degraded,
        "InvalidParameters",
    );
    class(
        json!([]),
        Health::Progressing,
        "no controller has reported on it yet",
    );
    let policy = json!({"ancestors": [{"ancestorRef": {"name": "a"}, "conditions": [condition("Accepted", "False", "Conflicted")]}]});
    check(
        GATEWAYS,
        "BackendTLSPolicy",
        json!({}),
        policy,
        Health::Degraded,
        "Conflicted",
    );
    check(
        GATEWAYS,
        "ReferenceGrant",
        json!({}),
        Value::Null,
        Health::Healthy,
        "",
    );
}
