//! Kinds without a rule of their own: statuses as many different controllers write them.

use proptest::prelude::*;

use super::*;

/// Lines of `health | kind | spec | status`. The status is JSON, or conditions as `type status reason message`,
/// separated by `;`.
const CASES: &str = r#"
    Progressing | Certificate |  | Issuing True DoesNotExist Issuing certificate as Secret does not exist; Ready False DoesNotExist Issuing certificate as Secret does not exist
    Healthy     | Certificate |  | Ready True Ready Certificate is up to date and has not expired
    Degraded    | Certificate |  | Issuing False Failed The certificate request has failed to complete and will be retried: order is invalid; Ready False DoesNotExist Issuing certificate as Secret does not exist
    Progressing | CertificateRequest |  | Ready False Pending Waiting on certificate issuance from order
    Degraded    | Order |  | {"state": "invalid", "reason": "x"}
    Progressing | Order |  | {"state": "pending"}
    Healthy     | Order |  | {"state": "valid"}
    Degraded    | Application |  | {"health": {"status": "Degraded"}, "sync": {"status": "Synced"}}
    Healthy     | Application |  | {"health": {"status": "Healthy"}, "sync": {"status": "Synced"}, "operationState": {"phase": "Succeeded"}}
    Progressing | Application |  | {"health": {"status": "Progressing"}, "sync": {"status": "Synced"}}
    Degraded    | Workflow |  | {"phase": "Failed", "message": "child failed"}
    Progressing | Workflow |  | {"phase": "Running"}
    Healthy     | Workflow |  | {"phase": "Succeeded"}
    Degraded    | AnalysisRun |  | {"phase": "Failed"}
    Progressing | AnalysisRun |  | {"phase": "Running"}
    Degraded    | EventSource |  | SourcesProvided True; Deployed False CreateFailed boom
    Healthy     | Sensor |  | DependenciesProvided True; Deployed True; TriggersProvided True
    Progressing | Cluster |  | {"phase": "Provisioning", "conditions": [{"type": "Ready", "status": "False", "reason": "ScalingUp", "severity": "Warning"}]}
    Healthy     | Cluster |  | {"phase": "Provisioned", "infrastructureReady": true, "controlPlaneReady": true, "conditions": [{"type": "Ready", "status": "True"}]}
    Degraded    | Machine |  | {"phase": "Failed", "failureReason": "CreateError", "failureMessage": "no quota"}
    Progressing | MachineDeployment | {"replicas": 3} | {"phase": "ScalingUp", "replicas": 3, "readyReplicas": 1, "updatedReplicas": 3}
    Healthy     | MachineDeployment | {"replicas": 3} | {"phase": "Running", "replicas": 3, "readyReplicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
    Suspended   | Cluster | {"paused": true} | {"phase": "Provisioned"}
    Degraded    | StorageBucket |  | Ready False UpdateFailed Update call failed: googleapi: Error 403
    Progressing | StorageBucket |  | Ready False Updating Update in progress
    Progressing | StorageBucket |  | Ready False DependencyNotReady reference is not ready
    Degraded    | StorageBucket |  | Ready False DependencyNotFound reference SQLInstance x is not found
    Healthy     | StorageBucket |  | Ready True UpToDate The resource is up to date
    Healthy     | ScaledObject |  | Ready True ScaledObjectReady ok; Active False ScalerNotActive not active; Fallback False NoFallbackFound No fallbacks are active; Paused Unknown
    Degraded    | ScaledObject |  | Ready False ScaledObjectCheckFailed ScaledObject doesn't have correct scaleTargetRef; Active Unknown UnkownState ScaledObject check failed
    Suspended   | ScaledObject |  | Ready True ScaledObjectReady x; Paused True ScaledObjectPaused paused
    Progressing | Service |  | ConfigurationsReady Unknown; Ready Unknown RevisionMissing x; RoutesReady Unknown
    Degraded    | Service |  | ConfigurationsReady False RevisionFailed Revision failed; Ready False RevisionFailed Revision x failed: image not found; RoutesReady False RevisionMissing m
    Healthy     | Service |  | ConfigurationsReady True; Ready True; RoutesReady True
    Degraded    | PipelineRun |  | Succeeded False Failed Tasks Completed: 1 (Failed: 1)
    Progressing | PipelineRun |  | Succeeded Unknown Running Tasks Completed: 1
    Healthy     | TaskRun |  | Succeeded True Succeeded All Steps have completed executing
    Degraded    | TaskRun |  | Succeeded False TaskRunTimeout did not finish within 1h
    Progressing | Backup |  | {"phase": "InProgress"}
    Degraded    | Backup |  | {"phase": "PartiallyFailed"}
    Healthy     | Backup |  | {"phase": "Completed", "expiration": "2026"}
    Degraded    | Restore |  | {"phase": "FailedValidation", "validationErrors": ["x"]}
    Healthy     | BackupStorageLocation |  | {"phase": "Available"}
    Healthy     | Schedule |  | {"phase": "Enabled"}
    Progressing | Bucket |  | Synced True ReconcileSuccess; Ready False Creating
    Healthy     | Bucket |  | Synced True ReconcileSuccess; Ready True Available
    Degraded    | Bucket |  | Synced False ReconcileError cannot observe; Ready True Available
    Healthy     | Provider |  | Installed True ActivePackageRevision; Healthy True HealthyPackageRevision
    Degraded    | Provider |  | Installed False UnpackingPackage cannot unpack package: failed to fetch; Healthy Unknown UnknownPackageRevisionHealth
    Progressing | Provider |  | Installed True ActivePackageRevision; Healthy Unknown UnknownPackageRevisionHealth
    Degraded    | Provider |  | Installed True ActivePackageRevision; Healthy False UnhealthyPackageRevision post establish runtime hook failed
    Progressing | HelmRelease |  | Reconciling True Progressing Running 'upgrade' action; Ready Unknown Progressing Running 'upgrade' action
    Degraded    | HelmRelease |  | Ready False UpgradeFailed Helm upgrade failed; Released False UpgradeFailed x; Stalled True RetriesExceeded y
    Healthy     | HelmRelease |  | Ready True UpgradeSucceeded ok; Released True UpgradeSucceeded ok
    Suspended   | HelmRelease | {"suspend": true} | Ready False UpgradeFailed x
    Progressing | GitRepository |  | {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "x"}]}
    Degraded    | GitRepository |  | Ready False GitOperationFailed failed to checkout; FetchFailed True GitOperationFailed m
    Progressing | Kustomization |  | Ready False DependencyNotReady dependency 'a/b' is not ready
    Degraded    | Kustomization |  | Ready False HealthCheckFailed timeout waiting for: [x]
    Degraded    | Kustomization |  | Ready False BuildFailed kustomize build failed
    Degraded    | SparkApplication |  | {"applicationState": {"state": "FAILED", "errorMessage": "driver failed"}}
    Progressing | SparkApplication |  | {"applicationState": {"state": "SUBMITTED"}}
    Healthy     | SparkApplication |  | {"applicationState": {"state": "COMPLETED"}}
    Progressing | SparkApplication |  | {"applicationState": {"state": "PENDING_RERUN"}}
    Healthy     | RayCluster |  | {"state": "ready", "availableWorkerReplicas": 1, "desiredWorkerReplicas": 1}
    Suspended   | RayCluster |  | {"state": "suspended"}
    Degraded    | RayJob |  | {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}
    Progressing | RayJob |  | {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}
    Healthy     | postgresql |  | {"PostgresClusterStatus": "Running"}
    Degraded    | postgresql |  | {"PostgresClusterStatus": "CreateFailed"}
    Progressing | postgresql |  | {"PostgresClusterStatus": "Creating"}
    Healthy     | MongoDBCommunity |  | {"phase": "Running", "currentMongoDBMembers": 3}
    Degraded    | MongoDBCommunity |  | {"phase": "Failed", "message": "m"}
    Progressing | MongoDBCommunity |  | {"phase": "Pending"}
    Healthy     | RedisEnterpriseCluster |  | {"state": "Running"}
    Progressing | RedisEnterpriseCluster |  | {"state": "BootstrappingFirstPod"}
    Degraded    | RedisEnterpriseCluster |  | {"state": "InvalidConfiguration"}
    Healthy     | Tenant |  | {"currentState": "Initialized", "healthStatus": "green", "availableReplicas": 4}
    Progressing | Tenant |  | {"currentState": "Provisioning MinIO Cluster Services"}
    Degraded    | Tenant |  | {"currentState": "Initialized", "healthStatus": "red"}
    Progressing | ClickhouseCluster | {"replicas": 3} | {"readyReplicas": 1}
    Healthy     | CassandraDatacenter |  | {"cassandraOperatorProgress": "Ready", "conditions": [{"type": "Ready", "status": "True", "reason": "", "message": ""}, {"type": "Updating", "status": "False", "reason": "", "message": ""}, {"type": "Stopped", "status": "False", "reason": "", "message": ""}, {"type": "Valid", "status": "True", "reason": "", "message": ""}]}
    Progressing | CassandraDatacenter |  | {"cassandraOperatorProgress": "Updating", "conditions": [{"type": "Ready", "status": "True", "reason": "", "message": ""}, {"type": "Updating", "status": "True", "reason": "", "message": ""}, {"type": "Stopped", "status": "False", "reason": "", "message": ""}]}
    Suspended   | CassandraDatacenter | {"stopped": true} | {"cassandraOperatorProgress": "Ready", "conditions": [{"type": "Ready", "status": "False", "reason": "", "message": ""}, {"type": "Stopped", "status": "True", "reason": "", "message": ""}]}
    Healthy     | Volume |  | {"state": "attached", "robustness": "healthy"}
    Degraded    | Volume |  | {"state": "attached", "robustness": "faulted"}
    Degraded    | Volume |  | {"state": "attached", "robustness": "degraded"}
    Healthy     | CephBlockPool |  | {"phase": "Ready"}
    Progressing | CephBlockPool |  | {"phase": "Progressing"}
    Degraded    | CephFilesystem |  | {"phase": "Failure"}
    Healthy     | VolumeSnapshotContent |  | {"readyToUse": true}
    Progressing | VolumeSnapshotContent |  | {"readyToUse": false}
    Degraded    | VolumeSnapshotContent |  | {"readyToUse": false, "error": {"message": "x"}}
    Healthy     | ClusterPolicy |  | {"ready": true, "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "Ready"}]}
    Progressing | ClusterPolicy |  | {"state": "notReady"}
    Healthy     | ClusterPolicy |  | {"state": "ready"}
    Degraded    | ConstraintTemplate |  | {"created": false, "byPod": [{"id": "a", "errors": [{"code": "rego", "message": "bad rego"}], "observedGeneration": 2}]}
    Healthy     | ConstraintTemplate |  | {"created": true, "byPod": [{"id": "a", "observedGeneration": 2}]}
    Healthy     | ClusterOperator |  | Degraded False AsExpected All is well; Progressing False AsExpected All is well; Available True AsExpected All is well; Upgradeable True AsExpected All is well
    Progressing | ClusterOperator |  | Degraded False AsExpected; Progressing True NodeInstaller 3 nodes are at revision 4; Available True
    Degraded    | ClusterOperator |  | Degraded True Sync failed; Progressing False; Available True
    Healthy     | ClusterOperator |  | Degraded False AsExpected; Progressing False; Available True; Upgradeable False NotUpgradeable x
    Healthy     | ClusterServiceVersion |  | {"phase": "Succeeded", "reason": "InstallSucceeded", "message": "install strategy completed with no errors"}
    Degraded    | ClusterServiceVersion |  | {"phase": "Failed", "reason": "ComponentUnhealthy", "message": "m"}
    Progressing | ClusterServiceVersion |  | {"phase": "Installing"}
    Healthy     | InstallPlan |  | {"phase": "Complete"}
    Progressing | InstallPlan |  | {"phase": "RequiresApproval"}
    Degraded    | CatalogSource |  | {"connectionState": {"lastObservedState": "TRANSIENT_FAILURE"}}
    Healthy     | CatalogSource |  | {"connectionState": {"lastObservedState": "READY"}}
    Healthy     | MachineConfigPool |  | {"machineCount": 3, "readyMachineCount": 3, "updatedMachineCount": 3, "conditions": [{"type": "NodeDegraded", "status": "False", "reason": "", "message": ""}, {"type": "RenderDegraded", "status": "False", "reason": "", "message": ""}, {"type": "Degraded", "status": "False", "reason": "", "message": ""}, {"type": "Updating", "status": "False", "reason": "", "message": ""}, {"type": "Updated", "status": "True", "reason": "", "message": ""}]}
    Progressing | MachineConfigPool |  | NodeDegraded False; Degraded False; Updating True; Updated False
    Healthy     | VirtualMachineInstance |  | {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "reason": "", "message": ""}, {"type": "LiveMigratable", "status": "False", "reason": "DisksNotLiveMigratable", "message": "cannot migrate VMI"}]}
    Progressing | VirtualMachineInstance |  | {"phase": "Scheduling"}
    Degraded    | VirtualMachineInstance |  | {"phase": "Failed"}
    Healthy     | Integration |  | {"phase": "Running", "replicas": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "DeploymentReady", "message": "1/1 ready replicas"}]}
    Progressing | Integration |  | {"phase": "Building Kit"}
    Degraded    | Integration |  | {"phase": "Error"}
    Healthy     | Stage |  | {"health": {"status": "Healthy"}, "phase": "Steady"}
    Degraded    | Stage |  | {"health": {"status": "Unhealthy"}}
    Progressing | Promotion |  | {"phase": "Running"}
    Degraded    | Promotion |  | {"phase": "Errored"}
    Progressing | DNSEndpoint |  | {"observedGeneration": 1}
    Healthy     | ServiceAccountIssuer |  | Ready True KubeadmOK x; DeprecatedSpec True OldField field x is deprecated
    Healthy     | Kafka |  | Warning True DeprecatedFields old; Ready True
    Suspended   | KafkaTopic |  | ReconciliationPaused True
    Healthy     | Rollout | {"replicas": 0} | {"replicas": 0, "conditions": [{"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable", "message": "x"}]}
    Degraded    | DatadogMetric |  | Active True; Valid False - Invalid query; Error True Unable to fetch data x
    Healthy     | DatadogMetric |  | Active True; Valid True; Updated True; Error False
    Healthy     | Issuer |  | Ready True KeyPairVerified Signing CA verified
    Degraded    | Issuer |  | Ready False ErrGetKeyPair Error getting keypair for CA issuer: secret not found
    Progressing | NodeSet |  | {"replicas": 3, "readyReplicas": 1, "phase": "Running"}
    Healthy     | ExternalDNS |  | Available True DeploymentAvailable; Degraded False AsExpected; Progressing False AsExpected
    Degraded    | Deployment |  | {"conditions": {"Ready": {"status": "False", "reason": "ImagePullFailed", "message": "m"}}}
    Degraded    | Model |  | Ready False ImagePullBackOff m
    Degraded    | Model |  | Ready False CrashLoopBackOff m
    Progressing | Inference |  | PredictorReady Unknown; IngressReady Unknown; Ready Unknown
    Degraded    | Inference |  | PredictorReady False RevisionFailed x; Ready False RevisionFailed
    Progressing | Widget |  | {"state": "UPDATE_IN_PROGRESS"}
    Healthy     | Widget |  | {"state": "CREATE_COMPLETE"}
    Degraded    | Widget |  | {"state": "UPDATE_ROLLBACK_FAILED"}
    Progressing | RDS |  | {"status": "backing-up"}
    Progressing | RDS |  | {"status": "modifying"}
    Healthy     | RDS |  | {"status": "available"}
    Degraded    | RDS |  | {"status": "storage-full"}
    Degraded    | RDS |  | {"status": "inaccessible-encryption-credentials"}
    Suspended   | RDS |  | {"status": "stopped"}
    Degraded    | Bucket2 |  | ACK.Recoverable True - AccessDenied; ACK.ResourceSynced False
    Degraded    | Bucket2 |  | ACK.Terminal True - InvalidParameter; ACK.ResourceSynced True
    Healthy     | Bucket2 |  | ACK.ResourceSynced True
    Progressing | Bucket2 |  | ACK.ResourceSynced False
    Healthy     | Lock |  | Resolved True ResolutionSucceeded
