//! Deletions that need a person's approval.

use muster_apply::{Observed, PendingApproval};
use serde_json::{Value, json};

use crate::fixture::{Fixture, bundle, config_map, making, namespace, stored, with_budget};

fn plain_namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn maps(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| config_map(&format!("m{i}"), "1"))
        .collect()
}

fn only_hold(observed: &Observed) -> &PendingApproval {
    assert_eq!(observed.pending_approvals.len(), 1, "{observed:#?}");
    &observed.pending_approvals[0]
}

#[tokio::test]
async fn a_generation_that_deletes_too_much_deletes_nothing_until_that_is_approved() {
    let fixture = Fixture::new("budget").await;
    let mut applied = fixture.start().await;
    let objects = [vec![namespace("budget-a")], maps(8)].concat();
    applied
        .settle(stored(1, vec![bundle("a", "budget-a", &objects)]))
        .await;
    let fewer = |number| {
        with_budget(
            stored(number, vec![bundle("a", "budget-a", &objects[..3])]),
            3,
            25,
        )
    };
    let observed = applied.settle(fewer(2)).await;
    let pending_approval = only_hold(&observed).clone();
    assert_eq!(
        (
            pending_approval.app.as_str(),
            pending_approval.objects.len()
        ),
        ("a", 6)
    );
    assert_eq!(
        pending_approval.reason,
        "6 of its 9 objects would be deleted, and the prune budget is 3"
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 8);

    // A new process reports the same pending approval, since the objects are still in the inventory.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied.settle(fewer(3)).await;
    assert_eq!(*only_hold(&observed), pending_approval);

    let mut approved = fewer(4);
    approved.prune.approved.insert(pending_approval.set);
    let observed = applied.settle(approved).await;
    assert_eq!(
        (observed.pending_approvals.len(), observed.leftovers.len()),
        (0, 0)
    );
    assert_eq!(
        fixture.live("v1", "ConfigMap").await,
        ["budget-a/m0", "budget-a/m1"]
    );
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_approval_is_for_the_very_objects_that_were_seen() {
    let fixture = Fixture::new("exact").await;
    let mut applied = fixture.start().await;
    let objects = [vec![namespace("exact-a")], maps(4)].concat();
    applied
        .settle(stored(1, vec![bundle("a", "exact-a", &objects)]))
        .await;
    let fewer = |number, left| {
        with_budget(
            stored(number, vec![bundle("a", "exact-a", &objects[..left])]),
            1,
            0,
        )
    };
    let seen = applied.settle(fewer(2, 3)).await;
    let set = only_hold(&seen).set;
    // Meanwhile another commit removes one more object.
    let mut approved = fewer(3, 2);
    approved.prune.approved.insert(set);
    let observed = applied.settle(approved).await;
    assert_ne!(only_hold(&observed).set, set);
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 4);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_namespace_is_not_pruned_without_approval() {
    let fixture = Fixture::new("nsprune").await;
    let mut applied = fixture.start().await;
    let objects = [plain_namespace("nsprune-a"), config_map("a", "1")];
    applied
        .settle(stored(1, vec![bundle("a", "nsprune-a", &objects)]))
        .await;
    let observed = applied.settle(stored(2, vec![])).await;
    let pending_approval = only_hold(&observed).clone();
    assert_eq!(pending_approval.reason, "protected: Namespace");
    assert_eq!(fixture.live("v1", "Namespace").await, ["nsprune-a"]);
    assert_eq!(fixture.live("v1", "ConfigMap").await, Vec::<String>::new());
    let mut approved = stored(3, vec![]);
    approved.prune.approved.insert(pending_approval.set);
    applied.settle(approved).await;
    applied
        .until(|o| o.leftovers.is_empty() && o.pending_approvals.is_empty())
        .await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_app_that_renders_to_nothing_keeps_what_it_has() {
    let fixture = Fixture::new("empty").await;
    let mut applied = fixture.start().await;
    let base = bundle("base", "empty-a", &[namespace("empty-a")]);
    let app = bundle("a", "empty-a", &maps(2));
    applied.settle(stored(1, vec![base.clone(), app])).await;
    let observed = applied
        .settle(stored(2, vec![base, bundle("a", "empty-a", &[])]))
        .await;
    assert!(only_hold(&observed).reason.contains("renders to nothing"));
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 2);
    applied.applier.stop().await;
}

#[tokio::test]
async fn a_generator_that_drops_every_app_deletes_nothing() {
    let fixture = Fixture::new("cascade").await;
    let mut applied = fixture.start().await;
    let base = bundle("base", "cascade-a", &[namespace("cascade-a")]);
    let apps = (0..6).map(|i| {
        bundle(
            &format!("app{i}"),
            "cascade-a",
            &[config_map(&format!("c{i}"), "1")],
        )
    });
    let all: Vec<_> = std::iter::once(base.clone()).chain(apps).collect();
    applied.settle(stored(1, all)).await;
    let observed = applied
        .settle(with_budget(stored(2, vec![base]), 4, 25))
        .await;
    assert_eq!(observed.pending_approvals.len(), 6);
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 6);
    applied.applier.stop().await;
}

