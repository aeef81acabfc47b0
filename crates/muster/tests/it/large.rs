//! Large upstream manifests are applied completely: CRDs of over 500 KB, hundreds of objects in one file, and lists.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    repository::{self, document},
    upstream::{Upstream, manifests},
    wait::eventually,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_upstream_manifests_are_applied_as_they_are() -> anyhow::Result<()> {
    let clusters = [("one", "east")];
    let mut fleet =
        Fleet::start(FleetOptions::new(env!("CARGO_BIN_EXE_muster"), &clusters)).await?;
    let mut files = repository::fleet("upstream", "{}", clusters);
    let sets = [
        (
            "prometheus-operator",
            Upstream::PrometheusOperator,
            "namespace: default",
        ),
        ("gateway-api", Upstream::GatewayApi, "namespace: default"),
        (
            "conformance",
            Upstream::GatewayApiConformance,
            "dependsOn: [gateway-api]",
        ),
        ("lists", Upstream::Lists, "namespace: default"),
    ];
    let mut sizes = Vec::new();
    for (app, upstream, more) in sets {
        let spec = format!("{{tier: basic, mode: active-active, {more}}}");
        files.insert(format!("apps/{app}/app.yaml"), document("App", app, &spec));
        for (name, text) in manifests(upstream)? {
            sizes.push(text.len());
            let name = name
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .replace(".yml", ".yaml");
            files.insert(format!("apps/{app}/manifests/{}-{name}", sizes.len()), text);
        }
    }
    ensure!(
        sizes.iter().any(|size| *size > 500_000),
        "no file has over 500 KB: {sizes:?}"
    );
    let listed = repository::listed(&files);
    fleet.repo().publish("upstream manifests", &listed)?;
    fleet.start_hub().await?;
    fleet.start_agents()?;
    let client = fleet.clusters()["one"].client().await?;
    let rendered = fleet.run(&[
        "render",
        &fleet.repo().work().to_string_lossy(),
        "--cluster",
        "one",
        "-o",
        "json",
    ])?;
    let rendered: serde_json::Value = serde_json::from_str(&rendered)?;
    let count = rendered["items"].as_array().map_or(0, Vec::len);
    ensure!(count > 400, "only {count} objects");
    eventually(
        "every object to be applied",
        Duration::from_secs(240),
        async || {
            let status = fleet.status()?;
            let apps = status["clusters"][0]["apps"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let applied: u64 = apps.iter().filter_map(|app| app["applied"].as_u64()).sum();
            ensure!(applied == count as u64, "{applied} of {count}: {status}");
            Ok(())
        },
    )
    .await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let labelled = ListParams::default().labels("muster.dev/app");
    let definitions = definitions.list_metadata(&labelled).await?.items.len();
    ensure!(definitions >= 20, "only {definitions} CRDs");
    let maps: Api<ConfigMap> = Api::all(client);
    ensure!(
        !maps
            .list(&labelled.labels("muster.dev/app=lists"))
            .await?
            .items
            .is_empty()
    );
    Ok(())
}
