use super::*;

#[test]
fn orders_are_part_of_the_content() {
    let orders = PruneOrders {
        budget: PruneBudget {
            objects: 3,
            percent: 7,
        },
        approved: [ContentHash::of(b"a"), ContentHash::of(b"b")].into(),
        unknown: ["web".parse().unwrap()].into(),
    };
    let generation = |orders: &PruneOrders| v1::Generation {
        epoch: 1,
        prune: Some(orders.into()),
        ..v1::Generation::default()
    };
    assert_eq!(generation(&orders).prune_orders().unwrap(), orders);
    let mut others = vec![orders.clone(); 6];
    others[4].unknown.clear();
    others[5].unknown.insert("api".parse().unwrap());
    others[1].approved.pop_last();
    others[2].budget.objects = 4;
    others[3].budget.percent = 8;
    let contents: std::collections::BTreeSet<_> = others
        .iter()
        .map(|orders| generation(orders).computed_content().unwrap())
        .collect();
    assert_eq!(contents.len(), 6);
    assert!(v1::Generation::default().computed_content().is_err());
    let mut odd = generation(&orders);
    odd.prune.as_mut().unwrap().approved[0].pop();
    assert!(odd.prune_orders().is_err());
}
