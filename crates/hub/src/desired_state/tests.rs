use muster_model::policy::PruneBudget;

use super::*;

#[test]
fn another_number_has_no_approvals() {
    let some = PruneBudget {
        objects: 3,
        percent: 4,
    };
    let prune = |budget, approved: &[&[u8]]| PruneOrders {
        budget,
        approved: approved.iter().map(|set| ContentHash::of(set)).collect(),
        ..PruneOrders::default()
    };
    let desired = |generation, prune: PruneOrders| DesiredState {
        number: Numbered {
            generation: Generation(generation),
            content: content_of(1, &prune, &[]),
        },
        since: Generation(generation),
        commit: "c".to_owned(),
        epoch: 1,
        prune,
        bundles: [].into(),
    };
    let held = desired(3, prune(some, &[b"a"]));
    let elsewhere = Numbered {
        generation: Generation(7),
        content: ContentHash::of(b"of a newer store"),
    };
    let expected = desired(8, prune(NOTHING, &[]));
    assert_eq!(held.renumbered(Some(elsewhere)), expected);
    // The agent may already have exactly that content.
    let same = Numbered {
        generation: Generation(7),
        content: expected.number.content,
    };
    let renumbered = held.renumbered(Some(same)).number;
    assert!(renumbered.generation >= Generation(7), "{renumbered:?}");
}
