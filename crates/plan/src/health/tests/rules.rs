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
fn the_first_true_case_says_it() {
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
            "by a rule of the fleet: object.status.shards.size() < object.spec.shards"
        )
    );
    assert_eq!(
        assess(json!({"shards": [{"lag": 0}, {"lag": 1}], "phase": "Failed"})),
        Assessment::HEALTHY
    );
    // Without the fields nothing is true, and what is built in says it.
    assert_eq!(
        assess(json!({"phase": "Failed"})),
        Assessment::degraded("phase is Failed")
    );
}

#[test]
fn rules_of_one_kind_follow_each_other_and_reach_no_other() {
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
fn what_is_no_expression_is_named() {
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
        text.starts_with("the health rule of Foo can't be used: message of case 2: column "),
        "{text}"
    );
    for (expression, said) in [
        (
            "status.phase == 'Ready'",
            "`status` is unknown here; there is only `object`",
        ),
        ("object.a.exists(s, s.b == t.b)", "`t` is unknown"),
        ("object.a.exists(s, s.b) && s", "`s` is unknown"),
        ("", "column"),
        ("object.a.b.c(", "column"),
        ("nothing(object)", "there is no function `nothing`"),
    ] {
        let error = Rules::check(expression).unwrap_err();
        assert!(error.contains(said), "{expression}: {error}");
    }
    assert_eq!(
        Rules::check("object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')"),
        Ok(())
    );
    assert_eq!(
        Rules::check(
            "object.metadata.name.matches('^a.*') || size(object.spec) > 1 || 'a' in object.metadata.labels"
        ),
        Ok(())
    );
    assert_eq!(
        Rules::check("object.?status.?phase.orValue('') in ['Ready', 'Done']"),
        Ok(())
    );
}

#[test]
fn no_expression_takes_more_stack_or_time_than_there_is() {
    let nested = |begin: &str, end: &str, times: usize| {
        format!("{}1{}", begin.repeat(times), end.repeat(times))
    };
    for (expression, said) in [
        (nested("(", ")", 40), "brackets"),
        (nested("[", "]", 1000), "brackets"),
        ("(".repeat(2000), "brackets"),
        (format!("1{}", " + 1".repeat(500)), "operations"),
        (format!("object{}", ".a".repeat(1000)), "operations"),
        (nested("", " ", 3000), "longer"),
        (
            "object.a.all(a, object.a.all(b, object.a.all(c, a + b + c > 0)))".to_owned(),
            "loops",
        ),
    ] {
        let error = Rules::check(&expression).unwrap_err();
        assert!(error.contains(said), "{expression}: {error}");
    }
    for (begin, end) in [("(", ")"), ("[", "]"), ("size(", ")"), ("{'a': ", "}")] {
        assert_eq!(Rules::check(&nested(begin, end, 28)), Ok(()), "{begin}");
    }
    // Evaluated on a small stack, in a build without optimisation.
    let deep = format!("1{} > 0", " + 1".repeat(28));
    let rules = Rules::compile(&[rule(vec![case(&deep, Health::Suspended, None)])]).unwrap();
    assert_eq!(
        rules.assess(&foo(json!({}), json!({}))).health,
        Health::Suspended
    );
}
