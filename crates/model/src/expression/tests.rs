use super::*;

#[test]
fn expressions_over_an_object_are_good() {
    for text in [
        "true",
        "object.status.phase == 'Ready'",
        "has(object.status.conditions) && object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')",
        "object.spec.list.map(x, x + 1).all(y, object.limits.exists(z, z > y))",
        "type(object.spec.replicas) == int",
        "{'a': [object.kind]}['a'][0] + ': ' + string(object.status.ready)",
    ] {
        assert_eq!(check(text, OBJECT), Ok(()), "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let told = |text: &str| check(text, OBJECT).unwrap_err();
    insta::assert_snapshot!(told(" "), @"the expression is empty");
    insta::assert_snapshot!(told("object.status.phase =="), @"this is not a valid CEL expression: mismatched input '<EOF>' at column 23 of the expression");
    insta::assert_snapshot!(told("object.a = 3"), @"this is not a valid CEL expression: token recognition error at: '= ' at column 10 of the expression");
    insta::assert_snapshot!(told("true &&\n  object..x"), @"this is not a valid CEL expression: no viable alternative at input '..' at line 2, column 10 of the expression");
    insta::assert_snapshot!(told("objekt.status.phase == 'Ready'"), @"there is no variable `objekt`; the only variable is `object`");
    insta::assert_snapshot!(told("len(object.list) == 1"), @"there is no function `len`; use one of bool, bytes, contains, double, dyn, endsWith, hasValue, int, matches, or, orValue, size, startsWith, string, type, uint, value");
    insta::assert_snapshot!(told("object.name.startWith('a')"), @"there is no function `startWith`; use one of bool, bytes, contains, double, dyn, endsWith, hasValue, int, matches, or, orValue, size, startsWith, string, type, uint, value");
    insta::assert_snapshot!(told("object.list.exists(c, c == 1) && c == 2"), @"there is no variable `c`; the only variable is `object`");
}

#[test]
fn the_highest_cost_is_known_before_evaluation() {
    let steps = |text: &str| compile(text, OBJECT).unwrap().steps(3000, 0);
    assert_eq!(steps("object.a == 1"), 1);
    assert_eq!(steps("object.a.exists(x, x == 1)"), 3000);
    assert_eq!(
        steps("object.a.all(x, object.b.exists(y, x == y))"),
        9_000_000
    );
    assert_eq!(
        steps("(object.a + object.a).all(x, object.b.exists(y, x == y))"),
        36_000_000
    );
    let matches = compile("object.a.all(x, object.b.matches(x))", OBJECT).unwrap();
    assert_eq!(matches.steps(10, 1 << 20), 10_250);
    assert_eq!(matches.steps(usize::MAX, usize::MAX), u64::MAX);
}

#[test]
fn neither_length_nor_depth_breaks_anything() {
    let nested = |open: &str, close: &str, times: usize| {
        format!("{}1{}", open.repeat(times), close.repeat(times))
    };
    for text in [
        "x".repeat(MAX_LENGTH + 1),
        nested("(", ")", 2000),
        nested("[", "]", 32),
        nested("object[", "]", 32),
        nested("object.a.exists(x, ", ")", 3),
        format!("1{}", " + 1".repeat(500)),
        format!("object{}", "[0]".repeat(600)),
        "object ? object : ".repeat(100) + "1",
    ] {
        let told = check(&text, OBJECT).unwrap_err();
        assert!(told.len() < 400, "{told}");
    }
}
