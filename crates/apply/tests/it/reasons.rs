//! The status of an unhealthy workload includes the messages of its pods.

use serde_json::json;

use crate::fixture::{Fixture, bundle, namespace, object, stored};

#[tokio::test]
async fn a_deployment_that_waits_says_what_its_pods_wait_for() {
    let fixture = Fixture::new("reasons").await;
    let mut applied = fixture.start().await;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "picky"},
        "spec": {
            "selector": {"matchLabels": {"app": "picky"}},
            "template": {
                "metadata": {"labels": {"app": "picky"}},
                "spec": {
                    "nodeSelector": {"there-is": "none"},
                    "containers": [{"name": "main", "image": "example.test/none"}],
                },
            },
        },
    });
    let one = bundle("picky", "reasons", &[namespace("reasons"), deployment]);
    applied.settle(stored(1, vec![one])).await;
    let observed = applied
        .until(|observed| {
            let message = object(observed, "Deployment.apps reasons/picky").message;
            message.is_some_and(|message| message.contains("nodes are available"))
        })
        .await;
    let message = object(&observed, "Deployment.apps reasons/picky").message;
    let message = message.unwrap();
    assert!(message.contains("(pod picky-"), "{message}");
}