"#;

fn status(text: &str) -> Value {
    if text.starts_with('{') {
        return serde_json::from_str(text).unwrap();
    }
    let conditions = text.split("; ").map(|condition| {
        let mut words = condition.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        json!({"type": word(), "status": word(), "reason": word().trim_matches('-'), "message": word()})
    });
    json!({"conditions": conditions.collect::<Vec<_>>()})
}

#[test]
fn statuses_of_many_controllers() {
    for case in CASES.lines().filter(|line| !line.is_empty()) {
        let [health, kind, spec, text] = case
            .splitn(4, '|')
            .map(str::trim)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let spec = if spec.is_empty() {
            json!({"size": 1})
        } else {
            status(spec)
        };
        let assessment = assess(&object("x.example/v1", kind, spec, status(text)));
        assert_eq!(assessment.health.as_str(), health, "{case}: {assessment:?}");
        assert!(
            assessment.health == Health::Healthy || assessment.message.is_some(),
            "{case}"
        );
    }
}

fn without_status(kind: &str, object: Value) -> Health {
    let mut object = object;
    object["apiVersion"] = json!("x.example/v1");
    object["kind"] = json!(kind);
    assess(&object).health
}

#[test]
fn without_a_status() {
    let spec = json!({"spec": {"size": 1}});
    for kind in ["Database", "Certificate", "Broker", "Queue"] {
        assert_eq!(
            without_status(kind, spec.clone()),
            Health::Progressing,
            "{kind}"
        );
    }
    // Kinds like these are only read by others, and no controller reports on them.
    for kind in [
        "DestinationRule",
        "ServiceMonitor",
        "ProviderConfig",
        "StorageClass",
        "AppProject",
        "CronFlow",
    ] {
        assert_eq!(
            without_status(kind, spec.clone()),
            Health::Healthy,
            "{kind}"
        );
    }
    assert_eq!(
        without_status("Priority", json!({"value": 3})),
        Health::Healthy
    );
    assert_eq!(
        without_status("Backups", json!({"spec": {"schedule": "@daily"}})),
        Health::Healthy
    );
    // If an object has no content at all, a controller is expected to report on it.
    assert_eq!(without_status("Export", json!({})), Health::Progressing);
    let built_in =
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {"a": 1}});
    assert_eq!(assess(&built_in), Assessment::HEALTHY);
    assert!(assess(&json!({"apiVersion": "x.example/v1", "kind": "Queue"})).is_silence());
}

