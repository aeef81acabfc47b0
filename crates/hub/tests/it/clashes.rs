//! Tests objects that two apps claim: the app that has the object keeps it and gets updates, and the other is blocked.

use muster_testkit::gitserver::GitRepo;

use crate::{
    agents::{Agent, OUTSIDE},
    fixture::{Hub, document, publish, repository},
};

fn issuer(size: u32) -> String {
    format!(
        "apiVersion: {OUTSIDE}/v1\nkind: Issuer\nmetadata: {{name: one}}\nspec: {{size: {size}}}\n"
    )
}

fn app(name: &str, namespace: &str, template: String) -> [(String, String); 2] {
    let spec = format!("tier: gold, mode: active-active, namespace: {namespace}");
    [
        (
            format!("apps/{name}/app.yaml"),
            document("App", name, &spec),
        ),
        (format!("apps/{name}/templates/it.yaml"), template),
    ]
}

fn commit(repo: &GitRepo, message: &str, files: [(String, String); 2]) -> String {
    publish(repo, message, files)
}

/// Here the hub learns only from an agent that the kind is cluster-scoped.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_an_object_goes_on_whatever_another_app_claims() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-2").await;
    let first = commit(&repo, "the owner", app("owner", "owner", issuer(1)));
    hub.until_synced(&first).await;
    let rival = commit(&repo, "a rival", app("a-rival", "elsewhere", issuer(2)));
    hub.until_synced(&rival).await;
    let apps = || agent.memory.runs().into_keys().collect::<Vec<_>>();
    assert_eq!(apps(), ["owner", "web"]);
    let mut problems = hub.status().await.problems.into_iter();
    let problem = problems.next().unwrap();
    assert_eq!(problems.next(), None);
    assert_eq!(problem.file, "apps/a-rival/templates/it.yaml");
    assert!(
        problem.message.contains("belongs to app `owner`"),
        "{problem:?}"
    );

    let both = [
        app("owner", "owner", issuer(3)),
        app("a-rival", "elsewhere", issuer(4)),
    ];
    let later = publish(&repo, "both go on", both.concat());
    hub.until_synced(&later).await;
    assert_eq!(apps(), ["owner", "web"]);
    assert_eq!(agent.memory.spec("owner"), r#"{"size":3}"#);

    // One commit can hand the object over.
    let empty = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: left}\n".to_owned();
    let both = [
        app("owner", "owner", empty),
        app("a-rival", "elsewhere", issuer(4)),
    ];
    let handed = publish(&repo, "handed over", both.concat());
    hub.until_synced(&handed).await;
    assert_eq!(apps(), ["a-rival", "owner", "web"]);
    assert_eq!(agent.memory.spec("a-rival"), r#"{"size":4}"#);
}
