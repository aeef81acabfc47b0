//! Tests renamed apps: the app under the old name stays until the one under the new name runs.

use muster_testkit::gitserver::GitRepo;

use crate::{
    agents::Agent,
    fixture::{Hub, WEB, config_map, document, publish, repository},
};

fn head(repo: &GitRepo) -> String {
    repo.git(&["rev-parse", "HEAD"]).unwrap()
}

/// Renames the folder of `web`, with this template.
fn rename(repo: &GitRepo, template: &str) -> String {
    repo.git(&["rm", "--quiet", "-r", "apps/web"]).unwrap();
    let site = "tier: gold, mode: active-active, formerly: web";
    let files = [
        ("apps/site/app.yaml", document("App", "site", site)),
        ("apps/site/values.yaml", "size: 1\n".to_owned()),
        ("apps/site/templates/site.yaml", template.to_owned()),
    ];
    publish(repo, "web is site now", files)
}

fn apps(agent: &Agent) -> Vec<String> {
    agent.memory.runs().into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_app_takes_the_place_of_the_old_one() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&head(&repo)).await;
    hub.until_synced(&rename(&repo, WEB)).await;
    assert_eq!(apps(&agent), ["site"]);
    let header = agent.memory.header("site").unwrap();
    assert_eq!(header.formerly, "web".parse().ok());
    assert_eq!(header.namespace, "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_stays_while_the_renamed_app_is_broken() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    hub.until_synced(&head(&repo)).await;
    let before = agent.memory.header("web").unwrap();

    // Its template is broken.
    let broken = rename(&repo, &WEB.replace("values.size", "values.sizze"));
    hub.until_synced(&broken).await;
    assert_eq!(agent.memory.header("web").unwrap(), before);
    assert_eq!(
        (apps(&agent), agent.memory.generation()),
        (vec!["web".to_owned()], 1)
    );
    // Its document is broken too, and the hub's memory is empty after a restart.
    let site = "tier: gold, mode: active-active, formerly: web, colour: blue";
    let worse = [("apps/site/app.yaml", document("App", "site", site))];
    let worse = publish(&repo, "worse", worse);
    let hub = hub.restart().await;
    hub.until_synced(&worse).await;
    assert_eq!(
        (apps(&agent), agent.memory.generation()),
        (vec!["web".to_owned()], 1)
    );
    // It claims another app's object.
    let site = "tier: gold, mode: active-active, formerly: web";
    let taken = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: other}\n";
    let other = document("App", "other", "tier: gold, mode: active-active");
    let files = [
        ("apps/other/app.yaml", other),
        ("apps/other/templates/it.yaml", config_map("other", "a: b")),
    ];
    hub.until_synced(&publish(&repo, "another app", files))
        .await;
    let files = [
        ("apps/site/app.yaml", document("App", "site", site)),
        ("apps/site/templates/site.yaml", taken.to_owned()),
    ];
    hub.until_synced(&publish(&repo, "a rival", files)).await;
    assert_eq!(apps(&agent), ["other", "web"]);
    assert_eq!(agent.memory.header("web").unwrap(), before);

    let mended = [("apps/site/templates/site.yaml", WEB)];
    hub.until_synced(&publish(&repo, "mended", mended)).await;
    assert_eq!(apps(&agent), ["other", "site"]);
    assert_eq!(agent.memory.data("site"), r#"{"size":"1"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_apps_that_become_one_both_stay_until_it_runs() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-1").await;
    hub.until_synced(&head(&repo)).await;
    assert_eq!(apps(&agent), ["db", "web"]);
    repo.git(&["rm", "--quiet", "-r", "apps/web"]).unwrap();
    let db = "tier: gold, mode: active-passive, formerly: web, namespace: db";
    let both = |size: &str| {
        let own = config_map("db", &format!("size: \"{{{{ values.{size} }}}}\", role: x"));
        format!(
            "{own}---\n{}",
            WEB.replace("{name: web}", "{name: web, namespace: web}")
        )
    };
    let files = [
        ("apps/db/app.yaml", document("App", "db", db)),
        ("apps/db/templates/db.yaml", both("sizze")),
    ];
    hub.until_synced(&publish(&repo, "one app, broken", files))
        .await;
    assert_eq!(apps(&agent), ["db", "web"]);
    assert_eq!(agent.memory.generation(), 1);
    // It claims another app's object.
    let other = document("App", "other", "tier: gold, mode: active-active");
    let taken = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: other}\n";
    let files = [
        ("apps/other/app.yaml", other),
        ("apps/other/templates/it.yaml", config_map("other", "a: b")),
        ("apps/db/templates/db.yaml", both("size") + taken),
    ];
    let rival = publish(&repo, "a rival", files);
    hub.until_synced(&rival).await;
    assert_eq!(apps(&agent), ["db", "web"]);
    assert_eq!(agent.memory.data("db"), r#"{"role":"primary","size":"1"}"#);
    let mended = [("apps/db/templates/db.yaml", both("size"))];
    hub.until_synced(&publish(&repo, "one app", mended)).await;
    assert_eq!(apps(&agent), ["db", "other"]);
    // Nothing was approved along the way.
    assert!(agent.memory.approved().is_empty());
}
