use muster_model::policy::HealthCase;
use serde_json::json;

use super::*;

#[test]
fn a_rule_that_would_take_long_is_not_evaluated() {
    let case = HealthCase {
        when: "object.spec.a.all(x, object.spec.a.exists(y, x != y))".to_owned(),
        health: Health::Degraded,
        message: None,
    };
    let rule = HealthRule {
        group: "x.example".to_owned(),
        kind: "Foo".to_owned(),
        cases: vec![case],
    };
    let rules = Rules::compile(&[rule]).unwrap();
    let foo = |elements: usize| {
        let list: Vec<usize> = (0..elements).collect();
        rules.assess(&json!({"apiVersion": "x.example/v1", "kind": "Foo", "spec": {"a": list}}))
    };
    assert_eq!(foo(30).health, Health::Degraded);
    let dear = foo(3000);
    assert_eq!(dear.health, Health::Unknown);
    let message = dear.message.unwrap_or_default();
    assert!(
        message.contains("lists of up to 3000 elements"),
        "{message}"
    );
}
