//! Rules of a fleet repository.

use muster_model::policy::{HealthCase, HealthRule};

use super::*;

fn case(when: &str, health: Health, message: Option<&str>) -> HealthCase {
    HealthCase {
        when: when.to_owned(),
        health,
        message: message.map(str::to_owned),
    }
}

fn rule(cases: Vec<HealthCase>) -> HealthRule {
    HealthRule {
        group: "x.example".to_owned(),
        kind: "Foo".to_owned(),
        cases,
    }
}

fn foo(spec: Value, status: Value) -> Value {
    object("x.example/v1", "Foo", spec, status)
}

#[test]
fn the_first_true_case_decides() {
    let rules = Rules::compile(&[rule(vec![
        case(
            "object.status.shards.exists(s, s.lag > 100)",
            Health::Degraded,
            Some("'shards behind: ' + string(object.status.shards.filter(s, s.lag > 100).size())"),
        ),
        case(
            "object.status.shards.size() < object.spec.shards",
            Health::Progressing,
            None,
        ),
        case("has(object.status.shards)", Health::Healthy, None),
    ])])
    .unwrap();
    let assess = |status| rules.assess(&foo(json!({"shards": 2}), status));
    assert_eq!(
        assess(json!({"shards": [{"lag": 500}, {"lag": 0}]})),
        Assessment::degraded("shards behind: 1")
    );
    assert_eq!(
        assess(json!({"shards": [{"lag": 0}]})),
        Assessment::progressing(
            "the health rule matches: object.status.shards.size() < object.spec.shards"
        )
    );
    assert_eq!(
        assess(json!({"shards": [{"lag": 0}, {"lag": 1}], "phase": "Failed"})),
        Assessment::HEALTHY
    );
    // If the fields are missing, no case is true, and the built-in rules apply.
    assert_eq!(
        assess(json!({"phase": "Failed"})),
        Assessment::degraded("phase is Failed")
    );
}

#[test]
fn rules_of_one_kind_are_evaluated_in_order_and_affect_no_other_kind() {
    let rules = Rules::compile(&[
        rule(vec![case(
            "object.spec.size == 1",
            Health::Suspended,
            Some("'one'"),
        )]),
        rule(vec![case(
            "object.spec.size >= 1",
            Health::Degraded,
            Some("'more'"),
        )]),
    ])
    .unwrap();
    let foo = |size: i64| foo(json!({"size": size}), json!({"phase": "Ready"}));
    assert_eq!(rules.assess(&foo(1)), Assessment::suspended("one"));
    assert_eq!(rules.assess(&foo(2)), Assessment::degraded("more"));
    assert_eq!(rules.assess(&foo(0)), Assessment::HEALTHY);
    let mut other = foo(1);
    other["apiVersion"] = json!("y.example/v1");
    assert_eq!(rules.assess(&other), Assessment::HEALTHY);
    let mut going = foo(1);
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(
        rules.assess(&going),
        Assessment::progressing("being deleted")
    );
    assert_eq!(Rules::default().assess(&foo(1)), Assessment::HEALTHY);
}

#[test]
fn an_invalid_expression_is_named() {
    let error = Rules::compile(&[
        rule(vec![]),
        rule(vec![
            case("true", Health::Healthy, None),
            case("true", Health::Degraded, Some("object.")),
        ]),
    ])
    .unwrap_err();
    assert_eq!((error.rule, error.case, error.field), (1, 1, "message"));
    let text = error.to_string();
    assert!(
        text.starts_with(
            "the health rule of Foo can't be used: `message` of case 2: this is not a valid CEL"
        ),
        "{text}"
    );
}
