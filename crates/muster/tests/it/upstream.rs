//! Real upstream manifests of size go the whole way: CRDs of over 500 KB, hundreds of objects in one
//! file, List kinds.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use muster_testkit::{
    fleet::{Fleet, FleetOptions},
    upstream::{Upstream, manifests},
    wait::eventually,
};

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_upstream_manifests_are_applied_as_they_are() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(FleetOptions::new(
        env!("CARGO_BIN_EXE_muster"),
        &[("one", "east")],
    ))
    .await?;
    let place = "{location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.2}}";
    let mut files = vec![
        ("fleet.yaml".to_owned(), document("Fleet", "upstream", "{}")),
        (
            "tiers.yaml".to_owned(),
            document("Tier", "basic", "{rpo: 1h, rto: 1h}"),
        ),
        (
            "regions/east/region.yaml".to_owned(),
            document("Region", "east", place),
        ),
        (
            "regions/east/one.yaml".to_owned(),
            document("Cluster", "one", "{}"),
        ),
    ];
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
        files.push((format!("apps/{app}/app.yaml"), document("App", app, &spec)));
        for (name, text) in manifests(upstream)? {
            sizes.push(text.len());
            let name = name
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .replace(".yml", ".yaml");
            files.push((format!("apps/{app}/manifests/{}-{name}", sizes.len()), text));
        }
    }
    ensure!(
        sizes.iter().any(|size| *size > 500_000),
        "no large file: {sizes:?}"
    );
    let listed: Vec<(&str, &str)> = files
        .iter()
        .map(|(p, t)| (p.as_str(), t.as_str()))
        .collect();
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
    ensure!(count > 400, "{count} objects");
    eventually(
        "every object applied",
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
    ensure!(definitions >= 20, "{definitions} definitions");
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