#[tokio::test]
async fn an_annotation_on_the_live_object_keeps_it() {
    let fixture = Fixture::new("keep").await;
    let mut applied = fixture.start().await;
    let objects = [vec![namespace("keep-a")], maps(2)].concat();
    applied
        .settle(stored(1, vec![bundle("a", "keep-a", &objects)]))
        .await;
    let patch = json!({"metadata": {"annotations": {"muster.dev/prune": "disabled"}}});
    fixture
        .edit_as(
            "kubectl-annotate",
            "v1",
            "ConfigMap",
            ("keep-a", "m0"),
            &patch,
        )
        .await;
    let observed = applied
        .settle(stored(2, vec![bundle("a", "keep-a", &objects[..1])]))
        .await;
    assert_eq!(
        (observed.pending_approvals.len(), observed.leftovers.len()),
        (0, 0)
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["keep-a/m0"]);
    // It belongs to no app any more: another app may claim it, or a person may delete it.
    let again = making("b", "keep-a").of(&objects[..2]);
    applied.settle(stored(3, vec![again])).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await, ["keep-a/m0"]);
    applied.applier.stop().await;
}

#[tokio::test]
async fn objects_that_return_to_git_before_their_deletion_is_approved_are_healthy() {
    let fixture = Fixture::new("again").await;
    let mut applied = fixture.start().await;
    let base = bundle("base", "again-a", &[namespace("again-a")]);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "a"}},
    });
    let objects = [plain_namespace("again-b"), account, service];
    let app = bundle("a", "again-a", &objects);
    applied
        .settle(stored(1, vec![base.clone(), app.clone()]))
        .await;
    applied.until(|o| o.bundles[1].counts.healthy == 3).await;
    let observed = applied
        .settle(with_budget(
            stored(2, vec![base.clone(), bundle("a", "again-a", &[])]),
            0,
            0,
        ))
        .await;
    assert_eq!(only_hold(&observed).objects.len(), 3);
    applied.settle(stored(3, vec![base, app])).await;
    applied.until(|o| o.bundles[1].counts.healthy == 3).await;
    applied.applier.stop().await;
}

#[tokio::test]
async fn many_small_commits_delete_no_more_than_one_large_one() {
    let fixture = Fixture::new("hourly").await;
    let mut applied = fixture.start().await;
    let objects = [vec![namespace("hourly-a")], maps(12)].concat();
    let with = |number, left: usize| {
        let left = &objects[..=left];
        with_budget(stored(number, vec![bundle("a", "hourly-a", left)]), 4, 0)
    };
    applied.settle(with(1, 12)).await;
    applied.settle(with(2, 10)).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 10);
    // A new process knows how many objects the previous one deleted.
    applied.applier.stop().await;
    let mut applied = fixture.start().await;
    let observed = applied.settle(with(3, 7)).await;
    assert_eq!(
        only_hold(&observed).reason,
        "3 of its 11 objects would be deleted, and the prune budget is 2 (2 already deleted within the last hour)"
    );
    let observed = applied.settle(with(4, 8)).await;
    assert_eq!(observed.pending_approvals.len(), 0);
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 8);
    let observed = applied.settle(with(5, 7)).await;
    let set = only_hold(&observed).set;
    let mut approved = with(6, 7);
    approved.prune.approved.insert(set);
    applied.settle(approved).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 7);
    applied.applier.stop().await;
}

#[tokio::test]
async fn no_hub_lets_an_agent_delete_more_than_its_own_ceiling() {
    let mut fixture = Fixture::new("ceiling").await;
    fixture.config.prune_ceiling = Some(3);
    let mut applied = fixture.start().await;
    let objects = [vec![namespace("ceiling-a")], maps(8)].concat();
    let with = |number, left: usize| {
        let left = &objects[..=left];
        with_budget(
            stored(number, vec![bundle("a", "ceiling-a", left)]),
            u32::MAX,
            100,
        )
    };
    applied.settle(with(1, 8)).await;
    applied.settle(with(2, 6)).await;
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 6);
    let observed = applied.settle(with(3, 2)).await;
    assert_eq!(
        only_hold(&observed).reason,
        "4 objects would be deleted, and this agent's own ceiling (--prune-ceiling) is 1 (2 already deleted within the last hour)"
    );
    assert_eq!(fixture.live("v1", "ConfigMap").await.len(), 6);
    applied.applier.stop().await;
}