#[test]
fn switched_off() {
    let check = |metadata: Value, spec: Value, said: &str| {
        let object = json!({"apiVersion": "x.example/v1", "kind": "Queue", "metadata": metadata, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Failed"}]}});
        assert_eq!(assess(&object), Assessment::suspended(said));
    };
    check(
        json!({}),
        json!({"suspend": true}),
        "suspend is true in its spec",
    );
    check(
        json!({}),
        json!({"strategy": {"paused": true}}),
        "paused is true in its spec",
    );
    let annotation = |key: &str, value: &str| json!({"annotations": {key: value}});
    check(
        annotation("a.example/paused", "true"),
        json!({}),
        "its annotation a.example/paused is true",
    );
    check(
        annotation("a.example/reconcile", "disabled"),
        json!({}),
        "its annotation a.example/reconcile is disabled",
    );
}

#[test]
fn messages_say_what_is_wrong() {
    let check = |status, health, said| {
        check(
            "x.example/v1",
            "Foo",
            json!({"size": 1}),
            status,
            health,
            said,
        )
    };
    let degraded = Health::Degraded;
    check(
        json!({"phase": "Failed", "message": "no space"}),
        degraded,
        "phase is Failed: no space",
    );
    check(
        json!({"state": "error", "message": ["a is lost", "b too"]}),
        degraded,
        "state is error: a is lost; b too",
    );
    check(
        json!({"ready": false, "failureMessage": "no quota left"}),
        degraded,
        "no quota left",
    );
    check(
        json!({"racks": {"a": {"members": 3, "readyMembers": 1}}}),
        Health::Progressing,
        "members is 1 of 3",
    );
    check(
        json!({"scale": {"statusReplicas": "1/3"}}),
        Health::Progressing,
        "statusReplicas is 1 of 3",
    );
    check(
        json!({"state": "NotFound"}),
        Health::Missing,
        "state is NotFound",
    );
    check(
        json!({"state": "creating"}),
        Health::Progressing,
        "state is creating",
    );
    check(
        json!({"observedGeneration": "1"}),
        Health::Progressing,
        NOT_SEEN,
    );
    check(
        json!({"lastEvaluatedGeneration": 1}),
        Health::Progressing,
        NOT_SEEN,
    );
    let old = json!({"type": "Ready", "status": "True", "observedGeneration": 1});
    check(json!({"conditions": [old]}), Health::Progressing, NOT_SEEN);
}

#[test]
fn a_failed_deletion_is_shown() {
    let mut object = object(
        "x.example/v1",
        "Bucket",
        json!({}),
        status("Ready False DeleteFailed the bucket is not empty"),
    );
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(
        assess(&object),
        Assessment::degraded("the bucket is not empty")
    );
    object["status"] = status("Ready True");
    assert_eq!(assess(&object), Assessment::progressing("being deleted"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let word = "[A-Z][a-z]{1,6}([A-Z][a-z]{1,6})?|Ready|Failed|True|False|Unknown|\\PC{0,6}|[0-9]{1,3}/[0-9]";
    let leaf = prop_oneof![
        word.prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    let key = "conditions|phase|state|status|health|type|reason|message|observedGeneration|replicas|\
               ready[A-Z][a-z]|[a-z]{1,4}|parents|listeners|loadBalancer|ingress|containerStatuses|error";
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_object_gets_an_assessment_with_a_message(
        kind in "Pod|Deployment|Namespace|HorizontalPodAutoscaler|HTTPRoute|Gateway|Job|PodDisruptionBudget|Foo|APIService",
        group in "|apps/|batch/|policy/|autoscaling/|gateway.networking.k8s.io/|x.example/",
        spec in any_value(),
        status in any_value(),
    ) {
        let object = json!({"apiVersion": format!("{group}v1"), "kind": kind,
            "metadata": {"generation": 2}, "spec": spec, "status": status});
        let assessment = assess(&object);
        prop_assert!(assessment.health == Health::Healthy || assessment.message.is_some(), "{assessment:?}");
    }
}
