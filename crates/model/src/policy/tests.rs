use super::*;

#[test]
fn a_budget_is_the_larger_of_a_number_and_a_share() {
    let budget = PruneBudget {
        objects: 10,
        percent: 25,
    };
    assert_eq!(
        [0, 8, 40, 1000].map(|all| budget.of(all)),
        [10, 10, 10, 250]
    );
}

#[test]
fn an_app_that_may_leave_is_known_by_its_name_alone() {
    let [one, two] = ["one", "two"].map(|app| app.parse().unwrap());
    let mut orders = PruneOrders::default();
    orders.approved.insert(PruneOrders::leaving(&one));
    assert!(orders.lets_go(&one) && !orders.lets_go(&two));
    let names = [PruneOrders::leaving(&one), ContentHash::of(b"a set")];
    assert_eq!(
        names.map(|name| PruneOrders::is_leaving(&name)),
        [true, false]
    );
}

#[test]
fn what_is_default_is_not_written() {
    assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
}
