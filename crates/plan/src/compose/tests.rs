use proptest::prelude::*;

use super::*;

type Objects = BTreeSet<u8>;

fn overlap(chosen: &BTreeMap<AppName, Objects>) -> Vec<Conflict> {
    let mut owners: BTreeMap<u8, &AppName> = BTreeMap::new();
    let mut found = Vec::new();
    for (app, objects) in chosen {
        for object in objects {
            let other = *owners.entry(*object).or_insert(app);
            if other != app {
                found.push(Conflict {
                    object: object.to_string(),
                    identity: u64::from(*object),
                    claims: [(other.clone(), "a".into()), (app.clone(), "b".into())],
                    owner: None,
                });
            }
        }
    }
    found
}

fn holds(objects: &Objects, conflict: &Conflict) -> bool {
    objects
        .iter()
        .any(|object| u64::from(*object) == conflict.identity)
}

fn composed(offers: &BTreeMap<AppName, Offer<Objects>>) -> Composed<Objects> {
    compose(offers, overlap, holds)
}

fn app(name: &str) -> AppName {
    name.parse().unwrap()
}

fn offer(new: Option<&[u8]>, last: Option<&[u8]>) -> Offer<Objects> {
    let set = |objects: &[u8]| objects.iter().copied().collect();
    Offer {
        new: new.map(set),
        last: last.map(set),
    }
}

#[test]
fn the_app_that_newly_claims_an_object_is_blocked() {
    let offers = BTreeMap::from([
        (app("old"), offer(Some(&[1]), Some(&[1]))),
        (app("new"), offer(Some(&[1, 2]), Some(&[2]))),
    ]);
    let made = composed(&offers);
    assert_eq!(made.chosen[&app("new")], BTreeSet::from([2]));
    assert_eq!(made.chosen[&app("old")], BTreeSet::from([1]));
    assert_eq!(made.conflicts.len(), 1);
}

#[test]
fn a_broken_app_keeps_its_object_from_the_one_that_takes_it_over() {
    let offers = BTreeMap::from([
        (app("from"), offer(None, Some(&[1]))),
        (app("to"), offer(Some(&[1]), None)),
    ]);
    let made = composed(&offers);
    assert_eq!(made.chosen.keys().collect::<Vec<_>>(), [&app("from")]);
}

#[test]
fn the_owners_later_commits_are_not_blocked_by_anothers_claim() {
    let offers = BTreeMap::from([
        (app("owner"), offer(Some(&[1, 3]), Some(&[1]))),
        (app("rival"), offer(Some(&[1, 2]), None)),
    ]);
    let made = composed(&offers);
    assert_eq!(made.chosen.keys().collect::<Vec<_>>(), [&app("owner")]);
    assert_eq!(made.chosen[&app("owner")], BTreeSet::from([1, 3]));
    assert_eq!(made.conflicts[0].owner, Some(app("owner")));
}

#[test]
fn objects_that_two_apps_already_had_block_neither_and_are_reported() {
    let offers = BTreeMap::from([
        (app("a"), offer(Some(&[1, 2]), Some(&[1]))),
        (app("b"), offer(Some(&[1]), Some(&[1]))),
    ]);
    let made = composed(&offers);
    assert_eq!(made.chosen[&app("a")], BTreeSet::from([1, 2]));
    assert_eq!(made.chosen[&app("b")], BTreeSet::from([1]));
    assert_eq!(made.conflicts.len(), 1);
    assert_eq!(made.conflicts[0].owner, None);
}

fn objects() -> impl Strategy<Value = Option<Objects>> {
    proptest::option::of(proptest::collection::btree_set(0..6_u8, 0..3))
}

proptest! {
    #[test]
    fn no_two_apps_newly_contain_the_same_object(offers in proptest::collection::btree_map("[a-e]", (objects(), objects()), 0..5)) {
        let offers: BTreeMap<AppName, Offer<Objects>> = offers
            .into_iter()
            .map(|(name, (new, last))| (app(&name), Offer { new, last }))
            .collect();
        let made = composed(&offers);
        let last: BTreeMap<AppName, Objects> = offers
            .iter()
            .filter_map(|(name, offer)| Some((name.clone(), offer.last.clone()?)))
            .collect();
        let had = |object: u8| last.values().filter(|objects| objects.contains(&object)).count();
        for conflict in overlap(&made.chosen) {
            prop_assert!(had(u8::try_from(conflict.identity).unwrap()) > 1);
        }
        for (name, chosen) in &made.chosen {
            let offer = &offers[name];
            prop_assert!(offer.new.as_ref() == Some(chosen) || offer.last.as_ref() == Some(chosen));
        }
        for (name, offer) in &offers {
            // An app that runs is never removed because of another app.
            prop_assert!(offer.last.is_none() || made.chosen.contains_key(name));
            // An app that claims no new object is not blocked.
            let (Some(new), Some(last)) = (&offer.new, &offer.last) else { continue };
            if new.is_subset(last) {
                prop_assert_eq!(made.chosen.get(name), Some(new));
            }
        }
        if made.conflicts.is_empty() {
            for (name, offer) in &offers {
                prop_assert_eq!(made.chosen.get(name), offer.new.as_ref().or(offer.last.as_ref()));
            }
        }
    }
}
